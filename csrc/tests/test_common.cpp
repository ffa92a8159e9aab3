// The mathematics shared by all backends: small solve, stopping rule, Auto's choice, activations.
#include "../common/activations.h"
#include "../common/auto_choice.h"
#include "../common/small_solve.h"
#include "../cpu/simd.h"
#include "check.h"

namespace {

using namespace ak;

void small_solve_matches_elimination() {
  for (int n = 1; n <= 8; ++n) {
    // columns in n + 3 dimensions, stored in a rotated ring order
    std::vector<std::vector<double>> column(static_cast<size_t>(n), std::vector<double>(size_t(n) + 3));
    std::vector<double> g(size_t(n) + 3);
    for (auto& c : column)
      for (double& x : c) x = normal();
    for (double& x : g) x = normal();
    std::vector<double> gram(size_t(n) * size_t(n)), rhs(static_cast<size_t>(n)), gamma(static_cast<size_t>(n));
    std::vector<int> order(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) {
      order[size_t(i)] = (i + 2) % n;
      for (int j = 0; j < n; ++j)
        for (size_t k = 0; k < g.size(); ++k) gram[size_t(i * n + j)] += column[size_t(i)][k] * column[size_t(j)][k];
      for (size_t k = 0; k < g.size(); ++k) rhs[size_t(i)] += column[size_t(i)][k] * g[k];
    }
    CHECK(small_solve<double>(gram.data(), n, rhs.data(), order.data(), n, 0., 1e-13, gamma.data()) == n, "n = %d", n);
    for (int i = 0; i < n; ++i) {  // the normal equations hold
      double sum = -rhs[size_t(i)];
      for (int j = 0; j < n; ++j) sum += gram[size_t(i * n + j)] * gamma[size_t(j)];
      CHECK(std::fabs(sum) < 1e-9, "n = %d, row %d off by %g", n, i, sum);
    }
  }
}

void small_solve_never_fails() {
  // The older of two equal columns is dropped.
  const double equal[] = {2, 2, 2, 2}, rhs[] = {1, 1};
  const int order[] = {1, 0};
  double gamma[2];
  CHECK(small_solve<double>(equal, 2, rhs, order, 2, 0., 1e-13, gamma) == 1, "dependent columns");
  CHECK(gamma[0] == 0.5 && gamma[1] == 0, "kept the older column: %g %g", gamma[0], gamma[1]);
  const double zero[] = {0, 0, 0, 0}, nan[] = {NAN, 0, 0, 1}, tiny[] = {1e-9, 0, 0, 1e-9};
  CHECK(small_solve<double>(zero, 2, rhs, order, 2, 1e-8, 1e-13, gamma) == 0, "no columns");
  CHECK(small_solve<double>(nan, 2, rhs, order, 2, 1e-8, 1e-13, gamma) == 0, "NaN");
  CHECK(small_solve<double>(tiny, 2, rhs, order, 2, 1e-8, 1e-13, gamma) == 0, "weights past the cap");
  CHECK(gamma[0] == 0 && gamma[1] == 0, "rejected weights are zero");
}

void judge_knows_every_end() {
  const StopRule<double> rule{1e-4, 0, 0x1p-52, 20, 0};
  Progress<double> p;
  CHECK(judge(p, 1., 4., rule).status == kRunning, "first");
  CHECK(judge(p, double(NAN), 4., rule).status == kNonfinite, "NaN");
  CHECK(judge(p, 1., double(INFINITY), rule).status == kNonfinite, "Inf");
  CHECK(judge(p, 1.01e8, 4., rule).status == kDiverged, "1e4 times the first");
  CHECK(judge(p, 0.99e8, 4., rule).status == kRunning, "not yet");
  CHECK(p.best_step == 1 && p.steps == 5, "best %d of %d", p.best_step, p.steps);
  CHECK(judge(p, 1e-8, 1., rule).status == kConverged, "at the tolerance");
  Progress<double> late{.steps = 19};
  CHECK(judge(late, 1., 4., rule).status == kMaxSteps, "last step");
  const StopRule<double> tight{1e-30, 0, 0x1p-52, 100, 0};
  Progress<double> stuck;
  int steps = 0;
  while (judge(stuck, 1e-31, 1., tight).status == kRunning) ++steps;
  CHECK(steps == kStagnationSteps, "stagnated after %d", steps);
}

void auto_starts_where_residuals_align() {
  AutoState<double> turning, aligned, stalled, dear;
  const AutoRule<double> rule = auto_rule(1.1, 100);
  for (int step = 2; step < 30; ++step) {
    const double r2 = std::pow(0.81, step), before = r2 / 0.81;
    CHECK(!choose(turning, rule, step, r2, before, 0.), "step %d", step);
  }
  CHECK(choose(aligned, rule, 2, 0.5, 1., 0.65), "cosine 0.92");
  CHECK(choose(stalled, rule, 2, 0.99, 1., 0.), "no contraction");
  CHECK(!choose(dear, auto_rule(2.5, 100), 2, 0.5, 1., 0.7), "price 2.5");
}

void auto_leaves_what_does_not_pay() {
  AutoState<double> a, better;
  const AutoRule<double> rule = auto_rule(1.5, 100);
  const auto r2_at = [](int step) { return std::pow(0.81, step); };
  CHECK(choose(a, rule, 2, r2_at(0), r2_at(-1), 1.), "started");
  for (int i = 1; i < kAutoWindow; ++i) CHECK(choose(a, rule, 2 + i, r2_at(i), r2_at(i - 1), 0.), "window step %d", i);
  CHECK(!choose(a, rule, 10, r2_at(8), r2_at(7), 0.) && a.mode == kAutoOnTrial, "no faster than Picard: on trial");
  for (int i = 9; i < 9 + kAutoTrial; ++i) choose(a, rule, 2 + i, r2_at(i), r2_at(i - 1), 0.);
  CHECK(a.mode == kAutoKeepPicard, "the same contraction for less: mode %d", a.mode);
  choose(better, rule, 2, r2_at(0), r2_at(-1), 1.);
  for (int i = 1; i <= kAutoWindow; ++i)
    CHECK(choose(better, rule, 2 + i, r2_at(2 * i), r2_at(2 * i - 2), 0.), "twice as fast, step %d", i);
}

template <class T, class Function, class Expected>
void activation_is_accurate(const char* name, const Function& function, const Expected& expected, double units,
                            double low, double high) {
  using namespace ak::AK_ISA;
  const double eps = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
  for (int i = 0; i < 20000; ++i) {
    T lane[kLanes<T>];
    for (T& x : lane) x = T(low + (high - low) * std::uniform_real_distribution<double>()(generator));
    const Vec<T> y = function(load(lane));
    for (int l = 0; l < kLanes<T>; ++l) {
      const long double want = expected(static_cast<long double>(lane[l]));
      const double error = std::fabs(double((static_cast<long double>(y[l]) - want) / want)) / eps;
      CHECK(error <= units, "%s(%.9g) = %.9g is %.1f units off", name, double(lane[l]), double(y[l]), error);
      if (error > units) return;
    }
  }
}

template <class T>
void activations_are_accurate() {
  using namespace ak::AK_ISA;
  using Math = Activations<VecOps<T>>;
  const auto normal_cdf = [](long double x) { return 0.5L * std::erfc(-x * 0.707106781186547524400844L); };
  activation_is_accurate<T>(
      "tanh", [](Vec<T> x) { return Math::tanh(x); }, [](long double x) { return std::tanh(x); }, 6, -12, 12);
  activation_is_accurate<T>(
      "tanh", [](Vec<T> x) { return Math::tanh(x); }, [](long double x) { return std::tanh(x); }, 6, -1e-3, 1e-3);
  activation_is_accurate<T>(
      "sigmoid", [](Vec<T> x) { return Math::sigmoid(x); }, [](long double x) { return 1 / (1 + std::exp(-x)); }, 6,
      -60, 60);
  activation_is_accurate<T>(
      "silu", [](Vec<T> x) { return Math::silu(x); }, [](long double x) { return x / (1 + std::exp(-x)); }, 6, -60, 60);
  activation_is_accurate<T>(
      "softplus", [](Vec<T> x) { return Math::softplus(x); }, [](long double x) { return std::log1p(std::exp(x)); }, 8,
      -60, 60);
  // exp(-t^2) magnifies the rounding of t^2 in the tail
  activation_is_accurate<T>(
      "gelu", [](Vec<T> x) { return Math::gelu(x); }, [&](long double x) { return x * normal_cdf(x); }, 40, -5, 9);
  const Vec<T> nan = broadcast<T>(T(NAN));
  CHECK(std::isnan(Math::tanh(nan)[0]) && std::isnan(Math::sigmoid(nan)[0]) && std::isnan(Math::gelu(nan)[0]) &&
            std::isnan(Math::softplus(nan)[0]) && std::isnan(Math::relu(nan)[0]),
        "NaN has to pass through");
  const Vec<T> huge = broadcast<T>(T(1e30));
  const double high = double(Math::tanh(huge)[0]), low = double(Math::tanh(-huge)[0]);
  CHECK(high <= 1 && high > 1 - 5e-7 && low == -high, "tanh ends at %.9g and %.9g", low, high);
}

}  // namespace

int main() {
  small_solve_matches_elimination();
  small_solve_never_fails();
  judge_knows_every_end();
  auto_starts_where_residuals_align();
  auto_leaves_what_does_not_pay();
  activations_are_accurate<float>();
  activations_are_accurate<double>();
  return report();
}
