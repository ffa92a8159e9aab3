// Gated cells and the linear maps of their derivative, to be solved (solve_case.h).
#pragma once

#include "solve_case.h"

namespace ak::test {

template <class T>
class GatedCase {
 public:
  using Scalar = T;
  using Problem = GatedProblem<T>;

  GatedCase(int64_t rows, int64_t dim, double gain = kSmallGain)
      : rows(rows),
        dim(dim),
        z0_(rows * dim, [](int64_t) { return normal(); }),
        u_(rows * 2 * dim, [](int64_t) { return 0.5 * normal(); }),
        weight_(random_weight<T>(2 * dim, dim, gain)) {}

  Problem problem(int64_t first, int64_t count) const {
    return {.rows = count,
            .dim = dim,
            .z0 = z0_.get() + first * dim,
            .u = u_.get() + first * 2 * dim,
            .weight = {weight_.get(), 2 * dim, dim, dim, 1}};
  }

  void map(int64_t row, const T* z, double* f) const {
    for (int64_t n = 0; n < dim; ++n) {
      double a[2];
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t at = half * dim + n;
        a[half] = double(u_[row * 2 * dim + at]);
        for (int64_t k = 0; k < dim; ++k) a[half] += double(weight_[at * dim + k]) * double(z[k]);
      }
      const double s = activate(kSigmoid, a[0]);
      f[n] = (1 - s) * double(z[n]) + s * std::tanh(a[1]);
    }
  }

  std::string name() const { return "gated"; }

  const int64_t rows, dim;

 private:
  const Block<T> z0_, u_, weight_;
};

template <class T>
class GatedLinearCase {
 public:
  using Scalar = T;
  using Problem = GatedLinearProblem<T>;

  GatedLinearCase(int64_t rows, int64_t dim, bool adjoint, double gain = kSmallGain)
      : rows(rows),
        dim(dim),
        adjoint_(adjoint),
        w0_(rows * dim, [](int64_t) { return normal(); }),
        v_(rows * dim, [](int64_t) { return normal(); }),
        q_(rows * 2 * dim, [](int64_t i) { return double(i % 7) / 10; }),
        c_(rows * dim, [](int64_t i) { return double(i % 5) / 10; }),
        weight_(random_weight<T>(2 * dim, dim, gain)) {}

  Problem problem(int64_t first, int64_t count) const {
    return {.rows = count,
            .dim = dim,
            .w0 = w0_.get() + first * dim,
            .v = v_.get() + first * dim,
            .q = q_.get() + first * 2 * dim,
            .c = c_.get() + first * dim,
            .weight = {weight_.get(), 2 * dim, dim, dim, 1},
            .adjoint = adjoint_};
  }

  void map(int64_t row, const T* z, double* f) const {
    const T *const q = q_.get() + row * 2 * dim, *const w = weight_.get();
    for (int64_t n = 0; n < dim; ++n) {
      f[n] = double(v_[row * dim + n]) + double(c_[row * dim + n]) * double(z[n]);
      for (int64_t half = 0; half < 2; ++half)
        for (int64_t k = 0; k < dim; ++k)
          f[n] += adjoint_ ? double(q[half * dim + k]) * double(z[k]) * double(w[(half * dim + k) * dim + n])
                           : double(q[half * dim + n]) * double(w[(half * dim + n) * dim + k]) * double(z[k]);
    }
  }

  std::string name() const { return adjoint_ ? "gated adjoint" : "gated tangent"; }

  const int64_t rows, dim;

 private:
  const bool adjoint_;
  const Block<T> w0_, v_, q_, c_, weight_;
};

template <class T>
void gated_cells(std::initializer_list<int64_t> sizes, MethodOf<GatedCase<T>> solve,
                 MethodOf<GatedLinearCase<T>> solve_linear) {
  for (int64_t dim : sizes) {
    each_solver(GatedCase<T>(9, dim), solve);
    for (bool adjoint : {true, false}) each_solver(GatedLinearCase<T>(9, dim, adjoint), solve_linear);
  }
  all_solvers(GatedCase<T>(35, 21), solve);  // more rows than a tile holds
  for (bool adjoint : {true, false}) all_solvers(GatedLinearCase<T>(35, 21, adjoint), solve_linear);
}

}  // namespace ak::test
