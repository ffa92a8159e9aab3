// One fused step, in the pieces that a kernel strings together: csrc/cuda/anderson_step.cu on a device,
// csrc/tests/test_cuda_step.cpp on a host. Every piece is the work of one team and ends with its barrier.
#pragma once

#include "../common/step_decision.h"
#include "anderson_step.h"
#include "step_space.h"
#include "step_sweeps.h"

namespace ak::cuda {

struct GroupState {
  int16_t differences;  // valid in the ring
  int16_t used;         // of them, in this step's combination
  int32_t overflowed;   // the combination is not finite
};

// How blocks that share a problem wait for each other; zero between launches.
struct StepWords {
  unsigned arrived;          // chunks of the problem whose sums are written
  unsigned decided;          // 1 once the problem's decision may be read
  unsigned long long ended;  // in the first row only: teams done, in the high half; problems running, in the low
};

constexpr int64_t kWordsAt = 14;  // in doubles, after StepResult
static_assert(sizeof(StepResult) == kResultDoubles * sizeof(double));
static_assert(sizeof(StepState) <= kWordsAt * sizeof(double));
static_assert(kWordsAt * sizeof(double) + sizeof(StepWords) <= kStateDoubles * sizeof(double));
static_assert(sizeof(GroupState) == sizeof(double));

// Where the parts of a problem's row of StepProblem::control lie.
class ControlRow {
 public:
  AK_DEVICE ControlRow(const StepProblem& p, const StepPlan& plan, int64_t problem)
      : row_(p.control + problem * p.columns), slots_(p.slots), chunks_(plan.chunks), groups_(p.groups) {}

  AK_DEVICE StepResult& result() const { return *reinterpret_cast<StepResult*>(row_); }
  AK_DEVICE StepState& state() const { return *reinterpret_cast<StepState*>(row_ + kResultDoubles); }
  AK_DEVICE StepWords& words() const { return *reinterpret_cast<StepWords*>(row_ + kResultDoubles + kWordsAt); }
  AK_DEVICE GroupState& group(int64_t g) const { return *reinterpret_cast<GroupState*>(at(g)); }
  AK_DEVICE double* weights(int64_t g) const { return at(g) + 1; }  // from the oldest difference used to the newest
  AK_DEVICE double* gram(int64_t g) const { return at(g) + 1 + slots_; }  // [slots, slots]
  AK_DEVICE double* sums(int64_t g, int64_t chunk) const {
    return row_ + kResultDoubles + kStateDoubles + groups_ * group_doubles(slots_) +
           (g * chunks_ + chunk) * chunk_doubles(slots_);
  }

 private:
  AK_DEVICE double* at(int64_t g) const { return row_ + kResultDoubles + kStateDoubles + g * group_doubles(slots_); }

  double* row_;
  int slots_;
  int64_t chunks_, groups_;
};

template <class T>
AK_DEVICE StepRules rules_for(const SolveOptions& o, int slots, int64_t groups, int64_t entries, double price) {
  return {
      {o.rtol, o.atol, kEpsilon<T>, o.max_steps, o.min_steps}, o.solver, o.keep_best, slots, price, groups, entries};
}

template <class T, int vector, class Team>
class StepBody {
  using W = Wide<T>;

 public:
  AK_DEVICE StepBody(const StepProblem& problem, const SolveOptions& options, const StepPlan& plan,
                     const StepRules& rules, const Team& team, StepSpace<Team::kThreads>* space)
      : p_(problem), o_(options), plan_(plan), rules_(rules), team_(team), space_(space) {}

  AK_DEVICE int64_t chunks_per_problem() const { return p_.groups * plan_.chunks; }

  // The sums of chunk `index` (of all groups) of a problem; `turn` counts the chunks this team takes.
  AK_DEVICE void first_sweep(int64_t problem, int64_t index, int64_t turn) const {
    const ControlRow row = this->row(problem);
    const StepState& s = row.state();
    if (s.phase >= kStepEnded) return;
    const Range r = range(problem, index);
    SumsInput<T> in{};
    in.z = z() + r.offset;
    in.fz = fz() + r.offset;
    in.entries = r.entries;
    in.damping = W(o_.damping);
    in.kept = kept(turn);
    in.sums = row.sums(r.group, r.chunk);
    in.scale = W(1);
    if constexpr (sizeof(W) == 4)
      in.scale = s.phase == kStepFresh
                     ? power_near_inverse(double(chunk_largest<T, vector>(team_, in.z, in.fz, in.entries)))
                     : float(s.scale);
    Before before = Before::kNone;
    if (step_watches(s, rules_)) {
      before = Before::kIterate;
      in.before = out() + r.offset;
      in.inverse_damping = W(1 / o_.damping);
    } else if (step_keeps_history(s, rules_)) {
      const int newest = s.phase == kStepFresh ? -1 : s.newest;
      in.g = ring(problem, r, 0).data + next_ring_slot(newest, p_.slots) * p_.stride;
      if (newest >= 0) {
        before = Before::kResidual;
        in.differences = kept_differences(row.group(r.group));
        in.ring = ring(problem, r, 0, newest - in.differences);
      }
    }
    chunk_sums<T, vector>(team_, in, before);
  }

  // After the first sweep of all of the problem's chunks; `traced`: its column of the trace; mixed: or null.
  AK_DEVICE void decide(int64_t problem, int64_t traced, MixedStep* mixed = nullptr) const {
    const ControlRow row = this->row(problem);
    StepState& s = row.state();
    const bool running = s.phase < kStepEnded;
    team_.sync();
    if (running && plan_.chunks > 1)
      for (int64_t g = 0; g < p_.groups; ++g)
        team_.warp_totals(
            int(kBaseSums) + 2 * kept_differences(row.group(g)), plan_.chunks,
            [&](int k, int64_t chunk) { return row.sums(g, chunk)[k]; },
            [&](int k, double sum) { row.sums(g, 0)[k] = sum; });
    const auto base_sum = [](int k) { return k < 2 ? k : int(kNewAlong); };
    if (running)
      team_.warp_totals(
          3, p_.groups, [&](int k, int64_t g) { return row.sums(g, 0)[base_sum(k)]; },
          [&](int k, double sum) { space_->total[k] = sum; });
    team_.first([&] {
      const double relative =
          decide_step(s, row.result(), rules_, space_->total[0], space_->total[1], space_->total[2], mixed);
      if (p_.trace != nullptr && !(relative < 0))
        p_.trace[int64_t(s.progress.steps - 1) * p_.problems + traced] = float(relative);
    });
    if (s.clear)
      team_.each([&](int rank) {
        for (int64_t g = rank; g < p_.groups; g += Team::kThreads) row.group(g) = {0, 0, 0};
      });
  }

  // The weights of groups [first, first + count), several at a time. apart: see MixedStep.
  AK_DEVICE void solve_groups(int64_t problem, int64_t first, int64_t count, uint64_t apart = 0) const {
    const ControlRow row = this->row(problem);
    if (!row.state().solve) return;
    team_.each([&](int rank) {
      if (rank >= plan_.solvers) return;
      for (int64_t g = first + rank; g < first + count; g += plan_.solvers)
        solve_group(row, g, solver_space(rank), apart);
    });
  }

  AK_DEVICE void second_sweep(int64_t problem, int64_t index, int64_t turn) const {
    const ControlRow row = this->row(problem);
    StepState& s = row.state();
    if (s.write == kWriteNothing) return;
    const Range r = range(problem, index);
    T* const to = out() + r.offset;
    if (s.save_best) copy_chunk<T, vector>(team_, best() + r.offset, to, r.entries);
    if (s.write == kWriteCurrent) return copy_chunk<T, vector>(team_, to, z() + r.offset, r.entries);
    if (s.write == kWriteBest) return copy_chunk<T, vector>(team_, to, best() + r.offset, r.entries);
    CombineInput<T> in{};
    in.z = z() + r.offset;
    in.fz = fz() + r.offset;
    in.kept = kept(turn);
    in.damping = W(o_.damping);
    in.out = to;
    in.entries = r.entries;
    W* const weight = reinterpret_cast<W*>(space_->weight);
    if (s.write == kWriteAnderson) {
      const Ring<T> g_ring = ring(problem, r, 0), h_ring = ring(problem, r, 1);
      if (s.enter)
        enter_anderson<T, vector>(team_, in.z, in.fz, to, W(1 / o_.damping), g_ring.data, h_ring.data,
                                  g_ring.data + p_.stride, r.entries);
      in.h = h_ring.data + s.newest * p_.stride;
      in.differences = row.group(r.group).used;
      in.ring = ring(problem, r, 1, s.newest - in.differences);
      in.weight = weight;
      team_.each([&](int rank) {
        for (int j = rank; j < in.differences; j += Team::kThreads) weight[j] = W(row.weights(r.group)[j]);
      });
    }
    if (chunk_combine<T, vector>(team_, in)) return;
    team_.first([&] {
      row.group(r.group).overflowed = 1;
      s.overflowed = true;
    });
  }

  // After the second sweep of all chunks: a combination that overflowed gives way to the plain step.
  AK_DEVICE void repair(int64_t problem) const {
    const ControlRow row = this->row(problem);
    const StepState& s = row.state();
    if (s.write != kWriteAnderson || !s.overflowed) return;
    for (int64_t g = 0; g < p_.groups; ++g) {
      const GroupState group = row.group(g);
      team_.sync();
      if (group.used == 0 || group.overflowed == 0) continue;
      for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk) {
        const Range r = range(problem, g * plan_.chunks + chunk);
        copy_chunk<T, vector>(team_, out() + r.offset, ring(problem, r, 1).data + s.newest * p_.stride, r.entries);
      }
      team_.first([&] { row.group(g) = {0, 0, 0}; });
    }
  }

  AK_DEVICE ControlRow row(int64_t problem) const { return ControlRow(p_, plan_, problem); }

 private:
  struct Range {
    int64_t group, chunk;
    int64_t start;   // of the chunk in its group
    int64_t offset;  // of the chunk in the state
    int64_t entries;
  };

  AK_DEVICE Range range(int64_t problem, int64_t index) const {
    const int64_t group = index / plan_.chunks, chunk = index % plan_.chunks;
    const int64_t start = chunk * plan_.chunk, left = p_.entries - start;
    return {group, chunk, start, (problem * p_.groups + group) * p_.entries + start,
            left < plan_.chunk ? left : plan_.chunk};
  }

  // Old differences that this step keeps: one makes room for the new one where the ring is full.
  AK_DEVICE int kept_differences(const GroupState& group) const {
    return group.differences < p_.slots - 2 ? group.differences : p_.slots - 2;
  }

  AK_DEVICE Ring<T> ring(int64_t problem, const Range& r, int kind, int oldest = 0) const {
    const int64_t first = ((problem * p_.groups + r.group) * 2 + kind) * p_.slots;
    return {static_cast<T*>(p_.history) + first * p_.stride + r.start, p_.stride, p_.slots,
            ring_slot_of(oldest, p_.slots)};
  }

  AK_DEVICE double* solver_space(int solver) const {
    return reinterpret_cast<double*>(space_ + 1) + solver * solver_doubles(p_.slots - 1);
  }
  AK_DEVICE W* kept(int64_t turn) const {
    if (turn >= plan_.kept_chunks) return nullptr;
    double* const after = reinterpret_cast<double*>(space_ + 1) + solvers_doubles(plan_.solvers, p_.slots);
    return reinterpret_cast<W*>(after) + turn * plan_.chunk;
  }

  // By one thread: the group's new difference enters its Gram matrix, and its weights are found. What is needed of the
  // matrix is copied next to the thread, in the order of age, since the factorisation reads every entry several times.
  AK_DEVICE void solve_group(const ControlRow& row, int64_t g, double* space, uint64_t apart) const {
    GroupState& group = row.group(g);
    double* const gram = row.gram(g);
    const double* const sums = row.sums(g, 0);
    const int slots = p_.slots, newest = row.state().newest, old = kept_differences(group), n = old + 1;
    const auto slot_of = [&](int age) { return ring_slot_of(newest - age, slots); };
    const auto counts = [&](int slot) { return (apart >> slot & 1) == 0; };
    double *const matrix = space, *const lower = matrix + n * n, *const vectors = lower + n * n;
    double *const rhs = vectors, *const gamma = vectors + n;
    int* const order = reinterpret_cast<int*>(vectors + 5 * n);
    gram[newest * slots + newest] = sums[kNewSquare];
    int size = 0;
    AK_ROLLED
    for (int i = 0; i < n; ++i) {
      const int slot = slot_of(old - i);
      if (i < old) gram[slot * slots + newest] = gram[newest * slots + slot] = sums[kBaseSums + 2 * i];
      if (!counts(slot)) continue;
      int column = 0;
      AK_ROLLED
      for (int j = 0; j <= i; ++j) {
        const int other = slot_of(old - j);
        if (!counts(other)) continue;
        matrix[size * n + column] = matrix[column * n + size] = gram[slot * slots + other];
        ++column;
      }
      rhs[size] = i < old ? sums[kBaseSums + 2 * i + 1] : sums[kNewAlong];
      order[size] = size;
      ++size;
    }
    const SmallSolveSpace<double> factors{lower, n, vectors + 2 * n, vectors + 3 * n, vectors + 4 * n};
    const double pivot_floor = sizeof(W) == 8 ? 1e-13 : 1e-7;
    const int solved = small_solve<double>(matrix, n, rhs, order, size, o_.ridge, pivot_floor, gamma, factors);
    int used = 0;  // of the ring's newest differences, those that do not count included
    AK_ROLLED
    for (int left = solved; left > 0; ++used)
      if (counts(slot_of(used))) --left;
    group = {int16_t(solved > 0 ? n : 0), int16_t(used), 0};
    const double* weight = gamma + size - solved;
    AK_ROLLED
    for (int j = 0; j < used; ++j) row.weights(g)[j] = counts(slot_of(used - 1 - j)) ? *weight++ : 0;
  }

  AK_DEVICE const T* z() const { return static_cast<const T*>(p_.z); }
  AK_DEVICE const T* fz() const { return static_cast<const T*>(p_.fz); }
  AK_DEVICE T* out() const { return static_cast<T*>(p_.out); }
  AK_DEVICE T* best() const { return static_cast<T*>(p_.best); }

  const StepProblem& p_;
  const SolveOptions& o_;
  const StepPlan& plan_;
  const StepRules& rules_;
  const Team& team_;
  StepSpace<Team::kThreads>* space_;
};

}  // namespace ak::cuda
