// The affine solve as a torch operator of CUDA devices, through torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "../common/activations.h"
#include "../cuda/solve_cells.h"
#include "cuda_call.h"
#include "solve_arguments.h"

namespace {

using namespace ak::ops;

Tensor empty_like(const Tensor& z0, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) {
  return torch::stable::new_empty(z0, sizes, type);
}

template <class T, class Problem>
Solved solve_rows(const CudaCall& call, const Tensor& z0, const Problem& problem, const ak::SolveOptions& options,
                  bool trace) {
  const int64_t rows = problem.rows;
  const Tensor z = empty_like(z0, {rows, problem.dim}, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  const Tensor steps = empty_like(z0, {rows}, ScalarType::Int), status = empty_like(z0, {rows}, ScalarType::Byte);
  const Tensor residual = empty_like(z0, {rows}, ScalarType::Float);
  Tensor kept = empty_like(z0, {trace ? options.max_steps : 0, rows}, ScalarType::Float);
  if (trace) torch::stable::fill_(kept, std::numeric_limits<double>::quiet_NaN());
  ak::cuda::DeviceFacts device{};
  call.done(ak::cuda::device_facts(device));
  const ak::cuda::RowPlan plan = ak::cuda::plan_solve(problem, options, device);
  const Tensor scratch = empty_like(z0, {plan.scratch_bytes}, ScalarType::Byte);
  const ak::SolveResult<T> result{
      static_cast<T*>(z.mutable_data_ptr()), static_cast<int32_t*>(steps.mutable_data_ptr()),
      static_cast<float*>(residual.mutable_data_ptr()), static_cast<uint8_t*>(status.mutable_data_ptr()),
      trace ? static_cast<float*>(kept.mutable_data_ptr()) : nullptr};
  call.done(ak::cuda::solve(problem, options, result, plan, scratch.mutable_data_ptr(), call.stream()));
  return {in_type(z, z0.scalar_type()), steps, residual, status, kept};
}

Solved solve_affine(Tensor z0, Tensor u, Tensor weight, std::optional<Tensor> leak, std::optional<Tensor> scale,
                    int64_t activation, int64_t pieces, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
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
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type), w = in_type(weight, type);
  const auto leak_row = rows_of(leak, type), scale_rows = rows_of(scale, type);
  const auto solved = [&](auto zero) {
    using T = decltype(zero);
    const ak::AffineProblem<T> problem{rows,
                                       dim,
                                       data<T>(z0_rows),
                                       data<T>(u_rows),
                                       matrix<T>(w),
                                       data<T>(leak_row),
                                       data<T>(scale_rows),
                                       int(activation),
                                       int(pieces)};
    return solve_rows<T>(call, z0, problem, options, trace);
  };
  return type == ScalarType::Double ? solved(double{}) : solved(float{});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CUDA, m) { m.impl("solve_affine", TORCH_BOX(&solve_affine)); }
