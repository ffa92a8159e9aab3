// How the CUDA kernels would be launched on a device that need not be there.
#include "plans.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/affine_cell.h"
#include "../cuda/crew.h"
#include "../cuda/gated_cell.h"
#include "../cuda/mlp_cell.h"
#include "../cuda/plan_table.h"
#include "../cuda/residual_norm.h"
#include "build_facts.h"

namespace py = pybind11;

namespace {

ak::cuda::DeviceFacts device_facts(int processors, int shared_per_block, int capability = 0) {
  ak::cuda::DeviceFacts device{};
  device.processors = processors;
  device.shared_per_block = shared_per_block;
  device.capability = capability;
  device.wgmma = kWgmma && capability == 90;
  return device;
}

struct SolveCall {
  int64_t rows, dim, hidden;
  ak::SolveOptions options;
  ak::cuda::DeviceFacts device;
  ak::cuda::PlanChoices choices;
  ak::cuda::PlanTable table;
};

py::dict tile_facts(const SolveCall& call, const ak::cuda::RowPlan& plan, const char* cell) {
  if (plan.refused != nullptr) throw std::invalid_argument(plan.refused);
  py::dict facts;
  facts["kernel"] = std::string("solve_kernel<") + cell + ">";
  facts["mixed"] = plan.mixed();
  facts["products"] = plan.products == ak::cuda::kFull  ? "full"
                      : plan.products == ak::cuda::kMma ? "mma.sync"
                                                        : "wgmma";
  facts["tile_rows"] = plan.tile_rows;
  facts["teams"] = plan.teams;
  facts["warps"] = plan.teams * plan.threads / 32;
  facts["blocks"] = plan.blocks;
  facts["history"] = plan.history;
  facts["anderson_price"] = plan.anderson_price;
  facts["shared_bytes"] = plan.shared_bytes;
  facts["scratch_bytes"] = plan.scratch_bytes;
  facts["placement"] = call.options.solver == ak::kPicard ? "none" : "global scratch, held in the second-level cache";
  return facts;
}

py::dict crew_facts(const ak::cuda::CrewPlan& plan) {
  py::dict facts;
  facts["kernel"] = plan.cluster ? "crew_kernel, a cluster" : "crew_kernel, the whole grid";
  facts["mixed"] = false;
  facts["products"] = "full";
  facts["tile_rows"] = plan.rows;
  facts["warps"] = ak::cuda::kCrewThreads / 32;
  facts["blocks"] = plan.members * plan.crews;
  facts["history"] = plan.history;
  facts["anderson_price"] = plan.anderson_price;
  facts["shared_bytes"] = plan.at.shared_bytes;
  facts["scratch_bytes"] = plan.scratch_bytes;
  facts["placement"] = plan.history == 0 ? "none" : "shared memory";
  facts["members"] = plan.members;
  facts["outputs"] = plan.share;
  facts["barriers"] = plan.history == 0 || plan.replicated ? 1 : 2;
  facts["step_nanoseconds"] = plan.step_time;
  return facts;
}

template <class Problem>
Problem problem_of(const SolveCall& call, bool adjoint) {
  Problem problem;
  problem.rows = call.rows;
  problem.dim = call.dim;
  if constexpr (requires { problem.hidden; }) problem.hidden = problem.w1.outputs = call.hidden;
  if constexpr (requires { problem.adjoint; }) problem.adjoint = adjoint;
  return problem;
}

template <class Cell>
py::dict plan_cell(const SolveCall& call, bool adjoint, const char* name) {
  const auto problem = problem_of<typename Cell::Problem>(call, adjoint);
  ak::cuda::ToldPlan told = ak::cuda::told_plan(call.choices, call.table, ak::cuda::plan_call(problem, call.options));
  const ak::cuda::RowPlan plan = ak::cuda::planned(told, [&](const ak::cuda::PlanChoices& choices) {
    return ak::cuda::plan_rows<typename Cell::Scalar>(Cell::size(problem), call.options, call.device, choices);
  });
  ak::cuda::CrewPlan crew{};
  bool split = false;
  if constexpr (std::is_same_v<Cell, ak::cuda::AffineCell<typename Cell::Scalar>>)
    split = ak::cuda::crew_beats_rows(problem, call.options, call.device, plan, crew, told.choices.crew);
  py::dict facts = split ? crew_facts(crew) : tile_facts(call, plan, name);
  facts["measured"] = told.measured;
  return facts;
}

template <class T>
py::dict plan_in(const std::string& op, const SolveCall& call) {
  using namespace ak::cuda;
  const bool adjoint = op.ends_with("_adjoint"), linear = adjoint || op.ends_with("_tangent");
  if (op == "solve_affine") return plan_cell<AffineCell<T>>(call, false, "AffineCell");
  if (op == "solve_mlp") return plan_cell<MlpCell<T>>(call, false, "MlpCell");
  if (op == "solve_gated") return plan_cell<GatedCell<T>>(call, false, "GatedCell");
  if (linear && op.starts_with("solve_mlp_")) return plan_cell<MlpLinearCell<T>>(call, adjoint, "MlpLinearCell");
  if (linear && op.starts_with("solve_gated_")) return plan_cell<GatedLinearCell<T>>(call, adjoint, "GatedLinearCell");
  throw std::invalid_argument("no CUDA kernel is called " + op);
}

py::dict cuda_plan_solve(const std::string& op, int64_t rows, int64_t dim, int64_t hidden, int solver, int history,
                         bool mixed, int element_size, int processors, int shared_per_block, int capability,
                         int tile_rows, int64_t blocks, int choose_mixed, int choose_crew, int choose_wgmma,
                         const std::vector<std::array<int64_t, ak::cuda::kMeasuredColumns>>& table) {
  SolveCall call{};
  call.rows = rows;
  call.dim = dim;
  call.hidden = hidden;
  call.options.solver = solver;
  call.options.history = history;
  call.options.mixed = mixed;
  call.device = device_facts(processors, shared_per_block, capability);
  call.choices = {tile_rows, blocks, choose_mixed, choose_crew, choose_wgmma};
  call.table = ak::cuda::plan_table(table.empty() ? nullptr : table.front().data(), int64_t(table.size()));
  return element_size == 8 ? plan_in<double>(op, call) : plan_in<float>(op, call);
}

ak::StateType state_type(const std::string& name) {
  if (name == "float32") return ak::StateType::kFloat32;
  if (name == "float64") return ak::StateType::kFloat64;
  if (name == "bfloat16") return ak::StateType::kBFloat16;
  if (name == "float16") return ak::StateType::kFloat16;
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16, got " + name);
}

py::dict cuda_plan_step(int64_t problems, int64_t groups, int64_t entries, int slots, int64_t stride,
                        const std::string& dtype, int processors, int shared_per_block, int warp, int64_t blocks,
                        int split, int kept, int solvers) {
  ak::StepProblem problem{};
  problem.type = state_type(dtype);
  problem.problems = problems;
  problem.groups = groups;
  problem.entries = entries;
  problem.slots = slots;
  problem.stride = stride;
  const ak::cuda::StepChoices choices{warp, blocks, split, kept, solvers};
  const auto [plan, refused] = ak::cuda::plan_step(problem, device_facts(processors, shared_per_block), choices);
  if (refused != nullptr) throw std::invalid_argument(refused);
  const int teams_per_block = plan.small ? ak::cuda::kBlockThreads / 32 : 1;
  py::dict facts;
  facts["team"] = plan.small ? "warp" : "block";
  facts["split"] = plan.split;
  facts["chunk"] = plan.chunk;
  facts["chunks"] = plan.chunks;
  facts["teams"] = plan.teams;
  facts["blocks"] = plan.teams / teams_per_block;
  facts["solvers"] = plan.solvers;
  facts["kept_chunks"] = plan.kept_chunks;
  facts["wide_access"] = plan.wide_access;
  facts["shared_bytes"] = plan.team_bytes * teams_per_block;
  return facts;
}

py::dict cuda_plan_residual(int64_t problems, int64_t entries, const std::string& dtype, int warp, int64_t blocks) {
  ak::cuda::ResidualProblem problem{};
  problem.type = state_type(dtype);
  problem.problems = problems;
  problem.entries = entries;
  const ak::cuda::ResidualPlan plan = ak::cuda::plan_residual(problem, {warp, blocks});
  if (plan.refused != nullptr) throw std::invalid_argument(plan.refused);
  py::dict facts;
  facts["team"] = plan.small ? "warp" : "block";
  facts["chunks"] = plan.chunks;
  facts["blocks"] = plan.blocks;
  facts["wide_access"] = plan.wide_access;
  return facts;
}

}  // namespace

void define_cuda_plans(py::module_& module) {
  module.def("cuda_plan_solve", &cuda_plan_solve, py::arg("op"), py::arg("rows"), py::arg("dim"), py::arg("hidden"),
             py::arg("solver"), py::arg("history"), py::arg("mixed"), py::arg("element_size"), py::arg("processors"),
             py::arg("shared_per_block"), py::arg("capability"), py::arg("tile_rows") = 0, py::arg("blocks") = 0,
             py::arg("choose_mixed") = -1, py::arg("choose_crew") = -1, py::arg("choose_wgmma") = -1,
             py::arg("table") = py::list(),
             "How the CUDA kernel of an operator would cut up a solve on a device of so many multiprocessors, with "
             "what was chosen by hand (0 or negative: nothing), or else what a table has (csrc/cuda/plan_table.h). "
             "ValueError where what was chosen by hand cannot be had.");
  module.def("cuda_plan_step", &cuda_plan_step, py::arg("problems"), py::arg("groups"), py::arg("entries"),
             py::arg("slots"), py::arg("stride"), py::arg("dtype"), py::arg("processors"), py::arg("shared_per_block"),
             py::arg("warp") = -1, py::arg("blocks") = 0, py::arg("split") = -1, py::arg("kept") = -1,
             py::arg("solvers") = 0,
             "How the CUDA kernel would cut up a fused step, with what was chosen by hand (as StepChoices of "
             "csrc/cuda/plan_choices.h). ValueError where that cannot be had.");
  module.def("cuda_plan_residual", &cuda_plan_residual, py::arg("problems"), py::arg("entries"), py::arg("dtype"),
             py::arg("warp") = -1, py::arg("blocks") = 0,
             "The same of the kernel of residual_norm; 0 or negative: the model's choice.");
}
