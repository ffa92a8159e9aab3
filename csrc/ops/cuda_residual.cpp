// The relative residual as a torch operator of CUDA devices, through torch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../cuda/residual_norm.h"
#include "cuda_call.h"
#include "cuda_choices.h"
#include "step_arguments.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor residual_norm(const Tensor& z, const Tensor& fz, int64_t batch_ndim) {
  STD_TORCH_CHECK(batch_ndim >= 0 && batch_ndim <= z.dim(), "batch_ndim must be between 0 and ", z.dim());
  const ak::ops::CudaCall call(z);
  call.check(fz);
  std::vector<int64_t> batch;
  int64_t problems = 1;
  for (int64_t d = 0; d < batch_ndim; ++d) {
    batch.push_back(z.size(d));
    problems *= z.size(d);
  }
  const ScalarType type = z.scalar_type();
  const Tensor out =
      torch::stable::new_empty(z, batch, type == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  if (problems == 0) return out;
  const Tensor z_rows = torch::stable::contiguous(z), fz_rows = torch::stable::contiguous(fz);
  ak::ops::check_state(fz_rows, "fz", type, z.numel());
  ak::cuda::ResidualProblem p{ak::ops::state_type(type),
                              problems,
                              z.numel() / problems,
                              z_rows.const_data_ptr(),
                              fz_rows.const_data_ptr(),
                              nullptr,
                              nullptr,
                              out.mutable_data_ptr()};
  const ak::cuda::ResidualPlan plan = ak::cuda::plan_residual(p, ak::ops::told(ak::cuda::kResidualNorm));
  ak::ops::check_granted(plan.refused);
  std::optional<Tensor> sums, arrived;
  if (plan.chunks > 1) {
    sums = torch::stable::new_empty(z, {problems * plan.chunks * ak::cuda::kResidualSums}, ScalarType::Double);
    arrived = torch::stable::new_empty(z, {problems}, ScalarType::Int);
    p.sums = static_cast<double*>(sums->mutable_data_ptr());
    p.arrived = static_cast<unsigned*>(arrived->mutable_data_ptr());
  }
  call.done(ak::cuda::residual_norm(p, plan, call.stream()));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CUDA, m) { m.impl("residual_norm", TORCH_BOX(&residual_norm)); }
