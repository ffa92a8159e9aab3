// The affine solve as a torch operator of CUDA devices, through torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "../common/activations.h"
#include "../cuda/solve_affine.h"
#include "cuda_call.h"
#include "solve_arguments.h"

namespace {

using namespace ak::ops;

Tensor empty_like(const Tensor& z0, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) {
  return torch::stable::new_empty(z0, sizes, type);
}

Solved solve_affine(Tensor z0, Tensor u, Tensor weight, std::optional<Tensor> leak, std::optional<Tensor> scale,
                    int64_t activation, int64_t pieces, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  STD_TORCH_CHECK(z0.scalar_type() != ScalarType::Double, "the CUDA kernel of solve_affine has no float64");
  const CudaCall call(z0);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  const auto check = [&](const Tensor& t, const char* name, Shape shape) {
    check_shape(t, name, shape);
    call.check(t);
  };
  check(u, "u", {rows, dim});
  check(weight, "weight", {dim, dim});
  if (leak.has_value()) check(*leak, "leak", {dim});
  if (scale.has_value()) check(*scale, "scale", {rows, dim});
  STD_TORCH_CHECK(pieces >= 0 && (activation != ak::kPartialRelu || pieces <= dim), "pieces must be between 0 and ",
                  dim, ", got ", pieces);
  const ScalarType type = ScalarType::Float;
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type), w = in_type(weight, type);
  const auto leak_row = rows_of(leak, type), scale_rows = rows_of(scale, type);
  const Tensor z = empty_like(z0, {rows, dim}, type), steps = empty_like(z0, {rows}, ScalarType::Int);
  const Tensor residual = empty_like(z0, {rows}, type), status = empty_like(z0, {rows}, ScalarType::Byte);
  Tensor kept = empty_like(z0, {trace ? options.max_steps : 0, rows}, type);
  if (trace) torch::stable::fill_(kept, std::numeric_limits<double>::quiet_NaN());

  ak::cuda::DeviceFacts device{};
  call.done(ak::cuda::device_facts(device));
  const ak::cuda::AffinePlan plan = ak::cuda::plan_affine(rows, dim, options, device);
  STD_TORCH_CHECK(plan.shared_bytes <= device.shared_per_block, "a state of ", dim,
                  " entries does not fit this device's shared memory");
  const Tensor scratch = empty_like(z0, {plan.scratch_bytes}, ScalarType::Byte);
  const ak::AffineProblem<float> problem{rows,
                                         dim,
                                         data<float>(z0_rows),
                                         data<float>(u_rows),
                                         matrix<float>(w),
                                         data<float>(leak_row),
                                         data<float>(scale_rows),
                                         int(activation),
                                         int(pieces)};
  const ak::SolveResult<float> result{
      static_cast<float*>(z.mutable_data_ptr()), static_cast<int32_t*>(steps.mutable_data_ptr()),
      static_cast<float*>(residual.mutable_data_ptr()), static_cast<uint8_t*>(status.mutable_data_ptr()),
      trace ? static_cast<float*>(kept.mutable_data_ptr()) : nullptr};
  call.done(ak::cuda::solve_affine(problem, options, result, plan, scratch.mutable_data_ptr(), call.stream()));
  return {in_type(z, z0.scalar_type()), steps, residual, status, kept};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CUDA, m) { m.impl("solve_affine", TORCH_BOX(&solve_affine)); }
