// How Auto chooses between Picard and Anderson steps, from one problem's own residuals.
//
// Picard first. Two residuals in a row that point the same way (or opposite ways) are led by a few real modes,
// which is what Anderson removes; residuals that turn (a spectrum spread over a circle) gain nothing from it:
// GMRES on a disc converges no faster than the fixed-point iteration. A residual that does not shrink is given
// to Anderson whatever its direction.
//
// A window of Anderson steps is held against as many Picard steps as it cost, contracting as the last one before it
// did. That flatters Picard: fast modes are gone later. So where Anderson falls short of it, a few Picard steps follow,
// once, as a trial; their last contraction is what Picard would go on to do, and the faster of the two by cost is kept.
#pragma once

#include "stopping.h"

namespace ak {

constexpr double kAutoCosine2 = 0.12;  // squared cosine between successive residuals that starts Anderson ...
constexpr double kAutoChance2 = 4;     // ... plus this over the state's size: what directions at random come to ...
constexpr double kAutoPriced2 = 0.6;   // ... plus this times what an Anderson step costs more
constexpr double kAutoMost2 = 0.9;     // ... and never more than this
constexpr double kAutoStall2 = 0.98;   // squared contraction above which Picard counts as stalled
constexpr double kAutoPrice = 2.0;     // an Anderson step dearer than this is for stalled problems only
constexpr int kAutoWindow = 8;         // Anderson steps before they are judged
constexpr int kAutoTrial = 3;          // Picard steps of the trial

enum AutoMode : int {
  kAutoPicard = 0,
  kAutoAnderson = 1,
  kAutoOnTrial = 2,
  kAutoKeepPicard = 3,
  kAutoKeepAnderson = 4
};

template <class S>
struct AutoState {
  int mode = kAutoPicard;
  int since = 0;       // steps in this mode
  S picard2 = S(0);    // squared contraction of the Picard step before Anderson
  S entry_r2 = S(0);   // |g|^2 when the Anderson window began
  S anderson2 = S(0);  // its squared contraction over the whole window
};

// The evaluation of f (counted from 1) after which a problem in Picard mode is first looked at, and then after each.
// Looking at fewer costs more, in mispredicted branches, than the one more sum it saves.
constexpr int kAutoFirstLook = 2;

// What the choice depends on besides the residuals: the same for all problems of a solve.
template <class S>
struct AutoRule {
  S cosine2;         // squared cosine that starts Anderson; above 1: none does
  int window_steps;  // Picard steps that cost what an Anderson window does
};

// price: cost of an Anderson step over a Picard step; entries: the size of a problem's state.
template <class S>
AK_HD AutoRule<S> auto_rule(S price, int64_t entries) {
  const S cosine2 = S(kAutoCosine2) + S(kAutoChance2) / S(entries > 0 ? entries : 1) + S(kAutoPriced2) * (price - S(1));
  const S most = cosine2 < S(kAutoMost2) ? cosine2 : S(kAutoMost2);
  return {price <= S(kAutoPrice) ? most : S(2), int(S(kAutoWindow) * price + S(0.5))};
}

template <class S>
AK_HD S auto_power(S x, int n) {
  S product = S(1);
  AK_ROLLED
  for (int i = 0; i < n; ++i) product *= x;
  return product;
}

// steps: evaluations of f so far; r2, previous_r2: |g_k|^2, |g_{k-1}|^2; dot: <g_k, g_{k-1}>, used in kAutoPicard
// mode only, from kAutoFirstLook steps on.
// Returns true when the next step is to be an Anderson step. On leaving Anderson the caller clears its history.
template <class S>
AK_HD bool choose(AutoState<S>& a, const AutoRule<S>& rule, int steps, S r2, S previous_r2, S dot) {
  a.since += 1;
  switch (a.mode) {
    case kAutoPicard: {
      const bool aligned = dot * dot > rule.cosine2 * r2 * previous_r2;
      const bool stalled = r2 > S(kAutoStall2) * previous_r2;
      if (steps < kAutoFirstLook || !(aligned || stalled)) return false;
      a.mode = kAutoAnderson;
      a.since = 0;
      a.picard2 = r2 / previous_r2;
      a.entry_r2 = r2;
      return true;
    }
    case kAutoAnderson: {
      if (a.since < kAutoWindow) return true;
      a.anderson2 = r2 / a.entry_r2;
      a.since = 0;
      a.entry_r2 = r2;
      if (a.anderson2 < auto_power(a.picard2, rule.window_steps)) return true;
      a.mode = kAutoOnTrial;
      return false;
    }
    case kAutoOnTrial: {
      if (a.since < kAutoTrial) return false;
      const S picard2 = auto_power(r2 / previous_r2, rule.window_steps);
      a.mode = picard2 < a.anderson2 ? kAutoKeepPicard : kAutoKeepAnderson;
      return a.mode == kAutoKeepAnderson;
    }
    default:
      return a.mode == kAutoKeepAnderson;
  }
}

// Modes in which the choice may want <g_k, g_{k-1}>, or the step before as the first difference.
AK_HD bool auto_watchful(int mode) { return mode == kAutoPicard || mode == kAutoOnTrial; }

AK_HD bool auto_accelerating(int mode) { return mode == kAutoAnderson || mode == kAutoKeepAnderson; }

}  // namespace ak
