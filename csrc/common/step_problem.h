// The fused step for maps the package does not know: what a binding hands to a kernel, on any device.
#pragma once

#include <cstdint>

namespace ak {

enum class StateType { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int64_t element_bytes(StateType type) {
  return type == StateType::kFloat64 ? 8 : type == StateType::kFloat32 ? 4 : 2;
}

// The state z is [problems, groups, entries]; a group has Anderson weights of its own.
struct StepProblem {
  StateType type;
  int64_t problems, groups, entries;
  const void* z;    // current iterates
  const void* fz;   // f(z)
  void* out;        // in: the iterates before z; out: the next ones, or a finished problem's result
  void* best;       // like z: the best iterates, where `out` cannot keep them
  void* history;    // [problems, groups, 2, slots, stride]: a ring of g = f(z) - z, and one of h = z + damping g
  int slots;        // one more than the differences kept; 0: no history (Picard)
  int64_t stride;   // entries and padding
  double* control;  // [problems, columns], zero before the first step; each row starts with StepResult
  int64_t columns;
  float* trace;     // [max_steps, problems], or null
  int64_t* active;  // out: problems still running
};

// What a row of `control` starts with; final once status is not kRunning.
struct StepResult {
  double status, steps, residual;
};

// A row of StepProblem::control, in doubles: the result, the problem's state, then per group its state, weights and
// Gram matrix, then for every chunk of every group its sums.
constexpr int64_t kResultDoubles = 3;
constexpr int64_t kStateDoubles = 16;
constexpr int64_t group_doubles(int slots) { return 1 + slots + int64_t(slots) * slots; }
constexpr int64_t chunk_doubles(int slots) { return 5 + 2 * int64_t(slots); }

}  // namespace ak
