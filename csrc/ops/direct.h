// The fused solve of plain memory on torch's threads, past torch's dispatcher.
#pragma once

#include "../common/problems.h"

namespace ak {

#pragma GCC visibility push(default)  // for the module of csrc/ops/direct.cpp, a library of its own
void run_affine(const AffineProblem<float>&, const SolveOptions&, const SolveResult<float>&);
void run_affine(const AffineProblem<double>&, const SolveOptions&, const SolveResult<double>&);
#pragma GCC visibility pop

}  // namespace ak
