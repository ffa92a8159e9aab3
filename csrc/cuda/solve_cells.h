// The whole solves of the cells on a device, as the bindings call them.
#pragma once

#include "row_plan.h"

namespace ak::cuda {

// How a solve is cut up. Problem: one of common/problems.h, in float or double.
template <class Problem>
RowPlan plan_solve(const Problem& problem, const SolveOptions& options, const DeviceFacts& device,
                   const PlanChoices& choices);

// Enqueues the solve on a stream of the current device; null, or why that is not possible. scratch:
// plan.scratch_bytes, aligned to 256.
template <class Problem, class T>
const char* solve(const Problem& problem, const SolveOptions& options, const SolveResult<T>& result,
                  const RowPlan& plan, void* scratch, void* stream);

}  // namespace ak::cuda
