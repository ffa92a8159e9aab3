// The constants of the cost model are reckoned, not measured (csrc/README.md).
#include "row_plan.h"

#include "row_solver.h"

namespace ak::cuda {
namespace {

// Nanoseconds on one multiprocessor: a multiply-add of a product, and an entry moved to or from the second-level
// cache; both in float32. In float64 either takes twice as long.
constexpr double kProductTime = 1.0 / 115, kEntryTime = 0.1;
constexpr double kStepEntries = 4;  // of an entry of the state, moved in a Picard step
// The same for a product of changes, W on its way from the second-level cache included; the share of products that are
// in full all the same; and entries moved for each that a row keeps.
constexpr double kChangeTime = 1.0 / 800, kFullShare = 0.15, kMixedEntries = 2.5;
constexpr int kTensorCapability = 80;

// Entries of scratch that a row keeps of its mixed products.
int64_t all_kept(const CellSize& size) {
  int64_t sum = 0;
  for (const ProductSize& p : size.product) sum += mixed_kept(p.outputs, p.inputs);
  return sum;
}
int64_t most_inputs(const CellSize& size) {
  int64_t most = 0;
  for (const ProductSize& p : size.product) most = p.inputs > most ? p.inputs : most;
  return most;
}

template <class T>
struct Cost {
  const CellSize& size;
  bool mixed = false;

  static constexpr double kScale = sizeof(T) / 4;
  double dim() const { return double(size.dim); }
  double picard_time() const {
    const double product = mixed ? kChangeTime + kFullShare * kProductTime : kProductTime;
    const double moved = size.moved + kStepEntries * dim() + (mixed ? kMixedEntries * double(all_kept(size)) : 0);
    return kScale * (size.multiply_adds() * product + moved * kEntryTime);
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
int64_t shared_bytes(const CellSize& size, int slots, bool mixed) {
  const int64_t steps = solver_space_bytes<Shape>(slots);
  if (mixed) return steps + mixed_product_bytes<Shape>(most_inputs(size));
  const int64_t product = int64_t(sizeof(SolverSpace<Shape>)) + kProductBytes<T, Shape>;
  return steps > product ? steps : product;
}

// Whether mixed products are to be had and pay. From what a row alone decides: its bits are those of any batch.
template <class T>
bool mixed_pays(const CellSize& size, const SolveOptions& options, int slots, const DeviceFacts& device, int chosen) {
  if (sizeof(T) != 4 || !mixed_allowed(options) || device.capability < kTensorCapability) return false;
  const bool pays = Cost<T>{size, true}.picard_time() < Cost<T>{size}.picard_time();
  return (chosen < 0 ? pays : chosen > 0) &&
         shared_bytes<T, MixedTiles::Narrow>(size, slots, true) <= device.shared_per_block;
}

// Where the mixed products of a row lie, and their weights.
void place_products(RowPlan& plan, const CellSize& size) {
  for (int k = 0; k < kMaxProducts; ++k) {
    const ProductSize& p = size.product[k];
    plan.place[k] = {plan.mixed_kept, plan.packed_bytes};
    plan.mixed_kept += mixed_kept(p.outputs, p.inputs);
    plan.packed_bytes += padded(tensor_weight_bytes(p.outputs, p.inputs), 256);
  }
}

template <class T, class Shape>
void fill(RowPlan& plan, const CellSize& size, int slots, const DeviceFacts& device, int64_t blocks) {
  plan.tile_rows = Shape::rows;
  plan.threads = Shape::threads;
  plan.shared_bytes = shared_bytes<T, Shape>(size, slots, plan.mixed);
  const int64_t resident = device.shared_per_block / plan.shared_bytes;
  const int64_t most = Shape::threads > 128 || plan.mixed ? 2 : 3;
  const int64_t tiles = (size.rows + Shape::rows - 1) / Shape::rows;
  const int64_t room = device.processors * (resident < 1 ? 1 : resident < most ? resident : most);
  const int64_t most_blocks = blocks > 0 ? blocks : room;
  plan.blocks = tiles < most_blocks ? tiles : most_blocks;
}

template <class T, class Shapes>
void choose_tile(RowPlan& plan, const CellSize& size, int slots, const DeviceFacts& device,
                 const PlanChoices& choices) {
  using Wide = typename Shapes::Wide;
  using Narrow = typename Shapes::Narrow;
  const bool fits = shared_bytes<T, Wide>(size, slots, plan.mixed) <= device.shared_per_block;
  if (choices.rows != 0 && choices.rows != Wide::rows && choices.rows != Narrow::rows)
    plan.refused = Wide::rows == Narrow::rows ? "a tile of float64 has 16 rows" : "a tile has 8 or 32 rows";
  else if (choices.rows == Wide::rows && !fits)
    plan.refused = "a tile of so many rows needs more shared memory than the device has for a block";
  const bool wide =
      choices.rows != 0 ? choices.rows == Wide::rows : size.rows > Wide::rows / 2 * int64_t(device.processors);
  if (wide && fits)
    fill<T, Wide>(plan, size, slots, device, choices.blocks);
  else
    fill<T, Narrow>(plan, size, slots, device, choices.blocks);
}

}  // namespace

template <class T>
RowPlan plan_rows(const CellSize& size, const SolveOptions& options, const DeviceFacts& device,
                  const PlanChoices& choices) {
  RowPlan plan{};
  const int valid = int(options.history < size.dim ? options.history : size.dim);
  plan.mixed = mixed_pays<T>(size, options, options.solver == kPicard ? 0 : valid + 1, device, choices.mixed);
  const Cost<T> cost{size, plan.mixed};
  plan.history = options.solver == kPicard ? 0 : options.solver == kAuto ? cost.auto_history(valid) : valid;
  plan.anderson_price = cost.anderson_price(plan.history);
  const int slots = options.solver == kPicard ? 0 : plan.history + 1;
  if (plan.mixed)
    choose_tile<T, MixedTiles>(plan, size, slots, device, choices);
  else
    choose_tile<T, Tiles<T>>(plan, size, slots, device, choices);
  plan.columns = device_control_columns(1, row_ld(size.dim), slots);
  if (plan.mixed) place_products(plan, size);
  plan.block_bytes = solver_block_bytes<T>(plan.tile_rows, size, slots, plan.mixed_kept, plan.columns);
  plan.scratch_bytes = kQueueBytes + plan.packed_bytes + plan.blocks * plan.block_bytes;
  return plan;
}

template RowPlan plan_rows<float>(const CellSize&, const SolveOptions&, const DeviceFacts&, const PlanChoices&);
template RowPlan plan_rows<double>(const CellSize&, const SolveOptions&, const DeviceFacts&, const PlanChoices&);

}  // namespace ak::cuda
