// Rows side by side: vector i holds entry i of kLanes rows, a row to a lane. Nothing is added across lanes, rules are
// decided for all rows at once, and a product takes its weights one by one.
//
// Every number a row meets is the one its own kernel (tile.h) would give it, to the last bit: products are the same
// chains of fma, and sums are taken in the order in which that kernel adds its lanes. So which of the two runs is a
// matter of speed alone, and may depend on the batch.
#pragma once

#include "gemm.h"

namespace ak::AK_ISA {

// A double of each lane, in as many vectors as that takes.
template <class T>
struct alignas(64) LaneDoubles {
  double lane[kLanes<T>];

  double& operator[](int l) { return lane[l]; }
  double operator[](int l) const { return lane[l]; }
  Vec<double> at(int first) const { return load(lane + first); }
  void put(int first, Vec<double> v) { store(lane + first, v); }
  // Where `mask`.
  void put(int first, IntVec<double> mask, Vec<double> v) { put(first, mask ? v : at(first)); }
};

template <class T>
struct alignas(64) LaneInts {
  int64_t lane[kLanes<T>];

  int64_t& operator[](int l) { return lane[l]; }
  int64_t operator[](int l) const { return lane[l]; }
  IntVec<double> at(int first) const { return load_ints(lane + first); }
  void put(int first, IntVec<double> v) { std::memcpy(lane + first, &v, sizeof v); }
  void put(int first, IntVec<double> mask, IntVec<double> v) { put(first, mask ? v : at(first)); }

 private:
  static IntVec<double> load_ints(const int64_t* p) {
    IntVec<double> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
};

// body(first) for the vectors of doubles that hold all lanes of T; `first` is the lane each begins with.
template <class T, class Body>
inline void for_lane_doubles(const Body& body) {
  for (int first = 0; first < kLanes<T>; first += kLanes<double>) body(first);
}

// The part of a set of lanes of T that a vector of doubles from lane `first` on holds.
inline IntVec<double> doubles_mask(LaneSet set, int first) { return lane_mask<double>(set >> first); }

template <class T>
inline LaneDoubles<T> lane_doubles(Vec<T> v) {
  LaneDoubles<T> out;
  for (int l = 0; l < kLanes<T>; ++l) out.lane[l] = double(v[l]);
  return out;
}

template <class T>
inline Vec<T> narrow_lanes(const LaneDoubles<T>& v) {
  T out[kLanes<T>];
  for (int l = 0; l < kLanes<T>; ++l) out[l] = T(v.lane[l]);
  return load(out);
}

// The sums over the entries at `place` in each `stride` of a vector.
template <class T, int count, int place, int stride, class Add>
[[gnu::always_inline]] inline void sum_places(int64_t n, Vec<T>* sum, const Add& add) {
  if constexpr (stride == kLanes<T>) {
    for (int j = 0; j < count; ++j) sum[j] = Vec<T>{};
    for (int64_t i = place; i < n; i += stride) add(i, sum);
  } else {
    Vec<T> high[count];
    sum_places<T, count, place, 2 * stride>(n, sum, add);
    sum_places<T, count, place + stride, 2 * stride>(n, high, add);
    for (int j = 0; j < count; ++j) sum[j] = sum[j] + high[j];
  }
}

// `count` sums over i in [0, n), as a row's own kernel takes them: by place in a vector first, then as sum_lanes adds
// lanes. add(i, sum) adds what entry i contributes; it stands in the text once for every place.
template <class T, int count, class Add>
[[gnu::always_inline]] inline void sum_in_row_order(int64_t n, Vec<T>* out, const Add& add) {
  sum_places<T, count, 0, 1>(n, out, add);
}

// out[0 .. outputs) = weights from w on, `width` outputs an input, times x.
template <class T, int outputs>
inline void multiply_lanes_block(const T* w, int64_t width, int64_t inputs, const Vec<T>* x, Vec<T>* out) {
  Vec<T> sum[outputs];
#pragma GCC unroll 16
  for (int n = 0; n < outputs; ++n) sum[n] = Vec<T>{};
#pragma GCC unroll 2
  for (int64_t k = 0; k < inputs; ++k) {
    const Vec<T> xk = x[k];
#pragma GCC unroll 16
    for (int n = 0; n < outputs; ++n) sum[n] = Exact<T>::multiply_add(w[n], xk, sum[n]);
    w += width;
  }
#pragma GCC unroll 16
  for (int n = 0; n < outputs; ++n) out[n] = sum[n];
}

// Outputs of a register block: sums enough to hide the latency of fma.
constexpr int kLaneOutputs = AK_VECTOR_BYTES == 64 ? 16 : 8;

// out[0 .. round_up(outputs)) = W x.
template <class T>
inline void multiply_lanes(const PackedMatrix<T>& w, const Vec<T>* x, Vec<T>* out) {
  constexpr int block = kLaneOutputs;
  for (int p = 0; p < w.panels(); ++p) {
    const int width = w.panel_vectors(p) * kLanes<T>;
    int n = 0;
    for (; n + block <= width; n += block, out += block)
      multiply_lanes_block<T, block>(w.panel(p) + n, width, w.inputs, x, out);
    for (; n < width; n += kLanes<T>, out += kLanes<T>)
      multiply_lanes_block<T, kLanes<T>>(w.panel(p) + n, width, w.inputs, x, out);
  }
}

}  // namespace ak::AK_ISA
