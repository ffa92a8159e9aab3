#include "cuda_choices.h"

#include <torch/csrc/stable/library.h>

#include <mutex>
#include <utility>

namespace ak::ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

class Choices {
 public:
  cuda::ToldPlan of(const cuda::PlanCall& call, int32_t device) {
    const std::lock_guard lock(mutex_);
    if (device >= kMaskBits || (devices_ >> device & 1) == 0) return {solves_[call.op]};
    return cuda::told_plan(solves_[call.op], table_, call);
  }
  cuda::StepChoices of(cuda::StepOperator op) {
    const std::lock_guard lock(mutex_);
    return steps_[op];
  }
  void set(cuda::SolveOperator op, const cuda::PlanChoices& choices) {
    const std::lock_guard lock(mutex_);
    solves_[op] = choices;
  }
  void set(cuda::StepOperator op, const cuda::StepChoices& choices) {
    const std::lock_guard lock(mutex_);
    steps_[op] = choices;
  }
  void set(int64_t devices, cuda::PlanTable table) {
    const std::lock_guard lock(mutex_);
    devices_ = devices;
    table_ = std::move(table);
  }

 private:
  static constexpr int kMaskBits = 63;
  std::mutex mutex_;
  cuda::PlanChoices solves_[cuda::kSolveOperators];
  cuda::StepChoices steps_[cuda::kStepOperators];
  int64_t devices_ = 0;  // that the table is of, a bit each
  cuda::PlanTable table_;
};
Choices chosen;

void choose_solve(int64_t op, int64_t rows, int64_t blocks, int64_t mixed, int64_t crew, int64_t wgmma) {
  STD_TORCH_CHECK(op >= 0 && op < cuda::kSolveOperators, "no such operator: ", op);
  chosen.set(cuda::SolveOperator(op), {int(rows), blocks, int(mixed), int(crew), int(wgmma)});
}

void choose_step(int64_t op, int64_t warp, int64_t blocks, int64_t split, int64_t kept, int64_t solvers) {
  STD_TORCH_CHECK(op >= 0 && op < cuda::kStepOperators, "no such operator: ", op);
  chosen.set(cuda::StepOperator(op), {int(warp), blocks, int(split), int(kept), int(solvers)});
}

void use_table(int64_t devices, Tensor rows) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == cuda::kMeasuredColumns && rows.is_contiguous() && rows.is_cpu() &&
                      rows.scalar_type() == ScalarType::Long,
                  "rows must be int64 [entries, ", cuda::kMeasuredColumns, "] on the CPU");
  chosen.set(devices, cuda::plan_table(static_cast<const int64_t*>(rows.const_data_ptr()), rows.size(0)));
}

}  // namespace

cuda::ToldPlan told(const cuda::PlanCall& call, int32_t device) { return chosen.of(call, device); }
cuda::StepChoices told(cuda::StepOperator op) { return chosen.of(op); }

// op: a SolveOperator or a StepOperator; the rest as PlanChoices and StepChoices. devices: those that the table is of,
// a bit each; rows: MeasuredPlans.
STABLE_TORCH_LIBRARY(attractor_kernels_plans, m) {
  m.def("choose_solve(int op, int rows, int blocks, int mixed, int crew, int wgmma) -> ()");
  m.def("choose_step(int op, int warp, int blocks, int split, int kept, int solvers) -> ()");
  m.def("table(int devices, Tensor rows) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(attractor_kernels_plans, CompositeExplicitAutograd, m) {
  m.impl("choose_solve", TORCH_BOX(&choose_solve));
  m.impl("choose_step", TORCH_BOX(&choose_step));
  m.impl("table", TORCH_BOX(&use_table));
}

}  // namespace ak::ops
