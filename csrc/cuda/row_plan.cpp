// The constants of the cost model are reckoned, not measured (csrc/README.md).
#include "row_plan.h"

#include "row_solver.h"

namespace ak::cuda {
namespace {

// Nanoseconds on one multiprocessor: a multiply-add of a product, and an entry moved to or from the second-level
// cache; both in float32. In float64 either takes twice as long.
constexpr double kProductTime = 1.0 / 115, kEntryTime = 0.1;
constexpr double kStepEntries = 4;  // of an entry of the state, moved in a Picard step

template <class T>
struct Cost {
  const CellSize& size;

  static constexpr double kScale = sizeof(T) / 4;
  double dim() const { return double(size.dim); }
  double picard_time() const {
    return kScale * (size.products * kProductTime + (size.moved + kStepEntries * dim()) * kEntryTime);
  }
  double anderson_price(int history) const {
    const double moved = (2 * history + 4) * dim() * kEntryTime, decision = 40.0 * (1 + history);
    return 1 + (kScale * moved + decision) / picard_time();
  }
  // Short histories reach most of the gain: on spectra where acceleration pays at all, 1 needs 0.57 of Picard's steps,
  // 2 needs 0.51 and 5 needs 0.44.
  int auto_history(int history) const {
    const auto time = [&](int m) { return (0.41 + 0.16 / m) * anderson_price(m); };
    int best = 1;
    for (int m = 2; m <= history; ++m)
      if (time(m) < time(best)) best = m;
    return best;
  }
};

template <class T, class Shape>
int64_t shared_bytes(int slots) {
  return solver_space_bytes<Shape>(slots) + kProductBytes<T, Shape>;
}

template <class T, class Shape>
void fill(RowPlan& plan, const CellSize& size, int slots, const DeviceFacts& device) {
  plan.tile_rows = Shape::rows;
  plan.threads = Shape::threads;
  plan.shared_bytes = shared_bytes<T, Shape>(slots);
  const int64_t resident = device.shared_per_block / plan.shared_bytes;
  const int64_t most = Shape::threads > 128 ? 2 : 3;
  const int64_t tiles = (size.rows + Shape::rows - 1) / Shape::rows;
  const int64_t room = device.processors * (resident < 1 ? 1 : resident < most ? resident : most);
  plan.blocks = tiles < room ? tiles : room;
}

}  // namespace

template <class T>
RowPlan plan_rows(const CellSize& size, const SolveOptions& options, const DeviceFacts& device) {
  using Wide = typename Tiles<T>::Wide;
  RowPlan plan{};
  const Cost<T> cost{size};
  const int valid = int(options.history < size.dim ? options.history : size.dim);
  plan.history = options.solver == kPicard ? 0 : options.solver == kAuto ? cost.auto_history(valid) : valid;
  plan.anderson_price = cost.anderson_price(plan.history);
  const int slots = options.solver == kPicard ? 0 : plan.history + 1;
  const bool wide = size.rows > Wide::rows / 2 * int64_t(device.processors) &&
                    shared_bytes<T, Wide>(slots) <= device.shared_per_block;
  if (wide)
    fill<T, Wide>(plan, size, slots, device);
  else
    fill<T, typename Tiles<T>::Narrow>(plan, size, slots, device);
  plan.columns = device_control_columns(1, row_ld(size.dim), slots);
  plan.block_bytes = solver_block_bytes<T>(plan.tile_rows, size, slots, plan.columns);
  plan.scratch_bytes = kQueueBytes + plan.blocks * plan.block_bytes;
  return plan;
}

template RowPlan plan_rows<float>(const CellSize&, const SolveOptions&, const DeviceFacts&);
template RowPlan plan_rows<double>(const CellSize&, const SolveOptions&, const DeviceFacts&);

}  // namespace ak::cuda
