// What the row passes of the cells share: the sums the stopping rule and Auto need, and how dear an activation is.
#pragma once

#include "solve_rows.h"

namespace ak::AK_ISA {

// What is asked of a step beside |f - x|^2 and |f|^2: nothing, <f - x, x - previous>, or the largest entry of f - x
// and, of cells whose Newton steps need them, the slopes at x.
enum Watch { kUnwatched, kDirection, kCorrected };

template <class T>
Watch watch_of(const Evaluation<T>& e) {
  return e.previous != nullptr ? kDirection : e.corrected ? kCorrected : kUnwatched;
}

// Those of one row, in an order its length alone decides.
template <class T, Watch watch>
struct RowSums {
  Vec<T> residual{}, norm{}, along{}, largest{};

  // f: already free of what lies past the row's end
  void add(Vec<T> x, Vec<T> f, const T* previous) {
    const Vec<T> g = f - x;
    residual = fma<T>(g, g, residual);
    norm = fma<T>(f, f, norm);
    if constexpr (watch == kDirection) along = fma<T>(g, x - load(previous), along);
    if constexpr (watch == kCorrected) largest = VecOps<T>::max(largest, VecOps<T>::abs(g));
  }
  void put(Evaluation<T>& e) const {
    const Vec<T> both[2] = {residual, norm};
    T sums[2];
    sum_lanes_of_each<2>(both, sums);
    e.r2 = double(sums[0]);
    e.f2 = double(sums[1]);
    if constexpr (watch == kDirection) e.dot = double(sum_lanes<T>(along));
    if constexpr (watch == kCorrected) e.largest = largest_lane<T>(largest);
  }
};

// Cost of one evaluation of an activation, in those of tanh.
inline double activation_cost(int kind) {
  switch (kind) {
    case kIdentity:
    case kRelu:
    case kRelu2:
      return 0.15;
    case kGelu:
      return 2.5;
    case kSoftplus:
      return 2;
    default:
      return 1;
  }
}

// Threads for a cell whose activations weigh as much as its products: one costs as much as about 28 of them.
inline int threads_for_cell(int64_t rows, const CellCost& cost, int available) {
  return threads_for(rows, cost.products + 28 * cost.activations, available);
}

}  // namespace ak::AK_ISA
