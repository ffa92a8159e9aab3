// From a cell and its rows to threads running tiles.
#pragma once

#include "lane_tile.h"
#include "row_product.h"
#include "tile.h"

namespace ak::AK_ISA {

// Shape of the tile and price of acceleration, from the cost of one evaluation of one row.
struct CellCost {
  double products;     // multiply-adds
  double activations;  // activation evaluations
  int most_rows = kMaxTile;
};

// Cycles of a step, fitted to measurements (benchmarks/NOTES.md) on processors that multiply and add 16 float32 a
// cycle, in whatever width.
template <class T>
inline double anderson_price(const CellCost& cost, int64_t dim, int history) {
  constexpr bool wide = AK_VECTOR_BYTES == 64;
  const double vectors = double(dim) / kLanes<T>;
  const double activation = sizeof(T) == 8 ? 35 : wide ? 22 : 10;
  const double step = cost.products / kLanes<T> * (wide ? 1.04 : 0.52) + cost.activations / kLanes<T> * activation + 60;
  double extra;
  if (wide)
    extra = history <= 1 ? vectors * 12 + 60 : vectors * (20 + 3 * history) + 140 + 10 * history;
  else
    extra = history <= 1 ? vectors * 6 + 43 : vectors * (8 + 3.4 * history) + 10 + 20 * history;
  return 1 + extra / step;
}

// Short histories reach most of the gain: on spectra where acceleration pays at all, 1 needs 0.53 of Picard's
// steps, 2 needs 0.48 and 5 needs 0.45.
template <class T>
inline int short_history(const CellCost& cost, int64_t dim, int history) {
  int best = 1;
  double best_time = 1e30;
  for (int m = 1; m <= history; ++m) {
    const double time = (0.435 + 0.095 / m) * anderson_price<T>(cost, dim, m);
    if (time < best_time) {
      best_time = time;
      best = m;
    }
  }
  return best;
}

template <class T>
inline TileShape tile_shape(const SolveOptions& options, const CellCost& cost, int64_t rows, int64_t dim,
                            int64_t constants, int threads) {
  TileShape shape;
  const int64_t most = dim > 1 ? dim : 1;
  shape.history = options.solver == kPicard ? 0 : int(options.history < most ? options.history : most);
  shape.short_history = options.solver == kAuto ? short_history<T>(cost, dim, shape.history) : shape.history;
  shape.price = anderson_price<T>(cost, dim, shape.short_history);
  // Enough rows to pay for streaming the weights; few enough that their state stays in the second-level cache.
  const int used = shape.short_history == 1 ? 0 : shape.short_history;
  const int64_t row_bytes = (1 + 3 * dim + constants + (shape.history ? (2 + 2 * used) * dim : 0)) * sizeof(T);
  constexpr bool wide = AK_VECTOR_BYTES == 64;  // processors with a second-level cache of 1 MiB or more
  int64_t tile = (int64_t(wide ? 512 : 192) << 10) / row_bytes / kMaxRows * kMaxRows;
  const int64_t least = dim < 512 ? 12 : wide ? 48 : 24;
  tile = tile < least ? least : tile;
  tile = tile > cost.most_rows ? cost.most_rows : tile;
  // A few rows more than fit cost less than a second round of few rows.
  const int64_t share = (rows + threads - 1) / threads;
  shape.rows = int(share < tile + tile / 2 && share <= kMaxTile ? share : tile);
  return shape;
}

inline int threads_for(int64_t rows, double products_per_row, int available) {
  constexpr double kWorthAThread = 1 << 17;  // multiply-adds of one step; below, starting a thread costs more
  const double worth = double(rows) * products_per_row / kWorthAThread;
  int threads = worth < available ? int(worth) + 1 : available;
  if (threads > rows) threads = int(rows);
  return threads < 1 ? 1 : threads;
}

// make_map(): a Map for one thread, as TileOf takes it.
template <class T, template <class, class> class TileOf = Tile, class MakeMap>
inline void solve_rows(int64_t rows, int64_t dim, const CellCost& cost, const SolveOptions& options, const T* z0,
                       const SolveResult<T>& result, int threads, const Executor& executor, const MakeMap& make_map) {
  std::atomic<int64_t> queue{0};
  auto body = [&](int) {
    const UnitLease lease;
    auto map = make_map();
    const TileShape shape = tile_shape<T>(options, cost, rows, dim, map.slot_elements(), threads);
    TileOf<T, decltype(map)> tile(map, dim, shape, options, z0, result, rows);
    tile.solve(queue, tile_scratch().get(tile.scratch_bytes()));
    tile_scratch().release_if_large();
    product_scratch().release_if_large();
  };
  run_tasks(executor, threads, body);
  packed_scratch().release_if_large();
}

// The float32 and float64 entry points of one cell, over the template solve<T> of its file.
#define AK_DEFINE_SOLVE(name, Problem)                                                                          \
  void name(const Problem<float>& p, const SolveOptions& o, const SolveResult<float>& r, const Executor& e) {   \
    solve<float>(p, o, r, e);                                                                                   \
  }                                                                                                             \
  void name(const Problem<double>& p, const SolveOptions& o, const SolveResult<double>& r, const Executor& e) { \
    solve<double>(p, o, r, e);                                                                                  \
  }

}  // namespace ak::AK_ISA
