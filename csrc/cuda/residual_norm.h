// The relative residual of every problem on a device: what the binding hands to the kernel, and how it is launched.
#pragma once

#include "anderson_step.h"

namespace ak::cuda {

constexpr int kResidualSums = 4;  // doubles a chunk keeps, BaseSum in step_sweeps.h

struct ResidualProblem {
  StateType type;
  int64_t problems, entries;
  const void* z;
  const void* fz;
  double* sums;       // [problems, chunks_of(entries), kResidualSums], or null where that is one chunk
  unsigned* arrived;  // [problems], set back by the call: chunks whose sums are written; or null likewise
  void* out;          // [problems], float32, or float64 for such states
};

struct ResidualPlan {
  bool small;        // a warp takes a problem
  bool wide_access;  // every row starts at a multiple of 16 bytes
  int64_t chunks;    // of a problem
  int64_t blocks;
  const char* refused;  // why it cannot be as chosen by hand; or null
};

ResidualPlan plan_residual(const ResidualProblem& problem, const StepChoices& choices = {});

// Enqueues one launch, and a memset where a problem has several chunks, on a stream of the current device; null, or why
// that is not possible.
const char* residual_norm(const ResidualProblem& problem, const ResidualPlan& plan, void* stream);

}  // namespace ak::cuda
