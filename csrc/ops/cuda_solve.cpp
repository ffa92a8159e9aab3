// The fused solves as torch operators of CUDA devices, through torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include <mutex>

#include "../cuda/crew.h"
#include "../cuda/solve_cells.h"
#include "cuda_call.h"
#include "solve_operators.h"

namespace {

using namespace ak::ops;

// What was chosen by hand, by operator; read once a call.
class Choices {
 public:
  ak::cuda::PlanChoices of(ak::cuda::SolveOperator op) {
    const std::lock_guard lock(mutex_);
    return choices_[op];
  }
  void set(int64_t op, const ak::cuda::PlanChoices& choices) {
    STD_TORCH_CHECK(op >= 0 && op < ak::cuda::kSolveOperators, "no such operator: ", op);
    const std::lock_guard lock(mutex_);
    choices_[op] = choices;
  }

 private:
  std::mutex mutex_;
  ak::cuda::PlanChoices choices_[ak::cuda::kSolveOperators];
};
Choices chosen;

void choose_plan(int64_t op, int64_t rows, int64_t blocks, int64_t mixed, int64_t crew, int64_t wgmma) {
  chosen.set(op, {int(rows), blocks, int(mixed), int(crew), int(wgmma)});
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
    const ak::cuda::PlanChoices choices = chosen.of(ak::cuda::operator_of(problem));
    by_rows(problem, options, result, ak::cuda::plan_solve(problem, options, facts(), choices));
  }
  // Blocks and crews round alike (csrc/cuda/sum_order.h), so the batch may choose.
  template <class T>
  void solve(const ak::AffineProblem<T>& problem, const ak::SolveOptions& options,
             const ak::SolveResult<T>& result) const {
    const ak::cuda::DeviceFacts device = facts();
    const ak::cuda::PlanChoices choices = chosen.of(ak::cuda::kSolveAffine);
    const ak::cuda::RowPlan plan = ak::cuda::plan_solve(problem, options, device, choices);
    ak::cuda::CrewPlan crew{};
    if (!ak::cuda::crew_beats_rows(problem, options, device, plan, crew, choices.crew))
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

// For attractor_kernels/backends/override.py, which is all that calls it. op: a SolveOperator; the rest as PlanChoices.
STABLE_TORCH_LIBRARY(attractor_kernels_plans, m) {
  m.def("choose(int op, int rows, int blocks, int mixed, int crew, int wgmma) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(attractor_kernels_plans, CompositeExplicitAutograd, m) {
  m.impl("choose", TORCH_BOX(&choose_plan));
}
