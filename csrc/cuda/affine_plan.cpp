// How the affine solve is cut up, from its shape and the device. The constants of the cost model are reckoned, not
// measured (csrc/README.md).
#include "affine_body.h"

namespace ak::cuda {
namespace {

// Nanoseconds on one multiprocessor: a multiply-add of the product, and an entry moved to or from the second-level
// cache.
constexpr double kProductTime = 1.0 / 115, kEntryTime = 0.1;

double picard_time(double dim) { return dim * dim * kProductTime + 6 * dim * kEntryTime; }
double anderson_price(double dim, int history) {
  const double moved = (2 * history + 4) * dim * kEntryTime, decision = 40.0 * (1 + history);
  return 1 + (moved + decision) / picard_time(dim);
}

// Short histories reach most of the gain: on spectra where acceleration pays at all, 1 needs 0.57 of Picard's steps,
// 2 needs 0.51 and 5 needs 0.44.
int auto_history(double dim, int history) {
  int best = 1;
  for (int m = 2; m <= history; ++m)
    if ((0.41 + 0.16 / m) * anderson_price(dim, m) < (0.41 + 0.16 / best) * anderson_price(dim, best)) best = m;
  return best;
}

template <class Shape>
void fill(AffinePlan& plan, int64_t rows, int64_t dim, int slots, const DeviceFacts& device) {
  plan.tile_rows = Shape::rows;
  plan.threads = Shape::threads;
  plan.shared_bytes = affine_shared_bytes<Shape>(dim, slots);
  const int64_t resident = device.shared_per_block / plan.shared_bytes;
  const int64_t most = Shape::threads > 128 ? 2 : 3;
  const int64_t tiles = (rows + Shape::rows - 1) / Shape::rows;
  const int64_t room = device.processors * (resident < 1 ? 1 : resident < most ? resident : most);
  plan.blocks = tiles < room ? tiles : room;
}

}  // namespace

AffinePlan plan_affine(int64_t rows, int64_t dim, const SolveOptions& options, const DeviceFacts& device) {
  AffinePlan plan{};
  const int valid = int(options.history < dim ? options.history : dim);
  plan.history = options.solver == kPicard ? 0 : options.solver == kAuto ? auto_history(double(dim), valid) : valid;
  plan.anderson_price = anderson_price(double(dim), plan.history);
  const int slots = options.solver == kPicard ? 0 : plan.history + 1;
  // Wide tiles read W a fourth as often, narrow ones give every multiprocessor some of few rows.
  const bool wide =
      rows > 16 * int64_t(device.processors) && affine_shared_bytes<WideTile>(dim, slots) <= device.shared_per_block;
  if (wide)
    fill<WideTile>(plan, rows, dim, slots, device);
  else
    fill<NarrowTile>(plan, rows, dim, slots, device);
  plan.columns = device_control_columns(1, padded(dim, 4), slots);
  plan.block_bytes = affine_block_bytes(plan.tile_rows, dim, slots, plan.columns);
  plan.scratch_bytes = kQueueBytes + plan.blocks * plan.block_bytes;
  return plan;
}

}  // namespace ak::cuda
