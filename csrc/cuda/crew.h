// The affine solve with its weights split over a crew of blocks: how it is cut up, and what the binding calls.
//
// The members of a crew hold the weights of `share` outputs each and iterate a tile of rows together. A crew is the
// whole grid (few rows: latency), or a thread-block cluster, of which many take rows from a queue.
#pragma once

#include "row_plan.h"
#include "sum_order.h"

namespace ak::cuda {

constexpr int kCrewThreads = 256;
constexpr int kCrewOutputs = 4;  // of a thread's product; 16 bytes of inputs for each
// Inputs lie in memory as segments a little apart, weights likewise: threads at work on different segments, or on
// different rows, meet different banks.
constexpr int kSegmentLd = kSegment + kSumPack;
constexpr int kSegmentPacks = kSegment / kSumPack;
template <class T>
inline constexpr int kCrewFetches = 32 / int(sizeof(T));  // packs of inputs on their way to a thread

// Where the parts of a member's shared memory begin, in bytes; of the whole crew's exchange, in entries.
struct CrewLayout {
  int64_t weights, states, leak, rings, operand, control, solvers, work, shared_exchange, shared_bytes;
  int64_t sums, overflows, exchange_entries;
};

struct CrewPlan {
  bool cluster;
  bool replicated;  // every member mixes whole rows: one barrier a step, but a history each
  int members;      // of a crew
  int64_t crews;
  int share;         // outputs of a member: a multiple of kSumGroup
  int rows;          // of a crew's tile
  int rows_at_once;  // of a thread's product
  int segments;      // of a row of the product
  int at_once;       // of them, in a pass of the product
  int history;
  double anderson_price;
  int columns;       // doubles of a row's control
  double step_time;  // of a tile, reckoned, in nanoseconds
  int64_t scratch_bytes;
  CrewLayout at;
};

// Sums of a row's first sweep: the base sums and two for every old difference.
constexpr int crew_sums(int slots) { return 4 + 2 * (slots > 2 ? slots - 2 : 0); }

// False where no crew of this device can hold the weights. `rows_plan`: how one block a tile would do it; Auto's
// history and price come from there, since a row's decisions may not depend on who takes them.
template <class T>
bool plan_crew(const AffineProblem<T>& problem, const SolveOptions& options, const DeviceFacts& device,
               const RowPlan& rows_plan, CrewPlan& plan);

// Whether a crew is expected to be done earlier than a block a tile, or is what was chosen by hand (`chosen` as
// PlanChoices::crew) and can be had; then `plan` is how. Never for "mixed", whose products may round in another way
// there: a row's bits may not depend on the batch it is in.
template <class T>
bool crew_beats_rows(const AffineProblem<T>& problem, const SolveOptions& options, const DeviceFacts& device,
                     const RowPlan& rows_plan, CrewPlan& plan, int chosen = -1);

// The rest of a plan whose crew (cluster, members, crews), rows, replicated, history and price are given; false where
// it does not fit the device. Members may turn out to be fewer.
template <class T>
bool complete(CrewPlan& plan, const AffineProblem<T>& problem, const SolveOptions& options, const DeviceFacts& device);

// Enqueues the solve on a stream of the current device; null, or why that is not possible. scratch:
// plan.scratch_bytes, aligned to 256.
template <class T>
const char* solve_with_crew(const AffineProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
                            const CrewPlan& plan, void* scratch, void* stream);

}  // namespace ak::cuda
