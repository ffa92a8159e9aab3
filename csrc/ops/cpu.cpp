// The fused solves as torch operators of the CPU, through torch's stable ABI. Schemas are attractor_kernels/ops/*.py;
// here tensors become pointers.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "../cpu/dispatch.h"
#include "executor.h"
#include "solve_arguments.h"

namespace {

using namespace ak::ops;

void check(const Tensor& t, const char* name, Shape shape) {
  check_shape(t, name, shape);
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU, like z0");
}

void check(const std::optional<Tensor>& t, const char* name, Shape shape) {
  if (t.has_value()) check(*t, name, shape);
}

// Straight through the C interface: a solve of one small row is shorter than five calls of the dispatcher.
Tensor empty(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor empty(int64_t n, int32_t dtype) {
  const int64_t size[] = {n}, stride[] = {1};
  return empty(1, size, stride, dtype);
}

Tensor empty(int64_t rows, int64_t columns, int32_t dtype) {
  const int64_t size[] = {rows, columns}, stride[] = {columns > 1 ? columns : 1, 1};
  return empty(2, size, stride, dtype);
}

// The outputs of a solve, and where a kernel writes them.
class Output {
 public:
  Output(const Tensor& z0, ScalarType type, const ak::SolveOptions& options, bool trace) {
    const int64_t rows = z0.size(0);
    z = empty(rows, z0.size(1), type == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
    steps = empty(rows, aoti_torch_dtype_int32());
    residual = empty(rows, aoti_torch_dtype_float32());
    status = empty(rows, aoti_torch_dtype_uint8());
    history = empty(trace ? options.max_steps : 0, rows, aoti_torch_dtype_float32());
    if (trace) torch::stable::fill_(history, std::numeric_limits<double>::quiet_NaN());
  }

  template <class T>
  ak::SolveResult<T> pointers(bool trace) {
    return {static_cast<T*>(z.mutable_data_ptr()), static_cast<int32_t*>(steps.mutable_data_ptr()),
            static_cast<float*>(residual.mutable_data_ptr()), static_cast<uint8_t*>(status.mutable_data_ptr()),
            trace ? static_cast<float*>(history.mutable_data_ptr()) : nullptr};
  }

  Solved tensors(ScalarType type) { return {in_type(z, type), steps, residual, status, history}; }

 private:
  Tensor z, steps, residual, status, history;
};

// Calls solve(T{}) for the type the solve runs in.
template <class Solve>
void with_type(ScalarType type, const Solve& solve) {
  if (type == ScalarType::Double)
    solve(double{});
  else
    solve(float{});
}

Solved solve_affine(Tensor z0, Tensor u, Tensor weight, std::optional<Tensor> leak, std::optional<Tensor> scale,
                    int64_t activation, int64_t pieces, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  check(u, "u", {rows, dim});
  check(weight, "weight", {dim, dim});
  check(leak, "leak", {dim});
  check(scale, "scale", {rows, dim});
  STD_TORCH_CHECK(pieces >= 0 && (activation != ak::kPartialRelu || pieces <= dim), "pieces must be between 0 and ",
                  dim, ", got ", pieces);
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type), w = in_type(weight, type);
  const auto leak_row = rows_of(leak, type), scale_rows = rows_of(scale, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
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
    ak::solve_kernels<T>().affine(problem, options, out.pointers<T>(trace), torch_executor());
  });
  return out.tensors(z0.scalar_type());
}

std::tuple<Tensor, Tensor> affine_slope(Tensor a, Tensor v, std::optional<Tensor> scale, int64_t activation,
                                        int64_t pieces) {
  check_start(a);
  const int64_t rows = a.size(0), dim = a.size(1);
  check(a, "a", {rows, dim});
  check(v, "v", {rows, dim});
  check(scale, "scale", {rows, dim});
  STD_TORCH_CHECK(pieces >= 0 && (activation != ak::kPartialRelu || pieces <= dim), "pieces must be between 0 and ",
                  dim, ", got ", pieces);
  const ScalarType given = a.scalar_type(), type = working_type(given);
  const Tensor a_rows = rows_of(a, type), v_rows = rows_of(v, type);
  const auto scale_rows = rows_of(scale, type);
  const int32_t code = type == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  Tensor d = empty(rows, dim, code), dv = empty(rows, dim, code);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    ak::solve_kernels<T>().slopes(
        {rows, dim, data<T>(a_rows), data<T>(v_rows), data<T>(scale_rows), static_cast<T*>(d.mutable_data_ptr()),
         static_cast<T*>(dv.mutable_data_ptr()), int(activation), int(pieces)},
        torch_executor());
  });
  return {in_type(d, given), in_type(dv, given)};
}

Solved solve_mlp(Tensor z0, Tensor u, Tensor w1, std::optional<Tensor> b1, Tensor w2, std::optional<Tensor> b2,
                 std::optional<Tensor> leak, double skip, int64_t norm, double norm_eps, int64_t activation, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  const int64_t hidden = columns(w2, "w2"), wide = activation == ak::kSwiglu ? 2 * hidden : hidden;
  check(u, "u", {rows, dim});
  check(w1, "w1", {wide, dim});
  check(b1, "b1", {wide});
  check(w2, "w2", {dim, hidden});
  check(b2, "b2", {dim});
  check(leak, "leak", {dim});
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type);
  const Tensor w1_typed = in_type(w1, type), w2_typed = in_type(w2, type);
  const auto b1_row = rows_of(b1, type), b2_row = rows_of(b2, type), leak_row = rows_of(leak, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ak::MlpProblem<T> problem{.rows = rows,
                                    .dim = dim,
                                    .hidden = hidden,
                                    .z0 = data<T>(z0_rows),
                                    .u = data<T>(u_rows),
                                    .w1 = matrix<T>(w1_typed),
                                    .b1 = data<T>(b1_row),
                                    .w2 = matrix<T>(w2_typed),
                                    .b2 = data<T>(b2_row),
                                    .leak = data<T>(leak_row),
                                    .skip = T(skip),
                                    .norm = int(norm),
                                    .norm_eps = T(norm_eps),
                                    .activation = int(activation)};
    ak::solve_kernels<T>().mlp(problem, options, out.pointers<T>(trace), torch_executor());
  });
  return out.tensors(z0.scalar_type());
}

template <bool adjoint>
Solved solve_mlp_linear(Tensor z0, Tensor v, Tensor q, Tensor n, Tensor rinv, Tensor w1, Tensor w2,
                        std::optional<Tensor> leak, double skip, int64_t norm, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  const int64_t hidden = columns(w2, "w2"), wide = columns(q, "q");
  STD_TORCH_CHECK(wide == hidden || wide == 2 * hidden, "q must have ", hidden, " or ", 2 * hidden, " columns, got ",
                  wide);
  check(v, "v", {rows, dim});
  check(q, "q", {rows, wide});
  check(n, "n", {rows, dim});
  check(rinv, "rinv", {rows});
  check(w1, "w1", {wide, dim});
  check(w2, "w2", {dim, hidden});
  check(leak, "leak", {dim});
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), v_rows = rows_of(v, type), q_rows = rows_of(q, type);
  const Tensor n_rows = rows_of(n, type), rinv_row = rows_of(rinv, type);
  const Tensor w1_typed = in_type(w1, type), w2_typed = in_type(w2, type);
  const auto leak_row = rows_of(leak, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ak::MlpLinearProblem<T> problem{.rows = rows,
                                          .dim = dim,
                                          .hidden = hidden,
                                          .w0 = data<T>(z0_rows),
                                          .v = data<T>(v_rows),
                                          .q = data<T>(q_rows),
                                          .n = data<T>(n_rows),
                                          .rinv = data<T>(rinv_row),
                                          .w1 = matrix<T>(w1_typed),
                                          .w2 = matrix<T>(w2_typed),
                                          .leak = data<T>(leak_row),
                                          .skip = T(skip),
                                          .norm = int(norm),
                                          .adjoint = adjoint};
    ak::solve_kernels<T>().mlp_linear(problem, options, out.pointers<T>(trace), torch_executor());
  });
  return out.tensors(z0.scalar_type());
}

Solved solve_gated(Tensor z0, Tensor u, Tensor weight, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  check(u, "u", {rows, 2 * dim});
  check(weight, "weight", {2 * dim, dim});
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type), w = in_type(weight, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ak::GatedProblem<T> problem{
        .rows = rows, .dim = dim, .z0 = data<T>(z0_rows), .u = data<T>(u_rows), .weight = matrix<T>(w)};
    ak::solve_kernels<T>().gated(problem, options, out.pointers<T>(trace), torch_executor());
  });
  return out.tensors(z0.scalar_type());
}

template <bool adjoint>
Solved solve_gated_linear(Tensor z0, Tensor v, Tensor q, Tensor c, Tensor weight, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  check(v, "v", {rows, dim});
  check(q, "q", {rows, 2 * dim});
  check(c, "c", {rows, dim});
  check(weight, "weight", {2 * dim, dim});
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), v_rows = rows_of(v, type), q_rows = rows_of(q, type);
  const Tensor c_rows = rows_of(c, type), w = in_type(weight, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ak::GatedLinearProblem<T> problem{.rows = rows,
                                            .dim = dim,
                                            .w0 = data<T>(z0_rows),
                                            .v = data<T>(v_rows),
                                            .q = data<T>(q_rows),
                                            .c = data<T>(c_rows),
                                            .weight = matrix<T>(w),
                                            .adjoint = adjoint};
    ak::solve_kernels<T>().gated_linear(problem, options, out.pointers<T>(trace), torch_executor());
  });
  return out.tensors(z0.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CPU, m) {
  m.impl("solve_affine", TORCH_BOX(&solve_affine));
  m.impl("affine_slope", TORCH_BOX(&affine_slope));
  m.impl("solve_mlp", TORCH_BOX(&solve_mlp));
  m.impl("solve_mlp_adjoint", TORCH_BOX(&solve_mlp_linear<true>));
  m.impl("solve_mlp_tangent", TORCH_BOX(&solve_mlp_linear<false>));
  m.impl("solve_gated", TORCH_BOX(&solve_gated));
  m.impl("solve_gated_adjoint", TORCH_BOX(&solve_gated_linear<true>));
  m.impl("solve_gated_tangent", TORCH_BOX(&solve_gated_linear<false>));
}
