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

// gram: symmetric, row-major, leading dimension ld, in slot order; rhs[j] = <dG_j, g> in slot order;
// order[0..n): slots from the oldest to the newest; ridge: relative to the mean diagonal;
// pivot_floor: smallest pivot, relative to the unit diagonal, that counts as independent.
// gamma: in slot order, zero for dropped columns.
// Returns how many columns were used; 0 means reject (drop the history, take a damped step).
template <class S>
AK_HD int small_solve(const S* gram, int ld, const S* rhs, const int* order, int n, S ridge, S pivot_floor, S* gamma) {
  S lower[kMaxHistory * kMaxHistory];  // unit lower triangle, row by row
  S inverse[kMaxHistory];              // 1 / D
  S y[kMaxHistory];
  for (int i = 0; i < n; ++i) gamma[order[i]] = S(0);
  for (int first = 0; first < n; ++first) {
    const int* const slot = order + first;
    const int m = n - first;
    S mean = S(0);
    for (int i = 0; i < m; ++i) mean += gram[slot[i] * ld + slot[i]];
    const S shift = ridge * mean / S(m);
    bool usable = mean > S(0) && finite(mean);
    for (int i = 0; usable && i < m; ++i) {
      const S* const entries = gram + slot[i] * ld;
      S* const row = lower + i * kMaxHistory;
      const S diagonal = entries[slot[i]] + shift;
      S pivot = diagonal;
      S rest = rhs[slot[i]];
      S scaled[kMaxHistory];  // L_ij D_j
      for (int j = 0; j < i; ++j) {
        const S* const other = lower + j * kMaxHistory;
        S sum = entries[slot[j]];
        for (int k = 0; k < j; ++k) sum -= scaled[k] * other[k];
        scaled[j] = sum;
        row[j] = sum * inverse[j];
        pivot -= sum * row[j];
        rest -= row[j] * y[j];
      }
      usable = pivot > pivot_floor * diagonal;
      inverse[i] = S(1) / pivot;
      y[i] = rest;
    }
    if (!usable) continue;
    bool sane = true;
    for (int i = m - 1; i >= 0; --i) {
      S weight = y[i] * inverse[i];
      for (int k = i + 1; k < m; ++k) weight -= lower[k * kMaxHistory + i] * gamma[slot[k]];
      gamma[slot[i]] = weight;
      sane = sane && weight <= S(kWeightCap) && weight >= -S(kWeightCap);  // false for NaN
    }
    if (sane) return m;
    for (int i = 0; i < n; ++i) gamma[order[i]] = S(0);
    return 0;
  }
  return 0;
}

}  // namespace ak
