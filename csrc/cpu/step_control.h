// What a problem remembers between steps, and how the sums of the first sweep become the decision of
// csrc/common/step_decision.h.
#pragma once

#include "../common/step_decision.h"
#include "anderson_step.h"
#include "step_sweeps.h"

namespace ak::AK_ISA {

template <class T>
constexpr double kStepPivotFloor = sizeof(T) == 8 ? 1e-13 : 1e-7;

struct GroupState {
  int differences;  // valid in the ring
  int used;         // of them, in this step's combination
};

static_assert(sizeof(StepResult) == kResultDoubles * sizeof(double));
static_assert(sizeof(StepState) <= kStateDoubles * sizeof(double));

// Where the parts of a problem's row of StepProblem::control lie.
class ControlRow {
 public:
  ControlRow(const StepProblem& p, int64_t problem)
      : row_(p.control + problem * p.columns),
        slots_(p.slots),
        chunks_(step_chunks(p.entries)),
        sums_(row_ + kResultDoubles + kStateDoubles + p.groups * group_doubles(p.slots)) {}

  StepResult& result() { return *reinterpret_cast<StepResult*>(row_); }
  StepState& state() { return *reinterpret_cast<StepState*>(row_ + kResultDoubles); }
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
  StepRules rules;
  double pivot_floor;
  int64_t chunks;
};

// Old differences that this step keeps: one makes room for the new one where the ring is full.
inline int kept_differences(const GroupState& group, int slots) {
  return group.differences < slots - 2 ? group.differences : slots - 2;
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
    const int slot = ring_slot_of(newest - old + j, slots);
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

// After the first sweep of all of the problem's chunks.
inline void decide(const StepContext& c, int64_t problem) {
  ControlRow row(c.problem, problem);
  StepState& s = row.state();
  double r2 = 0, f2 = 0, along = 0;
  if (s.phase < kStepEnded)
    for (int64_t g = 0; g < c.problem.groups; ++g)
      for (int64_t chunk = 0; chunk < c.chunks; ++chunk) {
        const double* sums = row.sums(g, chunk);
        r2 += sums[kR2];
        f2 += sums[kF2];
        along += sums[kNewAlong];
      }
  const double relative = decide_step(s, row.result(), c.rules, r2, f2, along);
  if (c.problem.trace != nullptr && !(relative < 0))
    c.problem.trace[int64_t(s.progress.steps - 1) * c.problem.problems + problem] = float(relative);
  if (s.clear)
    for (int64_t g = 0; g < c.problem.groups; ++g) row.group(g) = {0, 0};
  if (s.solve)
    for (int64_t g = 0; g < c.problem.groups; ++g) solve_group(c, row, g);
}

}  // namespace ak::AK_ISA
