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
  // Where rounding ends a row, it may leave no residual, and when is chance.
  const bool rounding = ending == kStagnated;
  const auto as_told = [&](int status) { return status == ending || (rounding && status == kConverged); };
  int64_t full_steps = 0, mixed_steps = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    full_steps += full.steps[row];
    mixed_steps += mixed.steps[row];
    CHECK(as_told(mixed.status[row]) && as_told(full.status[row]), "row %d ends with %d, in full with %d: %s", int(row),
          mixed.status[row], full.status[row], name);
    const double at = residual(c, row, mixed.z.get() + row * c.dim);
    CHECK(std::fabs(at - double(mixed.residual[row])) <= 1e-2 * at + 3e-7, "row %d reports %g, is at %g: %s", int(row),
          double(mixed.residual[row]), at, name);
  }
  CHECK(rounding || double(mixed_steps) <= 1.12 * double(full_steps) + 2 * double(c.rows), "%d steps for %d: %s",
        int(mixed_steps), int(full_steps), name);
}

// In both tiles others are not touched by a row whose input is not a number, and it returns its start. input: the
// problem's, `width` entries a row.
template <class Cell, class Case>
void a_mixed_row_with_nan_ends_alone(const Case& c, const float* Cell::Problem::* input, int64_t width) {
  const int64_t broken = 2;
  typename Cell::Problem problem = c.problem(0, c.rows);
  Block<float> changed(c.rows * width, [&](int64_t i) { return (problem.*input)[i]; });
  changed[broken * width + width - 1] = NAN;
  for (bool narrow : {false, true}) {
    Solved<float> clean(c.rows, c.dim), poisoned(c.rows, c.dim);
    problem = c.problem(0, c.rows);
    solve_mixed_on_host<Cell>(problem, options_for(kAnderson, 3, 1e-5), clean.pointers(), narrow);
    problem.*input = changed.get();
    solve_mixed_on_host<Cell>(problem, options_for(kAnderson, 3, 1e-5), poisoned.pointers(), narrow);
    for (int64_t row = 0; row < c.rows; ++row) {
      const float* const want = row == broken ? Cell::start(problem) : clean.z.get();
      CHECK(poisoned.status[row] == (row == broken ? kNonfinite : kConverged), "row %d ends with %d: %s", int(row),
            poisoned.status[row], c.name().c_str());
      CHECK(std::memcmp(want + row * c.dim, &poisoned.z[row * c.dim], size_t(c.dim) * sizeof(float)) == 0, "row %d: %s",
            int(row), c.name().c_str());
    }
  }
}

void mixed_rows_with_nan() {
  const int64_t rows = 9, dim = 22;
  a_mixed_row_with_nan_ends_alone<cuda::MlpCell<float>>(
      MlpCase<float>(rows, dim, {31, kTanh, kLayerNorm, true, 0.2, true}), &MlpProblem<float>::u, dim);
  a_mixed_row_with_nan_ends_alone<cuda::GatedCell<float>>(GatedCase<float>(rows, dim), &GatedProblem<float>::u,
                                                          2 * dim);
  for (bool adjoint : {true, false}) {
    a_mixed_row_with_nan_ends_alone<cuda::MlpLinearCell<float>>(
        MlpLinearCase<float>(rows, dim, {31, adjoint, true, kRmsNorm, true, 0.3}), &MlpLinearProblem<float>::q, 62);
    a_mixed_row_with_nan_ends_alone<cuda::GatedLinearCell<float>>(GatedLinearCase<float>(rows, dim, adjoint),
                                                                  &GatedLinearProblem<float>::q, 2 * dim);
  }
}

void mixed_families() {
  using Mlp = cuda::MlpCell<float>;
  using MlpLinear = cuda::MlpLinearCell<float>;
  using Gated = cuda::GatedCell<float>;
  using GatedLinear = cuda::GatedLinearCell<float>;
  const int64_t rows = 21, dim = 67, hidden = 101;
  generator.seed(3);  // the same, whatever was drawn before
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
    linear(false, kNoNorm, 0.8, kPicard, 1e-5, kConverged);
    linear(true, kLayerNorm, 1.2, kAuto, 1e-6, kConverged);
    linear(true, kNoNorm, 0.8, kAnderson, 1e-6, kConverged);
    linear(false, kRmsNorm, 1, kAnderson, 1e-12, kStagnated);
    linear(true, kNoNorm, 2.5, kPicard, 1e-5, kDiverged);
    const auto gated = [&](double gain, int solver, double rtol, int ending) {
      mixed_ends_as_full_does<GatedLinear>(GatedLinearCase<float>(rows, dim, adjoint, gain), solver, rtol, ending);
    };
    gated(1, kPicard, 1e-5, kConverged);
    gated(1, kAuto, 1e-6, kConverged);
    gated(0.8, kAnderson, 1e-12, kStagnated);
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

// Of every cell with so many entries of state and units.
template <class T, class Check>
void each_size(int64_t rows, int64_t dim, int64_t hidden, const Check& check) {
  MlpProblem<T> mlp{};
  mlp.hidden = mlp.w1.outputs = hidden;
  MlpLinearProblem<T> linear{};
  linear.hidden = hidden;
  linear.w1.outputs = 2 * hidden;
  GatedProblem<T> gated{};
  GatedLinearProblem<T> gated_linear{};
  const auto of = [&](auto cell, auto& problem) {
    problem.rows = rows;
    problem.dim = dim;
    check(decltype(cell)::type::size(problem));
  };
  of(std::type_identity<cuda::MlpCell<T>>{}, mlp);
  of(std::type_identity<cuda::GatedCell<T>>{}, gated);
  for (bool adjoint : {true, false}) {
    linear.adjoint = gated_linear.adjoint = adjoint;
    of(std::type_identity<cuda::MlpLinearCell<T>>{}, linear);
    of(std::type_identity<cuda::GatedLinearCell<T>>{}, gated_linear);
  }
}

// On the devices with the least and the most shared memory, no state, hidden size or history is too large; nor is what
// another tile, more or fewer rows make of a plan whose products were chosen for all of them.
template <class T>
void every_size_fits() {
  const auto fits = [](int64_t dim, int64_t rows, int history, bool mixed, const cuda::DeviceFacts& device) {
    for (int tile : {0, 8, 32})
      each_size<T>(rows, dim, 4 * dim, [&](const cuda::CellSize& size) {
        SolveOptions o = options_for(kAnderson, history, 1e-5);
        o.mixed = mixed;
        const cuda::RowPlan plan = cuda::plan_rows<T>(size, o, device, {.rows = sizeof(T) == 8 ? 0 : tile});
        CHECK(plan.refused != nullptr ? tile == 32 : plan.shared_bytes <= device.shared_per_block && plan.blocks >= 1,
              "%d rows of %d, history %d, mixed %d, tile of %d: %d", int(rows), int(dim), history, mixed, tile,
              int(plan.shared_bytes));
      });
  };
  for (int shared : {101376, 232448})
    for (int capability : {80, 90})
      for (int64_t rows : {1, 1057, 100000})
        for (int history : {1, 5, kMaxHistory})
          for (bool mixed : {false, true}) {
            for (int64_t dim : {1, 200, 600, 2048, 20000})
              fits(dim, rows, history, mixed, some_device(shared, capability));
            for (int64_t dim = 32; dim < 300; dim += 4)
              fits(dim, rows, history, mixed, some_device(shared, capability));
          }
}

// Mixed products are taken where they pay and can be had, whatever the batch.
void mixed_where_it_pays() {
  SolveOptions o = options_for(kAuto, 5, 1e-5);
  o.mixed = true;
  const auto check = [&](int64_t dim, int shared, int capability, bool wanted) {
    for (int64_t rows : {1, 100000})
      each_size<float>(rows, dim, 2 * dim, [&](const cuda::CellSize& size) {
        CHECK(cuda::plan_rows<float>(size, o, some_device(shared, capability)).mixed() == wanted, "%d rows of %d",
              int(rows), int(dim));
      });
  };
  for (int shared : {101376, 232448}) {
    check(16, shared, 80, false);
    for (int64_t dim : {128, 512}) check(dim, shared, 80, true);
    check(512, shared, 75, false);
    check(20000, shared, 80, false);
  }
  o.keep_best = true;
  check(512, 232448, 80, false);
}

}  // namespace

int main() {
  every_size_fits<float>();
  every_size_fits<double>();
  mixed_where_it_pays();
  all_cells<float>({1, 3, 16, 33});
  all_cells<double>({2, 17});
  for (int with : {80, 90}) {
    capability = with;
    all_cells_mixed({with == 80 ? 1 : 3, with == 80 ? 33 : 17});
    mixed_rows_with_nan();
    mixed_families();
  }
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
