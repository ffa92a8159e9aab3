// Affine cells to be solved (solve_case.h).
#pragma once

#include "solve_case.h"

namespace ak::test {

template <class T>
class AffineCase {
 public:
  using Scalar = T;
  using Problem = AffineProblem<T>;

  AffineCase(int64_t rows, int64_t dim, int activation, bool leaky, bool scaled)
      : rows(rows),
        dim(dim),
        activation_(activation),
        leaky_(leaky),
        scaled_(scaled),
        z0_(rows * dim, [](int64_t) { return normal(); }),
        u_(rows * dim, [](int64_t) { return 0.5 * normal(); }),
        weight_(small_weight<T>(dim, dim)),
        leak_(dim, [](int64_t i) { return 0.2 * double(i % 3); }),
        scale_(rows * dim, [](int64_t i) { return double(i % 5) / 5; }) {}

  Problem problem(int64_t first, int64_t count) const {
    return {count,
            dim,
            z0_.get() + first * dim,
            u_.get() + first * dim,
            {weight_.get(), dim, dim, 1, dim},  // transposed strides
            leaky_ ? leak_.get() : nullptr,
            scaled_ ? scale_.get() + first * dim : nullptr,
            activation_,
            int(dim / 2)};
  }

  void map(int64_t row, const T* z, double* f) const {
    for (int64_t n = 0; n < dim; ++n) {
      double a = double(u_[row * dim + n]);
      for (int64_t k = 0; k < dim; ++k) a += double(weight_[k * dim + n]) * double(z[k]);
      f[n] = activate(activation_, a, n >= dim - dim / 2);
      if (scaled_) f[n] *= double(scale_[row * dim + n]);
      if (leaky_) f[n] += double(leak_[n]) * double(z[n]);
    }
  }

  std::string name() const { return text("affine, activation %d, leak %d, scale %d", activation_, leaky_, scaled_); }

  const int64_t rows, dim;

 private:
  const int activation_;
  const bool leaky_, scaled_;
  const Block<T> z0_, u_, weight_, leak_, scale_;
};

inline void a_row_with_nan_ends_alone(Method<AffineProblem<float>, float> solve) {
  const int64_t rows = 5, dim = 19;
  Block<float> z0(rows * dim, [](int64_t) { return 0; }), u(rows * dim, [](int64_t) { return normal(); });
  Block<float> weight(dim * dim, [&](int64_t) { return 0.1 * normal(); });
  const SolveOptions options = options_for(kAnderson, 3, 1e-5);
  const AffineProblem<float> problem{rows,    dim,     z0.get(), u.get(), {weight.get(), dim, dim, dim, 1},
                                     nullptr, nullptr, kTanh,    0};
  Solved<float> clean(rows, dim), poisoned(rows, dim);
  solve(problem, options, clean.pointers(), false);
  u[2 * dim + 18] = NAN;
  solve(problem, options, poisoned.pointers(), false);
  for (int64_t row = 0; row < rows; ++row) {
    if (row == 2) {
      CHECK(poisoned.status[row] == kNonfinite && poisoned.z[row * dim] == 0, "status %d", poisoned.status[row]);
    } else {
      CHECK(std::memcmp(&clean.z[row * dim], &poisoned.z[row * dim], dim * sizeof(float)) == 0, "row %d", int(row));
    }
  }
}

}  // namespace ak::test
