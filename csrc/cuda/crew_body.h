// f = leak * z + scale * phi(z W^T + u) by a crew: blocks that split the outputs among them and iterate a tile of rows
// together. A member keeps the weights of its outputs, and its entries of the rows' states and histories, in shared
// memory from the first step to the last.
//
// A round is one step of every row. A member evaluates its entries of f, puts its entries of the plain step
// h = z + damping g and its part of the inner products where all can get them, and meets the others. Then each decides
// for every row, all alike, and mixes. A plain step needs nothing else: h is the next iterate. A mixed one is either
// put and waited for again, or every member mixes whole rows from a history of its own (`replicated`).
//
// A Crew has member(), index() and sync(), and an exchange: what any member put() before a sync(), all get() after it.
// kLocal: what is put comes into every member's own memory, at local(). kSharedQueue: crews share a queue of rows;
// what one member asks for with offer() before a sync(), all are given by taken() after it. Crew and Team are all that
// differs between a device and tests/host_crew.h.
#pragma once

#include "crew_sweeps.h"
#include "row_pass.h"

namespace ak::cuda {

// A thread by itself.
struct OneThread {
  static constexpr int kThreads = 1;
  template <class F>
  AK_DEVICE void each(const F& f) const {
    f(0);
  }
  template <class F>
  AK_DEVICE void first(const F& f) const {
    f();
  }
  template <class Get, class Put>
  AK_DEVICE void warp_totals(int count, int64_t items, const Get& get, const Put& put) const {
    for (int k = 0; k < count; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < items; ++i) sum += get(k, i);
      put(k, sum);
    }
  }
  AK_DEVICE void sync() const {}
};

template <class T, int rows_at_once, class Team, class Crew>
class CrewBody {
  using P = Pack<T, kSumPack>;
  using Rows = CrewRows<T, Crew>;
  using Sweeps = CrewSweeps<T, Crew>;
  using Product = CrewProduct<T, rows_at_once, Team>;
  using Step = StepBody<T, 1, OneThread>;

 public:
  // shared: plan.at.shared_bytes of it, at a multiple of 32.
  AK_DEVICE CrewBody(const AffineProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
                     const CrewPlan& plan, const Team& team, Crew& crew, void* shared)
      : p_(problem),
        o_(options),
        result_(result),
        plan_(plan),
        team_(team),
        crew_(crew),
        rows_(plan, crew, options.solver == kPicard ? 0 : plan.history + 1, shared),
        dim_(int(problem.dim)),
        next_(plan.crews * plan.rows) {}

  AK_DEVICE void solve() {
    begin();
    while (any_row()) {
      evaluate();
      first_sweep();
      crew_.sync();
      decide();
      second_sweep();
      rows_.odd = !rows_.odd;
    }
    if constexpr (Crew::kLocal) crew_.sync();  // nobody leaves while others may put into his memory
  }

 private:
  AK_DEVICE CrewSpace* space() const { return rows_.space(); }
  AK_DEVICE Sweeps sweeps() const { return Sweeps(rows_, o_.damping); }
  AK_DEVICE bool ended(int slot) const { return rows_.busy(slot) && rows_.control(slot).state().phase >= kStepEnded; }

  AK_DEVICE bool any_row() const {
    bool any = false;
    AK_ROLLED
    for (int slot = 0; slot < plan_.rows; ++slot) any = any || rows_.busy(slot);
    return any;
  }

  // f(slot, i) for i < count of every busy slot, by all threads.
  template <class F>
  AK_DEVICE void each(int count, const F& f) const {
    team_.each([&](int rank) {
      AK_ROLLED
      for (int i = rank; i < plan_.rows * count; i += kCrewThreads) {
        const int slot = i / count;
        if (rows_.busy(slot)) f(slot, i - slot * count);
      }
    });
  }

  AK_DEVICE void begin() const {
    team_.each([&](int rank) {
      if (rank == 0) describe();
      load_weights(rank);
      AK_ROLLED
      for (int i = rank; i < plan_.share; i += kCrewThreads) {
        const int e = rows_.first + i;
        rows_.leak()[i] = p_.leak != nullptr && e < dim_ ? p_.leak[e] : T(0);
      }
      // What no member owns is read too, with weights of zero.
      if (rows_.has_inputs()) {
        const int size = int(inputs_size(plan_.rows, plan_.segments));
        AK_ROLLED
        for (int i = rank; i < size; i += kCrewThreads) rows_.inputs(false)[i] = rows_.inputs(true)[i] = 0;
      }
      AK_ROLLED
      for (int slot = rank; slot < plan_.rows; slot += kCrewThreads) {
        const int64_t row = crew_.index() + slot * plan_.crews;
        space()->row[slot] = row < p_.rows ? row : -1;
        space()->entering[slot] = true;
      }
    });
    if constexpr (Crew::kLocal) crew_.sync();  // all are there to be put to
    if (crew_.member() == 0)
      team_.each([&](int rank) {
        if (rank >= plan_.rows) return;
        rows_.put_overflow(false, rank, false);
        rows_.put_overflow(true, rank, false);
      });
    enter(true);
  }

  AK_DEVICE void describe() const {
    StepProblem& step = space()->step;  // of which the decisions read no states
    step.type = sizeof(T) == 8 ? StateType::kFloat64 : StateType::kFloat32;
    step.problems = p_.rows;
    step.groups = 1;
    step.entries = dim_;
    step.slots = rows_.slots;
    step.control = rows_.controls();
    step.columns = plan_.columns;
    step.trace = crew_.member() == 0 ? result_.trace : nullptr;
    space()->plan = StepPlan{};
    space()->plan.chunks = 1;
    space()->plan.solvers = rows_.slots > 1 ? 1 : 0;
    space()->rules = rules_for<T>(o_, rows_.slots, 1, dim_, plan_.anderson_price);
  }

  AK_DEVICE void load_weights(int rank) const {
    const int inputs = plan_.segments * kSegment, size = plan_.share * inputs;
    const bool by_inputs = p_.weight.input_stride <= p_.weight.output_stride;
    AK_ROLLED
    for (int i = rank; i < size; i += kCrewThreads) {
      const int n = by_inputs ? i / inputs : i % plan_.share, k = by_inputs ? i % inputs : i / plan_.share;
      const int64_t from = (rows_.first + n) * p_.weight.output_stride + k * p_.weight.input_stride;
      const bool inside = rows_.first + n < dim_ && k < dim_;
      rows_.weights()[weight_place(plan_.share, n, k)] = inside ? p_.weight.data[from] : T(0);
    }
  }

  // The starts of rows that take a slot; odd_round: the coming one is not.
  AK_DEVICE void enter(bool odd_round) const {
    each(plan_.share, [&](int slot, int i) {
      if (!space()->entering[slot]) return;
      const int64_t at = rows_.row(slot) * p_.dim + rows_.first + i;
      const bool inside = rows_.first + i < dim_;
      rows_.state(odd_round ? Rows::kEven : Rows::kOdd, slot)[i] = inside ? p_.z0[at] : T(0);
      rows_.state(Rows::kU, slot)[i] = inside ? p_.u[at] : T(0);
      if (p_.scale != nullptr) rows_.state(Rows::kScale, slot)[i] = inside ? p_.scale[at] : T(0);
    });
    if (rows_.has_inputs())
      each(rows_.owned, [&](int slot, int e) {
        if (!space()->entering[slot]) return;
        const T start = e < dim_ ? p_.z0[rows_.row(slot) * p_.dim + e] : T(0);
        rows_.inputs(odd_round)[input_place(plan_.rows, slot, e)] = start;
      });
    each(plan_.columns, [&](int slot, int i) {
      if (space()->entering[slot]) rows_.controls()[slot * plan_.columns + i] = 0;
    });
  }

  // Own entries of f.
  AK_DEVICE void evaluate() const {
    const bool local = rows_.has_inputs();
    T* const partial = local ? rows_.work() : rows_.work() + inputs_size(plan_.rows, plan_.at_once);
    const Product product(team_, plan_, rows_.weights(), local ? rows_.inputs(!rows_.odd) : rows_.work(), partial);
    const auto finish = [&](int slot, int i, T a) { this->finish(slot, i, a); };
    if constexpr (!Crew::kLocal) {
      if (!local) return product.apply(rows_.f(0), [&](int slot, int e) { return input(slot, e); }, finish);
    }
    product.apply(rows_.f(0), finish);
  }

  AK_DEVICE void finish(int slot, int i, T a) const {
    if (!rows_.busy(slot)) return;
    const int e = rows_.first + i;
    T value = activate(a + rows_.state(Rows::kU, slot)[i], e);
    if (p_.scale != nullptr) value *= rows_.state(Rows::kScale, slot)[i];
    if (p_.leak != nullptr) value = multiply_add(rows_.leak()[i], rows_.z(slot)[i], value);
    rows_.f(slot)[i] = e < dim_ ? value : T(0);
  }
  AK_DEVICE T activate(T a, int e) const {
    int kind = p_.scale != nullptr ? int(kIdentity) : p_.activation;
    if (kind == kPartialRelu) kind = e >= int(p_.dim - p_.pieces) ? kRelu : kIdentity;
    T value = a;
    with_activation<T>(kind, [&](const auto& phi) { value = phi(a); });
    return value;
  }

  // Of the coming product, from the exchange; a row's start from where it lies.
  AK_DEVICE P input(int slot, int e) const {
    P pack{};
    if (!rows_.busy(slot) || e >= rows_.owned) return pack;
    if (rows_.control(slot).state().phase != kStepFresh)
      return crew_.template get<kSumPack>(rows_.inputs_at(!rows_.odd, slot, e));
    const T* const from = p_.z0 + rows_.row(slot) * p_.dim;
    AK_UNROLLED
    for (int v = 0; v < kSumPack; ++v) pack.v[v] = e + v < dim_ ? from[e + v] : T(0);
    return pack;
  }

  AK_DEVICE void first_sweep() const {
    const int packs = plan_.share / kSumPack, columns = rows_.slots > 2 ? rows_.slots - 1 : 1;
    each(packs * columns, [&](int slot, int i) { sweeps().sum_pack(slot, i % packs, i / packs); });
    const int groups = plan_.share / kSumGroup;
    each(groups * crew_sums(rows_.slots), [&](int slot, int i) { sweeps().put_group(slot, i % groups, i / groups); });
  }

  AK_DEVICE void decide() const {
    const int sums = crew_sums(rows_.slots);
    each(sums * kSumLanes, [&](int slot, int i) {
      const auto w = sweeps().sweep_of(slot);
      const int k = i / kSumLanes, lane = i % kSumLanes;
      if (k < w.sums()) rows_.lanes(slot, k)[lane] = sweeps().lane_total(slot, k, lane, w);
    });
    each(sums, [&](int slot, int k) {
      if (k < sweeps().sweep_of(slot).sums()) rows_.control(slot).sums(0, 0)[k] = add_lanes(rows_.lanes(slot, k));
    });
    team_.each([&](int rank) {
      // A warp for each row, as far as they go.
      constexpr int kWarps = kCrewThreads / kWarp;
      const int slot = rank / kWarp + rank % kWarp * kWarps;
      if (slot >= plan_.rows) return;
      space()->overflowed[slot] = false;
      if (crew_.member() == 0) rows_.put_overflow(!rows_.odd, slot, false);
      if (!rows_.busy(slot)) return;
      const OneThread alone;
      const Step step(space()->step, o_, space()->plan, space()->rules, alone, rows_.solver(slot));
      step.decide(slot, rows_.row(slot));
      step.solve_groups(slot, 0, 1);
    });
  }

  struct Outcome {
    bool mixed;
    int ended;
  };
  AK_DEVICE Outcome outcome() const {
    Outcome o{false, 0};
    AK_ROLLED
    for (int slot = 0; slot < plan_.rows; ++slot) {
      o.mixed = o.mixed || (rows_.busy(slot) && rows_.control(slot).state().write == kWriteAnderson);
      o.ended += ended(slot);
    }
    return o;
  }

  AK_DEVICE void second_sweep() {
    const Outcome o = outcome();
    const int wanted = next_ < p_.rows ? o.ended : 0;
    if (wanted > 0 && crew_.member() == 0) team_.first([&] { crew_.offer(wanted); });
    const int origin = plan_.replicated ? 0 : rows_.first;
    const int packs = (plan_.replicated ? rows_.owned : plan_.share) / kSumPack;
    each(packs, [&](int slot, int i) { sweeps().advance(slot, origin + i * kSumPack); });
    if ((o.mixed && !plan_.replicated) || (wanted > 0 && Crew::kSharedQueue)) crew_.sync();
    if (o.mixed) repair(origin, packs);
    if (o.ended > 0) refill(wanted);
  }

  // A combination that overflowed anywhere gives way to the plain step.
  AK_DEVICE void repair(int origin, int packs) const {
    if (!plan_.replicated) each(1, [&](int slot, int) { space()->overflowed[slot] = rows_.overflow(slot); });
    bool any = false;
    AK_ROLLED
    for (int slot = 0; slot < plan_.rows; ++slot) any = any || (rows_.busy(slot) && space()->overflowed[slot]);
    if (!any) return;
    each(packs, [&](int slot, int i) {
      if (!space()->overflowed[slot]) return;
      sweeps().repair(slot, origin + i * kSumPack);
      if (i == 0) rows_.control(slot).group(0) = {0, 0, 0};
    });
    if (!plan_.replicated) crew_.sync();
  }

  // Results of rows that have ended; their slots take the `wanted` rows that wait, as far as there are some.
  AK_DEVICE void refill(int wanted) {
    each(plan_.share, [&](int slot, int i) {
      const int e = rows_.first + i;
      if (e < dim_ && ended(slot)) result_.z[rows_.row(slot) * p_.dim + e] = sweeps().result(slot)[i];
    });
    int64_t next = p_.rows;
    if (wanted > 0) {
      next = Crew::kSharedQueue ? plan_.crews * plan_.rows + crew_.taken() : next_;
      next_ = next + wanted;
    }
    team_.first([&] {
      AK_ROLLED
      for (int slot = 0; slot < plan_.rows; ++slot) {
        space()->entering[slot] = ended(slot);
        if (!space()->entering[slot]) continue;
        int64_t& row = space()->row[slot];
        if (crew_.member() == 0) {
          const StepResult& end = rows_.control(slot).result();
          result_.status[row] = uint8_t(end.status);
          result_.steps[row] = int32_t(end.steps);
          result_.residual[row] = float(end.residual);
        }
        row = next < p_.rows ? next++ : -1;
      }
    });
    enter(rows_.odd);
  }

  const AffineProblem<T>& p_;
  const SolveOptions& o_;
  const SolveResult<T>& result_;
  const CrewPlan& plan_;
  const Team& team_;
  Crew& crew_;
  Rows rows_;
  const int dim_;
  int64_t next_;  // the first row that may still wait
};

}  // namespace ak::cuda
