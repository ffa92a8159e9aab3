// The fused solves as torch operators of CUDA devices, through torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include <mutex>
#include <utility>

#include "../cuda/crew.h"
#include "../cuda/plan_table.h"
#include "../cuda/solve_cells.h"
#include "cuda_call.h"
#include "solve_operators.h"

namespace {

using namespace ak::ops;

// What was chosen by hand, by operator, and what was measured, on the devices for which it was; read once a call.
class Choices {
 public:
  ak::cuda::ToldPlan of(const ak::cuda::PlanCall& call, int32_t device) {
    const std::lock_guard lock(mutex_);
    if (device >= kMaskBits || (devices_ >> device & 1) == 0) return {choices_[call.op]};
    return ak::cuda::told_plan(choices_[call.op], table_, call);
  }
  void set(int64_t op, const ak::cuda::PlanChoices& choices) {
    STD_TORCH_CHECK(op >= 0 && op < ak::cuda::kSolveOperators, "no such operator: ", op);
    const std::lock_guard lock(mutex_);
    choices_[op] = choices;
  }
  void set(int64_t devices, ak::cuda::PlanTable table) {
    const std::lock_guard lock(mutex_);
    devices_ = devices;
    table_ = std::move(table);
  }

 private:
  static constexpr int kMaskBits = 63;
  std::mutex mutex_;
  ak::cuda::PlanChoices choices_[ak::cuda::kSolveOperators];
  int64_t devices_ = 0;  // a bit each
  ak::cuda::PlanTable table_;
};
Choices chosen;

void choose_plan(int64_t op, int64_t rows, int64_t blocks, int64_t mixed, int64_t crew, int64_t wgmma) {
  chosen.set(op, {int(rows), blocks, int(mixed), int(crew), int(wgmma)});
}

void use_table(int64_t devices, Tensor rows) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == ak::cuda::kMeasuredColumns && rows.is_contiguous() &&
                      rows.is_cpu() && rows.scalar_type() == ScalarType::Long,
                  "rows must be int64 [entries, ", ak::cuda::kMeasuredColumns, "] on the CPU");
  chosen.set(devices, ak::cuda::plan_table(static_cast<const int64_t*>(rows.const_data_ptr()), rows.size(0)));
}

class Cuda {
 public:
  explicit Cuda(const Tensor& z0) : z0_(z0), call_(z0) {}

  void check(const Tensor& t, const char*) const { call_.check(t); }

  Tensor empty(int64_t n, ScalarType type) const { return torch::stable::new_empty(z0_, {n}, type); }
  Tensor empty(int64_t rows, int64_t columns, ScalarType type) const {
    return torch::stable::new_empty(z0_, {rows, columns}, type);
  }

  template <class Problem, class T>
  void solve(const Problem& problem, const ak::SolveOptions& options, const ak::SolveResult<T>& result) const {
    ak::cuda::ToldPlan told = told_for(problem, options);
    by_rows(problem, options, result, planned(problem, options, facts(), told));
  }
  // Blocks and crews round alike (csrc/cuda/sum_order.h), so the batch may choose.
  template <class T>
  void solve(const ak::AffineProblem<T>& problem, const ak::SolveOptions& options,
             const ak::SolveResult<T>& result) const {
    const ak::cuda::DeviceFacts device = facts();
    ak::cuda::ToldPlan told = told_for(problem, options);
    const ak::cuda::RowPlan plan = planned(problem, options, device, told);
    ak::cuda::CrewPlan crew{};
    if (!ak::cuda::crew_beats_rows(problem, options, device, plan, crew, told.choices.crew))
      return by_rows(problem, options, result, plan);
    const Tensor scratch = empty(crew.scratch_bytes, ScalarType::Byte);
    call_.done(ak::cuda::solve_with_crew(problem, options, result, crew, scratch.mutable_data_ptr(), call_.stream()));
  }

 private:
  ak::cuda::DeviceFacts facts() const {
    ak::cuda::DeviceFacts device{};
    call_.done(ak::cuda::device_facts(device));
    return device;
  }
  template <class Problem>
  ak::cuda::ToldPlan told_for(const Problem& problem, const ak::SolveOptions& options) const {
    return chosen.of(ak::cuda::plan_call(problem, options), z0_.get_device_index());
  }
  template <class Problem>
  static ak::cuda::RowPlan planned(const Problem& problem, const ak::SolveOptions& options,
                                   const ak::cuda::DeviceFacts& device, ak::cuda::ToldPlan& told) {
    return ak::cuda::planned(told, [&](const ak::cuda::PlanChoices& choices) {
      return ak::cuda::plan_solve(problem, options, device, choices);
    });
  }
  template <class Problem, class T>
  void by_rows(const Problem& problem, const ak::SolveOptions& options, const ak::SolveResult<T>& result,
               const ak::cuda::RowPlan& plan) const {
    STD_TORCH_CHECK(plan.refused == nullptr, "the plan chosen by hand cannot be had: ", plan.refused);
    const Tensor scratch = empty(plan.scratch_bytes, ScalarType::Byte);
    call_.done(ak::cuda::solve(problem, options, result, plan, scratch.mutable_data_ptr(), call_.stream()));
  }

  const Tensor& z0_;
  const CudaCall call_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CUDA, m) { AK_IMPLEMENT_SOLVES(m, Cuda); }

// For attractor_kernels/backends/override.py and plan_table.py, which are all that call them. op: a SolveOperator; the
// rest as PlanChoices. devices: those that the table is of, a bit each; rows: MeasuredPlans.
STABLE_TORCH_LIBRARY(attractor_kernels_plans, m) {
  m.def("choose(int op, int rows, int blocks, int mixed, int crew, int wgmma) -> ()");
  m.def("table(int devices, Tensor rows) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(attractor_kernels_plans, CompositeExplicitAutograd, m) {
  m.impl("choose", TORCH_BOX(&choose_plan));
  m.impl("table", TORCH_BOX(&use_table));
}
