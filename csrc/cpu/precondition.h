// Newton steps of an affine cell solve (1 - L - S W) d = g, with slopes S of each row's own. With one slope s for all
// of them there is an inverse for all rows, M = (1 - L - s W)^-1: of d = M t is left
//
//   t = g + (S - s) P t,  P = W M,
//
// one product of the same size, which contracts by how far slopes are from s and not by their size. And W d = P t, so M
// itself is not needed.
#pragma once

#include "inverse.h"
#include "row_product.h"

namespace ak::AK_ISA {

// A slope in the middle of those that a converged state has; 0: not known.
template <class T>
inline T typical_slope(const AffineProblem<T>& p) {
  if (p.scale != nullptr) return T(0.68);  // an adjoint's: of which activation is not told
  switch (p.activation) {
    case kIdentity:
      return T(1);
    case kTanh:
    case kPartialRelu:
      return T(0.68);
    case kRelu:
    case kGelu:
    case kSilu:
    case kSoftplus:
      return T(0.5);
    case kSigmoid:
      return T(0.2);
    default:
      return T(0);
  }
}

// The inverse costs as much as this many products of one row have inputs, whether there are many rows to share it or
// one.
#if defined(AK_EMULATE_NARROW)
constexpr int64_t kMostPreconditioned = 96;  // for tests
#else
constexpr int64_t kMostPreconditioned = 128;
#endif

// P as a matrix in `memory`, elements() of it; with no data where P is not had, or would not help: W is far from a
// contraction.
template <class T>
class Preconditioner {
 public:
  explicit Preconditioner(int64_t dim) : dim_(dim), ld_(Inverse<T>::stride(dim)) {}

  int64_t elements() const { return rows() * ld_ + ld_ + Inverse<T>::elements(dim_); }

  Matrix<T> take(const Matrix<T>& w, const T* leak, T slope, T* memory) const {
    constexpr T kLeastPivot = T(0.03);
    constexpr double kMostNorm2 = 4;        // of P, by entry of its diagonal: beyond, steps with it contract too little
    T* const keep = memory + rows() * ld_;  // 1 - leak
    for (int64_t i = 0; i < ld_; ++i) keep[i] = leak != nullptr && i < dim_ ? T(1) - leak[i] : T(1);
    for (int64_t first = 0; first < dim_; first += kLanes<T>) gather_outputs(w, first, 0, ld_, memory + first * ld_);
    for (int64_t i = 0; i < dim_; ++i) {
      T* const row = memory + i * ld_;
      for (int64_t j = 0; j < ld_; j += kLanes<T>) store(row + j, load(row + j) * broadcast<T>(-slope));
      row[i] += keep[i];
    }
    if (!Inverse<T>::take(memory, dim_, kLeastPivot, keep + ld_)) return {};
    // s W M = (1 - L) M - 1
    const T inverse = T(1) / slope;
    Vec<T> norm{};
    for (int64_t i = 0; i < dim_; ++i) {
      T* const row = memory + i * ld_;
      row[i] -= T(1) / keep[i];
      const Vec<T> by = broadcast<T>(keep[i] * inverse);
      for (int64_t j = 0; j < dim_; j += kLanes<T>) {
        const Vec<T> p = load(row + j) * by;
        store(row + j, p);
        norm = fma<T>(p, p, norm);
      }
    }
    if (!(double(sum_lanes<T>(norm)) <= kMostNorm2 * double(dim_))) return {};
    return {memory, dim_, dim_, ld_, 1};
  }

 private:
  int64_t rows() const { return round_up(dim_, kLanes<T>); }

  const int64_t dim_, ld_;
};

}  // namespace ak::AK_ISA
