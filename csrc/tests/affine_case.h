// Affine cells to be solved (solve_case.h).
#pragma once

#include "solve_case.h"

namespace ak::test {

// f(z) of one row, in double
template <class T>
void affine_map(const AffineProblem<T>& p, int64_t row, const T* z, double* f) {
  for (int64_t n = 0; n < p.dim; ++n) {
    double a = double(p.u[row * p.dim + n]);
    for (int64_t k = 0; k < p.dim; ++k)
      a += double(p.weight.data[n * p.weight.output_stride + k * p.weight.input_stride]) * double(z[k]);
    f[n] = activate(p.activation, a, n >= p.dim - p.pieces);
    if (p.scale != nullptr) f[n] *= double(p.scale[row * p.dim + n]);
    if (p.leak != nullptr) f[n] += double(p.leak[n]) * double(z[n]);
  }
}

template <class T>
class AffineCase {
 public:
  using Scalar = T;
  using Problem = AffineProblem<T>;

  AffineCase(int64_t rows, int64_t dim, int activation, bool leaky, bool scaled, double gain = kSmallGain,
             double start = 1)
      : rows(rows),
        dim(dim),
        activation_(activation),
        leaky_(leaky),
        scaled_(scaled),
        z0_(rows * dim, [=](int64_t) { return start * normal(); }),
        u_(rows * dim, [](int64_t) { return 0.5 * normal(); }),
        weight_(random_weight<T>(dim, dim, gain)),
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

  void map(int64_t row, const T* z, double* f) const { affine_map(problem(0, rows), row, z, f); }

  // Every row's entry `at` gets an injection far larger than the others'.
  void spike(int64_t at, double size) {
    for (int64_t row = 0; row < rows; ++row) u_[row * dim + at] = T(size);
  }

  void spoil(int64_t row, double with) { u_[row * dim] = T(with); }
  void start_at_zero(int64_t row) { std::fill_n(z0_.get() + row * dim, dim, T(0)); }

  std::string name() const { return text("affine, activation %d, leak %d, scale %d", activation_, leaky_, scaled_); }

  const int64_t rows, dim;

 private:
  const int activation_;
  const bool leaky_, scaled_;
  Block<T> z0_, u_;
  const Block<T> weight_, leak_, scale_;
};

inline void a_row_with_nan_ends_alone(Method<AffineProblem<float>, float> solve, int64_t dim = 19, bool mixed = false) {
  const int64_t rows = 5;
  Block<float> z0(rows * dim, [](int64_t) { return 0; }), u(rows * dim, [](int64_t) { return normal(); });
  Block<float> weight(dim * dim, [&](int64_t) { return 0.4 * normal() / std::sqrt(double(dim)); });
  SolveOptions options = options_for(kAnderson, 3, 1e-5);
  options.mixed = mixed;
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
      CHECK(std::memcmp(&clean.z[row * dim], &poisoned.z[row * dim], size_t(dim) * sizeof(float)) == 0, "row %d",
            int(row));
    }
  }
}

}  // namespace ak::test
