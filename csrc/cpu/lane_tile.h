// One thread's solve loop for small states: kLanes rows side by side (lane_sums.h), iterated together until each is
// done. Where tile.h spends much of a step on what it decides of one row, this decides for all of them at once; a row
// for which something changes is handed to the rules themselves (csrc/common), alone.
//
// A lane whose row is done takes the next waiting one. Iterates lie in three buffers that turn at every step, x, f(x)
// and the x before, and the best so far in a fourth, where it is copied once it is neither.
//
// A Map is a cell's fused evaluation, in two forms: `rows` is tile.h's, for what is left when most lanes are empty, and
// `lanes`:
//   int64_t slot_elements()                             constants of a row; a vector of all lanes for each
//   void load(Vec<T>* constants, int lane, int64_t row)
//   void evaluate(LaneEvaluation<T>&)                   f of all lanes
#pragma once

#include <atomic>

#include "../common/auto_choice.h"
#include "lane_anderson.h"
#include "tile.h"

namespace ak::AK_ISA {

template <class T>
struct LaneEvaluation {
  const Vec<T>* x;
  Vec<T>* f;  // room for whole vectors of outputs
  const Vec<T>* constants;
  const Vec<T>* previous;  // x of the step before, where <f - x, x - previous> is wanted; else null
  LaneSet rows;            // lanes that hold one; what becomes of the others does not matter
  LaneSet zero;            // x is known to be all zeros
  Vec<T> r2, f2, dot;      // out: |f - x|^2, |f|^2 and that sum
};

// The sums of an evaluation, from f.
template <class T>
inline void take_sums(int64_t dim, LaneEvaluation<T>& e) {
  const Vec<T>*const x = e.x, *const f = e.f, *const previous = e.previous;
  Vec<T> sums[3];
  if (previous != nullptr) {
    sum_in_row_order<T, 3>(dim, sums, [&](int64_t i, Vec<T>* sum) {
      const Vec<T> g = f[i] - x[i];
      sum[0] = fma<T>(g, g, sum[0]);
      sum[1] = fma<T>(f[i], f[i], sum[1]);
      sum[2] = fma<T>(g, x[i] - previous[i], sum[2]);
    });
    e.dot = sums[2];
  } else {
    sum_in_row_order<T, 2>(dim, sums, [&](int64_t i, Vec<T>* sum) {
      const Vec<T> g = f[i] - x[i];
      sum[0] = fma<T>(g, g, sum[0]);
      sum[1] = fma<T>(f[i], f[i], sum[1]);
    });
  }
  e.r2 = sums[0];
  e.f2 = sums[1];
}

// Both forms of a cell's map, of the same arguments.
template <class Lanes, class Rows>
struct LanesAndRows {
  Lanes lanes;
  Rows rows;

  template <class... Args>
  explicit LanesAndRows(const Args&... args) : lanes(args...), rows(args...) {}
  int64_t slot_elements() const { return rows.slot_elements(); }
};

template <class T, class Map>
class LaneTile {
  using V = Vec<T>;
  using D = Vec<double>;
  using I = IntVec<double>;

 public:
  LaneTile(Map& map, int64_t dim, const TileShape& shape, const SolveOptions& options, const T* z0,
           const SolveResult<T>& result, int64_t rows)
      : map_(map),
        dim_(dim),
        ld_(round_up(dim, kLanes<T>) + 1),  // not a power of two, or all buffers would share cache sets
        shape_(shape),
        options_(options),
        rule_(stop_rule<T>(options)),
        z0_(z0),
        result_(result),
        rows_(rows),
        auto_rule_(auto_rule(shape.price, dim)),
        corrects_(options.solver == kAuto && options.damping == 1 && map.lanes.corrects()),
        anderson_(shape.history, dim, ld_, options.damping, options.ridge),
        rest_(map.rows, dim, rest_shape(shape), options, z0, result, rows) {}

  size_t scratch_bytes() const { return lane_bytes() + rest_.scratch_bytes(); }

  // While most lanes have a row; what is left then is solved row by row.
  void solve(std::atomic<int64_t>& queue, void* scratch) {
    place(scratch);
    refill(kAllLanes<T>, queue);
    while (__builtin_popcount(active_) > kRest || (active_ != 0 && queue.load(std::memory_order_relaxed) < rows_)) {
      LaneEvaluation<T> e{x_, f_, constants_, watched() != 0 ? before_ : nullptr, active_, zero_ & active_, {}, {}, {}};
      map_.lanes.evaluate(e);
      take_sums(dim_, e);
      advance(e, queue);
    }
    if (active_ == 0) return;
    rest_.begin(static_cast<char*>(scratch) + lane_bytes());
    for_lanes(active_, [&](int l) { hand_over(l, rest_.take_over(row_[l])); });
    rest_.solve(queue);
  }

 private:
  using RowMap = decltype(Map::rows);
  static constexpr int kBuffers = 4;
  static constexpr int kRest = kLanes<T> / 2;

  static TileShape rest_shape(TileShape shape) {
    shape.rows = kRest;
    return shape;
  }

  size_t lane_bytes() const {
    const int64_t vectors =
        kBuffers * ld_ + map_.lanes.slot_elements() + map_.lanes.correction_elements() + anderson_.vectors();
    return size_t(vectors) * sizeof(V) + size_t(anderson_.gram_elements()) * sizeof(LaneDoubles<T>);
  }

  // All there is to a lane's row.
  void hand_over(int l, Slot<T>& slot) const {
    const auto copy = [&](const V* from, T* to) {
      for (int64_t i = 0; i < dim_; ++i) to[i] = from[i][l];
      for (int64_t i = dim_; i < round_up(dim_, kLanes<T>); ++i) to[i] = T(0);
    };
    const LaneSet bit = LaneSet(1) << l;
    const bool best = best_f2_[l] >= 0, just_before = (has_before_ & bit) != 0;
    copy(x_, slot.x[0]);
    copy(best_step_[l] == steps_[l] ? before_ : best_, slot.x[1]);
    slot.target = 2;
    slot.corrector.on = (correcting_ & bit) != 0;
    slot.corrected = (corrected_ & bit) != 0;
    slot.best = (again_ & bit) != 0 ? 0 : best ? 1 : -1;
    slot.previous = just_before ? 1 : -1;
    slot.precision.best_full = best;
    slot.accelerated = int(accelerated_[l]);
    slot.zero = (zero_ & bit) != 0;
    slot.progress = progress(l);
    slot.choice = choice(l);
    slot.previous_r2 = previous_r2_[l];
    anderson_.hand_over(l, slot.anderson, rest_.used_ld(), copy);
    if (options_.solver == kAuto) slot.anderson.limit = columns(shape_, accelerated_[l]);
  }

  Progress<double> progress(int l) const {
    return {first2_[l], best_r2_[l], best_f2_[l], int(best_step_[l]), int(steps_[l])};
  }
  AutoState<double> choice(int l) const {
    return {int(mode_[l]), int(since_[l]), picard2_[l], entry_r2_[l], anderson2_[l]};
  }

  void place(void* scratch) {
    LaneDoubles<T>* const gram = static_cast<LaneDoubles<T>*>(scratch);
    V* memory = reinterpret_cast<V*>(gram + anderson_.gram_elements());
    V** const buffers[kBuffers] = {&x_, &f_, &before_, &best_};
    for (V** buffer : buffers) {
      *buffer = memory;
      // What no row has been put into yet is computed with all the same.
      std::memset(static_cast<void*>(memory), 0, size_t(ld_) * sizeof(V));
      memory += ld_;
    }
    constants_ = memory;
    std::memset(static_cast<void*>(memory), 0, size_t(map_.lanes.slot_elements()) * sizeof(V));
    memory += map_.lanes.slot_elements();
    room_ = memory;
    memory += map_.lanes.correction_elements();
    anderson_.place(memory, gram);
  }

  // The lanes take the next waiting rows, as long as there are any.
  void refill(LaneSet lanes, std::atomic<int64_t>& queue) {
    active_ &= ~lanes;
    for_lanes(lanes, [&](int l) {
      const int64_t row = next_row(queue, rows_);
      if (row < 0) return;
      const LaneSet bit = LaneSet(1) << l;
      const T* const z0 = z0_ + row * dim_;
      const bool zero = all_zero(z0, dim_);
      for (int64_t i = 0; i < dim_; ++i) x_[i][l] = z0[i];
      map_.lanes.load(constants_, l, row);
      row_[l] = row;
      put(l, Progress<double>{});
      put(l, AutoState<double>{});
      accelerated_[l] = 0;
      previous_r2_[l] = 0;
      active_ |= bit;
      zero_ = zero ? zero_ | bit : zero_ & ~bit;
      has_before_ &= ~bit;
      corrected_ &= ~bit;
      correcting_ = corrects_ ? correcting_ | bit : correcting_ & ~bit;
    });
    anderson_.clear(lanes);
  }

  // The lanes whose choice may want <g_k, g_{k-1}>, and whose iterate before is still the best.
  LaneSet watched() const {
    if (options_.solver != kAuto) return 0;
    LaneSet picard = 0;
    for_lane_doubles<T>([&](int at) { picard |= lane_set<double>(in_mode(kAutoPicard, at)) << at; });
    return picard & has_before_ & active_;
  }

  I in_mode(AutoMode mode, int at) const { return mode_.at(at) == int64_t(mode); }

  void advance(const LaneEvaluation<T>& e, std::atomic<int64_t>& queue) {
    const LaneDoubles<T> r2 = lane_doubles<T>(e.r2), f2 = lane_doubles<T>(e.f2);
    LaneSet best = 0, failed = 0;
    const LaneSet running = judge_lanes(r2, f2, best, failed), ended = active_ & ~running & ~failed;
    zero_ &= ~active_;
    if (result_.trace != nullptr)
      for_lanes(active_, [&](int l) {
        result_.trace[(steps_[l] - 1) * rows_ + row_[l]] = float(relative_residual(r2[l], f2[l]));
      });
    keep_best((running | failed) & ~best);
    for_lanes(ended, [&](int l) { end(l, r2[l], f2[l]); });
    const LaneSet corrected = corrected_;
    corrected_ = 0;
    correcting_ &= ~failed;
    if (correcting_ != 0) corrected_ = choose_corrections(running & correcting_, corrected, r2);
    LaneInts<T> limits;
    const LaneSet accelerating = choose_lanes(running & ~corrected_, r2, f2, e, limits);
    if (accelerating != 0 || options_.damping != 1) anderson_.advance(accelerating, limits, r2, x_, f_);
    if (corrected_ != 0) map_.lanes.correct(corrected_, x_, f_, constants_, room_);
    for_lane_doubles<T>([&](int at) { previous_r2_.put(at, ~doubles_mask(failed, at), r2.at(at)); });
    has_before_ = (best | again_) & ~corrected_ & ~failed;
    again_ = failed;
    if (failed != 0) go_back(failed);
    V* const old = x_;
    x_ = f_;
    f_ = before_;
    before_ = old;
    if (ended != 0) refill(ended, queue);
  }

  // The lanes whose next iterate is a correction: Tile::corrects.
  LaneSet choose_corrections(LaneSet lanes, LaneSet corrected, const LaneDoubles<T>& r2) {
    LaneSet slow = 0;
    for_lane_doubles<T>([&](int at) { slow |= lane_set<double>(r2.at(at) > kLeastFall2 * previous_r2_.at(at)) << at; });
    correcting_ &= ~(lanes & corrected & slow);
    return lanes & correcting_;
  }

  // The next iterate of these lanes is their best one: Tile::back_to_best.
  void go_back(LaneSet lanes) {
    const IntVec<T> mask = lane_mask<T>(lanes);
    for (int64_t i = 0; i < dim_; ++i) f_[i] = mask ? best_[i] : f_[i];
  }

  // judge, for all lanes at once; by itself for those that end, or whose correction may have failed. Returns those that
  // go on, and sets in `best` those whose iterate is the best so far.
  LaneSet judge_lanes(const LaneDoubles<T>& r2, const LaneDoubles<T>& f2, LaneSet& best, LaneSet& failed) {
    LaneSet running = 0;
    for_lane_doubles<T>([&](int at) {
      const D r = r2.at(at), f = f2.at(at), best_r = best_r2_.at(at), best_f = best_f2_.at(at), none{};
      const I n = steps_.at(at) + 1;
      const D first = first2_.at(at) < none ? r : first2_.at(at);
      const I better = (best_f < none) | (r * best_f < best_r * f);
      const D lowest_r = better ? r : best_r, lowest_f = better ? f : best_f;
      const I lowest_at = better ? n : best_step_.at(at);
      const I counts = n >= rule_.min_steps;
      const I ends = (counts & (r <= bound(f))) | (r > kDivergenceFactor * kDivergenceFactor * first) |
                     (n >= rule_.max_steps) |
                     (counts & (n - lowest_at >= kStagnationSteps) & (lowest_r <= floor2() * lowest_f));
      const I runs = (r - r == none) & (f - f == none) & ~ends & doubles_mask(active_, at);
      first2_.put(at, runs, first);
      best_r2_.put(at, runs, lowest_r);
      best_f2_.put(at, runs, lowest_f);
      best_step_.put(at, runs, lowest_at);
      steps_.put(at, runs, n);
      running |= lane_set<double>(runs) << at;
      best |= lane_set<double>(runs & better) << at;
    });
    for_lanes(active_ & ~running, [&](int l) {
      Progress<double> now = progress(l);
      const Judgement<double> verdict = judge(now, r2[l], f2[l], rule_);
      status_[l] = verdict.status;
      const LaneSet bit = LaneSet(1) << l;
      if ((corrected_ & bit) != 0 &&
          correction_failed(verdict, now.steps, options_.max_steps, r2[l], previous_r2_[l])) {
        failed |= bit;
        steps_[l] = now.steps;
      } else {
        put(l, now);
      }
    });
    for_lanes(running & corrected_ & ~best, [&](int l) {
      if (!(r2[l] <= previous_r2_[l]) && steps_[l] < options_.max_steps) failed |= LaneSet(1) << l;
    });
    return running & ~failed;
  }

  // The squared residual that ends a row, as within_tolerance has it.
  D bound(D f2) const {
    if (rule_.atol == 0) return rule_.rtol * rule_.rtol * f2;
    D out;
    for (int l = 0; l < kLanes<double>; ++l) out[l] = rule_.atol + rule_.rtol * square_root(double(f2[l]));
    return out * out;
  }

  double floor2() const {
    const double floor = kStagnationEps * rule_.eps;
    return floor * floor;
  }

  // Of lanes that did not become better: where the iterate before was the best, it would be lost with the next step.
  void keep_best(LaneSet lanes) {
    LaneSet lost = 0;
    for_lanes(lanes, [&](int l) { lost |= LaneSet(best_step_[l] == steps_[l] - 1) << l; });
    if (lost == 0) return;
    const IntVec<T> mask = lane_mask<T>(lost);
    for (int64_t i = 0; i < dim_; ++i) best_[i] = mask ? before_[i] : best_[i];
  }

  // Writes out a row that is done.
  void end(int l, double r2, double f2) {
    const Status status = status_[l];
    const V* from = x_;
    int64_t steps = steps_[l];
    if (returns_best(status, options_) && best_f2_[l] >= 0) {
      steps = best_step_[l];
      if (steps < steps_[l]) from = steps == steps_[l] - 1 ? before_ : best_;
      r2 = best_r2_[l];
      f2 = best_f2_[l];
    }
    const int64_t row = row_[l];
    for (int64_t i = 0; i < dim_; ++i) result_.z[row * dim_ + i] = from[i][l];
    put_ending(result_, row, status, steps, r2, f2);
  }

  // The lanes whose next step is Anderson's, and with how many columns.
  LaneSet choose_lanes(LaneSet running, const LaneDoubles<T>& r2, const LaneDoubles<T>& f2, const LaneEvaluation<T>& e,
                       LaneInts<T>& limits) {
    if (options_.solver != kAuto) {
      for_lane_doubles<T>([&](int at) { limits.put(at, I{} + int64_t(shape_.history)); });
      return options_.solver == kAnderson ? running : 0;
    }
    LaneDoubles<T> dot = lane_doubles<T>(e.previous != nullptr ? e.dot : V{});
    LaneSet changes = 0, accelerating = 0;
    for_lane_doubles<T>([&](int at) {
      const I mask = doubles_mask(running, at), since = since_.at(at) + 1;
      const D now = r2.at(at), before = previous_r2_.at(at), none{};
      // x_k - x_{k-1} = damping g_{k-1}
      const D along = (doubles_mask(has_before_, at) ? dot.at(at) : none) * (1 / options_.damping);
      dot.put(at, along);
      const I looked_at = in_mode(kAutoPicard, at) & (steps_.at(at) >= kAutoFirstLook) &
                          ((along * along > auto_rule_.cosine2 * now * before) | (now > kAutoStall2 * before));
      const I due =
          (in_mode(kAutoAnderson, at) & (since >= kAutoWindow)) | (in_mode(kAutoOnTrial, at) & (since >= kAutoTrial));
      const I change = mask & (looked_at | due);
      since_.put(at, mask & ~change, since);
      changes |= lane_set<double>(change) << at;
      accelerating |= lane_set<double>(mask & (in_mode(kAutoAnderson, at) | in_mode(kAutoKeepAnderson, at))) << at;
    });
    LaneSet entering = 0;
    for_lanes(changes, [&](int l) {
      AutoState<double> state = choice(l);
      const bool was = auto_accelerating(state.mode);
      const bool now = choose(state, auto_rule_, int(steps_[l]), r2[l], previous_r2_[l], dot[l]);
      const LaneSet bit = LaneSet(1) << l;
      accelerating = now ? accelerating | bit : accelerating & ~bit;
      if (now && !was) entering |= bit;
      put(l, state);
    });
    if (entering != 0) {
      anderson_.clear(entering);
      anderson_.prime(entering & has_before_, before_, x_);
    }
    for_lane_doubles<T>([&](int at) {
      // A problem that a window of cheap steps did not finish, and another like it would not, is worth dear ones.
      const I steps = doubles_mask(accelerating, at) & 1, next = accelerated_.at(at) + steps;
      const I again = (steps == 1) & (next == kAutoWindow + 1) & (anderson2_.at(at) * r2.at(at) <= bound(f2.at(at)));
      const I count = again ? I{} + 1 : next;
      accelerated_.put(at, count);
      limits.put(at, count > kAutoWindow ? I{} + int64_t(shape_.history) : I{} + int64_t(shape_.short_history));
    });
    return accelerating;
  }

  void put(int l, const Progress<double>& p) {
    first2_[l] = p.first2;
    best_r2_[l] = p.best_r2;
    best_f2_[l] = p.best_f2;
    best_step_[l] = p.best_step;
    steps_[l] = p.steps;
  }
  void put(int l, const AutoState<double>& a) {
    mode_[l] = a.mode;
    since_[l] = a.since;
    picard2_[l] = a.picard2;
    entry_r2_[l] = a.entry_r2;
    anderson2_[l] = a.anderson2;
  }

  Map& map_;
  const int64_t dim_, ld_;
  const TileShape shape_;
  const SolveOptions& options_;
  const StopRule<double> rule_;
  const T* z0_;
  const SolveResult<T>& result_;
  const int64_t rows_;
  const AutoRule<double> auto_rule_;
  const bool corrects_;
  LaneAnderson<T> anderson_;
  V *x_ = nullptr, *f_ = nullptr, *before_ = nullptr, *best_ = nullptr, *constants_ = nullptr, *room_ = nullptr;
  LaneSet active_ = 0;
  LaneSet zero_ = 0;        // x is all zeros
  LaneSet has_before_ = 0;  // the iterate before was the best of the row when it was made
  LaneSet correcting_ = 0;  // Corrector::on
  LaneSet corrected_ = 0;   // x is a correction
  LaneSet again_ = 0;       // x is the best iterate once more, for a correction that failed
  int64_t row_[kLanes<T>];
  Status status_[kLanes<T>];
  // Progress, AutoState and the rest of Slot, lane by lane
  LaneDoubles<T> first2_{}, best_r2_{}, best_f2_{}, previous_r2_{}, picard2_{}, entry_r2_{}, anderson2_{};
  LaneInts<T> best_step_{}, steps_{}, mode_{}, since_{}, accelerated_{};
  Tile<T, RowMap> rest_;
};

}  // namespace ak::AK_ISA
