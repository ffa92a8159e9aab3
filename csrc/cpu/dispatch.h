// The kernels of the best instruction set this processor has, chosen once at first use.
#pragma once

#include "anderson_step.h"
#include "kernels.h"

namespace ak {

template <class Problem, class T>
using SolveFunction = void (*)(const Problem&, const SolveOptions&, const SolveResult<T>&, const Executor&);

template <class T>
struct SolveKernels {
  SolveFunction<AffineProblem<T>, T> affine;
  SolveFunction<MlpProblem<T>, T> mlp;
  SolveFunction<MlpLinearProblem<T>, T> mlp_linear;
  SolveFunction<GatedProblem<T>, T> gated;
  SolveFunction<GatedLinearProblem<T>, T> gated_linear;
  void (*slopes)(const SlopeProblem<T>&, const Executor&);
};

// A shape's plan as the chosen kernels would cut it; element_size 4 or 8.
using PlanFunction = TilePlan (*)(int64_t rows, int64_t dim, int solver, int history, int element_size, int threads);

struct InstructionSet {
  const char* name;
  bool (*supported)();
  const SolveKernels<float>* f32;
  const SolveKernels<double>* f64;
  PlanFunction plan_affine;
  const StepKernels* step;
};

#pragma GCC visibility push(default)  // these three also serve the facts module, a library of its own

// Compiled into this library, best first.
const InstructionSet* instruction_sets(int* count);

// The one in use: the best supported, unless set_instruction_set named another.
const InstructionSet& instruction_set();

// For tests and measurements; false where the name is unknown or this processor lacks it.
bool set_instruction_set(const char* name);

#pragma GCC visibility pop

template <class T>
const SolveKernels<T>& solve_kernels();

}  // namespace ak
