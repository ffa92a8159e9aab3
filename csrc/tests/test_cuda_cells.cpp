// The MLP and gated solves of CUDA devices, run on the host.
#include "../cuda/gated_cell.h"
#include "../cuda/mlp_cell.h"
#include "gated_case.h"
#include "host_solve.h"
#include "mlp_case.h"

namespace {

using namespace ak;
using namespace ak::test;

template <class T>
void all_cells(std::initializer_list<int64_t> sizes) {
  mlp_cells<T>(sizes, solve_on_host<cuda::MlpCell<T>>, solve_on_host<cuda::MlpLinearCell<T>>);
  gated_cells<T>(sizes, solve_on_host<cuda::GatedCell<T>>, solve_on_host<cuda::GatedLinearCell<T>>);
}

// In mixed precision, however small.
void all_cells_mixed(std::initializer_list<int64_t> sizes) {
  mlp_cells<float>(sizes, solve_mixed_on_host<cuda::MlpCell<float>>, solve_mixed_on_host<cuda::MlpLinearCell<float>>);
  gated_cells<float>(sizes, solve_mixed_on_host<cuda::GatedCell<float>>,
                     solve_mixed_on_host<cuda::GatedLinearCell<float>>);
}

// In mixed precision rows end as in full, in hardly more steps, and say truly how far they are.
template <class Cell, class Case>
void mixed_ends_as_full_does(const Case& c, int solver, double rtol, int ending) {
  const SolveOptions o = options_for(solver, 5, rtol);
  const std::string whole = c.name() + text(", %d x %d, solver %d, rtol %g", int(c.rows), int(c.dim), solver, rtol);
  const char* const name = whole.c_str();
  Solved<float> full(c.rows, c.dim), mixed(c.rows, c.dim);
  const auto problem = c.problem(0, c.rows);
  solve_on_host<Cell>(problem, o, full.pointers(), false);
  solve_mixed_on_host<Cell>(problem, o, mixed.pointers(), false);
  int64_t full_steps = 0, mixed_steps = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    full_steps += full.steps[row];
    mixed_steps += mixed.steps[row];
    CHECK(mixed.status[row] == ending && full.status[row] == ending, "row %d ends with %d, in full with %d: %s",
          int(row), mixed.status[row], full.status[row], name);
    const double at = residual(c, row, mixed.z.get() + row * c.dim);
    CHECK(std::fabs(at - double(mixed.residual[row])) <= 1e-2 * at + 3e-7, "row %d reports %g, is at %g: %s", int(row),
          double(mixed.residual[row]), at, name);
  }
  std::printf("%d %d %s\n", int(mixed_steps), int(full_steps), name);
  CHECK(double(mixed_steps) <= 1.12 * double(full_steps) + 2 * double(c.rows), "%d steps for %d: %s", int(mixed_steps),
        int(full_steps), name);
}

void mixed_families() {
  using Mlp = cuda::MlpCell<float>;
  using MlpLinear = cuda::MlpLinearCell<float>;
  using Gated = cuda::GatedCell<float>;
  using GatedLinear = cuda::GatedLinearCell<float>;
  const int64_t rows = 35, dim = 67, hidden = 101;
  const auto mlp = [&](int activation, int norm, double skip, double gain, int solver, double rtol, int ending) {
    mixed_ends_as_full_does<Mlp>(MlpCase<float>(rows, dim, {hidden, activation, norm, false, skip, true, gain}), solver,
                                 rtol, ending);
  };
  mlp(kTanh, kNoNorm, 0.3, 0.9, kPicard, 1e-5, kConverged);
  mlp(kTanh, kNoNorm, 0.3, 0.9, kAnderson, 1e-6, kConverged);
  mlp(kGelu, kLayerNorm, 1, 0.9, kAuto, 1e-5, kConverged);
  mlp(kSwiglu, kRmsNorm, 0.5, 0.7, kAnderson, 1e-5, kConverged);
  mlp(kRelu, kNoNorm, 0, 0.9, kAnderson, 1e-12, kStagnated);
  mlp(kIdentity, kNoNorm, 0, 1.3, kPicard, 1e-5, kDiverged);
  for (bool adjoint : {true, false}) {
    const auto linear = [&](bool gated, int norm, double gain, int solver, double rtol, int ending) {
      mixed_ends_as_full_does<MlpLinear>(
          MlpLinearCase<float>(rows, dim, {hidden, adjoint, gated, norm, true, 0.3, gain}), solver, rtol, ending);
    };
    linear(false, kNoNorm, 0.9, kPicard, 1e-5, kConverged);
    linear(true, kLayerNorm, 1.2, kAuto, 1e-6, kConverged);
    linear(true, kNoNorm, 0.8, kAnderson, 1e-6, kConverged);
    linear(false, kRmsNorm, 1, kAnderson, 1e-12, kStagnated);
    linear(true, kNoNorm, 2.5, kPicard, 1e-5, kDiverged);
    const auto gated = [&](double gain, int solver, double rtol, int ending) {
      mixed_ends_as_full_does<GatedLinear>(GatedLinearCase<float>(rows, dim, adjoint, gain), solver, rtol, ending);
    };
    gated(1.2, kPicard, 1e-5, kConverged);
    gated(1.4, kAuto, 1e-6, kConverged);
    gated(1.2, kAnderson, 1e-12, kStagnated);
    gated(4, kPicard, 1e-5, kDiverged);
  }
  const auto gated = [&](double gain, int solver, double rtol, int ending) {
    mixed_ends_as_full_does<Gated>(GatedCase<float>(rows, dim, gain), solver, rtol, ending);
  };
  gated(0.8, kPicard, 1e-5, kConverged);
  gated(1, kAnderson, 1e-6, kConverged);
  gated(0.8, kAuto, 1e-5, kConverged);
  gated(0.5, kAnderson, 1e-12, kStagnated);
}

// On the devices with the least and the most shared memory, no state, hidden size or history is too large.
template <class T>
void every_size_fits() {
  for (int shared : {101376, 232448})
    for (int64_t dim : {1, 2048, 20000})
      for (int64_t rows : {1, 100000})
        for (int history : {1, kMaxHistory}) {
          MlpProblem<T> problem{};
          problem.rows = rows;
          problem.dim = dim;
          problem.hidden = problem.w1.outputs = 4 * dim;
          const cuda::DeviceFacts device{132, shared};
          const cuda::RowPlan plan =
              cuda::plan_rows<T>(cuda::MlpCell<T>::size(problem), options_for(kAnderson, history, 1e-5), device);
          CHECK(plan.shared_bytes <= shared && plan.blocks >= 1, "%d entries, history %d: %d", int(dim), history,
                int(plan.shared_bytes));
        }
}

}  // namespace

int main() {
  mixed_families();
  if (true) return report();
  all_cells_mixed({3});
  every_size_fits<float>();
  every_size_fits<double>();
  all_cells<float>({1, 3, 16, 33});
  all_cells<double>({2, 17});
  // Several passes over the outputs, in either tile.
  for (int64_t rows : {3, 18}) {
    const SolveOptions options = options_for(kAnderson, 3, 1e-5);
    check(MlpCase<float>(rows, 20, {530, kGelu, kLayerNorm, false, 1, true}), solve_on_host<cuda::MlpCell<float>>,
          options);
    check(MlpLinearCase<float>(rows, 20, {530, true, true, kRmsNorm, false, 1}),
          solve_on_host<cuda::MlpLinearCell<float>>, options);
    check(GatedCase<float>(rows, 270), solve_on_host<cuda::GatedCell<float>>, options);
  }
  return report();
}
