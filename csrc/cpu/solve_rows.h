// From a cell and its rows to threads running tiles.
#pragma once

#include "scratch.h"
#include "tile.h"

namespace ak::AK_ISA {

// Shape of the tile and price of acceleration, from the cost of one evaluation of one row.
struct CellCost {
  double products;     // multiply-adds
  double activations;  // activation evaluations
};

// Cycles, from measurements on AVX2 and the lane count elsewhere (benchmarks/NOTES.md).
template <class T>
inline double anderson_price(const CellCost& cost, int64_t dim, int history) {
  const double vectors = double(dim) / kLanes<T>;
  const double step = cost.products / kLanes<T> / 2 * 1.1 + cost.activations / kLanes<T> * 14 + 60;
  const double extra = vectors * (7 + 2.2 * history) + 60 + 30 * history + 6 * history * history;
  return 1 + extra / step;
}

// Short histories reach most of the gain: 1 saves nearly as many steps as 5 and costs a fifth.
template <class T>
inline int auto_history(const CellCost& cost, int64_t dim, int history) {
  int best = 1;
  double best_time = 1e30;
  for (int m = 1; m <= history; ++m) {
    // Steps that remain, relative to Picard's, on spectra where acceleration pays at all.
    const double steps = 0.41 + 0.16 / m;
    const double time = steps * anderson_price<T>(cost, dim, m);
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
  const int valid = int(options.history < dim ? options.history : dim);
  TileShape shape;
  shape.history = options.solver == kPicard ? 0
                  : options.solver == kAuto ? auto_history<T>(cost, dim, valid)
                                            : valid;
  shape.price = anderson_price<T>(cost, dim, shape.history);
  // Enough rows to pay for streaming the weights; few enough that their state stays in the second-level cache.
  const int64_t row_bytes = (3 * dim + constants + (shape.history ? (2 + 2 * shape.history) * dim : 0)) * sizeof(T);
  int64_t tile = (int64_t(192) << 10) / row_bytes / kMaxRows * kMaxRows;
  const int64_t least = dim >= 512 ? 24 : 12;
  tile = tile < least ? least : tile > kMaxTile ? kMaxTile : tile;
  const int64_t share = (rows + threads - 1) / threads;
  shape.rows = int(share < tile ? share : tile);
  return shape;
}

inline int threads_for(int64_t rows, double products_per_row, int available) {
  constexpr double kWorthAThread = 1 << 17;  // multiply-adds of one step; below, starting a thread costs more
  const double worth = double(rows) * products_per_row / kWorthAThread;
  int threads = worth < available ? int(worth) + 1 : available;
  if (threads > rows) threads = int(rows);
  return threads < 1 ? 1 : threads;
}

template <class Body>
inline void run_tasks(const Executor& executor, int tasks, Body& body) {
  if (tasks <= 1) {
    for (int i = 0; i < tasks; ++i) body(i);
    return;
  }
  executor.run(
      tasks, [](void* context, int task) { (*static_cast<Body*>(context))(task); }, &body);
}

template <class T>
struct PackRequest {
  Matrix<T> from;
  PackedMatrix<T>* to;
};

// A row of constants as a one-column matrix: packed, it is the same row padded to whole vectors.
template <class T>
inline Matrix<T> vector_view(const T* data, int64_t n) {
  return {data, n, 1, 1, 1};
}

// Packs the matrices one after another into the calling thread's packed scratch.
template <class T>
inline void pack(const PackRequest<T>* requests, int count, int threads, const Executor& executor) {
  int64_t elements = 0;
  for (int i = 0; i < count; ++i)
    elements += round_up(PackedMatrix<T>::size(requests[i].from.outputs, requests[i].from.inputs), 16);
  T* memory = static_cast<T*>(packed_scratch().get(size_t(elements) * sizeof(T)));
  for (int i = 0; i < count; ++i) {
    const Matrix<T>& w = requests[i].from;
    PackedMatrix<T>& packed = *requests[i].to;
    packed = {memory, int(w.outputs), int(w.inputs)};
    memory += round_up(PackedMatrix<T>::size(w.outputs, w.inputs), 16);
    const int panels = packed.panels();
    const int tasks = threads < panels ? threads : panels;
    auto body = [&](int task) {
      for (int p = panels * task / tasks; p < panels * (task + 1) / tasks; ++p) pack_panel(w, packed, p);
    };
    run_tasks(executor, tasks, body);
  }
}

// make_map(): a Map for one thread.
template <class T, class MakeMap>
inline void solve_rows(int64_t rows, int64_t dim, const CellCost& cost, const SolveOptions& options, const T* z0,
                       const SolveResult<T>& result, int threads, const Executor& executor,
                       const MakeMap& make_map) {
  std::atomic<int64_t> queue{0};
  auto body = [&](int) {
    auto map = make_map();
    const TileShape shape = tile_shape<T>(options, cost, rows, dim, map.slot_elements(), threads);
    Tile<T, decltype(map)> tile(map, dim, shape, options, z0, result, rows);
    tile.solve(queue, tile_scratch().get(tile.scratch_bytes()));
    tile_scratch().release_if_large();
  };
  run_tasks(executor, threads, body);
  packed_scratch().release_if_large();
}

// The float32 and float64 entry points of one cell, over the template solve<T> of its file.
#define AK_DEFINE_SOLVE(name, Problem)                                                                   \
  void name(const Problem<float>& p, const SolveOptions& o, const SolveResult<float>& r, const Executor& e) {   \
    solve<float>(p, o, r, e);                                                                            \
  }                                                                                                      \
  void name(const Problem<double>& p, const SolveOptions& o, const SolveResult<double>& r, const Executor& e) { \
    solve<double>(p, o, r, e);                                                                           \
  }

}  // namespace ak::AK_ISA
