// The fused solves as torch operators of CUDA devices, through torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "../cuda/solve_cells.h"
#include "cuda_call.h"
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
    ak::cuda::DeviceFacts device{};
    call_.done(ak::cuda::device_facts(device));
    const ak::cuda::RowPlan plan = ak::cuda::plan_solve(problem, options, device);
    const Tensor scratch = empty(plan.scratch_bytes, ScalarType::Byte);
    call_.done(ak::cuda::solve(problem, options, result, plan, scratch.mutable_data_ptr(), call_.stream()));
  }

 private:
  const Tensor& z0_;
  const CudaCall call_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CUDA, m) { AK_IMPLEMENT_SOLVES(m, Cuda); }
