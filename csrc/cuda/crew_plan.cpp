// Which crew solves a batch, and whether it beats a block a tile. The constants are reckoned from a data sheet, not
// measured (csrc/README.md). Nothing here changes a bit of the result: sum_order.h fixes every order.
#include <initializer_list>

#include "crew_body.h"

namespace ak::cuda {
namespace {

constexpr int kMaxCluster = 8;  // what every device that has clusters takes
constexpr int kClusterCapability = 90;

// Nanoseconds.
constexpr double kCycle = 0.6;
constexpr double kGridBarrier = 1200, kClusterBarrier = 300;
constexpr double kRegion = 30;  // a barrier of a block and what waits on it; a round has kRegions of them
constexpr int kRegions = 12;
constexpr double kDecision = 40;  // for every difference, of a small system
// Of a block that solves its tile alone: multiply-adds in a nanosecond, and the time of an entry moved (row_plan.cpp).
constexpr double kTileProducts = 115, kTileEntry = 0.1;
constexpr double kMargin = 1.25;  // by which a crew must be faster: the reckoning is rough
// A cycle of one multiprocessor: multiply-adds, bytes of shared memory, bytes from other multiprocessors.
constexpr double kProducts = 128, kSharedBytes = 128, kExchangeBytes = 32;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
double most(double a, double b) { return a > b ? a : b; }

template <class T>
void lay_out(CrewPlan& plan, int slots, bool scaled) {
  CrewLayout& at = plan.at;
  const int64_t size = sizeof(T), rows = plan.rows, share = plan.share, owned = plan.members * share;
  const int64_t sums = crew_sums(slots), whole = inputs_size(plan.rows, plan.segments);
  const bool local = plan.cluster || plan.replicated;
  int64_t end = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = end;
    end += padded(bytes, 32);
    return begin;
  };
  at.sums = 2 * whole;
  at.overflows = at.sums + 2 * rows * sums * (owned / kSumGroup);
  at.exchange_entries = at.overflows + 2 * rows;
  take(sizeof(CrewSpace));
  at.weights = take(size * weights_size(plan.share, plan.segments));
  at.states = take(size * (scaled ? 6 : 5) * rows * share);
  at.leak = take(size * share);
  at.rings = take(size * rows * slots * (share + (plan.replicated ? owned : share)));
  at.operand = take(plan.replicated ? size * whole : 0);
  at.control = take(8 * rows * plan.columns);
  at.solvers = take(rows * crew_solver_bytes(slots));
  const int64_t product = (local ? 0 : inputs_size(plan.rows, plan.at_once)) + plan.at_once * rows * share;
  const int64_t pack_sums = rows * (share / kSumPack) * sums, lanes = rows * sums * kSumLanes;
  at.work = take(int64_t(most(double(size * (product > pack_sums ? product : pack_sums)), double(8 * lanes))));
  at.shared_exchange = take(plan.cluster ? size * at.exchange_entries + 32 : 0);
  at.shared_bytes = end;
  plan.scratch_bytes = kQueueBytes + (plan.cluster ? 0 : size * at.exchange_entries);
}

// Of a step of a tile.
template <class T>
double reckoned(const CrewPlan& plan, int slots) {
  const double scale = sizeof(T) / 4, entries = double(plan.segments) * kSegment;
  const double pieces = double(plan.rows / plan.rows_at_once) * plan.share / kCrewOutputs;
  const double products = plan.rows * double(plan.share) * entries;
  const double loaded = sizeof(T) * pieces * entries * (plan.rows_at_once + kCrewOutputs);
  const double chains = double((plan.segments + plan.at_once - 1) / plan.at_once) * kSegment * 4;
  const double product = most(most(scale * products / kProducts, loaded / kSharedBytes), chains);
  const bool mixes = slots > 0, again = mixes && !plan.replicated;
  const double sums = mixes ? crew_sums(slots) : 2;
  const double exchanged = sizeof(T) * plan.rows * (entries * (again ? 2 : 1) + sums * entries / kSumGroup);
  const double mixing = plan.replicated ? sizeof(T) * plan.rows * entries * (slots + 2) / kSharedBytes : 0;
  const double barriers = (again ? 2 : 1) * (plan.cluster ? kClusterBarrier : kGridBarrier);
  return kCycle * (product + mixing + exchanged / kExchangeBytes) + barriers + kRegions * kRegion + kDecision * slots;
}

double total_time(const CrewPlan& plan, int64_t rows) {
  const int64_t room = plan.crews * plan.rows;
  return plan.step_time * double((rows + room - 1) / room);
}

}  // namespace

template <class T>
bool complete(CrewPlan& plan, const AffineProblem<T>& problem, const SolveOptions& options, const DeviceFacts& device) {
  const int slots = options.solver == kPicard ? 0 : plan.history + 1;
  plan.share = int(padded((problem.dim + plan.members - 1) / plan.members, kSumGroup));
  plan.members = int((problem.dim + plan.share - 1) / plan.share);
  plan.rows_at_once = plan.rows % 4 == 0 ? 4 : 1;
  plan.segments = (plan.members * plan.share + kSegment - 1) / kSegment;  // of all that members own
  const int pieces = plan.rows / plan.rows_at_once * plan.share / kCrewOutputs;
  if (pieces > kCrewThreads) return false;
  plan.at_once = int(least(plan.segments, kCrewThreads / pieces));
  if (!plan.cluster && !plan.replicated)
    plan.at_once = int(least(plan.at_once, kCrewFetches<T> * kCrewThreads / kSegmentPacks / plan.rows));
  plan.columns = int(device_control_columns(1, 1, slots));
  lay_out<T>(plan, slots, problem.scale != nullptr);
  plan.step_time = reckoned<T>(plan, slots);
  return plan.at.shared_bytes <= device.shared_per_block;
}

template <class T>
bool plan_crew(const AffineProblem<T>& problem, const SolveOptions& options, const DeviceFacts& device,
               const RowPlan& rows_plan, CrewPlan& best) {
  const int slots = options.solver == kPicard ? 0 : rows_plan.history + 1;
  bool found = false;
  // As many members as there are multiprocessors, or a cluster.
  for (int members = 0; members <= kMaxCluster; members = members > 0 ? 2 * members : 2) {
    CrewPlan plan{};
    plan.cluster = members > 0;
    if (plan.cluster && (device.capability < kClusterCapability || members > device.processors)) break;
    plan.history = rows_plan.history;
    plan.anderson_price = rows_plan.anderson_price;
    for (int rows : {1, 2, 4, 8, 12, 16, 24, 32})
      for (const bool replicated : {false, true}) {
        if (replicated && (plan.cluster || slots == 0)) continue;
        plan.members = plan.cluster ? members : device.processors;
        plan.rows = rows;
        plan.replicated = replicated;
        const int64_t tiles = (problem.rows + rows - 1) / rows;
        plan.crews = plan.cluster ? least(tiles, device.processors / members) : 1;
        if (!complete(plan, problem, options, device)) continue;
        if (plan.cluster && plan.members != members) continue;  // a smaller one does
        if (found && total_time(plan, problem.rows) >= total_time(best, problem.rows)) continue;
        best = plan;
        found = true;
      }
  }
  return found;
}

template <class T>
bool crew_beats_rows(const AffineProblem<T>& problem, const SolveOptions& options, const DeviceFacts& device,
                     const RowPlan& rows_plan, CrewPlan& plan, int chosen) {
  if (options.mixed || problem.rows == 0 || chosen == 0) return false;
  if (!plan_crew(problem, options, device, rows_plan, plan)) return false;
  if (chosen > 0) return true;
  const double dim = double(problem.dim), history = rows_plan.history, warps = rows_plan.threads / kWarp;
  const double moved = 6 + (history > 0 ? 2 * history + 4 : 0);
  const double row = sizeof(T) / 4 * dim * (dim / kTileProducts + moved * kTileEntry);
  const double tile = rows_plan.tile_rows * (row + kDecision * (history + 1) / warps);
  const int64_t tiles = (problem.rows + rows_plan.tile_rows - 1) / rows_plan.tile_rows;
  const double turns = double((tiles + device.processors - 1) / device.processors);
  return kMargin * total_time(plan, problem.rows) < turns * tile;
}

template bool complete(CrewPlan&, const AffineProblem<float>&, const SolveOptions&, const DeviceFacts&);
template bool complete(CrewPlan&, const AffineProblem<double>&, const SolveOptions&, const DeviceFacts&);
template bool plan_crew(const AffineProblem<float>&, const SolveOptions&, const DeviceFacts&, const RowPlan&,
                        CrewPlan&);
template bool plan_crew(const AffineProblem<double>&, const SolveOptions&, const DeviceFacts&, const RowPlan&,
                        CrewPlan&);

template bool crew_beats_rows(const AffineProblem<float>&, const SolveOptions&, const DeviceFacts&, const RowPlan&,
                              CrewPlan&, int);
template bool crew_beats_rows(const AffineProblem<double>&, const SolveOptions&, const DeviceFacts&, const RowPlan&,
                              CrewPlan&, int);

}  // namespace ak::cuda
