// The fused solves as torch operators of CUDA devices, through torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "../cuda/crew.h"
#include "../cuda/solve_cells.h"
#include "cuda_call.h"
#include "cuda_choices.h"
#include "solve_operators.h"

namespace {

using namespace ak::ops;

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
    return told(ak::cuda::plan_call(problem, options), z0_.get_device_index());
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
    check_granted(plan.refused);
    const Tensor scratch = empty(plan.scratch_bytes, ScalarType::Byte);
    call_.done(ak::cuda::solve(problem, options, result, plan, scratch.mutable_data_ptr(), call_.stream()));
  }

  const Tensor& z0_;
  const CudaCall call_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CUDA, m) { AK_IMPLEMENT_SOLVES(m, Cuda); }
