// The constants of the cost model are reckoned, not measured (csrc/README.md).
#include "row_plan.h"

#include "row_solver.h"

namespace ak::cuda {
namespace {

// Nanoseconds on one multiprocessor: a multiply-add of a product, and an entry moved to or from the second-level
// cache; both in float32. In float64 either takes twice as long.
constexpr double kProductTime = 1.0 / 115, kEntryTime = 0.1;
constexpr double kStepEntries = 4;  // of an entry of the state, moved in a Picard step
// The same for a product of changes: with W on its way from the second-level cache, and with W in shared memory, where
// reading it takes longer than the product of 32 rows; the share of products that are in full all the same; and entries
// moved for each that a row keeps.
constexpr double kChangeTime = 1.0 / 800, kResidentTime = 1.0 / 2000, kFullShare = 0.15, kMixedEntries = 2.5;
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
  ProductKind products = kFull;

  static constexpr double kScale = sizeof(T) / 4;
  double dim() const { return double(size.dim); }
  double picard_time() const {
    const double moved = size.moved + kStepEntries * dim();
    if (products == kFull) return kScale * (size.multiply_adds() * kProductTime + moved * kEntryTime);
    const double change = products == kMma ? kChangeTime : kResidentTime;
    return size.multiply_adds() * (change + kFullShare * kProductTime) +
           (moved + kMixedEntries * double(all_kept(size))) * kEntryTime;
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

int64_t packed_bytes(const ProductSize& p, ProductKind products) {
  return padded(products == kMma ? tensor_weight_bytes(p.outputs, p.inputs) : group_weight_bytes(p.outputs, p.inputs),
                256);
}
int64_t packed_bytes(const CellSize& size, ProductKind products) {
  int64_t sum = 0;
  for (const ProductSize& p : size.product) sum += packed_bytes(p, products);
  return sum;
}

template <class T, class Shape>
int64_t team_shared_bytes(const CellSize& size, int slots, ProductKind products) {
  const int64_t steps = solver_space_bytes<Shape>(slots);
  if (products == kMma) return steps + mixed_product_bytes<Shape, kMma>(most_inputs(size));
  if (products == kWgmma) return steps + mixed_product_bytes<Shape, kWgmma>(most_inputs(size));
  const int64_t product = int64_t(sizeof(SolverSpace<Shape>)) + kProductBytes<T, Shape>;
  return steps > product ? steps : product;
}
template <class T, class Shape>
int64_t shared_bytes(const CellSize& size, int slots, ProductKind products, int teams) {
  const int64_t resident = products == kWgmma ? packed_bytes(size, products) : 0;
  return resident + teams * team_shared_bytes<T, Shape>(size, slots, products);
}

// Which products are to be had and pay. From what a row alone decides: its bits are those of any batch.
template <class T>
ProductKind choose_products(const CellSize& size, const SolveOptions& options, int slots, const DeviceFacts& device,
                            const PlanChoices& choices) {
  if (sizeof(T) != 4 || !mixed_allowed(options) || device.capability < kTensorCapability) return kFull;
  const auto fits = [&](int64_t bytes) { return bytes <= device.shared_per_block; };
  ProductKind best = kFull;
  if (fits(shared_bytes<T, MixedTiles::Narrow>(size, slots, kMma, 1))) best = kMma;
  if (device.wgmma && choices.wgmma != 0 && fits(shared_bytes<T, MixedTiles::Wide>(size, slots, kWgmma, kGroupTeams)))
    best = kWgmma;
  const bool pays = Cost<T>{size, best}.picard_time() < Cost<T>{size}.picard_time();
  return (choices.mixed < 0 ? pays : choices.mixed > 0) ? best : kFull;
}

// Where the mixed products of a row lie, and their weights.
void place_products(RowPlan& plan, const CellSize& size) {
  for (int k = 0; k < kMaxProducts; ++k) {
    const ProductSize& p = size.product[k];
    plan.place[k] = {plan.mixed_kept, plan.packed_bytes};
    plan.mixed_kept += mixed_kept(p.outputs, p.inputs);
    plan.packed_bytes += packed_bytes(p, plan.products);
  }
}

template <class T, class Shape>
void fill(RowPlan& plan, const CellSize& size, int slots, const DeviceFacts& device, int64_t blocks) {
  const int64_t tiles = (size.rows + Shape::rows - 1) / Shape::rows;
  plan.tile_rows = Shape::rows;
  plan.threads = Shape::threads;
  // Two narrow tiles may need more than the two wide ones that were made sure of.
  const bool share = plan.products == kWgmma && tiles > device.processors &&
                     shared_bytes<T, Shape>(size, slots, kWgmma, kGroupTeams) <= device.shared_per_block;
  plan.teams = share ? kGroupTeams : 1;
  plan.team_shared = team_shared_bytes<T, Shape>(size, slots, plan.products);
  plan.shared_bytes = shared_bytes<T, Shape>(size, slots, plan.products, plan.teams);
  const int64_t resident = device.shared_per_block / plan.shared_bytes;
  const int64_t most = plan.products == kWgmma ? 1 : Shape::threads > 128 || plan.products == kMma ? 2 : 3;
  const int64_t room = device.processors * (resident < 1 ? 1 : resident < most ? resident : most);
  const int64_t most_blocks = blocks > 0 ? blocks : room, wanted = (tiles + plan.teams - 1) / plan.teams;
  plan.blocks = wanted < most_blocks ? wanted : most_blocks;
}

template <class T, class Shapes>
void choose_tile(RowPlan& plan, const CellSize& size, int slots, const DeviceFacts& device,
                 const PlanChoices& choices) {
  using Wide = typename Shapes::Wide;
  using Narrow = typename Shapes::Narrow;
  const bool fits = shared_bytes<T, Wide>(size, slots, plan.products, 1) <= device.shared_per_block;
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
  plan.products = choose_products<T>(size, options, options.solver == kPicard ? 0 : valid + 1, device, choices);
  if (choices.wgmma > 0 && plan.products == kMma)
    plan.refused = "products by warpgroups need code for a device of compute capability 9.0, and room for the weights";
  const Cost<T> cost{size, plan.products};
  plan.history = options.solver == kPicard ? 0 : options.solver == kAuto ? cost.auto_history(valid) : valid;
  plan.anderson_price = cost.anderson_price(plan.history);
  const int slots = options.solver == kPicard ? 0 : plan.history + 1;
  if (plan.mixed())
    choose_tile<T, MixedTiles>(plan, size, slots, device, choices);
  else
    choose_tile<T, Tiles<T>>(plan, size, slots, device, choices);
  plan.columns = device_control_columns(1, row_ld(size.dim), slots);
  if (plan.mixed()) place_products(plan, size);
  plan.team_bytes = solver_team_bytes<T>(plan.tile_rows, size, slots, plan.mixed_kept, plan.columns);
  plan.scratch_bytes = kQueueBytes + plan.packed_bytes + plan.blocks * plan.teams * plan.team_bytes;
  return plan;
}

template RowPlan plan_rows<float>(const CellSize&, const SolveOptions&, const DeviceFacts&, const PlanChoices&);
template RowPlan plan_rows<double>(const CellSize&, const SolveOptions&, const DeviceFacts&, const PlanChoices&);

}  // namespace ak::cuda
