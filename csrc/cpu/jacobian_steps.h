// Newton steps of the cells whose Jacobian is had in 8 bits, and what they ask of the weights.
#pragma once

#include <initializer_list>

#include "newton.h"

namespace ak::AK_ISA {

// Whether rows are corrected by Newton steps, by products of state and hidden rows.
template <class T>
bool newton_pays(const SolveOptions& options, int64_t dim, int64_t hidden) {
  constexpr int64_t kMost = 1 << 16;  // whose sums hold 32 bits
  return AK_HAS_INT8 && sizeof(T) == 4 && options.solver == kAuto && options.damping == 1 && dim >= 1 && hidden >= 1 &&
         dim <= kMost && hidden <= kMost;
}

// One of a cell's matrices. In full the matrix unit multiplies by what Newton steps are by too.
template <class T>
PackRequest<T> cell_request(const Matrix<T>& matrix, Weights<T>* to, bool mixed, bool newton) {
  return {matrix, to, mixed, newton, newton, newton};
}

// What a map says to Tile of its weights. With precision="full" every product is in full; and where Newton steps make
// residuals fall so far that after changes in 8 bits each product would have to be.
template <class T>
double cell_refresh2(std::initializer_list<const Weights<T>*> weights, const SolveOptions& options, bool newton) {
  if (!mixed_allowed(options)) return 0;
  double most = 0;
  for (const Weights<T>* w : weights) {
    if (newton && w->narrow == kInt8) return 0;
    if (w->refresh2() > most) most = w->refresh2();
  }
  return most;
}

// Not of float64, nor without products in few bits. Jacobian: an Operator (newton.h).
template <class T, class Jacobian, bool has = AK_HAS_INT8 && sizeof(T) == 4>
struct JacobianSteps {
  template <class... Args>
  explicit JacobianSteps(bool, const Args&...) {}
  static constexpr bool pay() { return false; }
  static double aim2(bool) { return 1; }
  void take(int, Correction<T>*) {}
};

#if AK_HAS_INT8

template <class Jacobian>
class JacobianSteps<float, Jacobian, true> {
  using Newton = NewtonSteps<float, Jacobian>;

 public:
  template <class... Args>
  explicit JacobianSteps(bool wanted, const Args&... args)
      : jacobian_(args...), newton_(jacobian_), pay_(wanted && newton_.fits()) {}

  bool pay() const { return pay_; }
  double aim2(bool first) const { return newton_.aim2(first); }

  void take(int n, Correction<float>* rows) {
    newton_.solve(
        n, rows,
        [&](const Correction<float>& c, const typename Newton::Start& start) {
          for_row<float>(jacobian_.dim(), [&](int64_t i, auto keep) { start.put(c, i, Vec<float>{}, keep); });
        },
        nullptr);
  }

 private:
  const Jacobian jacobian_;
  Newton newton_;
  const bool pay_;
};

#endif

}  // namespace ak::AK_ISA
