// The CPU's fused affine solve, in both precisions, on one thread and on several.
#include "affine_case.h"

namespace ak::AK_ISA {
void solve_affine(const AffineProblem<float>&, const SolveOptions&, const SolveResult<float>&, const Executor&);
void solve_affine(const AffineProblem<double>&, const SolveOptions&, const SolveResult<double>&, const Executor&);
}  // namespace ak::AK_ISA

namespace {

using namespace ak;

using namespace ak::test;

template <class T>
void on_threads(const AffineProblem<T>& p, const SolveOptions& o, const SolveResult<T>& r, bool again) {
  AK_ISA::solve_affine(p, o, r, again ? kOneThread : kThreads);
}

}  // namespace

int main() {
  for (int64_t dim : {1, 3, 16, 17, 33, 70, 131})
    all_solvers(AffineCase<float>(9, dim, kTanh, false, false), on_threads);
  for (int64_t dim : {1, 7, 40}) all_solvers(AffineCase<double>(5, dim, kTanh, false, false), on_threads);
  all_solvers(AffineCase<float>(50, 21, kTanh, true, false), on_threads);  // more rows than a tile holds
  for (int kind = kIdentity; kind <= kRelu2; ++kind) {
    if (kind == kRelu2) continue;  // no contraction to be had from these weights
    all_solvers(AffineCase<float>(4, 23, kind, kind % 2 == 0, false), on_threads);
    all_solvers(AffineCase<double>(3, 11, kind, true, false), on_threads);
  }
  all_solvers(AffineCase<float>(6, 29, kIdentity, true, true), on_threads);
  // Changes most of which are too small for 8 bits of the largest, and more steps than rounding errors may add up over.
  AffineCase<float> spiky(5, 70, kIdentity, false, false);
  spiky.spike(3, 1e4);
  each_solver(spiky, on_threads);
  each_solver(AffineCase<float>(5, 70, kTanh, false, false, 0.9), on_threads);
  each_solver(AffineCase<float>(3, 70, kTanh, false, false, kSmallGain, 1e6), on_threads);  // from far away
  a_row_with_nan_ends_alone(on_threads);
  return report();
}
