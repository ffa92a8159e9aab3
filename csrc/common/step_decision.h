// What one fused step decides for a problem from the sums of its first sweep: how it stands, what it does next.
//
// Two sweeps over the data surround the decision. The first forms inner products of z, f(z) and the stored residuals
// g = f(z) - z; the second writes what `StepState::write` says. A ring holds g and h = z + damping g of the last
// steps; a difference goes by the slot of its newer end.
#pragma once

#include <cstring>

#include "auto_choice.h"
#include "mixed_precision.h"
#include "small_solve.h"

namespace ak {

constexpr double kStepRestartFactor2 = 100;  // |g|^2 this far above its lowest: the history misleads
constexpr double kUnknownMapPrice = 1.25;    // of an Anderson step over a Picard step, the map included

enum StepPhase : int {
  kStepFresh,
  kStepIterating,
  kStepEnded,    // its result lies in `out` of the step that ended it, not yet in the other buffer
  kStepSettled,  // in both
};

// The second sweep's orders.
enum StepWrite : int {
  kWriteNothing,
  kWritePlain,     // out = h
  kWriteAnderson,  // h into the ring, out = the groups' combinations
  kWriteCurrent,   // out = z
  kWriteBest,      // out = best
};

struct StepState {
  Progress<double> progress;
  AutoState<double> choice;
  double previous_r2;
  double level;  // lowest |g|^2 since the history was last cleared
  double scale;  // of the products of the next first sweep
  int phase;
  int newest;       // ring slot of the last step; negative: the ring is empty
  int write;        // StepWrite
  bool best_saved;  // the best iterate is in `best`; otherwise it was the last one before z
  // The step in progress:
  bool save_best;   // first copy `out` to `best`
  bool enter;       // first put the last plain step into the ring
  bool clear;       // the groups forget their differences
  bool solve;       // the groups' weights are to be found
  bool overflowed;  // a group's combination is not finite
};

// Of a problem whose map is evaluated in mixed precision.
struct MixedStep {
  Precision precision;
  uint64_t apart;  // by slot of the ring: the difference is between two maps and says nothing about either
  bool full;       // this step's evaluation
};

struct StepRules {
  StopRule<double> rule;
  int solver;  // 0 Picard, 1 Anderson, 2 Auto
  bool keep_best;
  int slots;     // of the ring
  double price;  // of an Anderson step over a Picard step, for Auto
  int64_t groups, entries;
};

AK_HD int ring_slot_of(int slot, int slots) { return slot < 0 ? slot + slots : slot; }
AK_HD int next_ring_slot(int slot, int slots) { return slot + 1 == slots ? 0 : slot + 1; }

// A power of two near 1 / x that keeps squares of entries about as large as x within float; 1 for x = 0, Inf, NaN.
AK_HD float power_near_inverse(double x) {
  if (!(x > 0) || !finite(x)) return 1;
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  int exponent = 1023 - int(bits >> 52);
  exponent = exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
  const uint32_t power = uint32_t(exponent + 127) << 23;
  float result;
  memcpy(&result, &power, sizeof result);
  return result;
}

// Whether the coming step may be the first Anderson step after plain ones: the last plain step then counts as a
// difference, and Auto may ask how it is directed.
AK_HD bool step_watches(const StepState& s, const StepRules& r) {
  if (r.solver != 2 || s.phase != kStepIterating) return false;
  if (s.choice.mode == kAutoPicard) return s.progress.steps + 1 >= kAutoFirstLook;
  return s.choice.mode == kAutoOnTrial && s.choice.since + 1 >= kAutoTrial;
}

AK_HD bool step_keeps_history(const StepState& s, const StepRules& r) {
  return r.solver == 1 || (r.solver == 2 && s.phase == kStepIterating && auto_accelerating(s.choice.mode));
}

template <class Result>
AK_HD void finish_step(StepState& s, Result& result, const StepRules& rules, Status status, double r2, double f2,
                       MixedStep* mixed) {
  const bool failed = status == kDiverged || status == kNonfinite;
  const bool best = (failed || rules.keep_best) && s.progress.best_f2 >= 0;
  const bool best_is_current = s.progress.best_step == s.progress.steps;
  s.write = !best || best_is_current ? kWriteCurrent : s.best_saved ? kWriteBest : kWriteNothing;
  if (mixed != nullptr && best && !mixed->precision.best_full) {
    mixed->precision.ending = status;
    return;
  }
  s.phase = kStepEnded;
  result.status = double(status);
  result.steps = double(best ? s.progress.best_step : s.progress.steps);
  result.residual = best ? relative_residual(s.progress.best_r2, s.progress.best_f2) : relative_residual(r2, f2);
}

AK_HD void begin_step(StepState& s, double r2) {
  s.progress = Progress<double>();
  s.choice = AutoState<double>();
  s.level = r2;
  s.newest = -1;
  s.best_saved = true;
  s.phase = kStepIterating;
}

// r2, f2: |g|^2 and |f|^2; along: <g, d>, d the difference to the residual before (where the first sweep formed it).
// mixed: null where all evaluations are in full; where it says `confirm` after the decision, the problem stays at z.
// Returns the relative residual of this step, or a negative number where the problem had ended before it.
template <class Result>
AK_HD double decide_step(StepState& s, Result& result, const StepRules& rules, double r2, double f2, double along,
                         MixedStep* mixed = nullptr) {
  s.save_best = s.enter = s.clear = s.solve = s.overflowed = false;
  if (s.phase >= kStepEnded) {
    s.write = s.phase == kStepEnded ? kWriteCurrent : kWriteNothing;
    s.phase = kStepSettled;
    return -1;
  }
  if (mixed != nullptr && mixed->precision.ending != kRunning) {
    s.write = kWriteCurrent;
    s.phase = kStepEnded;
    result.status = double(mixed->precision.ending);
    result.steps = double(s.progress.best_step);
    result.residual = relative_residual(r2, f2);
    return -1;
  }
  const bool first = s.phase == kStepFresh;
  if (first) begin_step(s, r2);
  const bool best_was_last = !first && !s.best_saved;
  bool anderson = rules.solver == 1 || (rules.solver == 2 && auto_accelerating(s.choice.mode));
  const double refresh2 = anderson ? kBfloat16Refresh2 : kPlainRefresh2 * kBfloat16Refresh2;
  const bool jumped = mixed != nullptr && mixed->precision.observe(mixed->full, r2, f2, refresh2);
  const Progress<double> so_far = s.progress;
  const Judgement<double> verdict = judge(s.progress, r2, f2, rules.rule);
  const double relative = relative_residual(r2, f2);
  if (mixed != nullptr && mixed->precision.hold(verdict)) {
    s.progress = so_far;
    s.progress.steps += 1;
    s.write = kWriteNothing;
    return relative;
  }
  s.save_best = best_was_last && !verdict.new_best && verdict.status == kRunning;
  s.best_saved = !verdict.new_best && (s.best_saved || s.save_best);
  result.status = double(kRunning);
  result.steps = double(s.progress.steps);
  result.residual = relative;
  if (verdict.status != kRunning) {
    finish_step(s, result, rules, verdict.status, r2, f2, mixed);
    return relative;
  }

  s.write = kWritePlain;
  s.scale = power_near_inverse(square_root((r2 > f2 ? r2 : f2) / double(rules.groups * rules.entries)));
  // A restart is one problem's decision; between mixing groups it would carry a later token's residual to earlier ones.
  const bool restart = rules.groups == 1 && r2 > kStepRestartFactor2 * s.level;
  if (restart || r2 < s.level) s.level = r2;
  if (rules.solver == 2) {
    const bool before = anderson;
    // <g, g_before> = <g, g - d>
    const AutoRule<double> rule = auto_rule(rules.price, rules.groups * rules.entries);
    anderson = choose(s.choice, rule, s.progress.steps, r2, s.previous_r2, r2 - along);
    s.enter = anderson && !before;
    if (s.enter) s.newest = -1;
    s.clear = s.enter || !anderson;
  }
  // Picard steps contract evenly, so the one that will end the problem is known beforehand.
  if (mixed != nullptr) mixed->precision.last = !anderson && next_converges(r2, s.previous_r2, f2, rules.rule);
  s.previous_r2 = r2;
  if (!anderson) return relative;
  const bool has_before = s.newest >= 0 || s.enter;
  s.write = kWriteAnderson;
  s.newest = s.newest < 0 ? int(has_before) : next_ring_slot(s.newest, rules.slots);
  if (mixed != nullptr) {
    const uint64_t slot = uint64_t(1) << s.newest;
    mixed->apart = jumped ? mixed->apart | slot : mixed->apart & ~slot;
  }
  s.solve = has_before && !restart;
  s.clear = s.clear || !s.solve;
  return relative;
}

}  // namespace ak
