// The solving operators' arguments, checked and turned into problems (common/problems.h): one text for every device.
// Schemas are attractor_kernels/ops/*.py.
//
// A Device(z0) has check(t, name), which throws unless t is where z0 is; empty(rows, type) and empty(rows, columns,
// type); and solve(problem, options, result).
#pragma once

#include <limits>

#include "../common/activations.h"
#include "solve_arguments.h"

namespace ak::ops {

template <class Device>
void check(const Device& device, const Tensor& t, const char* name, Shape shape) {
  check_shape(t, name, shape);
  device.check(t, name);
}

template <class Device>
void check(const Device& device, const std::optional<Tensor>& t, const char* name, Shape shape) {
  if (t.has_value()) check(device, *t, name, shape);
}

inline void check_pieces(int64_t activation, int64_t pieces, int64_t dim) {
  STD_TORCH_CHECK(pieces >= 0 && (activation != kPartialRelu || pieces <= dim), "pieces must be between 0 and ", dim,
                  ", got ", pieces);
}

// Calls use(T{}) for the type a kernel runs in.
template <class Use>
void with_type(ScalarType type, const Use& use) {
  if (type == ScalarType::Double)
    use(double{});
  else
    use(float{});
}

// Solves make_problem(T{}), T as suits z0.
template <class Device, class MakeProblem>
Solved solved(const Device& device, const Tensor& z0, const SolveOptions& options, bool trace,
              const MakeProblem& make_problem) {
  const int64_t rows = z0.size(0);
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z = device.empty(rows, z0.size(1), type), steps = device.empty(rows, ScalarType::Int);
  const Tensor residual = device.empty(rows, ScalarType::Float), status = device.empty(rows, ScalarType::Byte);
  Tensor kept = device.empty(trace ? options.max_steps : 0, rows, ScalarType::Float);
  if (trace) torch::stable::fill_(kept, std::numeric_limits<double>::quiet_NaN());
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const SolveResult<T> result{static_cast<T*>(z.mutable_data_ptr()), static_cast<int32_t*>(steps.mutable_data_ptr()),
                                static_cast<float*>(residual.mutable_data_ptr()),
                                static_cast<uint8_t*>(status.mutable_data_ptr()),
                                trace ? static_cast<float*>(kept.mutable_data_ptr()) : nullptr};
    device.solve(make_problem(zero), options, result);
  });
  return {in_type(z, z0.scalar_type()), steps, residual, status, kept};
}

template <class Device>
Solved solve_affine(Tensor z0, Tensor u, Tensor weight, std::optional<Tensor> leak, std::optional<Tensor> scale,
                    int64_t activation, int64_t pieces, AK_TAIL) {
  const SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const Device device(z0);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  check(device, u, "u", {rows, dim});
  check(device, weight, "weight", {dim, dim});
  check(device, leak, "leak", {dim});
  check(device, scale, "scale", {rows, dim});
  check_pieces(activation, pieces, dim);
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type), w = in_type(weight, type);
  const auto leak_row = rows_of(leak, type), scale_rows = rows_of(scale, type);
  return solved(device, z0, options, trace, [&](auto zero) {
    using T = decltype(zero);
    return AffineProblem<T>{rows,
                            dim,
                            data<T>(z0_rows),
                            data<T>(u_rows),
                            matrix<T>(w),
                            data<T>(leak_row),
                            data<T>(scale_rows),
                            int(activation),
                            int(pieces)};
  });
}

template <class Device>
Solved solve_mlp(Tensor z0, Tensor u, Tensor w1, std::optional<Tensor> b1, Tensor w2, std::optional<Tensor> b2,
                 std::optional<Tensor> leak, double skip, int64_t norm, double norm_eps, int64_t activation, AK_TAIL) {
  const SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const Device device(z0);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  const int64_t hidden = columns(w2, "w2"), wide = activation == kSwiglu ? 2 * hidden : hidden;
  check(device, u, "u", {rows, dim});
  check(device, w1, "w1", {wide, dim});
  check(device, b1, "b1", {wide});
  check(device, w2, "w2", {dim, hidden});
  check(device, b2, "b2", {dim});
  check(device, leak, "leak", {dim});
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type);
  const Tensor w1_typed = in_type(w1, type), w2_typed = in_type(w2, type);
  const auto b1_row = rows_of(b1, type), b2_row = rows_of(b2, type), leak_row = rows_of(leak, type);
  return solved(device, z0, options, trace, [&](auto zero) {
    using T = decltype(zero);
    return MlpProblem<T>{.rows = rows,
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
  });
}

template <class Device, bool adjoint>
Solved solve_mlp_linear(Tensor z0, Tensor v, Tensor q, Tensor n, Tensor rinv, Tensor w1, Tensor w2,
                        std::optional<Tensor> leak, double skip, int64_t norm, AK_TAIL) {
  const SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const Device device(z0);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  const int64_t hidden = columns(w2, "w2"), wide = columns(q, "q");
  STD_TORCH_CHECK(wide == hidden || wide == 2 * hidden, "q must have ", hidden, " or ", 2 * hidden, " columns, got ",
                  wide);
  check(device, v, "v", {rows, dim});
  check(device, q, "q", {rows, wide});
  check(device, n, "n", {rows, dim});
  check(device, rinv, "rinv", {rows});
  check(device, w1, "w1", {wide, dim});
  check(device, w2, "w2", {dim, hidden});
  check(device, leak, "leak", {dim});
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), v_rows = rows_of(v, type), q_rows = rows_of(q, type);
  const Tensor n_rows = rows_of(n, type), rinv_row = rows_of(rinv, type);
  const Tensor w1_typed = in_type(w1, type), w2_typed = in_type(w2, type);
  const auto leak_row = rows_of(leak, type);
  return solved(device, z0, options, trace, [&](auto zero) {
    using T = decltype(zero);
    return MlpLinearProblem<T>{.rows = rows,
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
  });
}

template <class Device>
Solved solve_gated(Tensor z0, Tensor u, Tensor weight, AK_TAIL) {
  const SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const Device device(z0);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  check(device, u, "u", {rows, 2 * dim});
  check(device, weight, "weight", {2 * dim, dim});
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type), w = in_type(weight, type);
  return solved(device, z0, options, trace, [&](auto zero) {
    using T = decltype(zero);
    return GatedProblem<T>{
        .rows = rows, .dim = dim, .z0 = data<T>(z0_rows), .u = data<T>(u_rows), .weight = matrix<T>(w)};
  });
}

template <class Device, bool adjoint>
Solved solve_gated_linear(Tensor z0, Tensor v, Tensor q, Tensor c, Tensor weight, AK_TAIL) {
  const SolveOptions options AK_OPTIONS;
  check_start(z0);
  check_options(options);
  const Device device(z0);
  const int64_t rows = z0.size(0), dim = z0.size(1);
  check(device, v, "v", {rows, dim});
  check(device, q, "q", {rows, 2 * dim});
  check(device, c, "c", {rows, dim});
  check(device, weight, "weight", {2 * dim, dim});
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), v_rows = rows_of(v, type), q_rows = rows_of(q, type);
  const Tensor c_rows = rows_of(c, type), w = in_type(weight, type);
  return solved(device, z0, options, trace, [&](auto zero) {
    using T = decltype(zero);
    return GatedLinearProblem<T>{.rows = rows,
                                 .dim = dim,
                                 .w0 = data<T>(z0_rows),
                                 .v = data<T>(v_rows),
                                 .q = data<T>(q_rows),
                                 .c = data<T>(c_rows),
                                 .weight = matrix<T>(w),
                                 .adjoint = adjoint};
  });
}

#define AK_IMPLEMENT_SOLVES(m, Device)                                              \
  do {                                                                              \
    m.impl("solve_affine", TORCH_BOX(&solve_affine<Device>));                       \
    m.impl("solve_mlp", TORCH_BOX(&solve_mlp<Device>));                             \
    m.impl("solve_mlp_adjoint", TORCH_BOX((&solve_mlp_linear<Device, true>)));      \
    m.impl("solve_mlp_tangent", TORCH_BOX((&solve_mlp_linear<Device, false>)));     \
    m.impl("solve_gated", TORCH_BOX(&solve_gated<Device>));                         \
    m.impl("solve_gated_adjoint", TORCH_BOX((&solve_gated_linear<Device, true>)));  \
    m.impl("solve_gated_tangent", TORCH_BOX((&solve_gated_linear<Device, false>))); \
  } while (false)

}  // namespace ak::ops
