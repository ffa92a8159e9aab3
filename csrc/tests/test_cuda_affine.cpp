// The affine solve of CUDA devices, run on the host.
#include "../cuda/affine_cell.h"
#include "affine_case.h"
#include "host_solve.h"

namespace {

using namespace ak;
using namespace ak::test;

template <class T>
void on_device(const AffineProblem<T>& p, const SolveOptions& o, const SolveResult<T>& r, bool again) {
  solve_on_host<cuda::AffineCell<T>>(p, o, r, again);
}

// trace, best iterate, largest number of steps
void ends_as_told() {
  const int64_t rows = 21, dim = 37, steps = 7;
  Block<float> z0(rows * dim, [](int64_t) { return normal(); }), u(rows * dim, [](int64_t) { return normal(); });
  Block<float> weight(dim * dim, [&](int64_t) { return 0.9 * normal() / std::sqrt(double(dim)); });
  Block<float> trace(steps * rows, [](int64_t) { return NAN; });
  const AffineProblem<float> problem{rows,    dim,     z0.get(), u.get(), {weight.get(), dim, dim, dim, 1},
                                     nullptr, nullptr, kTanh,    0};
  for (int solver : {int(kPicard), int(kAnderson), int(kAuto)})
    for (bool keep_best : {false, true}) {
      SolveOptions o = options_for(solver, 4, 1e-12);
      o.max_steps = int(steps);
      o.keep_best = keep_best;
      Solved<float> solved(rows, dim);
      SolveResult<float> result = solved.pointers();
      result.trace = trace.get();
      on_device(problem, o, result, false);
      for (int64_t row = 0; row < rows; ++row) {
        CHECK(solved.status[row] == kMaxSteps, "status %d", solved.status[row]);
        CHECK(solved.residual[row] == trace[(solved.steps[row] - 1) * rows + row], "row %d", int(row));
        CHECK(keep_best || solved.steps[row] == steps, "row %d", int(row));
        for (int64_t step = 0; keep_best && step < steps; ++step)
          CHECK(trace[step * rows + row] >= solved.residual[row], "row %d has a better step %d", int(row), int(step));
      }
    }
}

}  // namespace

int main() {
  for (int64_t dim : {1, 3, 16, 33, 131}) all_solvers(AffineCase<float>(9, dim, kTanh, false, false), on_device);
  all_solvers(AffineCase<float>(50, 21, kTanh, true, false), on_device);  // more rows than a tile holds
  for (int kind = kIdentity; kind < kRelu2; ++kind)
    all_solvers(AffineCase<float>(18, 23, kind, kind % 2 == 0, false), on_device);
  all_solvers(AffineCase<float>(17, 29, kIdentity, true, true), on_device);
  for (int64_t dim : {1, 7, 40}) all_solvers(AffineCase<double>(11, dim, kGelu, true, false), on_device);
  check(AffineCase<float>(18, 530, kTanh, false, false), on_device, options_for(kAnderson, 3, 1e-5));  // several passes
  a_row_with_nan_ends_alone(on_device);
  ends_as_told();
  return report();
}
