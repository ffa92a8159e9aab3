// What the MLP cell's solve and those of its derivative share.
#pragma once

#include "row_sums.h"

namespace ak::AK_ISA {

// Memory of `width` hidden entries: whole vectors, and one more for the second half of a gated cell, which begins
// between vectors, so that its last one reaches past the end.
template <class T>
inline int64_t hidden_elements(int64_t width) {
  return round_up(width, kLanes<T>) + kLanes<T>;
}

// Whether an evaluation has so few products that Newton steps row by row do not pay: Picard's and Anderson's are sooner
// done, side by side by far.
inline bool is_small(int64_t dim, int64_t w1_outputs, int64_t w2_inputs) {
#if defined(AK_EMULATE_NARROW)
  constexpr int64_t kMost = 2 * 24 * 24;  // for tests
#else
  constexpr int64_t kMost = 2 * 48 * 48;
#endif
  return dim * (w1_outputs + w2_inputs) <= kMost;
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

}  // namespace ak::AK_ISA
