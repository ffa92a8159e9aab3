// What of a plan somebody chose by hand, for measurements or because they know better than the cost model.
#pragma once

#include "../common/problems.h"

namespace ak::cuda {

enum SolveOperator {
  kSolveAffine,
  kSolveMlp,
  kSolveMlpAdjoint,
  kSolveMlpTangent,
  kSolveGated,
  kSolveGatedAdjoint,
  kSolveGatedTangent,
  kSolveOperators
};

struct PlanChoices {
  int rows = 0;        // of a block's tile; 0, here as below: the model's choice
  int64_t blocks = 0;  // in flight
  int mixed = -1;  // products of changes where the precision allows them; negative, here as below: the model's choice
  int crew = -1;   // weights split over blocks, where every product is in full
  int wgmma = -1;  // products of changes by warpgroups, where the device has those

  bool none() const { return rows == 0 && blocks == 0 && mixed < 0 && crew < 0 && wgmma < 0; }
};

enum StepOperator { kAndersonStep, kResidualNorm, kStepOperators };

// Of these; of residual_norm the first two.
struct StepChoices {
  int warp = -1;       // a warp takes a problem, or a block; negative, here as below: the model's choice
  int64_t blocks = 0;  // in flight; 0: the model's choice
  int split = -1;      // several blocks take the chunks of a problem
  int kept = -1;       // chunks whose h a team keeps in shared memory between the sweeps, where it takes so many
  int solvers = 0;     // small systems a team solves at once, where there are so many; 0: the model's choice
};

template <class T>
SolveOperator operator_of(const AffineProblem<T>&) {
  return kSolveAffine;
}
template <class T>
SolveOperator operator_of(const MlpProblem<T>&) {
  return kSolveMlp;
}
template <class T>
SolveOperator operator_of(const MlpLinearProblem<T>& problem) {
  return problem.adjoint ? kSolveMlpAdjoint : kSolveMlpTangent;
}
template <class T>
SolveOperator operator_of(const GatedProblem<T>&) {
  return kSolveGated;
}
template <class T>
SolveOperator operator_of(const GatedLinearProblem<T>& problem) {
  return problem.adjoint ? kSolveGatedAdjoint : kSolveGatedTangent;
}

}  // namespace ak::cuda
