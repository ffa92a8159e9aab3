// Fused solves against plain loops in double, for tests of every cell in every implementation: bitwise independence of
// the neighbours and of how the work is cut up, the residual that is reported, odd sizes. Buffers have exactly the size
// a kernel may touch.
//
// A case has Scalar, Problem, rows, dim, problem(first, count), map(row, z, f) in double, and name().
#pragma once

#include <cstdarg>
#include <string>

#include "check.h"

namespace ak::test {

inline double activate(int kind, double a, bool rectified = false) {
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

// An implementation of the solve; `again`: cut up in another way, for the same bits.
template <class Problem, class T>
using Method = void (*)(const Problem&, const SolveOptions&, const SolveResult<T>&, bool again);
template <class Case>
using MethodOf = Method<typename Case::Problem, typename Case::Scalar>;

inline SolveOptions options_for(int solver, int history, double rtol) {
  SolveOptions o;
  o.solver = solver;
  o.history = history;
  o.damping = 1;
  o.ridge = 1e-8;
  o.rtol = rtol;
  o.max_steps = 200;
  return o;
}

// Entries of a matrix [outputs, inputs] that multiplies sizes by about `gain`.
constexpr double kSmallGain = 0.35;
template <class T>
Block<T> random_weight(int64_t outputs, int64_t inputs, double gain = kSmallGain) {
  return Block<T>(outputs * inputs, [&](int64_t) { return gain * normal() / std::sqrt(double(inputs)); });
}

inline std::string text(const char* format, ...) {
  char out[200];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(out, sizeof out, format, arguments);
  va_end(arguments);
  return out;
}

// |f(z) - z| / |f(z)| of one row, in double; map(z, f)
template <class T, class Map>
double residual_of(int64_t dim, const T* z, const Map& map) {
  std::vector<double> f(static_cast<size_t>(dim));
  map(z, f.data());
  double r2 = 0, f2 = 0;
  for (int64_t n = 0; n < dim; ++n) {
    const double value = f[size_t(n)];
    r2 += (value - double(z[n])) * (value - double(z[n]));
    f2 += value * value;
  }
  return r2 == 0 ? 0 : std::sqrt(r2 / f2);
}

template <class Case, class T>
double residual(const Case& c, int64_t row, const T* z) {
  return residual_of<T>(c.dim, z, [&](const T* at, double* f) { c.map(row, at, f); });
}

template <class Case>
void check(const Case& c, MethodOf<Case> solve, const SolveOptions& options) {
  using T = typename Case::Scalar;
  const int64_t rows = c.rows, dim = c.dim;
  const std::string whole = c.name() + text(", %d x %d, float%d, solver %d, history %d, mixed %d", int(rows), int(dim),
                                            int(8 * sizeof(T)), options.solver, options.history, options.mixed);
  const char* const name = whole.c_str();
  Solved<T> all(rows, dim), again(rows, dim), one(1, dim);
  solve(c.problem(0, rows), options, all.pointers(), false);
  solve(c.problem(0, rows), options, again.pointers(), true);
  CHECK(std::memcmp(all.z.get(), again.z.get(), size_t(rows * dim) * sizeof(T)) == 0, "another cut changed bits: %s",
        name);
  const double noise = sizeof(T) == 4 ? 3e-7 : 1e-15;
  for (int64_t row = 0; row < rows; ++row) {
    const double true_residual = residual(c, row, all.z.get() + row * dim);
    CHECK(all.status[row] == kConverged, "row %d ended with %d: %s", int(row), all.status[row], name);
    CHECK(true_residual <= options.rtol * 1.001 + noise, "row %d at %g: %s", int(row), true_residual, name);
    CHECK(std::fabs(true_residual - double(all.residual[row])) <= 2e-3 * true_residual + noise,
          "row %d reports %g, is at %g: %s", int(row), double(all.residual[row]), true_residual, name);
  }
  const int64_t row = rows - 1;
  solve(c.problem(row, 1), options, one.pointers(), true);
  CHECK(std::memcmp(one.z.get(), all.z.get() + row * dim, size_t(dim) * sizeof(T)) == 0, "a row alone differs: %s",
        name);
  CHECK(one.steps[0] == all.steps[row], "a row alone takes other steps: %s", name);
}

template <class Case>
void each_solver(const Case& c, MethodOf<Case> solve) {
  const double rtol = sizeof(typename Case::Scalar) == 4 ? 1e-5 : 1e-10;
  for (int solver : {kPicard, kAnderson, kAuto}) {
    SolveOptions options = options_for(solver, 3, rtol);
    check(c, solve, options);
    options.mixed = true;
    if (sizeof(typename Case::Scalar) == 4) check(c, solve, options);
  }
}

// With every length of history that the kernels treat in a way of its own, damped and not.
template <class Case>
void all_solvers(const Case& c, MethodOf<Case> solve) {
  constexpr bool single = sizeof(typename Case::Scalar) == 4;
  for (int solver : {kPicard, kAnderson, kAuto})
    for (int history : {1, 2, 5, 11}) {
      for (double damping : {1.0, 0.8}) {
        SolveOptions options = options_for(solver, history, single ? 1e-5 : 1e-10);
        options.damping = damping;
        check(c, solve, options);
        options.mixed = true;
        if (single && damping == 1.0) check(c, solve, options);
      }
      if (solver == kPicard) break;
    }
}

}  // namespace ak::test
