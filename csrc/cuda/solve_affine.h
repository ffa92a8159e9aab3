// The whole affine solve on a device: how it is cut up, and what the binding calls.
#pragma once

#include "../common/problems.h"
#include "anderson_step.h"

namespace ak::cuda {

// A block iterates tile_rows rows together; its warps form row_groups x column_groups, each with 8 rows and 128
// columns of the product.
struct AffinePlan {
  int tile_rows;
  int threads;
  int history;            // kept per row; Auto chooses its own
  double anderson_price;  // cost of an Anderson step over a Picard step, as Auto counts it
  int64_t blocks;
  int64_t shared_bytes;
  int64_t scratch_bytes;  // of all blocks
  int64_t block_bytes;    // of them, a block's
  int64_t columns;        // doubles of a row's control
};

constexpr int kProductRows = 8;       // of a thread
constexpr int kProductColumns = 128;  // of a warp
constexpr int64_t kQueueBytes = 256;  // of scratch, before the blocks' parts

// A row's entries in scratch: whole accesses. In shared memory: whole slices.
constexpr int64_t padded(int64_t dim, int64_t unit) { return (dim + unit - 1) / unit * unit; }

template <int row_groups_, int column_groups_, int slice_>
struct AffineShape {
  static constexpr int row_groups = row_groups_, column_groups = column_groups_;
  static constexpr int slice = slice_;  // inputs of the product at a time
  static constexpr int rows = row_groups * kProductRows;
  static constexpr int threads = row_groups * column_groups * 32;
  static constexpr int pass = column_groups * kProductColumns;  // outputs of the product at a time
  static constexpr int slice_ld = pass + 2;                     // so that a transposing store meets every bank once
  static constexpr int fetches = pass * slice / threads;
};
using WideTile = AffineShape<4, 2, 16>;
using NarrowTile = AffineShape<1, 4, 8>;

AffinePlan plan_affine(int64_t rows, int64_t dim, const SolveOptions& options, const DeviceFacts& device);

// Enqueues the solve on a stream of the current device; null, or why that is not possible. scratch:
// plan.scratch_bytes, aligned to 256.
const char* solve_affine(const AffineProblem<float>& problem, const SolveOptions& options,
                         const SolveResult<float>& result, const AffinePlan& plan, void* scratch, void* stream);

}  // namespace ak::cuda
