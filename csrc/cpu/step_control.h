// What a problem remembers between steps, and what one step decides for it from the sums of the first sweep.
#pragma once

#include "../common/auto_choice.h"
#include "../common/small_solve.h"
#include "anderson_step.h"
#include "step_sweeps.h"

namespace ak::AK_ISA {

constexpr double kStepRestart2 = 100;  // |g|^2 this far above its lowest: the history misleads
constexpr double kStepPrice = 1.25;    // of an Anderson step over a Picard step, the map included

template <class T>
constexpr double kStepPivotFloor = sizeof(T) == 8 ? 1e-13 : 1e-7;

enum Phase : int {
  kFresh,
  kIterating,
  kEnded,    // its result lies in `out` of the step that ended it, not yet in the other buffer
  kSettled,  // in both
};

// The second sweep's orders.
enum Write : int {
  kNothing,
  kPlainStep,     // out = h
  kAndersonStep,  // h into the ring, out = the groups' combinations
  kCurrent,       // out = z
  kBest,          // out = best
};

struct ProblemState {
  Progress<double> progress;
  AutoState<double> choice;
  double previous_r2;
  double level;  // lowest |g|^2 since the history was last cleared
  double scale;  // of the products of the next first sweep
  int phase;
  int newest;       // ring slot of the last step; negative: the ring is empty
  bool best_saved;  // the best iterate is in `best`; otherwise it was the last one before z
  // The step in progress:
  bool save_best;  // first copy `out` to `best`
  bool enter;      // first put the last plain step into the ring
  int write;
};

struct GroupState {
  int differences;  // valid in the ring
  int used;         // of them, in this step's combination
};

static_assert(sizeof(StepResult) == kResultDoubles * sizeof(double));
static_assert(sizeof(ProblemState) <= kStateDoubles * sizeof(double));

// Where the parts of a problem's row of StepProblem::control lie.
class ControlRow {
 public:
  ControlRow(const StepProblem& p, int64_t problem)
      : row_(p.control + problem * p.columns),
        slots_(p.slots),
        chunks_(step_chunks(p.entries)),
        sums_(row_ + kResultDoubles + kStateDoubles + p.groups * group_doubles(p.slots)) {}

  StepResult& result() { return *reinterpret_cast<StepResult*>(row_); }
  ProblemState& state() { return *reinterpret_cast<ProblemState*>(row_ + kResultDoubles); }
  GroupState& group(int64_t g) { return *reinterpret_cast<GroupState*>(at(g)); }
  double* weights(int64_t g) { return at(g) + 1; }        // from the oldest difference used to the newest
  double* gram(int64_t g) { return at(g) + 1 + slots_; }  // [slots, slots]
  double* sums(int64_t g, int64_t chunk) { return sums_ + (g * chunks_ + chunk) * chunk_doubles(slots_); }
  // Whether the chunk's part of the next iterate is finite, after the second sweep.
  double& valid(int64_t g, int64_t chunk) { return sums(g, chunk)[4 + 2 * slots_]; }

 private:
  double* at(int64_t g) { return row_ + kResultDoubles + kStateDoubles + g * group_doubles(slots_); }

  double* row_;
  int slots_;
  int64_t chunks_;
  double* sums_;
};

struct StepContext {
  const StepProblem& problem;
  const SolveOptions& options;
  StopRule<double> rule;
  double pivot_floor;
  int64_t chunks;
};

inline int ring_slot(int slot, int slots) { return slot < 0 ? slot + slots : slot; }

// Old differences that this step keeps: one makes room for the new one where the ring is full.
inline int kept_differences(const GroupState& group, int slots) {
  return group.differences < slots - 2 ? group.differences : slots - 2;
}

// Whether the coming step may be the first Anderson step after plain ones: the last plain step then counts as a
// difference, and Auto may ask how it is directed.
inline bool watches_residual(const ProblemState& s, const SolveOptions& o) {
  if (o.solver != kAuto || s.phase != kIterating) return false;
  if (s.choice.mode == kAutoPicard) return auto_watches(s.progress.steps + 1);
  return s.choice.mode == kAutoOnTrial && s.choice.since + 1 >= kAutoTrial;
}

inline void finish(const StepContext& c, ControlRow& row, Status status, double r2, double f2) {
  ProblemState& s = row.state();
  const bool failed = status == kDiverged || status == kNonfinite;
  const bool best = (failed || c.options.keep_best) && s.progress.best_f2 >= 0;
  const bool best_is_current = s.progress.best_step == s.progress.steps;
  if (!best || best_is_current)
    s.write = kCurrent;
  else
    s.write = s.best_saved ? kBest : kNothing;
  s.phase = kEnded;
  row.result() = {double(status), double(best ? s.progress.best_step : s.progress.steps),
                  best ? relative_residual(s.progress.best_r2, s.progress.best_f2) : relative_residual(r2, f2)};
}

// The group's new difference enters its Gram matrix, and the weights of the next iterate are solved for.
inline void solve_group(const StepContext& c, ControlRow& row, int64_t g) {
  const int slots = c.problem.slots;
  GroupState& group = row.group(g);
  double* const gram = row.gram(g);
  double total[kMaxHistory * 2 + 4];
  const int old = kept_differences(group, slots);
  for (int k = 0; k < 4 + 2 * old; ++k) total[k] = 0;
  for (int64_t chunk = 0; chunk < c.chunks; ++chunk)
    for (int k = 0; k < 4 + 2 * old; ++k) total[k] += row.sums(g, chunk)[k];

  // A difference goes by the slot of its newer end; `newest` is already this step's.
  const int newest = row.state().newest;
  double rhs[kMaxHistory + 1], gamma[kMaxHistory + 1];
  int order[kMaxHistory + 1];
  for (int j = 0; j < old; ++j) {
    const int slot = ring_slot(newest - old + j, slots);
    order[j] = slot;
    gram[slot * slots + newest] = gram[newest * slots + slot] = total[4 + 2 * j];
    rhs[slot] = total[4 + 2 * j + 1];
  }
  order[old] = newest;
  gram[newest * slots + newest] = total[2];
  rhs[newest] = total[3];

  const int n = old + 1;
  group.used = small_solve<double>(gram, slots, rhs, order, n, c.options.ridge, c.pivot_floor, gamma);
  group.differences = group.used > 0 ? n : 0;
  for (int j = 0; j < group.used; ++j) row.weights(g)[j] = gamma[order[n - group.used + j]];
}

inline void clear_groups(const StepContext& c, ControlRow& row) {
  for (int64_t g = 0; g < c.problem.groups; ++g) row.group(g) = {0, 0};
}

// Anderson, after the choice of Auto has fallen on it.
inline void decide_anderson(const StepContext& c, ControlRow& row, bool has_before, bool restart) {
  ProblemState& s = row.state();
  s.write = kAndersonStep;
  s.newest = s.newest < 0 ? int(has_before) : (s.newest + 1 == c.problem.slots ? 0 : s.newest + 1);
  if (restart || !has_before) return clear_groups(c, row);
  for (int64_t g = 0; g < c.problem.groups; ++g) solve_group(c, row, g);
}

// After the first sweep of all of the problem's chunks.
inline void decide(const StepContext& c, int64_t problem) {
  ControlRow row(c.problem, problem);
  ProblemState& s = row.state();
  if (s.phase >= kEnded) {
    s.write = s.phase == kEnded ? kCurrent : kNothing;
    s.phase = kSettled;
    s.save_best = s.enter = false;
    return;
  }
  double r2 = 0, f2 = 0, along = 0;
  for (int64_t g = 0; g < c.problem.groups; ++g)
    for (int64_t chunk = 0; chunk < c.chunks; ++chunk) {
      const double* sums = row.sums(g, chunk);
      r2 += sums[0];
      f2 += sums[1];
      along += sums[3];
    }
  const bool first = s.phase == kFresh;
  if (first) {
    s.progress = {};
    s.choice = {};
    s.level = r2;
    s.newest = -1;
    s.best_saved = true;
    s.phase = kIterating;
  }
  const bool best_was_last = !first && !s.best_saved;
  const Judgement<double> verdict = judge(s.progress, r2, f2, c.rule);
  if (c.problem.trace != nullptr)
    c.problem.trace[int64_t(s.progress.steps - 1) * c.problem.problems + problem] = float(relative_residual(r2, f2));
  s.enter = false;
  s.save_best = best_was_last && !verdict.new_best && verdict.status == kRunning;
  s.best_saved = !verdict.new_best && (s.best_saved || s.save_best);
  row.result() = {double(kRunning), double(s.progress.steps), relative_residual(r2, f2)};
  if (verdict.status != kRunning) return finish(c, row, verdict.status, r2, f2);

  s.write = kPlainStep;
  s.scale = inverse_power(square_root(f2 / double(c.problem.groups * c.problem.entries)));
  // A restart is one problem's decision; between mixing groups it would carry a later token's residual to earlier ones.
  const bool restart = c.problem.groups == 1 && r2 > kStepRestart2 * s.level;
  if (restart || r2 < s.level) s.level = r2;
  bool anderson = c.options.solver == kAnderson;
  if (c.options.solver == kAuto) {
    const bool before = auto_accelerating(s.choice.mode);
    // <g, g_before> = <g, g - d>
    const AutoRule<double> rule = auto_rule(kStepPrice, c.problem.groups * c.problem.entries);
    anderson = choose(s.choice, rule, s.progress.steps, r2, s.previous_r2, r2 - along);
    s.enter = anderson && !before;
    if (s.enter || !anderson) clear_groups(c, row);
    if (s.enter) s.newest = -1;
  }
  s.previous_r2 = r2;
  if (anderson) decide_anderson(c, row, s.newest >= 0 || s.enter, restart);
}

}  // namespace ak::AK_ISA
