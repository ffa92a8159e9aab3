// How the CUDA kernels would be launched on a device that need not be there.
#include "plans.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "../cuda/affine_cell.h"
#include "../cuda/row_plan.h"

namespace py = pybind11;

namespace {

ak::cuda::DeviceFacts device_facts(int processors, int shared_per_block) {
  ak::cuda::DeviceFacts device{};
  device.processors = processors;
  device.shared_per_block = shared_per_block;
  return device;
}

template <class T>
ak::cuda::RowPlan plan_affine(int64_t rows, int64_t dim, const ak::SolveOptions& options,
                              const ak::cuda::DeviceFacts& device) {
  ak::AffineProblem<T> problem;
  problem.rows = rows;
  problem.dim = dim;
  return ak::cuda::plan_rows<T>(ak::cuda::AffineCell<T>::size(problem), options, device);
}

py::dict cuda_plan_affine(int64_t rows, int64_t dim, int solver, int history, int element_size, int processors,
                          int shared_per_block) {
  ak::SolveOptions options;
  options.solver = solver;
  options.history = history;
  const ak::cuda::DeviceFacts device = device_facts(processors, shared_per_block);
  const ak::cuda::RowPlan plan = element_size == 8 ? plan_affine<double>(rows, dim, options, device)
                                                   : plan_affine<float>(rows, dim, options, device);
  py::dict facts;
  facts["tile_rows"] = plan.tile_rows;
  facts["warps"] = plan.threads / 32;
  facts["blocks"] = plan.blocks;
  facts["history"] = plan.history;
  facts["anderson_price"] = plan.anderson_price;
  facts["shared_bytes"] = plan.shared_bytes;
  facts["scratch_bytes"] = plan.scratch_bytes;
  return facts;
}

ak::StateType state_type(const std::string& name) {
  if (name == "float32") return ak::StateType::kFloat32;
  if (name == "float64") return ak::StateType::kFloat64;
  if (name == "bfloat16") return ak::StateType::kBFloat16;
  if (name == "float16") return ak::StateType::kFloat16;
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16, got " + name);
}

py::dict cuda_plan_step(int64_t problems, int64_t groups, int64_t entries, int slots, int64_t stride,
                        const std::string& dtype, int processors, int shared_per_block) {
  ak::StepProblem problem{};
  problem.type = state_type(dtype);
  problem.problems = problems;
  problem.groups = groups;
  problem.entries = entries;
  problem.slots = slots;
  problem.stride = stride;
  const ak::cuda::StepPlan plan = ak::cuda::plan_step(problem, device_facts(processors, shared_per_block));
  py::dict facts;
  facts["team"] = plan.small ? "warp" : "block";
  facts["split"] = plan.split;
  facts["chunk"] = plan.chunk;
  facts["chunks"] = plan.chunks;
  facts["teams"] = plan.teams;
  facts["solvers"] = plan.solvers;
  facts["kept_chunks"] = plan.kept_chunks;
  facts["wide_access"] = plan.wide_access;
  facts["shared_bytes"] = plan.team_bytes * (plan.small ? ak::cuda::kBlockThreads / 32 : 1);
  return facts;
}

}  // namespace

void define_cuda_plans(py::module_& module) {
  module.def("cuda_plan_affine", &cuda_plan_affine, py::arg("rows"), py::arg("dim"), py::arg("solver"),
             py::arg("history"), py::arg("element_size"), py::arg("processors"), py::arg("shared_per_block"),
             "How the CUDA kernel would cut up a solve on a device of so many multiprocessors.");
  module.def("cuda_plan_step", &cuda_plan_step, py::arg("problems"), py::arg("groups"), py::arg("entries"),
             py::arg("slots"), py::arg("stride"), py::arg("dtype"), py::arg("processors"), py::arg("shared_per_block"),
             "How the CUDA kernel would cut up a fused step.");
}
