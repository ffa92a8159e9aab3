// The small least-squares problem of Anderson acceleration, type II, from its normal equations.
//
// gamma = argmin | g - sum_j gamma_j dG_j |^2 + ridge * mean_j |dG_j|^2 * |gamma|^2
//
// The Gram matrix is equilibrated to a unit diagonal and factored by Cholesky. A pivot at rounding level means
// that the newest differences already span the oldest one: the oldest column is dropped and the rest solved
// again (Fang & Saad 2009; Walker & Ni 2011, sec. 4). It never fails: no usable column means a plain step.
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
AK_HD int small_solve(const S* gram, int ld, const S* rhs, const int* order, int n, S ridge, S pivot_floor,
                      S* gamma) {
  S chol[kMaxHistory * (kMaxHistory + 1) / 2];
  S scale[kMaxHistory];
  S y[kMaxHistory];
  for (int i = 0; i < n; ++i) gamma[order[i]] = S(0);
  for (int first = 0; first < n; ++first) {
    const int m = n - first;
    S mean = S(0);
    for (int i = 0; i < m; ++i) mean += gram[order[first + i] * ld + order[first + i]];
    const S shift = ridge * mean / S(m);
    bool usable = mean > S(0) && finite(mean);
    for (int i = 0; usable && i < m; ++i) {
      const int si = order[first + i];
      const S diagonal = gram[si * ld + si] + shift;
      usable = diagonal > S(0);
      scale[i] = S(1) / square_root(diagonal);
      S* row = chol + i * (i + 1) / 2;
      S rest = rhs[si] * scale[i];
      for (int j = 0; usable && j <= i; ++j) {
        const S* other = chol + j * (j + 1) / 2;
        S sum = i == j ? S(1) : gram[si * ld + order[first + j]] * scale[i] * scale[j];
        for (int k = 0; k < j; ++k) sum -= row[k] * other[k];
        if (j < i) {
          row[j] = sum * other[j];  // the diagonal holds its own reciprocal
          rest -= row[j] * y[j];
        } else {
          usable = sum > pivot_floor;
          row[i] = S(1) / square_root(sum);
        }
      }
      y[i] = rest * row[i];
    }
    if (!usable) continue;
    bool sane = true;
    for (int i = m - 1; i >= 0; --i) {
      S sum = y[i];
      for (int k = i + 1; k < m; ++k) sum -= chol[k * (k + 1) / 2 + i] * y[k];
      y[i] = sum * chol[i * (i + 1) / 2 + i];
      const S weight = y[i] * scale[i];
      sane = sane && weight <= S(kWeightCap) && weight >= -S(kWeightCap);  // false for NaN
      gamma[order[first + i]] = weight;
    }
    if (sane) return m;
    for (int i = 0; i < n; ++i) gamma[order[i]] = S(0);
    return 0;
  }
  return 0;
}

}  // namespace ak
