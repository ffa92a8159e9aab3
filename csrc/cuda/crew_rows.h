// The rows of a crew's tile as one member sees them: where everything lies in its shared memory and in the exchange.
#pragma once

#include "crew_product.h"
#include "step_body.h"

namespace ak::cuda {

template <>
struct TeamSpace<1> {};

constexpr int kCrewRows = 32;  // at most

struct alignas(32) CrewSpace {
  StepProblem step;
  StepPlan plan;
  StepRules rules;
  int64_t row[kCrewRows];  // that each slot solves; negative: none
  bool entering[kCrewRows];
  bool overflowed[kCrewRows];
};

constexpr int64_t crew_solver_bytes(int slots) {
  return int64_t(sizeof(StepSpace<1>)) + solvers_doubles(1, slots) * int64_t(sizeof(double));
}

// What lies in StepBody's places is a description of the rows' decisions only: states and rings are here.
template <class T, class Crew>
class CrewRows {
 public:
  enum State { kEven, kOdd, kF, kBest, kU, kScale, kStates };

  AK_DEVICE CrewRows(const CrewPlan& plan, Crew& crew, int slots, void* shared)
      : plan(plan),
        crew(crew),
        slots(slots),
        first(crew.member() * plan.share),
        owned(plan.members * plan.share),
        shared_(static_cast<char*>(shared)) {}

  AK_DEVICE CrewSpace* space() const { return reinterpret_cast<CrewSpace*>(shared_); }
  AK_DEVICE bool busy(int slot) const { return space()->row[slot] >= 0; }
  AK_DEVICE int64_t row(int slot) const { return space()->row[slot]; }
  AK_DEVICE ControlRow control(int slot) const { return ControlRow(space()->step, space()->plan, slot); }
  AK_DEVICE double* controls() const { return reinterpret_cast<double*>(shared_ + plan.at.control); }
  AK_DEVICE StepSpace<1>* solver(int slot) const {
    return reinterpret_cast<StepSpace<1>*>(shared_ + plan.at.solvers + slot * crew_solver_bytes(slots));
  }
  AK_DEVICE T* weights() const { return part(plan.at.weights); }
  AK_DEVICE T* leak() const { return part(plan.at.leak); }
  AK_DEVICE T* work() const { return part(plan.at.work); }

  // Own entries of a row.
  AK_DEVICE T* state(int kind, int slot) const { return part(plan.at.states) + (kind * plan.rows + slot) * plan.share; }
  AK_DEVICE T* z(int slot) const { return state(odd ? kOdd : kEven, slot); }
  AK_DEVICE T* f(int slot) const { return state(kF, slot); }
  AK_DEVICE T* before(int slot) const { return state(odd ? kEven : kOdd, slot); }  // the iterate before, or the next
  AK_DEVICE bool own(int e) const { return e >= first && e < first + plan.share; }
  // Of the rings: own entries of g; of h from entry e on, which is an own one unless the crew is replicated.
  AK_DEVICE T* g(int slot, int at) const { return part(plan.at.rings) + (slot * slots + at) * plan.share; }
  AK_DEVICE T* h(int slot, int at, int e) const {
    T* const rings = g(plan.rows, 0);
    return plan.replicated ? rings + (slot * slots + at) * owned + e
                           : rings + (slot * slots + at) * plan.share + (e - first);
  }

  // Sums of a pack, and of every kSumLanes-th group of the whole row.
  AK_DEVICE T* pack_sums(int slot, int pack) const {
    return work() + (slot * (plan.share / kSumPack) + pack) * crew_sums(slots);
  }
  AK_DEVICE double* lanes(int slot, int k) const {
    return reinterpret_cast<double*>(shared_ + plan.at.work) + (slot * crew_sums(slots) + k) * kSumLanes;
  }

  // Places in the exchange. The inputs and sums of a round may still be read while the next one puts its own.
  AK_DEVICE int64_t inputs_at(bool odd_round, int slot, int e) const {
    return odd_round * inputs_size(plan.rows, plan.segments) + input_place(plan.rows, slot, e);
  }
  AK_DEVICE int64_t sums_at(int slot, int k) const {
    const int64_t line = (int64_t(odd) * plan.rows + slot) * crew_sums(slots) + k;
    return plan.at.sums + line * (owned / kSumGroup);
  }
  AK_DEVICE void put_overflow(bool odd_round, int slot, bool overflowed) const {
    crew.template put<1>(overflow_at(odd_round, slot), {T(overflowed)});
  }
  AK_DEVICE bool overflow(int slot) const { return crew.template get<1>(overflow_at(odd, slot)).v[0] != T(0); }

  // Whether a member has all inputs of the coming product at hand, and where.
  AK_DEVICE bool has_inputs() const { return Crew::kLocal || plan.replicated; }
  AK_DEVICE T* inputs(bool odd_round) const {
    return plan.replicated ? part(plan.at.operand) : crew.local(inputs_at(odd_round, 0, 0));
  }

  const CrewPlan& plan;
  Crew& crew;
  const int slots;  // of the rings
  const int first;  // own entry
  const int owned;  // entries of all members
  bool odd = false;

 private:
  AK_DEVICE T* part(int64_t at) const { return reinterpret_cast<T*>(shared_ + at); }
  AK_DEVICE int64_t overflow_at(bool odd_round, int slot) const {
    return plan.at.overflows + odd_round * plan.rows + slot;
  }

  char* const shared_;
};

}  // namespace ak::cuda
