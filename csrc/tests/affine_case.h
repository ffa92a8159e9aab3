// The fused affine solve against plain loops in double, for tests of every implementation: odd sizes, every
// activation, bitwise independence of the neighbours. Buffers have exactly the size a kernel may touch.
#pragma once

#include "check.h"

namespace ak::test {

inline double activate(int kind, double a, bool rectified) {
  switch (kind) {
    case kTanh:
      return std::tanh(a);
    case kRelu:
      return std::fmax(a, 0);
    case kSigmoid:
      return 1 / (1 + std::exp(-a));
    case kSoftplus:
      return std::log1p(std::exp(a));
    case kGelu:
      return 0.5 * a * std::erfc(-a * 0.70710678118654752);
    case kPartialRelu:
      return rectified ? std::fmax(a, 0) : a;
    case kSilu:
      return a / (1 + std::exp(-a));
    case kRelu2:
      return std::fmax(a, 0) * std::fmax(a, 0);
    default:
      return a;
  }
}

template <class T>
struct Solved {
  explicit Solved(int64_t rows, int64_t dim) : z(rows * dim), steps(rows), residual(rows), status(rows) {}
  SolveResult<T> pointers() const { return {z.get(), steps.get(), residual.get(), status.get(), nullptr}; }
  Block<T> z;
  Block<int32_t> steps;
  Block<float> residual;
  Block<uint8_t> status;
};

// |f(z) - z| / |f(z)| of one row, in double
template <class T>
double affine_residual(const AffineProblem<T>& p, int64_t row, const T* z) {
  double r2 = 0, f2 = 0;
  for (int64_t n = 0; n < p.dim; ++n) {
    double a = double(p.u[row * p.dim + n]);
    for (int64_t k = 0; k < p.dim; ++k)
      a += double(p.weight.data[n * p.weight.output_stride + k * p.weight.input_stride]) * double(z[k]);
    double f = activate(p.activation, a, n >= p.dim - p.pieces);
    if (p.scale != nullptr) f *= double(p.scale[row * p.dim + n]);
    if (p.leak != nullptr) f += double(p.leak[n]) * double(z[n]);
    r2 += (f - double(z[n])) * (f - double(z[n]));
    f2 += f * f;
  }
  return r2 == 0 ? 0 : std::sqrt(r2 / f2);
}

// An implementation of the solve; `again`: cut up in another way, for the same bits.
template <class T>
using AffineMethod = void (*)(const AffineProblem<T>&, const SolveOptions&, const SolveResult<T>&, bool again);

template <class T>
class Case {
 public:
  Case(AffineMethod<T> solve, int64_t rows, int64_t dim, int activation, bool leaky, bool scaled)
      : solve_(solve),
        rows_(rows),
        dim_(dim),
        activation_(activation),
        leaky_(leaky),
        scaled_(scaled),
        z0_(rows * dim, [](int64_t) { return normal(); }),
        u_(rows * dim, [](int64_t) { return 0.5 * normal(); }),
        weight_(dim * dim, [&](int64_t) { return 0.35 * normal() / std::sqrt(double(dim)); }),
        leak_(dim, [](int64_t i) { return 0.2 * double(i % 3); }),
        scale_(rows * dim, [](int64_t i) { return double(i % 5) / 5; }) {}

  AffineProblem<T> problem(int64_t first, int64_t count) const {
    return {count,
            dim_,
            z0_.get() + first * dim_,
            u_.get() + first * dim_,
            {weight_.get(), dim_, dim_, 1, dim_},  // transposed strides
            leaky_ ? leak_.get() : nullptr,
            scaled_ ? scale_.get() + first * dim_ : nullptr,
            activation_,
            int(dim_ / 2)};
  }

  void check(const SolveOptions& options) const {
    Solved<T> all(rows_, dim_), again(rows_, dim_), one(1, dim_);
    solve_(problem(0, rows_), options, all.pointers(), false);
    solve_(problem(0, rows_), options, again.pointers(), true);
    CHECK(std::memcmp(all.z.get(), again.z.get(), size_t(rows_ * dim_) * sizeof(T)) == 0,
          "another cut changed bits: %s", name(options));
    const double noise = sizeof(T) == 4 ? 3e-7 : 1e-15;
    for (int64_t row = 0; row < rows_; ++row) {
      const double true_residual = affine_residual(problem(0, rows_), row, all.z.get() + row * dim_);
      CHECK(all.status[row] == kConverged, "row %d ended with %d: %s", int(row), all.status[row], name(options));
      CHECK(true_residual <= options.rtol * 1.001 + noise, "row %d at %g: %s", int(row), true_residual, name(options));
      CHECK(std::fabs(true_residual - double(all.residual[row])) <= 2e-3 * true_residual + noise,
            "row %d reports %g, is at %g: %s", int(row), double(all.residual[row]), true_residual, name(options));
    }
    const int64_t row = rows_ - 1;
    solve_(problem(row, 1), options, one.pointers(), true);
    CHECK(std::memcmp(one.z.get(), all.z.get() + row * dim_, size_t(dim_) * sizeof(T)) == 0, "a row alone differs: %s",
          name(options));
    CHECK(one.steps[0] == all.steps[row], "a row alone takes other steps: %s", name(options));
  }

 private:
  const char* name(const SolveOptions& o) const {
    static char text[160];
    std::snprintf(text, sizeof text,
                  "%d x %d, float%d, activation %d, leak %d, scale %d, solver %d, history %d, mixed %d", int(rows_),
                  int(dim_), int(8 * sizeof(T)), activation_, leaky_, scaled_, o.solver, o.history, o.mixed);
    return text;
  }

  const AffineMethod<T> solve_;
  const int64_t rows_, dim_;
  const int activation_;
  const bool leaky_, scaled_;
  const Block<T> z0_, u_, weight_, leak_, scale_;
};

template <class T>
void all_solvers(const Case<T>& c) {
  SolveOptions options;
  options.ridge = 1e-8;
  options.rtol = sizeof(T) == 4 ? 1e-5 : 1e-10;
  options.max_steps = 200;
  for (int solver : {kPicard, kAnderson, kAuto})
    for (int history : {1, 2, 5, 11}) {
      for (double damping : {1.0, 0.8}) {
        options.solver = solver;
        options.history = history;
        options.damping = damping;
        c.check(options);
        if (sizeof(T) == 4 && damping == 1.0) {
          options.mixed = true;
          c.check(options);
          options.mixed = false;
        }
      }
      if (solver == kPicard) break;
    }
}

inline void a_row_with_nan_ends_alone(AffineMethod<float> solve, int64_t dim = 19, bool mixed = false) {
  const int64_t rows = 5;
  Block<float> z0(rows * dim, [](int64_t) { return 0; }), u(rows * dim, [](int64_t) { return normal(); });
  Block<float> weight(dim * dim, [&](int64_t) { return 0.4 * normal() / std::sqrt(double(dim)); });
  SolveOptions options;
  options.mixed = mixed;
  options.solver = kAnderson;
  options.history = 3;
  options.damping = 1;
  options.ridge = 1e-8;
  options.rtol = 1e-5;
  options.max_steps = 60;
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
