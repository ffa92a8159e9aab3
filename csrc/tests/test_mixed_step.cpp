// The fused step of CUDA devices where evaluations in full and others mix: a difference between two maps stays out of
// the combination, those before it stay in, whatever their places in the ring.
#include "../cuda/step_body.h"
#include "check.h"
#include "host_team.h"

namespace {

using namespace ak;
using namespace ak::test;

constexpr int kEntries = 24;
using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }
Vector minus(const Vector& a, const Vector& b) {
  Vector difference(a.size());
  std::transform(a.begin(), a.end(), b.begin(), difference.begin(), std::minus<>());
  return difference;
}

// The next iterate from all residuals g and all h = z + g so far; counts[k]: of the difference between k - 1 and k.
Vector combine(const std::vector<Vector>& g, const std::vector<Vector>& h, const std::vector<bool>& counts, int history,
               double ridge) {
  const int newest = int(g.size()) - 1;
  std::vector<Vector> dg, dh;
  for (int k = std::max(1, newest - history + 1); k <= newest; ++k)
    if (counts[size_t(k)]) {
      dg.push_back(minus(g[size_t(k)], g[size_t(k - 1)]));
      dh.push_back(minus(h[size_t(k)], h[size_t(k - 1)]));
    }
  const int n = int(dg.size());
  double gram[kMaxHistory * kMaxHistory], rhs[kMaxHistory], gamma[kMaxHistory];
  int order[kMaxHistory];
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) gram[i * n + j] = dot(dg[size_t(i)], dg[size_t(j)]);
    rhs[i] = dot(dg[size_t(i)], g.back());
    order[i] = i;
  }
  const int used = n > 0 ? small_solve<double>(gram, n, rhs, order, n, ridge, 1e-13, gamma) : 0;
  CHECK(used == n, "%d of %d columns", used, n);
  Vector next = h.back();
  for (int i = 0; i < used; ++i)
    for (size_t e = 0; e < next.size(); ++e) next[e] -= gamma[i] * dh[size_t(i)][e];
  return next;
}

// full: the steps whose evaluation is in full.
void check(int history, const std::vector<int>& full) {
  using Team = HostTeam<cuda::kWarp>;
  const int steps = 14, slots = history + 1;
  Block<double> a(kEntries * kEntries, [](int64_t) { return 0.9 * normal() / std::sqrt(double(kEntries)); });
  Block<double> states(2 * kEntries, [](int64_t) { return 0; }), fz(kEntries), best(kEntries);
  Block<double> ring(2 * slots * kEntries),
      control(cuda::device_control_columns(1, kEntries, slots), [](int64_t) { return 0; });
  const Vector start(size_t(kEntries), 1.0);
  SolveOptions options;
  options.solver = kAnderson;
  options.damping = 1;
  options.ridge = 1e-8;
  options.rtol = 1e-14;
  options.max_steps = 100;
  StepProblem p{};
  p.type = StateType::kFloat64;
  p.problems = p.groups = 1;
  p.entries = p.stride = kEntries;
  p.fz = fz.get();
  p.best = best.get();
  p.history = ring.get();
  p.slots = slots;
  p.control = control.get();
  p.columns = control.size;
  cuda::StepPlan plan{};
  plan.chunk = kEntries;
  plan.chunks = plan.solvers = 1;
  struct alignas(32) Word {
    char bytes[32];
  };
  const int64_t bytes = int64_t(sizeof(cuda::StepSpace<cuda::kWarp>)) + cuda::solvers_doubles(1, slots) * 8;
  std::vector<Word> shared(size_t(bytes) / sizeof(Word));
  auto* const space = reinterpret_cast<cuda::StepSpace<cuda::kWarp>*>(shared.data());
  const Team team(&space->team);
  const StepRules rules = cuda::rules_for<double>(options, slots, 1, kEntries, 1);

  MixedStep mixed{};
  std::vector<Vector> g, h;
  std::vector<bool> counts;
  for (int step = 0; step < steps; ++step) {
    p.z = states.get() + step % 2 * kEntries;
    p.out = states.get() + (step + 1) % 2 * kEntries;
    double* const z = states.get() + step % 2 * kEntries;
    mixed.full = std::find(full.begin(), full.end(), step) != full.end();
    counts.push_back(!mixed.full || step == 0 || std::find(full.begin(), full.end(), step - 1) != full.end());
    // An evaluation in full moves the map.
    Vector residual(size_t(kEntries), 0.0), f(size_t(kEntries), 0.0);
    for (int n = 0; n < kEntries; ++n) {
      double sum = 1 + (mixed.full ? 0.02 * normal() : 0);
      for (int k = 0; k < kEntries; ++k) sum += a[n * kEntries + k] * z[k];
      f[size_t(n)] = fz[n] = sum;
      residual[size_t(n)] = sum - z[n];
    }
    g.push_back(residual);
    h.push_back(f);
    const Vector expected = combine(g, h, counts, history, options.ridge);
    const cuda::StepBody<double, 2, Team> body(p, options, plan, rules, team, space);
    body.first_sweep(0, 0, 0);
    body.decide(0, 0, &mixed);
    body.solve_groups(0, 0, 1, mixed.apart);
    body.second_sweep(0, 0, 0);
    body.repair(0);
    CHECK(!mixed.precision.confirm && body.row(0).state().phase == kStepIterating, "step %d", step);
    double error = 0, size = 0;
    for (int n = 0; n < kEntries; ++n) {
      error = std::fmax(error, std::fabs(static_cast<double*>(p.out)[n] - expected[size_t(n)]));
      size = std::fmax(size, std::fabs(expected[size_t(n)]));
    }
    CHECK(error <= 1e-9 * size, "history %d, step %d: off by %g of %g", history, step, error, size);
  }
}

}  // namespace

int main() {
  for (int history : {1, 2, 3, 5}) {
    check(history, {0});
    check(history, {0, 4});
    check(history, {0, 1, 5, 7, 10});
    check(history, {0, 2, 3, 4, 9, 11});
  }
  return report();
}
