// The fused solves as torch operators of the CPU, through torch's stable ABI. Schemas and shape checks are
// attractor_kernels/ops/*.py; here tensors become pointers.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
#include <tuple>

#include "../cpu/dispatch.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Solved = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

const ak::Executor& executor() {
  thread_local ak::Executor value;
  value.threads = int(torch::stable::get_num_threads());
  value.run = [](int tasks, void (*body)(void*, int), void* context) {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) body(context, int(task));
    });
  };
  return value;
}

// Half-precision states are solved in float32.
ScalarType working_type(ScalarType t) { return t == ScalarType::Double ? t : ScalarType::Float; }

Tensor in_type(const Tensor& t, ScalarType type) { return t.scalar_type() == type ? t : torch::stable::to(t, type); }

Tensor rows_of(const Tensor& t, ScalarType type) {
  const Tensor typed = in_type(t, type);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
const T* data(const std::optional<Tensor>& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

std::optional<Tensor> rows_of(const std::optional<Tensor>& t, ScalarType type) {
  if (!t.has_value()) return std::nullopt;
  return rows_of(*t, type);
}

template <class T>
ak::Matrix<T> matrix(const Tensor& t) {
  return {data<T>(t), t.size(0), t.size(1), t.stride(0), t.stride(1)};
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

#define AK_TAIL                                                                                               \
  int64_t solver, int64_t history, double damping, double ridge, double rtol, double atol, int64_t max_steps, \
      int64_t min_steps, bool keep_best, bool trace, bool mixed
#define AK_OPTIONS \
  {int(solver), int(history), damping, ridge, rtol, atol, int(max_steps), int(min_steps), keep_best, mixed}

Solved solve_affine(Tensor z0, Tensor u, Tensor weight, std::optional<Tensor> leak, std::optional<Tensor> scale,
                    int64_t activation, int64_t pieces, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type), w = in_type(weight, type);
  const auto leak_row = rows_of(leak, type), scale_rows = rows_of(scale, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ak::AffineProblem<T> problem{z0.size(0),          z0.size(1),      data<T>(z0_rows),
                                       data<T>(u_rows),     matrix<T>(w),    data<T>(leak_row),
                                       data<T>(scale_rows), int(activation), int(pieces)};
    ak::solve_kernels<T>().affine(problem, options, out.pointers<T>(trace), executor());
  });
  return out.tensors(z0.scalar_type());
}

Solved solve_mlp(Tensor z0, Tensor u, Tensor w1, std::optional<Tensor> b1, Tensor w2, std::optional<Tensor> b2,
                 std::optional<Tensor> leak, double skip, int64_t norm, double norm_eps, int64_t activation, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type);
  const Tensor w1_typed = in_type(w1, type), w2_typed = in_type(w2, type);
  const auto b1_row = rows_of(b1, type), b2_row = rows_of(b2, type), leak_row = rows_of(leak, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ak::MlpProblem<T> problem{.rows = z0.size(0),
                                    .dim = z0.size(1),
                                    .hidden = w2.size(1),
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
    ak::solve_kernels<T>().mlp(problem, options, out.pointers<T>(trace), executor());
  });
  return out.tensors(z0.scalar_type());
}

template <bool adjoint>
Solved solve_mlp_linear(Tensor z0, Tensor v, Tensor q, Tensor n, Tensor rinv, Tensor w1, Tensor w2,
                        std::optional<Tensor> leak, double skip, int64_t norm, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), v_rows = rows_of(v, type), q_rows = rows_of(q, type);
  const Tensor n_rows = rows_of(n, type), rinv_row = rows_of(rinv, type);
  const Tensor w1_typed = in_type(w1, type), w2_typed = in_type(w2, type);
  const auto leak_row = rows_of(leak, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ak::MlpLinearProblem<T> problem{.rows = z0.size(0),
                                          .dim = z0.size(1),
                                          .hidden = w2.size(1),
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
    ak::solve_kernels<T>().mlp_linear(problem, options, out.pointers<T>(trace), executor());
  });
  return out.tensors(z0.scalar_type());
}

Solved solve_gated(Tensor z0, Tensor u, Tensor weight, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), u_rows = rows_of(u, type), w = in_type(weight, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ak::GatedProblem<T> problem{
        .rows = z0.size(0), .dim = z0.size(1), .z0 = data<T>(z0_rows), .u = data<T>(u_rows), .weight = matrix<T>(w)};
    ak::solve_kernels<T>().gated(problem, options, out.pointers<T>(trace), executor());
  });
  return out.tensors(z0.scalar_type());
}

template <bool adjoint>
Solved solve_gated_linear(Tensor z0, Tensor v, Tensor q, Tensor c, Tensor weight, AK_TAIL) {
  const ak::SolveOptions options AK_OPTIONS;
  const ScalarType type = working_type(z0.scalar_type());
  const Tensor z0_rows = rows_of(z0, type), v_rows = rows_of(v, type), q_rows = rows_of(q, type);
  const Tensor c_rows = rows_of(c, type), w = in_type(weight, type);
  Output out(z0, type, options, trace);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ak::GatedLinearProblem<T> problem{.rows = z0.size(0),
                                            .dim = z0.size(1),
                                            .w0 = data<T>(z0_rows),
                                            .v = data<T>(v_rows),
                                            .q = data<T>(q_rows),
                                            .c = data<T>(c_rows),
                                            .weight = matrix<T>(w),
                                            .adjoint = adjoint};
    ak::solve_kernels<T>().gated_linear(problem, options, out.pointers<T>(trace), executor());
  });
  return out.tensors(z0.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CPU, m) {
  m.impl("solve_affine", TORCH_BOX(&solve_affine));
  m.impl("solve_mlp", TORCH_BOX(&solve_mlp));
  m.impl("solve_mlp_adjoint", TORCH_BOX(&solve_mlp_linear<true>));
  m.impl("solve_mlp_tangent", TORCH_BOX(&solve_mlp_linear<false>));
  m.impl("solve_gated", TORCH_BOX(&solve_gated));
  m.impl("solve_gated_adjoint", TORCH_BOX(&solve_gated_linear<true>));
  m.impl("solve_gated_tangent", TORCH_BOX(&solve_gated_linear<false>));
}
