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

// A slope somewhat below the middle of those that converged states have: steps by one that is too large lead astray, by
// one that is too small they are only slower. 0: not known.
template <class T>
inline T typical_slope(const AffineProblem<T>& p) {
  // Of few entries in some rows all are far from the usual.
  const T middle = p.dim < 24 ? T(0.6) : T(0.66);
  if (p.scale != nullptr) return middle;  // an adjoint's: of which activation is not told
  switch (p.activation) {
    case kIdentity:
      return T(1);
    case kTanh:
    case kPartialRelu:
      return middle;
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

// The inverse takes as long as products of this many rows, whether there are as many to share it or one.
#if defined(AK_EMULATE_NARROW)
constexpr int64_t kMostPreconditioned = 96;  // for tests
#else
constexpr int64_t kMostPreconditioned = 256;
#endif

// Makes P out of W, in the same memory.
template <class T>
class Preconditioner {
 public:
  explicit Preconditioner(int64_t dim) : dim_(dim), ld_(Inverse<T>::stride(dim)) {}

  // Elements of memory: of what W and the leak are, all P depends on but s; and in all.
  int64_t given() const { return round_up(dim_, kLanes<T>) * ld_ + ld_; }
  int64_t elements() const { return given() + Inverse<T>::elements(dim_); }

  void gather(const Matrix<T>& w, const T* leak, T* memory) const {
    for (int64_t first = 0; first < dim_; first += kLanes<T>) gather_outputs(w, first, 0, ld_, memory + first * ld_);
    T* const keep = kept(memory);
    for (int64_t i = 0; i < ld_; ++i) keep[i] = leak != nullptr && i < dim_ ? T(1) - leak[i] : T(1);
  }

  // P; no data where it is not had, or would not help: W is far from a contraction.
  Matrix<T> take(T slope, T* memory) const {
    constexpr T kLeastPivot = T(0.03);
    constexpr double kMostNorm2 = 4;  // of P, by entry of its diagonal: beyond, steps with it contract too little
    T* const keep = kept(memory);
    for (int64_t i = 0; i < dim_; ++i) {
      T* const row = memory + i * ld_;
      for (int64_t j = 0; j < ld_; j += kLanes<T>) store(row + j, load(row + j) * broadcast<T>(-slope));
      row[i] += keep[i];
    }
    if (!Inverse<T>::take(memory, dim_, kLeastPivot, memory + given())) return {};
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
  T* kept(T* memory) const { return memory + given() - ld_; }  // 1 - leak

  const int64_t dim_, ld_;
};

// A preconditioner packed, and what it is of: a problem's W, which is kept packed along.
template <class T>
struct Preconditioned {
  Weights<T> weights{};
  bool fit = false;

  int64_t dim = 0;
  T slope = 0;
  bool coarse = false;
  uint64_t last_use = 0;
  Scratch given, packed;

  // W, packed as asked for.
  const Weights<T>& weight(PackRequest<T> request, int threads, const Executor& executor) {
    const bool same = has_weight && request.mixed == asked.mixed && request.digits == asked.digits &&
                      request.newton == asked.newton && request.coarse == asked.coarse;
    if (same) return given_weight;
    has_weight = false;
    given_weight = {};
    request.to = &given_weight;
    pack(&request, 1, threads, executor, weight_packed);
    asked = request;
    asked.from = {};
    has_weight = true;
    return given_weight;
  }

  bool has_weight = false;
  Weights<T> given_weight{};
  PackRequest<T> asked{};
  Scratch weight_packed;
};

// P for this problem, in 8 bits where `coarse`; null: there is none. The calling thread keeps the last two, a solve's
// and its adjoint's, and looks whether W is still the same, entry by entry: of a single row the inverse takes longer
// than all the rest.
template <class T>
Preconditioned<T>* preconditioned(const AffineProblem<T>& problem, bool coarse, int threads, const Executor& executor) {
  const T slope = typical_slope(problem);
  if (slope == 0 || problem.dim > kMostPreconditioned) return nullptr;
  thread_local Preconditioned<T> kept[2];
  thread_local uint64_t uses = 0;
  const Preconditioner<T> preconditioner(problem.dim);
  T* const memory = static_cast<T*>(tile_scratch().get(size_t(preconditioner.elements()) * sizeof(T)));
  preconditioner.gather(problem.weight, problem.leak, memory);
  const size_t given = size_t(preconditioner.given()) * sizeof(T);
  Preconditioned<T>* to = &kept[0];
  uses += 1;
  for (Preconditioned<T>& one : kept) {
    if (one.dim == problem.dim && one.slope == slope && one.coarse == coarse &&
        std::memcmp(one.given.get(given), memory, given) == 0) {
      one.last_use = uses;
      return one.fit ? &one : nullptr;
    }
    if (one.last_use < to->last_use) to = &one;
  }
  to->dim = 0;  // while it is neither
  to->has_weight = false;
  std::memcpy(to->given.get(given), memory, given);
  const Matrix<T> p = preconditioner.take(slope, memory);
  to->fit = p.data != nullptr;
  if (to->fit) {
    to->weights = {};
    const PackRequest<T> request{p, &to->weights, false, false, coarse, coarse, true};
    pack(&request, 1, threads, executor, to->packed);
    to->fit = to->weights.coarse == coarse;
  }
  to->dim = problem.dim;
  to->slope = slope;
  to->coarse = coarse;
  to->last_use = uses;
  return to->fit ? to : nullptr;
}

}  // namespace ak::AK_ISA
