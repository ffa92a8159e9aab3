// The fused step for maps the package does not know: what the binding hands to the kernel.
//
// One call takes f(z) at the current iterates of all problems and writes the next iterates: residual norms,
// stopping, Anderson mixing and the choice of Auto, per problem. Nothing is allocated.
#pragma once

#include "../common/step_problem.h"
#include "kernels.h"

namespace ak {

// Entries whose sums are accumulated as one piece, by one thread: fixed, so that a result depends on neither the
// number of threads nor the batch.
constexpr int64_t kStepChunk = 65536;

constexpr int64_t step_chunks(int64_t entries) { return entries > 0 ? (entries + kStepChunk - 1) / kStepChunk : 1; }
constexpr int64_t control_columns(int64_t groups, int64_t entries, int slots) {
  return kResultDoubles + kStateDoubles + groups * (group_doubles(slots) + step_chunks(entries) * chunk_doubles(slots));
}

struct ResidualProblem {
  StateType type;
  int64_t problems, entries;
  const void* z;
  const void* fz;
  double* squares;  // [problems, step_chunks(entries), 2]: |f(z) - z|^2 and |f(z)|^2 of every chunk
};

struct StepKernels {
  void (*anderson_step)(const StepProblem&, const SolveOptions&, const Executor&);
  void (*residual_norm)(const ResidualProblem&, const Executor&);
};

}  // namespace ak
