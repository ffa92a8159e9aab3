// From the arguments of a solving operator to what the kernels of either device take.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>

#include "../common/problems.h"
#include "../common/small_solve.h"

namespace ak::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Solved = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// attractor_kernels/ops/*.py say it better, before they call; this keeps a raw call of an operator from reading
// outside its arguments.
using Shape = std::initializer_list<int64_t>;

inline bool has_shape(const Tensor& t, Shape shape) {
  if (t.dim() != int64_t(shape.size())) return false;
  int64_t d = 0;
  for (const int64_t size : shape)
    if (t.size(d++) != size) return false;
  return true;
}

inline std::string text(const int64_t* sizes, size_t count) {
  std::string out = "[";
  for (size_t i = 0; i < count; ++i) out += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return out + "]";
}

inline void check_shape(const Tensor& t, const char* name, Shape shape) {
  STD_TORCH_CHECK(has_shape(t, shape), name, " must have shape ", text(shape.begin(), shape.size()), ", got ",
                  text(t.sizes().data(), t.sizes().size()));
}

inline void check_start(const Tensor& z0) {
  const ScalarType type = z0.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                      type == ScalarType::BFloat16,
                  "z0 must be float32, float64, bfloat16 or float16");
  STD_TORCH_CHECK(z0.dim() == 2, "z0 must have two dimensions, got ", z0.dim());
}

inline void check_options(const SolveOptions& o) {
  STD_TORCH_CHECK(o.solver >= kPicard && o.solver <= kAuto, "solver must be 0, 1 or 2, got ", o.solver);
  STD_TORCH_CHECK(o.solver == kPicard || (o.history >= 1 && o.history <= kMaxHistory), "history must be between 1 and ",
                  kMaxHistory, ", got ", o.history);
  STD_TORCH_CHECK(o.max_steps >= 1, "max_steps must be at least 1, got ", o.max_steps);
  STD_TORCH_CHECK(o.damping != 0, "damping must not be 0");
}

inline int64_t columns(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2, name, " must have two dimensions, got ", t.dim());
  return t.size(1);
}

// Half-precision states are solved in float32.
inline ScalarType working_type(ScalarType t) { return t == ScalarType::Double ? t : ScalarType::Float; }

inline Tensor in_type(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

inline Tensor rows_of(const Tensor& t, ScalarType type) {
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

inline std::optional<Tensor> rows_of(const std::optional<Tensor>& t, ScalarType type) {
  if (!t.has_value()) return std::nullopt;
  return rows_of(*t, type);
}

template <class T>
Matrix<T> matrix(const Tensor& t) {
  return {data<T>(t), t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

// How every solving operator's arguments end.
#define AK_TAIL                                                                                               \
  int64_t solver, int64_t history, double damping, double ridge, double rtol, double atol, int64_t max_steps, \
      int64_t min_steps, bool keep_best, bool trace, bool mixed
#define AK_OPTIONS \
  {int(solver), int(history), damping, ridge, rtol, atol, int(max_steps), int(min_steps), keep_best, mixed}

}  // namespace ak::ops
