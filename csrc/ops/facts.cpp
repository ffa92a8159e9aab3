// What was built and what the kernels would do, for `attractor-kernels info` and the profiler. Not tensor
// operators, so pybind11 rather than torch's ABI. Linked to the kernel library itself: what is reported is what runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <stdexcept>
#include <string>

#include "../cpu/dispatch.h"
#include "build_facts.h"
#include "plans.h"

namespace py = pybind11;

namespace {

py::dict build() {
  py::dict flags;
  for (const auto& set : kKernelFlags) flags[set.name] = set.flags;
  py::dict facts;
  facts["torch"] = kBuiltWithTorch;
  facts["target_torch"] = kTargetTorch;
#ifdef __clang__
  facts["compiler"] = "clang " __clang_version__;
#else
  facts["compiler"] = "gcc " __VERSION__;
#endif
  facts["pybind11"] = std::to_string(PYBIND11_VERSION_MAJOR) + "." + std::to_string(PYBIND11_VERSION_MINOR);
  facts["common_flags"] = kCommonFlags;
  facts["kernel_flags"] = flags;
  py::dict cuda;
  cuda["nvcc"] = kNvccVersion;
  cuda["architectures"] = kCudaArchitectures;
  cuda["absent"] = kCudaAbsent;
  facts["cuda"] = cuda;
  return facts;
}

py::dict instruction_sets() {
  int count = 0;
  const ak::InstructionSet* sets = ak::instruction_sets(&count);
  py::dict supported;
  for (int i = 0; i < count; ++i) supported[sets[i].name] = sets[i].supported();
  return supported;
}

std::string instruction_set() { return ak::instruction_set().name; }

void set_instruction_set(const std::string& name) {
  if (!ak::set_instruction_set(name.c_str()))
    throw std::invalid_argument("name is '" + name + "'; it must be an instruction set this processor supports");
}

// As the operating system tells; left out where it does not.
py::dict cache_bytes() {
  py::dict sizes;
#ifdef _SC_LEVEL1_DCACHE_SIZE
  const std::pair<const char*, int> levels[] = {
      {"L1d", _SC_LEVEL1_DCACHE_SIZE}, {"L2", _SC_LEVEL2_CACHE_SIZE}, {"L3", _SC_LEVEL3_CACHE_SIZE}};
  for (const auto& [level, key] : levels) {
    const long size = sysconf(key);
    if (size > 0) sizes[level] = size;
  }
#endif
  return sizes;
}

py::dict plan_affine(int64_t rows, int64_t dim, int solver, int history, int element_size, int threads) {
  const ak::TilePlan plan = ak::instruction_set().plan_affine(rows, dim, solver, history, element_size, threads);
  py::dict facts;
  facts["tile_rows"] = plan.tile_rows;
  facts["block_rows"] = plan.block_rows;
  facts["block_columns"] = plan.block_columns;
  facts["depth"] = plan.depth;
  facts["threads"] = plan.threads;
  facts["history"] = plan.history;
  facts["anderson_price"] = plan.anderson_price;
  facts["packed_bytes"] = plan.packed_bytes;
  facts["scratch_bytes"] = plan.scratch_bytes;
  return facts;
}

}  // namespace

PYBIND11_MODULE(_facts, module) {
  module.doc() = "Facts of the compiled CPU library; import torch first.";
  module.def("build", &build, "What the library was built with: torch, oldest torch it loads in, compiler, flags.");
  module.def("instruction_sets", &instruction_sets, "Compiled in, best first, and whether this processor has each.");
  module.def("instruction_set", &instruction_set, "The one in use.");
  module.def("set_instruction_set", &set_instruction_set, py::arg("name"),
             "Use another, in this process; for tests and measurements.");
  module.def("cache_bytes", &cache_bytes, "Cache sizes by level.");
  module.def("plan_affine", &plan_affine, py::arg("rows"), py::arg("dim"), py::arg("solver"), py::arg("history"),
             py::arg("element_size"), py::arg("threads"), "How a solve of this shape would be cut into tiles.");
  define_cuda_plans(module);
}
