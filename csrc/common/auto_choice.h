// How Auto chooses between Picard and Anderson steps, from one problem's own residuals.
//
// Picard first. Two residuals in a row that point the same way (or opposite ways) are led by a few slow real
// modes, which is what Anderson removes; residuals that turn (a spectrum spread over a circle) gain nothing
// from it (GMRES on a disc converges no faster than the fixed-point iteration). A residual that does not
// shrink is given to Anderson whatever its direction. Anderson is left again when, over a window, it has
// reduced the residual no faster than Picard did, step for step at the price of a step.
#pragma once

#include "stopping.h"

namespace ak {

constexpr double kAutoCosine2 = 0.36;     // squared cosine between successive residuals that starts Anderson
constexpr double kAutoStall2 = 0.98;      // squared contraction above which Picard counts as stalled
constexpr int kAutoFirstStep = 2;         // earliest step that may start Anderson
constexpr int kAutoWindow = 8;            // Anderson steps before it is judged

template <class S>
struct AutoState {
  bool anderson = false;
  bool locked = false;  // Anderson was tried and left: it is not tried again
  int since = 0;        // Anderson steps since it started
  S entry_r2 = S(0);    // |g|^2 when Anderson started
  S picard2 = S(1);     // squared contraction per Picard step, as last seen
};

// r2, previous_r2: |g_k|^2, |g_{k-1}|^2; dot: <g_k, g_{k-1}> (used while in Picard mode);
// price: cost of an Anderson step over a Picard step, a constant of the shape.
// Returns true when the next step is to be an Anderson step.
template <class S>
AK_HD bool choose(AutoState<S>& a, int steps, S r2, S previous_r2, S dot, S price) {
  if (a.anderson) {
    a.since += 1;
    if (a.since < kAutoWindow || a.locked) return true;
    // picard2^(since * price) against r2 / entry_r2, in logarithms of base 2 would need log; compare by powers:
    S picard = S(1);
    const int steps_worth = int(S(a.since) * price + S(0.5));
    for (int i = 0; i < steps_worth; ++i) picard *= a.picard2;
    if (a.picard2 < S(1) && r2 > picard * a.entry_r2) {
      a.anderson = false;
      a.locked = true;
      return false;
    }
    a.since = 0;
    a.entry_r2 = r2;
    return true;
  }
  if (steps < kAutoFirstStep || a.locked) return false;
  a.picard2 = previous_r2 > S(0) ? r2 / previous_r2 : S(0);
  const bool aligned = dot * dot > S(kAutoCosine2) * r2 * previous_r2;
  if (aligned || a.picard2 > S(kAutoStall2)) {
    a.anderson = true;
    a.since = 0;
    a.entry_r2 = r2;
  }
  return a.anderson;
}

}  // namespace ak
