// The small least-squares problem of Anderson acceleration, type II, from its normal equations.
//
// gamma = argmin | g - sum_j gamma_j dG_j |^2 + ridge * mean_j |dG_j|^2 * |gamma|^2
//
// The Gram matrix is factored as L D L^T. A pivot at rounding level of its own diagonal entry means that the newer
// differences already span that column: the oldest column is dropped and the rest solved again (Fang & Saad 2009;
// Walker & Ni 2011, sec. 4). The test is the one an equilibrated matrix would get, and the factorisation's rounding
// does not depend on the scale of a column (van der Sluis 1969), so nothing is scaled. It never fails: no usable
// column means a plain step.
#pragma once

#include "stopping.h"

namespace ak {

constexpr int kMaxHistory = 32;
// Weights above this are noise: the history that gave them is discarded.
constexpr double kWeightCap = 1e6;

// Where the factors lie: on a CPU's stack, in a GPU's shared memory.
template <class S>
struct SmallSolveSpace {
  S* lower;    // [n, stride]: unit lower triangle, row by row
  int stride;  // at least n
  S* inverse;  // [n]: 1 / D
  S* y;        // [n]
  S* scaled;   // [n]: L_ij D_j of one row
};

// gram: symmetric, row-major, leading dimension ld, in slot order; rhs[j] = <dG_j, g> in slot order;
// order[0..n): slots from the oldest to the newest; ridge: relative to the mean diagonal;
// pivot_floor: smallest pivot, relative to the unit diagonal, that counts as independent.
// gamma: in slot order, zero for dropped columns.
// Returns how many columns were used; 0 means reject (drop the history, take a damped step).
template <class S>
AK_HD int small_solve(const S* gram, int ld, const S* rhs, const int* order, int n, S ridge, S pivot_floor, S* gamma,
                      const SmallSolveSpace<S>& space) {
  AK_ROLLED
  for (int i = 0; i < n; ++i) gamma[order[i]] = S(0);
  AK_ROLLED
  for (int first = 0; first < n; ++first) {
    const int* const slot = order + first;
    const int m = n - first;
    S mean = S(0);
    AK_ROLLED
    for (int i = 0; i < m; ++i) mean += gram[slot[i] * ld + slot[i]];
    const S shift = ridge * mean / S(m);
    bool usable = mean > S(0) && finite(mean);
    AK_ROLLED
    for (int i = 0; usable && i < m; ++i) {
      const S* const entries = gram + slot[i] * ld;
      S* const row = space.lower + i * space.stride;
      const S diagonal = entries[slot[i]] + shift;
      S pivot = diagonal;
      S rest = rhs[slot[i]];
      AK_ROLLED
      for (int j = 0; j < i; ++j) {
        const S* const other = space.lower + j * space.stride;
        S sum = entries[slot[j]];
        AK_ROLLED
        for (int k = 0; k < j; ++k) sum -= space.scaled[k] * other[k];
        space.scaled[j] = sum;
        row[j] = sum * space.inverse[j];
        pivot -= sum * row[j];
        rest -= row[j] * space.y[j];
      }
      usable = pivot > pivot_floor * diagonal;
      space.inverse[i] = S(1) / pivot;
      space.y[i] = rest;
    }
    if (!usable) continue;
    bool sane = true;
    AK_ROLLED
    for (int i = m - 1; i >= 0; --i) {
      S weight = space.y[i] * space.inverse[i];
      AK_ROLLED
      for (int k = i + 1; k < m; ++k) weight -= space.lower[k * space.stride + i] * gamma[slot[k]];
      gamma[slot[i]] = weight;
      sane = sane && weight <= S(kWeightCap) && weight >= -S(kWeightCap);  // false for NaN
    }
    if (sane) return m;
    AK_ROLLED
    for (int i = 0; i < n; ++i) gamma[order[i]] = S(0);
    return 0;
  }
  return 0;
}

template <class S>
AK_HD int small_solve(const S* gram, int ld, const S* rhs, const int* order, int n, S ridge, S pivot_floor, S* gamma) {
  S lower[kMaxHistory * kMaxHistory], inverse[kMaxHistory], y[kMaxHistory], scaled[kMaxHistory];
  const SmallSolveSpace<S> space{lower, kMaxHistory, inverse, y, scaled};
  return small_solve(gram, ld, rhs, order, n, ridge, pivot_floor, gamma, space);
}

}  // namespace ak
