// How the whole solve of a cell is cut up on a device: a batch into tiles of rows, a product into slices.
#pragma once

#include "../common/problems.h"
#include "anderson_step.h"

namespace ak::cuda {

constexpr int kProductRows = 8;       // of a thread
constexpr int kProductColumns = 128;  // of a warp
constexpr int64_t kQueueBytes = 256;  // of scratch, before the blocks' parts

constexpr int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A row's entries in scratch: whole accesses.
constexpr int64_t row_ld(int64_t entries) { return padded(entries, 4); }

// A block iterates `rows` rows together; its warps form row_groups x column_groups, each with 8 rows and 128 columns of
// a product.
template <int row_groups_, int column_groups_, int slice_>
struct TileShape {
  static constexpr int row_groups = row_groups_, column_groups = column_groups_;
  static constexpr int slice = slice_;  // inputs of the product at a time
  static constexpr int rows = row_groups * kProductRows;
  static constexpr int threads = row_groups * column_groups * 32;
  static constexpr int pass = column_groups * kProductColumns;  // outputs of the product at a time
};

// Wide tiles read W a fourth as often, narrow ones give every multiprocessor some of few rows. In float64 one shape
// between them has to do.
template <class T>
struct Tiles {
  using Wide = TileShape<4, 2, 16>;
  using Narrow = TileShape<1, 4, 8>;
};
template <>
struct Tiles<double> {
  using Wide = TileShape<2, 2, 4>;
  using Narrow = Wide;
};

struct RowPlan {
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

// f(shape) for the shape of tile that a plan chose.
template <class T, class F>
auto with_shape(const RowPlan& plan, const F& f) {
  if (plan.tile_rows == Tiles<T>::Wide::rows) return f(typename Tiles<T>::Wide{});
  return f(typename Tiles<T>::Narrow{});
}

// What a plan must know of a cell: of one row.
struct CellSize {
  int64_t rows, dim;
  double products;  // multiply-adds of an evaluation
  double moved;     // entries that its passes over a row read or write
  int64_t kept;     // entries of scratch
};

template <class T>
RowPlan plan_rows(const CellSize& size, const SolveOptions& options, const DeviceFacts& device);

}  // namespace ak::cuda
