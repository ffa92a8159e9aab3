// What the MLP cell's solve and those of its derivative share.
#pragma once

#include "row_sums.h"

namespace ak::AK_ISA {

enum Norm { kNoNorm = 0, kLayerNorm = 1, kRmsNorm = 2 };

// Memory of `width` hidden entries: whole vectors, and one more for the second half of a gated cell, which begins
// between vectors, so that its last one reaches past the end.
template <class T>
inline int64_t hidden_elements(int64_t width) {
  return round_up(width, kLanes<T>) + kLanes<T>;
}

template <class T>
inline void add_rows(T* out, const T* a, const T* b, int64_t ld) {
  for (int64_t i = 0; i < ld; i += kLanes<T>) store(out + i, load(a + i) + load(b + i));
}

// out += scale * a
template <class T>
inline void add_scaled(T* out, T scale, const T* a, int64_t ld) {
  const Vec<T> s = broadcast<T>(scale);
  for (int64_t i = 0; i < ld; i += kLanes<T>) store(out + i, fma<T>(s, load(a + i), load(out + i)));
}

// A product that may have no inputs (a cell without hidden units).
template <class T>
inline void multiply_or_zero(const PackedMatrix<T>& w, int n, const T* const* x, T* const* out) {
  if (w.inputs > 0) return multiply<T>(w, n, x, out);
  for (int i = 0; i < n; ++i) std::memset(out[i], 0, size_t(round_up(w.outputs, kLanes<T>)) * sizeof(T));
}

}  // namespace ak::AK_ISA
