// What the row passes of the cells share: walking a row whose last vector is partly padding, the sums the
// stopping rule and Auto need, and how dear an activation is.
#pragma once

#include "solve_rows.h"

namespace ak::AK_ISA {

// v with the lanes from n on zero, whatever they held.
template <class T>
inline Vec<T> keep_first(Vec<T> v, int64_t n) {
  using Int = typename IntOf<T>::type;
  IntVec<T> lane;
  for (int l = 0; l < kLanes<T>; ++l) lane[l] = l;
  return (Vec<T>)((IntVec<T>)v & (lane < Int(n) - IntVec<T>{}));
}

// body(i, keep) over a row's vectors; keep(v) is v with the lanes past the row's end zero.
template <class T, class Body>
inline void for_row(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) body(i, [](Vec<T> v) { return v; });
  if (i < n) body(i, [valid = n - i](Vec<T> v) { return keep_first<T>(v, valid); });
}

// |f - x|^2, |f|^2 and, where `watched`, <f - x, x - previous> of one row, in an order its length alone decides.
template <class T, bool watched>
struct RowSums {
  Vec<T> residual{}, norm{}, along{};

  // f: already free of what lies past the row's end
  void add(Vec<T> x, Vec<T> f, const T* previous) {
    const Vec<T> g = f - x;
    residual = fma<T>(g, g, residual);
    norm = fma<T>(f, f, norm);
    if constexpr (watched) along = fma<T>(g, x - load(previous), along);
  }
  void put(Evaluation<T>& e) const {
    e.r2 = double(sum_lanes<T>(residual));
    e.f2 = double(sum_lanes<T>(norm));
    if constexpr (watched) e.dot = double(sum_lanes<T>(along));
  }
};

// A row of constants, or of zeros where there is none, to be packed.
template <class T>
inline Matrix<T> row_or_zeros(const T* data, int64_t n) {
  static constexpr T zero = T(0);
  return data != nullptr ? vector_view(data, n) : Matrix<T>{&zero, n, 1, 0, 1};
}

template <class T>
inline Matrix<T> transposed(const Matrix<T>& m) {
  return {m.data, m.inputs, m.outputs, m.input_stride, m.output_stride};
}

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
