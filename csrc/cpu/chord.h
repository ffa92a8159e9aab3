// Steps of an affine cell by one inverse for all rows and slopes: x + M (f(x) - x), M = (1 - L - s W)^-1. They contract
// by how far slopes are from s, where Picard steps contract by the size of the slopes themselves, and cost one product
// more: with y = P (f - x), P = W M (precondition.h), the next iterate is x + (f - x + s y) / (1 - L).
#pragma once

#include "lane_sums.h"
#include "precondition.h"
#include "tile.h"

namespace ak::AK_ISA {

template <class T>
class ChordSteps {
 public:
  // p.data null: there are none. leak: [dim] or null.
  ChordSteps(const PackedMatrix<T>& p, T slope, const T* leak) : p_(p), slope_(slope), leak_(leak) {}

  bool fit() const { return p_.data != nullptr; }

  void take(int n, Correction<T>* rows) const {
    const int64_t dim = p_.inputs, ld = round_up(dim, kLanes<T>);
    T* const room = static_cast<T*>(product_scratch().get(size_t(2 * n * ld) * sizeof(T)));
    const T* g[kMaxTile];
    T* y[kMaxTile];
    for (int r = 0; r < n; ++r) {
      T* const to = room + 2 * r * ld;
      const T *const x = rows[r].x, *const f = rows[r].f;
      for (int64_t i = 0; i < ld; i += kLanes<T>) store(to + i, load(f + i) - load(x + i));
      g[r] = to;
      y[r] = to + ld;
    }
    multiply(p_, n, g, y);
    for (int r = 0; r < n; ++r) {
      T* const f = rows[r].f;
      for_row<T>(dim, [&](int64_t i, auto keep) {
        const Vec<T> leak = leak_ != nullptr ? load(leak_ + i) : Vec<T>{};
        store(f + i, keep(next(load(rows[r].x + i), load(f + i), load(y[r] + i), leak)));
      });
    }
  }

  // The same of rows side by side: of these lanes f becomes the next iterate. room: vectors for two rows, whole ones.
  void take(LaneSet lanes, const Vec<T>* x, Vec<T>* f, Vec<T>* room) const {
    const int64_t dim = p_.inputs;
    Vec<T>*const g = room, *const y = room + round_up(dim, kLanes<T>);
    for (int64_t i = 0; i < dim; ++i) g[i] = f[i] - x[i];
    multiply_lanes(p_, g, y);
    const IntVec<T> mask = lane_mask<T>(lanes);
    for (int64_t i = 0; i < dim; ++i) {
      const Vec<T> leak = broadcast<T>(leak_ != nullptr ? leak_[i] : T(0));
      f[i] = mask ? next(x[i], f[i], y[i], leak) : f[i];
    }
  }

 private:
  Vec<T> next(Vec<T> x, Vec<T> f, Vec<T> y, Vec<T> leak) const {
    if (leak_ == nullptr) return fma<T>(broadcast<T>(slope_), y, f);
    return x + fma<T>(broadcast<T>(slope_), y, f - x) / (broadcast<T>(T(1)) - leak);
  }

  const PackedMatrix<T> p_;
  const T slope_;
  const T* const leak_;
};

}  // namespace ak::AK_ISA
