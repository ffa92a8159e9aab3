// The affine solve of CUDA devices, run on the host.
#include "../cuda/affine_cell.h"
#include "affine_case.h"
#include "host_solve.h"

namespace ak::AK_ISA {
void solve_affine(const AffineProblem<float>&, const SolveOptions&, const SolveResult<float>&, const Executor&);
}

namespace {

using namespace ak;
using namespace ak::test;

template <class T>
void on_device(const AffineProblem<T>& p, const SolveOptions& o, const SolveResult<T>& r, bool again) {
  solve_on_host<cuda::AffineCell<T>>(p, o, r, again);
}

// trace, best iterate, largest number of steps
void ends_as_told(int64_t dim, bool mixed) {
  const int64_t rows = 21, steps = 7;
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
      o.mixed = mixed;
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

struct Family {
  const char* name;
  int activation;
  double size;  // of the spectrum
  bool symmetric;
  int solver;
  double rtol;
  int ending;
};

// Mixed precision against full precision and against the CPU's kernel, on problems of many steps.
void mixed_ends_as_full_does() {
  const Family families[] = {
      {"random", kTanh, 0.95, false, kPicard, 1e-5, kConverged},
      {"random, Auto", kTanh, 0.95, false, kAuto, 1e-6, kConverged},
      {"symmetric", kIdentity, 0.98, true, kAnderson, 1e-6, kConverged},
      {"symmetric, Auto", kTanh, 0.98, true, kAuto, 1e-6, kConverged},
      {"rounding", kTanh, 0.5, false, kAnderson, 1e-12, kStagnated},
      {"growing", kIdentity, 1.5, false, kPicard, 1e-5, kDiverged},
  };
  const int64_t rows = 40, dim = 129;
  for (const Family& family : families) {
    Block<float> z0(rows * dim, [](int64_t) { return 0; }), u(rows * dim, [](int64_t) { return normal(); });
    Block<float> weight(dim * dim, [&](int64_t) { return family.size * normal() / std::sqrt(double(dim)); });
    for (int64_t i = 0; family.symmetric && i < dim; ++i)
      for (int64_t j = 0; j < i; ++j) weight[i * dim + j] = weight[j * dim + i] /= 2;
    const AffineProblem<float> problem{rows,    dim,     z0.get(),          u.get(), {weight.get(), dim, dim, dim, 1},
                                       nullptr, nullptr, family.activation, 0};
    SolveOptions o = options_for(family.solver, 5, family.rtol);
    Solved<float> full(rows, dim), mixed(rows, dim), cpu(rows, dim);
    on_device(problem, o, full.pointers(), false);
    o.mixed = true;
    const auto plan =
        cuda::plan_rows<float>(cuda::AffineCell<float>::size(problem), o, some_device(232448, capability));
    CHECK(plan.products == (capability == 90 ? cuda::kWgmma : cuda::kMma), "%s", family.name);
    on_device(problem, o, mixed.pointers(), false);
    AK_ISA::solve_affine(problem, o, cpu.pointers(), kOneThread);
    int64_t full_steps = 0, mixed_steps = 0;
    for (int64_t row = 0; row < rows; ++row) {
      full_steps += full.steps[row];
      mixed_steps += mixed.steps[row];
      CHECK(mixed.status[row] == family.ending && full.status[row] == family.ending && cpu.status[row] == family.ending,
            "%s: row %d ends with %d, in full with %d, on the CPU with %d", family.name, int(row), mixed.status[row],
            full.status[row], cpu.status[row]);
      const double at = residual_of<float>(dim, mixed.z.get() + row * dim,
                                           [&](const float* z, double* f) { affine_map(problem, row, z, f); });
      CHECK(std::fabs(at - double(mixed.residual[row])) <= 1e-2 * at + 3e-7, "%s: row %d reports %g, is at %g",
            family.name, int(row), double(mixed.residual[row]), at);
    }
    CHECK(double(mixed_steps) <= 1.12 * double(full_steps) + 2 * double(rows), "%s: %d steps for %d", family.name,
          int(mixed_steps), int(full_steps));
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
  a_row_with_nan_ends_alone(on_device, 37, false);
  ends_as_told(37, false);
  for (int with : {80, 90}) {
    capability = with;
    a_row_with_nan_ends_alone(on_device, 97, true);
    ends_as_told(97, true);
    all_solvers(AffineCase<float>(40, 97, kTanh, true, false), on_device);  // mixed from about 80 entries on
    all_solvers(AffineCase<float>(9, 101, kIdentity, true, true), on_device);
    mixed_ends_as_full_does();
  }
  return report();
}
