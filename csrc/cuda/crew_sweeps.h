// The two sweeps of a step over a member's entries (step_sweeps.h has those of a team that owns whole rows), a pack of
// entries at a time, and the sums between them in the order of sum_order.h.
#pragma once

#include "crew_rows.h"

namespace ak::cuda {

template <class T, class Crew>
class CrewSweeps {
  using P = Pack<T, kSumPack>;

 public:
  AK_DEVICE CrewSweeps(const CrewRows<T, Crew>& rows, double damping)
      : r_(rows), damping_(T(damping)), inverse_damping_(T(1 / damping)) {}

  // What the first sweep of a row forms (StepBody::first_sweep).
  struct Sweep {
    Before before;
    bool fresh, keeps;
    int newest, differences;
    AK_DEVICE int sums() const { return before == Before::kNone ? 2 : int(kBaseSums) + 2 * differences; }
  };
  AK_DEVICE Sweep sweep_of(int slot) const {
    const StepState& s = r_.control(slot).state();
    Sweep w{Before::kNone, s.phase == kStepFresh, false, -1, 0};
    if (step_watches(s, r_.space()->rules)) {
      w.before = Before::kIterate;
    } else if (step_keeps_history(s, r_.space()->rules)) {
      w.keeps = true;
      if (!w.fresh) w.newest = s.newest;
      if (w.newest < 0) return w;
      w.before = Before::kResidual;
      w.differences = r_.control(slot).group(0).differences;
      if (w.differences > r_.slots - 2) w.differences = r_.slots - 2;
    }
    return w;
  }

  // A power of two that products are formed with, so that none vanishes; at first by what the group itself holds.
  AK_DEVICE T scale_of(int slot, int group, bool fresh) const {
    if constexpr (sizeof(T) == 8) return T(1);
    if (!fresh) return T(r_.control(slot).state().scale);
    T largest = 0;
    AK_ROLLED
    for (int i = 0; i < kSumGroup; ++i) {
      const int at = group * kSumGroup + i;
      const T f = r_.f(slot)[at], g = f - r_.z(slot)[at];
      largest = f > largest ? f : -f > largest ? -f : largest;
      largest = g > largest ? g : -g > largest ? -g : largest;
    }
    return T(power_near_inverse(double(largest)));
  }

  // Column 0 of a pack: the base sums, g and h; another one: the products with one of the ring's differences.
  AK_DEVICE void sum_pack(int slot, int pack, int column) const {
    const Sweep w = sweep_of(slot);
    if (column > w.differences) return;
    if (column == 0)
      base_sums(slot, pack, w);
    else
      column_sums(slot, pack, column - 1, w);
  }

  // The k-th sum of one of the own groups, to all members.
  AK_DEVICE void put_group(int slot, int group, int k) const {
    const Sweep w = sweep_of(slot);
    const int64_t at = r_.sums_at(slot, k) + r_.first / kSumGroup + group;
    constexpr int kPacks = kSumGroup / kSumPack;
    const auto of = [&](int pack) { return r_.pack_sums(slot, group * kPacks + pack)[k]; };
    if (k < w.sums())
      r_.crew.template put<1>(at, {add_packs(of(0), of(1), of(2), of(3))});
    else if (w.fresh && k == kNewSquare)  // in the place of a sum that is not formed
      r_.crew.template put<1>(at, {scale_of(slot, group, true)});
  }

  // The k-th sum of every kSumLanes-th group of the row.
  AK_DEVICE double lane_total(int slot, int k, int lane, const Sweep& w) const {
    const int groups = r_.owned / kSumGroup;
    const int64_t at = r_.sums_at(slot, k), scales = r_.sums_at(slot, kNewSquare);
    double unscale = 1 / double(w.fresh ? T(1) : scale_of(slot, 0, false)), sum = 0;
    AK_UNROLLED_4
    for (int group = lane; group < groups; group += kSumLanes) {
      const double part = double(r_.crew.template get<1>(at + group).v[0]);
      if (w.fresh) unscale = 1 / double(r_.crew.template get<1>(scales + group).v[0]);
      sum += k < kBaseSums ? part * unscale * unscale : part * unscale;
    }
    return sum;
  }

  // Where a row that has ended has its result.
  AK_DEVICE const T* result(int slot) const {
    const int write = r_.control(slot).state().write;
    return write == kWriteCurrent ? r_.z(slot) : write == kWriteBest ? r_.state(r_.kBest, slot) : r_.before(slot);
  }

  // The next iterate of a row, in the pack that begins with entry e.
  AK_DEVICE void advance(int slot, int e) const {
    const StepState& s = r_.control(slot).state();
    if (s.phase >= kStepEnded) return;
    const int i = e - r_.first;
    const bool own = r_.own(e);
    if (own && s.save_best)
      store_pack<kSumPack>(r_.state(r_.kBest, slot) + i, load_pack<kSumPack>(r_.before(slot) + i));
    P next = own ? own_step(slot, i) : r_.crew.template get<kSumPack>(r_.inputs_at(r_.odd, slot, e));
    if (s.write == kWriteAnderson) next = mix(slot, e, own, next);
    if (own) store_pack<kSumPack>(r_.before(slot) + i, next);
    if (r_.plan.replicated || s.write == kWriteAnderson) spread(slot, e, next);
  }

  // Where the combination overflowed, the plain step takes its place.
  AK_DEVICE void repair(int slot, int e) const {
    const P step = load_pack<kSumPack>(r_.h(slot, r_.control(slot).state().newest, e));
    if (r_.own(e)) store_pack<kSumPack>(r_.before(slot) + (e - r_.first), step);
    spread(slot, e, step);
  }

 private:
  // Of a mixed iterate: to where the coming product reads it.
  AK_DEVICE void spread(int slot, int e, const P& next) const {
    if (r_.plan.replicated)
      store_pack<kSumPack>(r_.inputs(r_.odd) + input_place(r_.plan.rows, slot, e), next);
    else
      r_.crew.template put<kSumPack>(r_.inputs_at(r_.odd, slot, e), next);
  }

  AK_DEVICE P residual_before(int slot, int i, const Sweep& w, const P& x) const {
    P last{};
    if (w.before == Before::kResidual) return load_pack<kSumPack>(r_.g(slot, w.newest) + i);
    if (w.before == Before::kNone) return last;
    const P old = load_pack<kSumPack>(r_.before(slot) + i);
    AK_UNROLLED
    for (int v = 0; v < kSumPack; ++v) last.v[v] = (x.v[v] - old.v[v]) * inverse_damping_;
    return last;
  }

  AK_DEVICE void base_sums(int slot, int pack, const Sweep& w) const {
    const int i = pack * kSumPack;
    const T scale = scale_of(slot, i / kSumGroup, w.fresh);
    const P x = load_pack<kSumPack>(r_.z(slot) + i), f = load_pack<kSumPack>(r_.f(slot) + i);
    const P last = residual_before(slot, i, w, x);
    P step, residual;
    T r2 = 0, f2 = 0, square = 0, along = 0;
    AK_UNROLLED
    for (int v = 0; v < kSumPack; ++v) {
      const T r = f.v[v] - x.v[v], scaled = r * scale, scaled_f = f.v[v] * scale, d = (r - last.v[v]) * scale;
      r2 = multiply_add(scaled, scaled, r2);
      f2 = multiply_add(scaled_f, scaled_f, f2);
      square = multiply_add(d, d, square);
      along = multiply_add(d, scaled, along);
      residual.v[v] = r;
      step.v[v] = plain_step(x.v[v], f.v[v], damping_);
    }
    T* const sums = r_.pack_sums(slot, pack);
    sums[kR2] = r2;
    sums[kF2] = f2;
    sums[kNewSquare] = square;
    sums[kNewAlong] = along;
    if (w.keeps) store_pack<kSumPack>(r_.g(slot, next_ring_slot(w.newest, r_.slots)) + i, residual);
    r_.crew.template put<kSumPack>(r_.inputs_at(r_.odd, slot, r_.first + i), step);
  }

  AK_DEVICE void column_sums(int slot, int pack, int column, const Sweep& w) const {
    const int i = pack * kSumPack;
    const T scale = scale_of(slot, i / kSumGroup, w.fresh);
    const P x = load_pack<kSumPack>(r_.z(slot) + i), f = load_pack<kSumPack>(r_.f(slot) + i);
    const P last = residual_before(slot, i, w, x);
    const int at = w.newest - w.differences + column;
    const P older = load_pack<kSumPack>(r_.g(slot, ring_slot_of(at, r_.slots)) + i);
    const P newer = load_pack<kSumPack>(r_.g(slot, ring_slot_of(at + 1, r_.slots)) + i);
    T with_new = 0, along = 0;
    AK_UNROLLED
    for (int v = 0; v < kSumPack; ++v) {
      const T r = f.v[v] - x.v[v], difference = newer.v[v] - older.v[v];
      with_new = multiply_add(difference, (r - last.v[v]) * scale, with_new);
      along = multiply_add(difference, r * scale, along);
    }
    T* const sums = r_.pack_sums(slot, pack) + kBaseSums + 2 * column;
    sums[0] = with_new;
    sums[1] = along;
  }

  AK_DEVICE P own_step(int slot, int i) const {
    const P x = load_pack<kSumPack>(r_.z(slot) + i), f = load_pack<kSumPack>(r_.f(slot) + i);
    P step;
    AK_UNROLLED
    for (int v = 0; v < kSumPack; ++v) step.v[v] = plain_step(x.v[v], f.v[v], damping_);
    return step;
  }

  // h - sum_j weight_j (h_{j+1} - h_j), as chunk_combine() forms it; h joins the ring.
  AK_DEVICE P mix(int slot, int e, bool own, const P& newest) const {
    const ControlRow row = r_.control(slot);
    const StepState& s = row.state();
    if (s.enter) {  // with the last plain step as the first difference
      const P x = load_pack<kSumPack>(own ? r_.z(slot) + (e - r_.first)
                                          : r_.inputs(r_.odd) + input_place(r_.plan.rows, slot, e));
      store_pack<kSumPack>(r_.h(slot, 0, e), x);
      if (own) enter_residuals(slot, e - r_.first, x);
    }
    store_pack<kSumPack>(r_.h(slot, s.newest, e), newest);
    const int used = row.group(0).used;
    P sum = newest;
    if (used > 0) {
      P older = load_pack<kSumPack>(r_.h(slot, ring_slot_of(s.newest - used, r_.slots), e));
      AK_ROLLED
      for (int j = 1; j <= used; ++j) {
        const P next = load_pack<kSumPack>(r_.h(slot, ring_slot_of(s.newest - used + j, r_.slots), e));
        const T weight = -T(row.weights(0)[j - 1]);
        AK_UNROLLED
        for (int v = 0; v < kSumPack; ++v) sum.v[v] = multiply_add(weight, next.v[v] - older.v[v], sum.v[v]);
        older = next;
      }
    }
    bool valid = true;
    AK_UNROLLED
    for (int v = 0; v < kSumPack; ++v) valid = valid && sum.v[v] <= kLargest<T> && sum.v[v] >= -kLargest<T>;
    if (!valid && r_.plan.replicated) r_.space()->overflowed[slot] = true;
    if (!valid && !r_.plan.replicated) r_.put_overflow(r_.odd, slot, true);
    return sum;
  }

  AK_DEVICE void enter_residuals(int slot, int i, const P& x) const {
    const P old = load_pack<kSumPack>(r_.before(slot) + i), f = load_pack<kSumPack>(r_.f(slot) + i);
    P last, residual;
    AK_UNROLLED
    for (int v = 0; v < kSumPack; ++v) {
      last.v[v] = (x.v[v] - old.v[v]) * inverse_damping_;
      residual.v[v] = f.v[v] - x.v[v];
    }
    store_pack<kSumPack>(r_.g(slot, 0) + i, last);
    store_pack<kSumPack>(r_.g(slot, 1) + i, residual);
  }

  const CrewRows<T, Crew>& r_;
  const T damping_, inverse_damping_;
};

}  // namespace ak::cuda
