// Steps of an affine cell by one inverse for all rows and slopes, M = (1 - L - s W)^-1 (precondition.h). With
// y = P g, P = W M, of g = f(x) - x, M g is (g + s y) / (1 - L), a step that contracts by how far slopes are from s,
// where Picard steps contract by the size of the slopes themselves. To first order it leaves r = (S - s) y, of which
// one more such step is taken where S is known by f: that costs a product where another evaluation would cost two.
#pragma once

#include "lane_sums.h"
#include "precondition.h"
#include "tile.h"

namespace ak::AK_ISA {

// Slopes of a row as they become known, put as they are: zero from its end to whole vectors.
template <class T>
struct SlopeRow {
  T* to;

  template <class Keep>
  void put(const Correction<T>&, int64_t i, Vec<T> slope, const Keep& keep) const {
    store(to + i, keep(slope));
  }
};

template <class T>
class ChordSteps {
 public:
  // p.data null: there are none. leak: [dim] or null.
  ChordSteps(const PackedMatrix<T>& p, T slope, const T* leak) : p_(p), slope_(slope), leak_(leak) {}

  bool fit() const { return p_.data != nullptr; }

  // f becomes the next iterate. slopes(row, SlopeRow): S; where `twice`.
  template <class Function>
  void take(int n, Correction<T>* rows, bool twice, const Function& slopes) const {
    const int64_t dim = p_.inputs, ld = round_up(dim, kLanes<T>);
    T* const room = static_cast<T*>(product_scratch().get(size_t(kRooms * n * ld) * sizeof(T)));
    const T* r[kMaxTile];
    T *y[kMaxTile], *more[kMaxTile];
    for (int k = 0; k < n; ++k) {
      T* const g = room + kRooms * k * ld;
      const T *const x = rows[k].x, *const f = rows[k].f;
      for (int64_t i = 0; i < ld; i += kLanes<T>) store(g + i, load(f + i) - load(x + i));
      r[k] = g;
      y[k] = g + ld;
      more[k] = g + 2 * ld;
    }
    multiply(p_, n, r, y);
    for (int k = 0; twice && k < n; ++k) {
      slopes(rows[k], SlopeRow<T>{more[k]});
      T* const left = room + kRooms * k * ld;
      for (int64_t i = 0; i < ld; i += kLanes<T>) store(left + i, left_of(load(more[k] + i), load(y[k] + i)));
    }
    if (twice) multiply(p_, n, r, more);
    for (int k = 0; k < n; ++k) {
      T* const f = rows[k].f;
      for_row<T>(dim, [&](int64_t i, auto keep) {
        const Vec<T> leak = leak_ != nullptr ? load(leak_ + i) : Vec<T>{}, first = load(y[k] + i);
        const Vec<T> left = twice ? load(r[k] + i) : Vec<T>{}, total = twice ? first + load(more[k] + i) : first;
        store(f + i, keep(next(load(rows[k].x + i), load(f + i), left, total, leak)));
      });
    }
  }

  // The same of rows side by side, those in `lanes`. room: room(dim) vectors.
  static int64_t room(int64_t dim) { return kRooms * round_up(dim, kLanes<T>); }
  template <class Function>
  void take(LaneSet lanes, const Vec<T>* x, Vec<T>* f, bool twice, const Function& slopes, Vec<T>* room) const {
    const int64_t dim = p_.inputs, ld = round_up(dim, kLanes<T>);
    Vec<T>*const r = room, *const y = room + ld, *const more = room + 2 * ld;
    for (int64_t i = 0; i < dim; ++i) r[i] = f[i] - x[i];
    multiply_lanes(p_, r, y);
    if (twice) {
      slopes(more);
      for (int64_t i = 0; i < dim; ++i) r[i] = left_of(more[i], y[i]);
      multiply_lanes(p_, r, more);
    }
    const IntVec<T> mask = lane_mask<T>(lanes);
    for (int64_t i = 0; i < dim; ++i) {
      const Vec<T> leak = broadcast<T>(leak_ != nullptr ? leak_[i] : T(0));
      const Vec<T> left = twice ? r[i] : Vec<T>{}, total = twice ? y[i] + more[i] : y[i];
      f[i] = mask ? next(x[i], f[i], left, total, leak) : f[i];
    }
  }

 private:
  static constexpr int kRooms = 3;

  Vec<T> left_of(Vec<T> slope, Vec<T> y) const { return (slope - broadcast<T>(slope_)) * y; }

  // x + (g + left + s y) / (1 - leak)
  Vec<T> next(Vec<T> x, Vec<T> f, Vec<T> left, Vec<T> y, Vec<T> leak) const {
    const Vec<T> slope = broadcast<T>(slope_);
    if (leak_ == nullptr) return fma<T>(slope, y, f + left);
    return x + fma<T>(slope, y, f - x + left) / (broadcast<T>(T(1)) - leak);
  }

  const PackedMatrix<T> p_;
  const T slope_;
  const T* const leak_;
};

}  // namespace ak::AK_ISA
