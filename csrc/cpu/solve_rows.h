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

// Cycles of a step, fitted to measurements on AVX2 (benchmarks/NOTES.md) and scaled by the lane count elsewhere.
template <class T>
inline double anderson_price(const CellCost& cost, int64_t dim, int history) {
  const double vectors = double(dim) / kLanes<T>;
  const double activation = sizeof(T) == 8 ? 35 : 10;
  const double step = cost.products / kLanes<T> / 2 * 1.04 + cost.activations / kLanes<T> * activation + 60;
  const double extra = history <= 1 ? vectors * 6 + 43 : vectors * (8 + 3.4 * history) + 10 + 20 * history;
  return 1 + extra / step;
}

// Short histories reach most of the gain: on spectra where acceleration pays at all, 1 needs 0.57 of Picard's
// steps, 2 needs 0.51 and 5 needs 0.44.
template <class T>
inline int auto_history(const CellCost& cost, int64_t dim, int history) {
  int best = 1;
  double best_time = 1e30;
  for (int m = 1; m <= history; ++m) {
    const double time = (0.41 + 0.16 / m) * anderson_price<T>(cost, dim, m);
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
  shape.history = options.solver == kPicard ? 0 : options.solver == kAuto ? auto_history<T>(cost, dim, valid) : valid;
  shape.price = anderson_price<T>(cost, dim, shape.history);
  // Enough rows to pay for streaming the weights; few enough that their state stays in the second-level cache.
  const int64_t row_bytes = (3 * dim + constants + (shape.history ? (2 + 2 * shape.history) * dim : 0)) * sizeof(T);
  int64_t tile = (int64_t(192) << 10) / row_bytes / kMaxRows * kMaxRows;
  const int64_t least = dim >= 512 ? 24 : 12;
  tile = tile < least ? least : tile > kMaxTile ? kMaxTile : tile;
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

template <class Body>
inline void run_tasks(const Executor& executor, int tasks, Body& body) {
  if (tasks <= 1) {
    for (int i = 0; i < tasks; ++i) body(i);
    return;
  }
  executor.run(tasks, [](void* context, int task) { (*static_cast<Body*>(context))(task); }, &body);
}

template <class T>
struct PackRequest {
  Matrix<T> from;
  PackedMatrix<T>* to;
  PackedMatrix<uint32_t>* pairs = nullptr;  // float only: the same weights as bfloat16 pairs too
};

// A row of constants as a one-column matrix: packed, it is the same row padded to whole vectors.
template <class T>
inline Matrix<T> vector_view(const T* data, int64_t n) {
  return {data, n, 1, 1, 1};
}

// Places `packed` at memory and moves memory past it.
template <class T>
inline void place(PackedMatrix<T>& packed, int64_t outputs, int64_t inputs, char*& memory) {
  packed = {reinterpret_cast<T*>(memory), int(outputs), int(inputs)};
  memory += round_up(PackedMatrix<T>::size(outputs, inputs) * int64_t(sizeof(T)), 64);
}

template <class T, class Packed>
inline void pack_one(const Matrix<T>& from, const Packed& to, int threads, const Executor& executor) {
  const int panels = to.panels();
  const int tasks = threads < panels ? threads : panels;
  auto body = [&](int task) {
    for (int p = panels * task / tasks; p < panels * (task + 1) / tasks; ++p) pack_panel(from, to, p);
  };
  run_tasks(executor, tasks, body);
}

// Packs the matrices one after another into the calling thread's packed scratch.
template <class T>
inline void pack(const PackRequest<T>* requests, int count, int threads, const Executor& executor) {
  int64_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t outputs = requests[i].from.outputs, inputs = requests[i].from.inputs;
    bytes += PackedMatrix<T>::size(outputs, inputs) * int64_t(sizeof(T)) + 64;
    bytes += PackedMatrix<uint32_t>::size(outputs, (inputs + 1) / 2) * int64_t(sizeof(uint32_t)) + 64;
  }
  char* memory = static_cast<char*>(packed_scratch().get(size_t(bytes)));
  for (int i = 0; i < count; ++i) {
    const Matrix<T>& from = requests[i].from;
    place(*requests[i].to, from.outputs, from.inputs, memory);
    pack_one(from, *requests[i].to, threads, executor);
    if constexpr (sizeof(T) == 4) {
      if (requests[i].pairs == nullptr) continue;
      place(*requests[i].pairs, from.outputs, (from.inputs + 1) / 2, memory);
      pack_one(from, *requests[i].pairs, threads, executor);
    }
  }
}

// make_map(): a Map for one thread.
template <class T, class MakeMap>
inline void solve_rows(int64_t rows, int64_t dim, const CellCost& cost, const SolveOptions& options, const T* z0,
                       const SolveResult<T>& result, int threads, const Executor& executor, const MakeMap& make_map) {
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
#define AK_DEFINE_SOLVE(name, Problem)                                                                          \
  void name(const Problem<float>& p, const SolveOptions& o, const SolveResult<float>& r, const Executor& e) {   \
    solve<float>(p, o, r, e);                                                                                   \
  }                                                                                                             \
  void name(const Problem<double>& p, const SolveOptions& o, const SolveResult<double>& r, const Executor& e) { \
    solve<double>(p, o, r, e);                                                                                  \
  }

}  // namespace ak::AK_ISA
