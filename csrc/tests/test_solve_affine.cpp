// The CPU's fused affine solve, in both precisions, on one thread and on several.
#include <algorithm>

#include "affine_case.h"

namespace ak::AK_ISA {
void solve_affine(const AffineProblem<float>&, const SolveOptions&, const SolveResult<float>&, const Executor&);
void solve_affine(const AffineProblem<double>&, const SolveOptions&, const SolveResult<double>&, const Executor&);
}  // namespace ak::AK_ISA

namespace {

using namespace ak;

using namespace ak::test;

int endings[256];

template <class T>
void on_threads(const AffineProblem<T>& p, const SolveOptions& o, const SolveResult<T>& r, bool again) {
  AK_ISA::solve_affine(p, o, r, again ? kOneThread : kThreads);
}

// The same bits, or both NaN, of whatever sign.
bool same_float(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b); }

// A solve of many rows, side by side, and one of each row alone give the same bits of everything, however rows end.
template <class T>
void alike_alone(const AffineCase<T>& c, const SolveOptions& options) {
  const int64_t rows = c.rows, dim = c.dim;
  const auto solve = [&](int64_t first, int64_t count, Solved<T>& out, Block<float>& trace) {
    std::fill_n(trace.get(), options.max_steps * count, -1.0f);
    SolveResult<T> result = out.pointers();
    result.trace = trace.get();
    AK_ISA::solve_affine(c.problem(first, count), options, result, kOneThread);
  };
  Solved<T> all(rows, dim), one(1, dim);
  Block<float> traces(options.max_steps * rows), trace(options.max_steps);
  solve(0, rows, all, traces);
  for (int64_t row = 0; row < rows; ++row) {
    solve(row, 1, one, trace);
    bool same = one.steps[0] == all.steps[row] && one.status[0] == all.status[row] &&
                same_float(one.residual[0], all.residual[row]) &&
                std::memcmp(one.z.get(), all.z.get() + row * dim, size_t(dim) * sizeof(T)) == 0;
    for (int64_t k = 0; k < options.max_steps; ++k) same = same && same_float(trace[k], traces[k * rows + row]);
    CHECK(same,
          "row %d alone: %d steps to %g, status %d; among others: %d to %g, %d: %s, dim %d, solver %d, history %d",
          int(row), one.steps[0], double(one.residual[0]), one.status[0], all.steps[row], double(all.residual[row]),
          all.status[row], c.name().c_str(), int(dim), options.solver, options.history);
    endings[one.status[0]] += 1;
  }
}

template <class T>
void alike_alone_by_all_rules(const AffineCase<T>& c) {
  for (int solver : {kPicard, kAnderson, kAuto})
    for (int history : {1, 2, 5, 11}) {
      SolveOptions options = options_for(solver, history, 1e-5);
      options.max_steps = 60;
      alike_alone(c, options);
      options.damping = 0.7;
      options.atol = 1e-4;
      options.min_steps = 4;
      alike_alone(c, options);
      options.max_steps = 7;
      alike_alone(c, options);
      options.max_steps = 60;
      options.damping = 1;
      options.rtol = options.atol = 0;
      options.keep_best = true;
      alike_alone(c, options);
      if (solver == kPicard) break;
    }
}

// Products that underflow to -0 keep or lose their sign alike.
template <class T>
void tiny_negatives() {
  constexpr int64_t rows = 20, dim = 5;
  constexpr double tiny = sizeof(T) == 4 ? 1e-30 : 1e-200;
  Block<T> z0(rows * dim, [](int64_t) { return tiny; }), u(rows * dim, [](int64_t) { return -0.0; });
  Block<T> weight(dim * dim, [](int64_t) { return -tiny; });
  SolveOptions options = options_for(kPicard, 1, 1e-5);
  options.min_steps = options.max_steps = 2;
  const auto problem = [&](int64_t count) {
    return AffineProblem<T>{count,   dim,     z0.get(),     u.get(), {weight.get(), dim, dim, dim, 1},
                            nullptr, nullptr, kPartialRelu, 2};
  };
  Solved<T> all(rows, dim), one(1, dim);
  AK_ISA::solve_affine(problem(rows), options, all.pointers(), kOneThread);
  AK_ISA::solve_affine(problem(1), options, one.pointers(), kOneThread);
  CHECK(std::memcmp(one.z.get(), all.z.get(), dim * sizeof(T)) == 0, "zeros of another sign");
}

template <class T>
void rows_side_by_side() {
  constexpr int64_t rows = 37;  // lanes are filled, refilled and left empty
  for (int64_t dim : {1, 2, 5, 16, 19, 32, 40}) alike_alone_by_all_rules(AffineCase<T>(rows, dim, kTanh, false, false));
  for (int kind = kIdentity; kind <= kRelu2; ++kind)
    for (double gain : {0.5, 1.1, 4.0}) {  // some converge, some never do, some grow without bound
      AffineCase<T> c(rows, 13, kind, kind % 2 == 0, kind == kIdentity, gain);
      alike_alone_by_all_rules(c);
      c.spoil(5, NAN);  // ends at once
      c.spoil(6, INFINITY);
      c.start_at_zero(20);
      c.start_at_zero(21);
      alike_alone_by_all_rules(c);
    }
  alike_alone_by_all_rules(AffineCase<T>(rows, 0, kTanh, false, false));
  tiny_negatives<T>();
  for (int status : {kConverged, kMaxSteps, kDiverged, kNonfinite, kStagnated})
    CHECK(endings[status] > 10, "only %d rows ended with status %d", endings[status], status);
}

}  // namespace

int main() {
  rows_side_by_side<float>();
  rows_side_by_side<double>();
  for (int64_t dim : {1, 3, 16, 17, 33, 70, 131})
    all_solvers(AffineCase<float>(9, dim, kTanh, false, false), on_threads);
  for (int64_t dim : {1, 7, 40}) all_solvers(AffineCase<double>(5, dim, kTanh, false, false), on_threads);
  for (int64_t dim : {21, 50}) all_solvers(AffineCase<float>(50, dim, kTanh, true, false), on_threads);  // over a tile
  for (int kind = kIdentity; kind <= kRelu2; ++kind) {
    if (kind == kRelu2) continue;  // no contraction to be had from these weights
    all_solvers(AffineCase<float>(4, 23, kind, kind % 2 == 0, false), on_threads);
    each_solver(AffineCase<float>(4, 53, kind, kind % 2 == 0, false), on_threads);  // and in few bits
    all_solvers(AffineCase<double>(3, 11, kind, true, false), on_threads);
  }
  all_solvers(AffineCase<float>(6, 29, kIdentity, true, true), on_threads);
  all_solvers(AffineCase<float>(6, 61, kIdentity, true, true), on_threads);
  // Changes most of which are too small for 8 bits of the largest, and more steps than rounding errors may add up over.
  AffineCase<float> spiky(5, 70, kIdentity, false, false);
  spiky.spike(3, 1e4);
  each_solver(spiky, on_threads);
  each_solver(AffineCase<float>(5, 70, kTanh, false, false, 0.9), on_threads);
  each_solver(AffineCase<float>(3, 70, kTanh, false, false, kSmallGain, 1e6), on_threads);  // from far away
  a_row_with_nan_ends_alone(on_threads);
  return report();
}
