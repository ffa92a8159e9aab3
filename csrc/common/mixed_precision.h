// precision="mixed": when a product of changes in few bits will do, and when one in full is due. One text for every
// backend.
//
// With changes what is solved is a nearby map, moved onto the true one by a product in full whenever the residual has
// fallen far enough since the last. Where that turns out to have gained nothing, the row goes on in full. Nothing ends
// a row but a full evaluation.
#pragma once

#include "problems.h"

namespace ak {

// Squared fall of the residual after which a full product is due, W and the changes in bfloat16.
constexpr double kBfloat16Refresh2 = 1e-4;
// Squared fall, from one full evaluation to the next, that changes must have brought to be worth going on with.
constexpr double kLeastGain2 = 0.25;
// Picard steps bear a nearby map for longer than Anderson, which fits its history to it: this times the squared fall.
constexpr double kPlainRefresh2 = 0.25;

// "best" compares residuals of different steps, which in mixed precision are not of one kind.
AK_HD bool mixed_allowed(const SolveOptions& options) { return options.mixed && !options.keep_best; }

// Whether a row that contracts as it did in its last step ends with the next one.
template <class S>
AK_HD bool next_converges(S r2, S previous_r2, S f2, const StopRule<S>& rule) {
  return previous_r2 > S(0) && within_tolerance(r2 / previous_r2 * r2, f2, rule);
}

// Of one row.
struct Precision {
  double level2 = 0;  // squared relative residual at the last full evaluation
  bool refresh = false;
  bool always_full = false;
  bool was_full = true;      // the last evaluation
  bool confirm = false;      // it would have ended the row, but was not in full: once more
  bool last = false;         // the next evaluation is expected to end the row
  bool best_full = false;    // the residual of the best iterate was measured in full
  Status ending = kRunning;  // or how the row ends once its best iterate was measured in full

  // Whether the next evaluation is to be in full; `steps`: those before it.
  AK_HD_MEMBER bool full_is_due(int steps, int max_steps) const {
    return confirm || last || refresh || always_full || steps == 0 || steps + 1 >= max_steps || ending != kRunning;
  }

  // Whether a residual expected of the next evaluation is so far below the last full one's.
  AK_HD_MEMBER bool will_be_due(double r2, double f2, double refresh2) const { return r2 < refresh2 * level2 * f2; }

  // Takes in an evaluation; true where the map is not quite the one of the evaluation before.
  AK_HD_MEMBER bool observe(bool full, double r2, double f2, double refresh2) {
    const double now2 = f2 > 0 ? r2 / f2 : 0;
    const bool jumped = full && !was_full;
    if (full) {
      always_full = always_full || (refresh && now2 > kLeastGain2 * level2);
      level2 = now2;
    }
    refresh = !full && now2 < refresh2 * level2;
    was_full = full;
    return jumped;
  }

  // What the last evaluation's verdict means: true where it has to be confirmed first, the row staying where it is.
  template <class S>
  AK_HD_MEMBER bool hold(const Judgement<S>& verdict) {
    confirm = !was_full && (verdict.status == kConverged || verdict.status == kStagnated);
    if (!confirm && verdict.new_best) best_full = was_full;
    return confirm;
  }
};

}  // namespace ak
