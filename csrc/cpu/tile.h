// One thread's solve loop: a tile of rows iterated together until each is done.
//
// Rows leave the moment they stop; the next waiting row takes the slot, and when none waits the tile shrinks. A
// row's iterates live in three buffers: the current one, the one f is written to, and the best one so far where
// that is neither; no iterate is ever copied inside the loop.
//
// A Map is a cell's fused evaluation:
//   static/ctor data shared by all threads (packed weights), and per thread
//   int64_t slot_elements()                    row constants a slot holds (u, ...)
//   double refresh2()                          Precision::observe; 0 where every product is in full
//   void load(T* constants, int64_t row)
//   void evaluate(int n, const Evaluation<T>*) f of n rows and the sums the stopping rule needs
// and, of a map that corrects iterates,
//   bool corrects()
//   double aim2(bool first)                    squared fall of the residual that a correction is to aim at
//   void correct(int n, Correction<T>*)        of rows that have just been evaluated
#pragma once

#include <atomic>
#include <new>

#include "../common/auto_choice.h"
#include "../common/mixed_precision.h"
#include "anderson_row.h"
#include "kernels.h"
#include "narrow.h"

namespace ak::AK_ISA {

template <class T>
struct Evaluation {
  T* x;             // which the map may move a little before it takes f of it (csrc/cpu/digit_product.h)
  const T* last_x;  // of the evaluation before; null: there was none, or it was of another iterate
  T* f;
  T* constants;         // what Map::load put there
  const T* previous;    // x of the step before, where Auto wants <g_k, g_{k-1}>; else null
  const T* previous_g;  // g = f - x of the step before, where a secant step may follow; else null
  int step;             // evaluations of the row before this one
  bool zero;            // x is known to be all zeros
  bool exact;           // in full precision, even where the map may do less
  bool corrected;       // the next iterate may be a correction
  Travel<T> travel;     // in: of x, from what the row's product stands for; out: of f
  T largest;            // out: entry of f - x, in size; of maps whose corrections ask for it
  const T* stands_for;  // out: that x, where it helps to know how far the next one is from it; else null
  bool moves;           // out: ... in both ways that Travel knows
  double rounding2;     // in and out: |f - what it would be with a product in full|^2, about; negative: not known
  bool secant_known;    // out: a map may leave the sums of a secant step to others
  SecantSums secant;    // out, with previous_g
  double r2, f2;        // out: |f - x|^2, |f|^2
  double dot;           // out, with previous: <f - x, x - previous>
};

// What a row's corrections have shown.
struct Corrector {
  bool on = false;         // the row's next iterates are corrections
  bool plain = false;      // its equations are solved by successive substitution, not by conjugate residuals
  bool conjugate = false;  // that has failed, and is not tried again
  double rate2 = 0;        // squared contraction of plain steps when they were chosen
  float reach = 1;         // how large, of the largest entry of r, the next step's may be expected to be
  int spent = 0;           // products
};

// A row's next iterate by other means than its solver's: the map's own.
template <class T>
struct Correction {
  const T* x;
  T* f;  // in: of x; out: the next iterate
  T* constants;
  double r2;    // |f - x|^2
  T largest;    // entry of f - x, in size; of maps that ask for it
  double aim2;  // squared fall of the residual, to first order, that is enough
  int most;     // products to spend
  Corrector* corrector;
  const T* stands_for;  // Evaluation::stands_for
  Travel<T>* travel;    // out: of the next iterate, where it is known
};

// Squared fall of the residual that a correction has to bring for another.
constexpr double kLeastFall2 = 0.5625;

// Whether a correction led astray, and there are steps left to go another way. previous_r2: of the iterate corrected.
inline bool correction_failed(const Judgement<double>& verdict, int steps, int max_steps, double r2,
                              double previous_r2) {
  return verdict.status != kConverged && !verdict.new_best && steps < max_steps && !(r2 <= previous_r2);
}

template <class T>
struct Slot {
  int64_t row;
  T* x[3];
  T* constants;
  int current, last, best, target, previous;  // indices into x; -1: none
  int accelerated;                            // Anderson steps, counted anew where a window calls for another
  bool zero;
  bool sound;      // the last evaluation was as good as one in full
  bool corrected;  // the current iterate is a correction
  Corrector corrector;
  double rounding2;  // Evaluation::rounding2 of it
  Travel<T> travel;  // of the next iterate
  Precision precision;
  Progress<double> progress;
  AutoState<double> choice;
  double previous_r2;
  AndersonRow<T> anderson;
};

struct TileShape {
  int rows;
  int history;        // 0: Picard only
  int short_history;  // what Auto begins with
  double price;       // of an Anderson step with it
};

// Columns that Auto lets a row use that has taken so many Anderson steps.
inline int columns(const TileShape& shape, int64_t accelerated) {
  return accelerated > kAutoWindow ? shape.history : shape.short_history;
}

template <class T>
inline StopRule<double> stop_rule(const SolveOptions& options) {
  return {options.rtol, options.atol, sizeof(T) == 8 ? 0x1p-52 : 0x1p-23, options.max_steps, options.min_steps};
}

template <class T>
inline bool all_zero(const T* x, int64_t n) {
  IntVec<T> any{};
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) any |= load(x + i) != Vec<T>{};
  if (i < n) any |= load_first<T>(x + i, int(n - i)) != Vec<T>{};
  return lane_set<T>(any) == 0;
}

// The next waiting row; -1: there is none.
inline int64_t next_row(std::atomic<int64_t>& queue, int64_t rows) {
  if (queue.load(std::memory_order_relaxed) >= rows) return -1;
  const int64_t row = queue.fetch_add(1, std::memory_order_relaxed);
  return row < rows ? row : -1;
}

// Whether a row that ends with this status returns its best iterate, where it has one.
inline bool returns_best(Status status, const SolveOptions& options) {
  return status == kDiverged || status == kNonfinite || options.keep_best;
}

// Writes out all of a row that is done but its state.
template <class T>
inline void put_ending(const SolveResult<T>& result, int64_t row, Status status, int64_t steps, double r2, double f2) {
  result.steps[row] = int32_t(steps);
  result.residual[row] = float(relative_residual(r2, f2));
  result.status[row] = status;
}

template <class T, class Map>
class Tile {
 public:
  Tile(Map& map, int64_t dim, const TileShape& shape, const SolveOptions& options, const T* z0,
       const SolveResult<T>& result, int64_t rows)
      : map_(map),
        dim_(dim),
        // Rows a power of two apart would share cache sets.
        ld_(round_up(dim, kLanes<T>) + kLanes<T>),
        used_ld_(round_up(dim, kLanes<T>)),
        shape_(shape),
        options_(options),
        rule_(stop_rule<T>(options)),
        z0_(z0),
        result_(result),
        rows_(rows),
        refresh2_(map.refresh2()),
        auto_rule_(auto_rule(shape.price, dim)),
        inverse_damping_(1 / options.damping) {}

  int64_t used_ld() const { return used_ld_; }

  size_t scratch_bytes() const {
    const size_t per_slot = size_t(3 * ld_ + map_.slot_elements() + history_elements()) * sizeof(T);
    return size_t(shape_.rows) * (per_slot + sizeof(Slot<T>) + gram_elements() * sizeof(double)) + 128;
  }

  void solve(std::atomic<int64_t>& queue, void* scratch) {
    begin(scratch);
    solve(queue);
  }

  // Instead, rows that another tile has begun: one after the other into a slot each, whose state is the caller's to
  // put there, and then the rest of the queue with them.
  void begin(void* scratch) {
    place(scratch);
    filled_ = 0;
  }
  Slot<T>& take_over(int64_t row) {
    Slot<T>& slot = slots_[filled_++];
    start(slot, row);
    return slot;
  }
  void solve(std::atomic<int64_t>& queue) {
    while (filled_ < shape_.rows && refill(slots_[filled_], queue)) ++filled_;
    int active = filled_;
    Slot<T>* running[kMaxTile];
    for (int i = 0; i < active; ++i) running[i] = &slots_[i];
    Evaluation<T> evaluation[kMaxTile];
    while (active > 0) {
      for (int i = 0; i < active; ++i) request(*running[i], evaluation[i]);
      map_.evaluate(active, evaluation);
      corrections_ = 0;
      for (int i = active - 1; i >= 0; --i)
        if (!advance(*running[i], evaluation[i]) && !refill(*running[i], queue)) running[i] = running[--active];
      if constexpr (kCorrects)
        if (corrections_ > 0) map_.correct(corrections_, correction_);
    }
  }

 private:
  static constexpr bool kCorrects = requires(Map& map, Correction<T>* c) { map.correct(1, c); };

  int64_t history_elements() const { return shape_.history > 0 ? AndersonRow<T>::elements(shape_.history, ld_) : 0; }

  size_t gram_elements() const { return shape_.history > 1 ? size_t(shape_.history) * size_t(shape_.history) : 0; }

  void place(void* scratch) {
    char* memory = static_cast<char*>(scratch);
    slots_ = reinterpret_cast<Slot<T>*>(memory);
    memory += round_up(int64_t(sizeof(Slot<T>)) * shape_.rows, 64);
    double* gram = reinterpret_cast<double*>(memory);
    T* data = reinterpret_cast<T*>(memory + round_up(int64_t(gram_elements() * sizeof(double)) * shape_.rows, 64));
    for (int i = 0; i < shape_.rows; ++i) {
      Slot<T>& slot = *new (&slots_[i]) Slot<T>;
      for (T*& x : slot.x) {
        x = data;
        data += ld_;
      }
      slot.constants = data;
      data += map_.slot_elements();
      slot.anderson.place(data, gram, shape_.history, ld_);
      gram += gram_elements();
      data += history_elements();
    }
  }

  bool refill(Slot<T>& slot, std::atomic<int64_t>& queue) {
    const int64_t row = next_row(queue, rows_);
    if (row < 0) return false;
    start(slot, row);
    copy_padded(slot.x[0], z0_ + row * dim_, dim_, used_ld_);
    slot.zero = all_zero(slot.x[0], used_ld_);
    return true;
  }

  // A slot before the row's first evaluation, but for x.
  void start(Slot<T>& slot, int64_t row) {
    slot.row = row;
    slot.current = 0;
    slot.target = 1;
    slot.last = slot.best = slot.previous = -1;
    slot.accelerated = 0;
    slot.sound = false;
    slot.corrected = false;
    slot.corrector = {};
    if constexpr (kCorrects) slot.corrector.on = options_.solver == kAuto && options_.damping == 1 && map_.corrects();
    slot.rounding2 = -1;
    slot.travel = {};
    slot.precision = {};
    slot.progress = {};
    slot.choice = {};
    slot.previous_r2 = 0;
    slot.anderson.clear();
    slot.anderson.limit = shape_.history;
    slot.zero = false;
    map_.load(slot.constants, row);
  }

  // The iterate before, where Auto wants it and it is still there.
  const T* before(const Slot<T>& slot) const {
    const bool wanted = options_.solver == kAuto && !slot.corrector.on && auto_watchful(slot.choice.mode);
    return wanted && slot.previous >= 0 ? slot.x[slot.previous] : nullptr;
  }

  // g of the step before, where an Anderson step with one column would need it.
  const T* before_g(const Slot<T>& slot) const {
    const AndersonRow<T>& row = slot.anderson;
    return row.primed && row.limit == 1 && accelerating(slot) ? row.previous_g : nullptr;
  }
  bool accelerating(const Slot<T>& slot) const {
    return options_.solver == kAuto ? auto_accelerating(slot.choice.mode) : options_.solver == kAnderson;
  }

  void request(const Slot<T>& slot, Evaluation<T>& e) const {
    e.x = slot.x[slot.current];
    e.last_x = slot.last >= 0 ? slot.x[slot.last] : nullptr;
    e.f = slot.x[slot.target];
    e.constants = slot.constants;
    e.previous = before(slot);
    e.previous_g = before_g(slot);
    e.step = slot.progress.steps;
    e.zero = slot.zero && slot.progress.steps == 0;
    e.exact = slot.last < 0 || (full(slot) && !slot.sound);
    e.corrected = slot.corrector.on;
    e.travel = slot.travel;
    e.largest = T(-1);
    e.stands_for = nullptr;
    e.moves = false;
    e.rounding2 = slot.rounding2;
    e.secant_known = false;
    e.dot = 0;
  }

  bool full(const Slot<T>& slot) const {
    return refresh2_ == 0 || slot.precision.full_is_due(slot.progress.steps, options_.max_steps);
  }

  // Whether what an evaluation is off by is nothing beside what the row stops at.
  bool sound(const Evaluation<T>& e) const {
    constexpr double kMargin2 = 100;
    return e.rounding2 >= 0 && within_tolerance(kMargin2 * e.rounding2, e.f2, rule_);
  }

  // Takes in one evaluation; false when the row is done (and written out).
  bool advance(Slot<T>& slot, const Evaluation<T>& e) {
    slot.last = slot.current;
    slot.travel = {};
    slot.rounding2 = e.rounding2;
    slot.sound = sound(e);
    const Status ending = slot.precision.ending;
    if (ending != kRunning) return end_at(slot, ending, slot.current, slot.progress.best_step, e.r2, e.f2);
    const double refresh2 = accelerating(slot) ? refresh2_ : kPlainRefresh2 * refresh2_;
    const bool whole = e.exact || slot.sound;
    const bool jumped = refresh2_ > 0 && slot.precision.observe(whole, e.r2, e.f2, refresh2) && e.exact;
    Progress<double> progress = slot.progress;
    const Judgement<double> verdict = judge(progress, e.r2, e.f2, rule_);
    if (result_.trace != nullptr)
      result_.trace[int64_t(progress.steps - 1) * rows_ + slot.row] = float(relative_residual(e.r2, e.f2));
    if (slot.corrected && failed(slot, progress, verdict, e.r2, jumped)) return back_to_best(slot, progress);
    if (slot.precision.hold(verdict)) {
      slot.progress.steps = progress.steps;
      return true;
    }
    slot.progress = progress;
    if (verdict.new_best) slot.best = slot.current;
    if (verdict.status != kRunning) return end(slot, verdict.status, e);
    T* const f = slot.x[slot.target];
    const T damping = T(options_.damping);
    if constexpr (kCorrects) {
      if (corrects(slot, e, jumped)) {
        slot.precision.last = request_correction(slot, e);
        slot.previous_r2 = e.r2;
        turn_buffers(slot);
        slot.previous = -1;
        return true;
      }
    }
    if (accelerates(slot, e)) {
      const Whence<T> from{e.stands_for, e.moves};
      slot.travel = anderson_advance<T>(slot.anderson, used_ld_, shape_.history, damping, options_.ridge, e.r2,
                                        e.secant_known ? &e.secant : nullptr, from, e.x, f, jumped);
    } else if (damping == T(1)) {
      slot.travel = e.travel;
    } else {
      for (int64_t i = 0; i < used_ld_; i += kLanes<T>) {
        const Vec<T> x = load(e.x + i);
        store(f + i, fma<T>(broadcast<T>(damping), load(f + i) - x, x));
      }
    }
    // Picard steps contract evenly, so the one that will end the row is known beforehand.
    if (refresh2_ > 0) slot.precision.last = !accelerating(slot) && next_converges(e.r2, slot.previous_r2, e.f2, rule_);
    slot.previous_r2 = e.r2;
    turn_buffers(slot);
    return true;
  }

  // Whether the row's next iterate is a correction.
  bool corrects(Slot<T>& slot, const Evaluation<T>& e, bool jumped) {
    bool& on = slot.corrector.on;
    if (!on) return slot.corrected = false;
    if (slot.corrected && !jumped && e.r2 > kLeastFall2 * slot.previous_r2) on = false;
    if (options_.max_steps - slot.corrector.spent < 1) on = false;
    slot.corrected = on;
    return on;
  }

  // Returns whether the evaluation after it had best be in full.
  bool request_correction(Slot<T>& slot, const Evaluation<T>& e) {
    const double aim2 = map_.aim2(slot.progress.steps == 1);
    constexpr double kBelow2 = 0.25;  // the tolerance
    const double bound = options_.atol + options_.rtol * square_root(e.f2);
    const double wanted2 = kBelow2 * bound * bound / e.r2;
    Correction<T>& c = correction_[corrections_++];
    c = {slot.x[slot.current],
         slot.x[slot.target],
         slot.constants,
         e.r2,
         e.largest,
         wanted2 > aim2 ? wanted2 : aim2,
         options_.max_steps - slot.corrector.spent,
         &slot.corrector,
         e.stands_for,
         &slot.travel};
    return wanted2 > aim2 || slot.precision.will_be_due(c.aim2 * e.r2, e.f2, refresh2_);
  }

  // A product in full that moves the map (`jumped`) says nothing of the correction.
  bool failed(const Slot<T>& slot, const Progress<double>& progress, const Judgement<double>& verdict, double r2,
              bool jumped) const {
    if (slot.best < 0 || (jumped && finite(r2))) return false;
    return correction_failed(verdict, progress.steps, options_.max_steps, r2, slot.previous_r2);
  }

  // The row goes on from its best iterate, and without corrections.
  bool back_to_best(Slot<T>& slot, const Progress<double>& progress) {
    slot.progress.steps = progress.steps;
    slot.corrected = slot.corrector.on = false;
    slot.current = slot.best;
    slot.target = slot.best == 0 ? 1 : 0;
    slot.last = slot.previous = -1;
    return true;
  }

  bool accelerates(Slot<T>& slot, const Evaluation<T>& e) {
    if (options_.solver != kAuto) return options_.solver == kAnderson;
    const bool was = auto_accelerating(slot.choice.mode);
    // x_k - x_{k-1} = damping g_{k-1}
    const double dot = e.dot * inverse_damping_;
    const bool now = choose(slot.choice, auto_rule_, slot.progress.steps, e.r2, slot.previous_r2, dot);
    if (!now) return false;  // a history left behind is cleared on entering again
    if (!was) prime(slot, e);
    // A problem that a window of cheap steps did not finish, and another like it would not, is worth dear ones.
    slot.accelerated += 1;
    if (slot.accelerated == kAutoWindow + 1 && within_tolerance(slot.choice.anderson2 * e.r2, e.f2, rule_))
      slot.accelerated = 1;
    slot.anderson.limit = columns(shape_, slot.accelerated);
    return true;
  }

  // Enters Anderson with the last Picard step as its first difference: h_{k-1} = x_k, g_{k-1} as above.
  void prime(Slot<T>& slot, const Evaluation<T>& e) {
    slot.anderson.clear();
    if (e.previous == nullptr) return;
    const Vec<T> scale = broadcast<T>(T(1 / options_.damping));
    for (int64_t i = 0; i < used_ld_; i += kLanes<T>) {
      const Vec<T> x = load(e.x + i);
      store(slot.anderson.previous_h + i, x);
      store(slot.anderson.previous_g + i, (x - load(e.previous + i)) * scale);
    }
    slot.anderson.primed = true;
  }

  // The iterate just left keeps its buffer for one more step unless the third one holds an older, better one.
  static void turn_buffers(Slot<T>& slot) {
    const int old = slot.current, fresh = slot.target;
    const bool free_third = slot.best == old;
    slot.target = free_third ? 3 - old - fresh : old;
    slot.previous = free_third ? old : -1;
    slot.current = fresh;
  }

  // The row ends with this status, unless its best iterate is the result and has yet to be measured in full.
  bool end(Slot<T>& slot, Status status, const Evaluation<T>& e) {
    const Progress<double>& p = slot.progress;
    if (!returns_best(status, options_) || slot.best < 0)
      return end_at(slot, status, slot.current, p.steps, e.r2, e.f2);
    if (slot.precision.best_full) return end_at(slot, status, slot.best, p.best_step, p.best_r2, p.best_f2);
    slot.precision.ending = status;
    slot.current = slot.best;
    slot.target = slot.best == 0 ? 1 : 0;
    slot.last = slot.previous = -1;
    return true;
  }

  bool end_at(const Slot<T>& slot, Status status, int buffer, int steps, double r2, double f2) {
    std::memcpy(result_.z + slot.row * dim_, slot.x[buffer], size_t(dim_) * sizeof(T));
    put_ending(result_, slot.row, status, steps, r2, f2);
    return false;
  }

  Map& map_;
  const int64_t dim_, ld_, used_ld_;
  const TileShape shape_;
  const SolveOptions& options_;
  const StopRule<double> rule_;
  const T* z0_;
  const SolveResult<T>& result_;
  const int64_t rows_;
  const double refresh2_;
  const AutoRule<double> auto_rule_;
  const double inverse_damping_;
  Slot<T>* slots_ = nullptr;
  int filled_ = 0;  // slots with a row in them, before the first evaluation
  Correction<T> correction_[kMaxTile];
  int corrections_ = 0;
};

}  // namespace ak::AK_ISA
