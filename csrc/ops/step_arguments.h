// From the arguments of the operator `anderson_step` to what the kernels of either device take. Shapes are trusted
// only as far as no memory outside the arguments is touched.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../common/problems.h"
#include "../common/small_solve.h"
#include "../common/step_problem.h"

namespace ak::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline StateType state_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return StateType::kFloat32;
    case ScalarType::Double:
      return StateType::kFloat64;
    case ScalarType::BFloat16:
      return StateType::kBFloat16;
    default:
      STD_TORCH_CHECK(type == ScalarType::Half, "z must be float32, float64, bfloat16 or float16");
      return StateType::kFloat16;
  }
}

inline void check_state(const Tensor& t, const char* name, ScalarType type, int64_t elements) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, " must have the dtype of z");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.numel() == elements, name, " must have ", elements, " elements, got ", t.numel());
}

inline void check_buffer(const Tensor& t, const char* name, ScalarType type, int64_t elements) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.numel() >= elements, name, " must have at least ", elements, " elements, got ", t.numel());
}

// The operator's arguments that are not tensors.
struct StepOptions {
  int64_t solver;
  double damping, ridge, rtol, atol;
  int64_t max_steps, min_steps;
  bool keep_best;

  SolveOptions with_slots(int slots) const {
    SolveOptions o;
    o.solver = int(solver);
    o.history = slots > 0 ? slots - 1 : 0;
    o.damping = damping;
    o.ridge = ridge;
    o.rtol = rtol;
    o.atol = atol;
    o.max_steps = int(max_steps);
    o.min_steps = int(min_steps);
    o.keep_best = keep_best;
    return o;
  }
};

// columns(groups, entries, slots): doubles the device's kernel needs of a row of `control`.
template <class Columns>
StepProblem step_problem(const Tensor& z, const Tensor& fz, const Tensor& out, const Tensor& best,
                         const Tensor& history, const Tensor& control, const Tensor& active,
                         const std::optional<Tensor>& trace, const StepOptions& options, const Columns& columns) {
  const ScalarType type = z.scalar_type();
  const int64_t elements = z.numel();
  STD_TORCH_CHECK(history.dim() == 5 && history.size(2) == 2,
                  "history must be [problems, groups, 2, history + 1, stride]");
  StepProblem p{};
  p.type = state_type(type);
  p.problems = history.size(0);
  p.groups = history.size(1);
  p.slots = int(history.size(3));
  p.stride = history.size(4);
  const int64_t groups = p.problems * p.groups;
  p.entries = groups > 0 ? elements / groups : 0;
  STD_TORCH_CHECK(groups * p.entries == elements, "z does not divide into the problems and groups of history");
  STD_TORCH_CHECK(options.solver == kPicard || (p.slots >= 2 && p.slots <= kMaxHistory + 1 && p.stride >= p.entries),
                  "history is too small for Anderson steps");
  p.columns = columns(p.groups, p.entries, p.slots);
  check_state(z, "z", type, elements);
  check_state(fz, "fz", type, elements);
  check_state(out, "out", type, elements);
  check_state(best, "best", type, elements);
  check_buffer(history, "history", type, 0);
  check_buffer(control, "control", ScalarType::Double, p.problems * p.columns);
  check_buffer(active, "active", ScalarType::Long, 1);
  p.z = z.const_data_ptr();
  p.fz = fz.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.best = best.mutable_data_ptr();
  p.history = history.mutable_data_ptr();
  p.control = static_cast<double*>(control.mutable_data_ptr());
  p.active = static_cast<int64_t*>(active.mutable_data_ptr());
  STD_TORCH_CHECK(elements == 0 || p.z != p.out, "z and out must be different buffers");
  if (trace.has_value()) {
    check_buffer(*trace, "trace", ScalarType::Float, options.max_steps * p.problems);
    p.trace = static_cast<float*>(trace->mutable_data_ptr());
  }
  return p;
}

}  // namespace ak::ops
