// The affine solve with its weights split over a crew of blocks, run on the host: the kernel's own text
// (csrc/cuda/crew_body.h) with host_crew.h in the place of a cooperative grid or a cluster.
#include "../cuda/affine_cell.h"
#include "../cuda/crew_body.h"
#include "../cuda/row_solver.h"
#include "affine_case.h"
#include "host_crew.h"

namespace ak::AK_ISA {
void solve_affine(const AffineProblem<float>&, const SolveOptions&, const SolveResult<float>&, const Executor&);
}

namespace {

using namespace ak;
using namespace ak::test;

// How a solve is cut up.
struct Cut {
  int members, rows;
  bool cluster, replicated;
};
constexpr Cut kCuts[] = {{1, 4, false, false}, {2, 8, true, false}, {3, 1, false, false},
                         {7, 4, false, true},  {7, 2, true, false}, {3, 12, false, false}};
int cut_in_use = 0;

template <class T, int rows_at_once, bool cluster>
void run(const AffineProblem<T>& p, const SolveOptions& o, const SolveResult<T>& r, const cuda::CrewPlan& plan) {
  using Team = HostTeam<cuda::kCrewThreads>;
  using Crew = HostCrew<T, cluster>;
  int64_t queue = 0;
  for (const int64_t index : any_order(plan.crews)) {
    CrewMemory memory{{}, &queue, -1};
    for (int i = 0; i < (cluster ? plan.members : 1); ++i)
      memory.exchange.emplace_back(plan.at.exchange_entries * int64_t(sizeof(T)));
    Turns turns(plan.members);
    std::vector<std::thread> threads;
    for (int member = 0; member < plan.members; ++member)
      threads.emplace_back([&, member] {
        turns.begin(member);
        Poisoned shared(plan.at.shared_bytes);
        const Team team(nullptr);
        Crew crew(member, plan.members, index, turns, memory);
        cuda::CrewBody<T, rows_at_once, Team, Crew> body(p, o, r, plan, team, crew, shared.data());
        body.solve();
        turns.end();
      });
    for (std::thread& thread : threads) thread.join();
  }
}

constexpr double kPrice = 1.1;  // of an Anderson step, for Auto
template <class T>
int history_of(const AffineProblem<T>& p, const SolveOptions& o) {
  return o.solver == kPicard ? 0 : int(o.history < p.dim ? o.history : p.dim);
}

template <class T>
void solve_as(const Cut& cut, const AffineProblem<T>& p, const SolveOptions& o, const SolveResult<T>& r) {
  const cuda::DeviceFacts device{132, 232448, 90};
  cuda::CrewPlan plan{};
  plan.cluster = cut.cluster;
  plan.replicated = cut.replicated && o.solver != kPicard;
  plan.members = cut.members;
  plan.rows = sizeof(T) == 4 ? cut.rows : int(cuda::padded(cut.rows, 4));
  plan.crews = cut.cluster ? 2 : 1;
  plan.history = history_of(p, o);
  plan.anderson_price = kPrice;
  CHECK(cuda::complete(plan, p, o, device), "%d members, %d rows do not fit", cut.members, cut.rows);
  if constexpr (sizeof(T) == 4) {
    if (plan.rows_at_once == 1) return cut.cluster ? run<T, 1, true>(p, o, r, plan) : run<T, 1, false>(p, o, r, plan);
  }
  cut.cluster ? run<T, 4, true>(p, o, r, plan) : run<T, 4, false>(p, o, r, plan);
}

// As several crews do, one after the other: all must agree.
template <class T>
void by_crews(const AffineProblem<T>& p, const SolveOptions& o, const SolveResult<T>& r, bool again) {
  constexpr int kCount = int(sizeof kCuts / sizeof *kCuts);
  if (again) cut_in_use = (cut_in_use + 1) % kCount;
  solve_as(kCuts[again ? cut_in_use : 0], p, o, r);
}

// Rows that differ in how long they take, one that cannot converge and one that cannot be evaluated.
struct Mixed {
  static constexpr int64_t rows = 21, dim = 100;
  Mixed()
      : z0(rows * dim, [](int64_t) { return normal(); }),
        u(rows * dim, [](int64_t i) { return normal() * std::pow(10.0, double(i / dim % 7) - 3); }),
        weight(dim * dim, [](int64_t) { return 0.9 * normal() / std::sqrt(double(dim)); }) {
    u[3 * dim + 99] = NAN;
    u[7 * dim] = INFINITY;
  }
  AffineProblem<float> problem(int64_t first, int64_t count) const {
    return {
        count, dim, z0.get() + first * dim, u.get() + first * dim, {weight.get(), dim, dim, dim, 1}, nullptr, nullptr,
        kGelu, 0};
  }
  Block<float> z0, u, weight;
};

void ends_as_the_cpu_kernel_does() {
  const Mixed mixed;
  for (const int solver : {int(kPicard), int(kAnderson), int(kAuto)})
    for (const bool keep_best : {false, true})
      for (const int max_steps : {6, 200}) {
        SolveOptions o = options_for(solver, 4, 1e-4);
        o.max_steps = max_steps;
        o.keep_best = keep_best;
        o.min_steps = 3;
        const auto solve = [&](const auto& method, int64_t first, int64_t count, Solved<float>& to,
                               Block<float>& trace) {
          for (int64_t i = 0; i < trace.size; ++i) trace[i] = NAN;
          SolveResult<float> result = to.pointers();
          result.trace = trace.get();
          method(mixed.problem(first, count), o, result);
        };
        Block<float> expected_trace(max_steps * Mixed::rows), trace(max_steps * Mixed::rows), trace_0(trace.size);
        Solved<float> expected(Mixed::rows, Mixed::dim), found(Mixed::rows, Mixed::dim),
            found_0(Mixed::rows, Mixed::dim);
        solve([](const auto& p, const auto& op, const auto& r) { AK_ISA::solve_affine(p, op, r, kOneThread); }, 0,
              Mixed::rows, expected, expected_trace);
        bool first_cut = true;
        for (const Cut& cut : kCuts) {
          const auto crew = [&](const auto& p, const auto& op, const auto& r) { solve_as(cut, p, op, r); };
          solve(crew, 0, Mixed::rows, found, trace);
          for (int64_t row = 0; row < Mixed::rows; ++row) {
            CHECK(found.status[row] == expected.status[row], "row %d ended with %d, not %d, solver %d", int(row),
                  found.status[row], expected.status[row], solver);
            // Auto prices its steps by the machine.
            CHECK(solver == kAuto || std::abs(found.steps[row] - expected.steps[row]) <= 1 + expected.steps[row] / 8,
                  "row %d took %d steps, not %d, solver %d", int(row), found.steps[row], expected.steps[row], solver);
            if (found.status[row] == kNonfinite) continue;
            CHECK(found.residual[row] == trace[(found.steps[row] - 1) * Mixed::rows + row], "row %d", int(row));
            for (int64_t step = 0; keep_best && step < found.steps[row]; ++step)
              CHECK(trace[step * Mixed::rows + row] >= found.residual[row], "row %d has a better step", int(row));
            double error2 = 0, size2 = 0;
            for (int64_t i = row * Mixed::dim; i < (row + 1) * Mixed::dim; ++i) {
              error2 += std::pow(double(found.z[i]) - double(expected.z[i]), 2);
              size2 += std::pow(double(expected.z[i]), 2);
            }
            CHECK(found.status[row] != kConverged || error2 <= 1e-6 * size2, "row %d is off by %g of %g, solver %d",
                  int(row), std::sqrt(error2), std::sqrt(size2), solver);
          }
          if (!first_cut) {
            const bool same = std::memcmp(found.z.get(), found_0.z.get(), size_t(found.z.size) * 4) == 0 &&
                              std::memcmp(trace.get(), trace_0.get(), size_t(trace.size) * 4) == 0;
            CHECK(same, "%d members, %d rows: other bits", cut.members, cut.rows);
            continue;
          }
          first_cut = false;
          solve(crew, 0, Mixed::rows, found_0, trace_0);
        }
      }
}

// A combination past the largest float gives way to the plain step, for the whole row, whoever holds that entry.
void overflow_takes_a_plain_step() {
  const int64_t rows = 3, dim = 40;
  Block<float> z0(rows * dim, [](int64_t) { return 0; });
  Block<float> u(rows * dim, [](int64_t i) { return i == dim + 35 ? 1e38 : 1e35 * double(i % 3); });
  Block<float> weight(dim * dim, [](int64_t i) { return i % (dim + 1) == 0 ? 0.9 : 0; });
  const AffineProblem<float> problem{rows,    dim,     z0.get(),  u.get(), {weight.get(), dim, dim, dim, 1},
                                     nullptr, nullptr, kIdentity, 0};
  SolveOptions o = options_for(kPicard, 3, 1e-9);
  o.max_steps = 3;
  Solved<float> plain(rows, dim), found(rows, dim);
  solve_as(kCuts[0], problem, o, plain.pointers());
  o.solver = kAnderson;
  for (const Cut& cut : kCuts) {
    solve_as(cut, problem, o, found.pointers());
    for (int64_t row = 0; row < rows; ++row) {
      const bool same = std::memcmp(&found.z[row * dim], &plain.z[row * dim], size_t(dim) * sizeof(float)) == 0;
      CHECK(same == (row == 1), "row %d of %d members", int(row), cut.members);
    }
  }
}

// Fixed points near the largest float: some combinations overshoot it, later ones do not.
void overflow_is_forgotten() {
  generator.seed(7);
  const int64_t rows = 8, dim = 40;
  const auto slope = [](int64_t i) { return 0.9 - 0.17 * double(i % 7); };
  Block<float> z0(rows * dim, [](int64_t) { return 0; });
  Block<float> weight(dim * dim, [&](int64_t i) { return i % (dim + 1) == 0 ? slope(i / dim) : 0; });
  Block<float> u(rows * dim, [&](int64_t i) { return 3.3e38 * (1 - slope(i % dim)) * std::tanh(normal()); });
  const AffineProblem<float> problem{rows,    dim,     z0.get(),  u.get(), {weight.get(), dim, dim, dim, 1},
                                     nullptr, nullptr, kIdentity, 0};
  SolveOptions o = options_for(kAnderson, 2, 1e-5);
  Solved<float> first(rows, dim), found(rows, dim);
  solve_as(kCuts[3], problem, o, first.pointers());
  for (const Cut& cut : kCuts) {
    solve_as(cut, problem, o, found.pointers());
    CHECK(std::memcmp(found.z.get(), first.z.get(), size_t(rows * dim) * sizeof(float)) == 0, "%d members",
          cut.members);
    CHECK(std::memcmp(found.steps.get(), first.steps.get(), size_t(rows) * sizeof(int32_t)) == 0, "steps");
  }
  int converged = 0;
  for (int64_t row = 0; row < rows; ++row) converged += first.status[row] == kConverged;
  CHECK(2 * converged > rows, "%d rows converged", converged);
}

// As blocks do that take a tile each: for the same bits.
template <class T>
void by_blocks(const AffineProblem<T>& p, const SolveOptions& o, const SolveResult<T>& r) {
  using Cell = cuda::AffineCell<T>;
  cuda::RowPlan plan = cuda::plan_rows<T>(Cell::size(p), o, {1, 232448, 90});
  plan.history = history_of(p, o);
  plan.anderson_price = kPrice;
  const int slots = o.solver == kPicard ? 0 : plan.history + 1;
  plan.columns = cuda::device_control_columns(1, cuda::row_ld(p.dim), slots);
  plan.team_bytes = cuda::solver_team_bytes<T>(plan.tile_rows, Cell::size(p), slots, 0, plan.columns);
  cuda::with_variant<Cell>(plan, [&](auto shape, auto products) {
    using Team = HostTeam<decltype(shape)::threads>;
    using Product = cuda::ProductOf<T, decltype(shape), products, Team>;
    Poisoned shared(plan.shared_bytes + 65536), scratch(plan.team_bytes);
    int64_t next = 0;
    const auto queue = [&] { return next < p.rows ? next++ : p.rows; };
    const Team team(nullptr);
    cuda::RowSolver<Cell, Product, Team, decltype(queue)> solver(p, o, r, plan, team, shared.data(), scratch.data(),
                                                                 nullptr, queue);
    solver.solve();
  });
}

template <class T>
void a_crew_rounds_like_a_block(int64_t dim, bool leaky, bool scaled) {
  const int64_t rows = 9;
  const AffineCase<T> some(rows, dim, scaled ? kIdentity : kGelu, leaky, scaled);
  const AffineProblem<T> problem = some.problem(0, rows);
  for (const int solver : {int(kPicard), int(kAnderson), int(kAuto)})
    for (const double damping : {1.0, 0.7}) {
      SolveOptions o = options_for(solver, 5, sizeof(T) == 4 ? 1e-6 : 1e-12);
      o.damping = damping;
      Solved<T> expected(rows, dim), found(rows, dim);
      by_blocks(problem, o, expected.pointers());
      for (const int cut : {2, 3, 4}) {
        solve_as(kCuts[cut], problem, o, found.pointers());
        CHECK(std::memcmp(found.z.get(), expected.z.get(), size_t(rows * dim) * sizeof(T)) == 0,
              "%d entries, solver %d, damping %g, %d members: other bits than a block's", int(dim), solver, damping,
              kCuts[cut].members);
        CHECK(std::memcmp(found.steps.get(), expected.steps.get(), size_t(rows) * 4) == 0, "%d entries", int(dim));
        CHECK(std::memcmp(found.residual.get(), expected.residual.get(), size_t(rows) * 4) == 0, "%d", int(dim));
      }
    }
}

// Every plan fits its device; few rows of a large state go to the whole grid, many of a small one to clusters.
void plans_fit() {
  const cuda::DeviceFacts a100{108, 166912, 80}, h100{132, 232448, 90};
  for (const cuda::DeviceFacts& device : {a100, h100})
    for (const int64_t dim : {1, 17, 64, 200, 256, 384, 512, 777, 1024, 1500, 2048})
      for (const int64_t rows : {1, 2, 5, 32, 300, 10000})
        for (const int history : {0, 1, 5, 32}) {
          AffineProblem<float> problem{};
          problem.rows = rows;
          problem.dim = dim;
          SolveOptions o = options_for(history > 0 ? kAnderson : kPicard, history, 1e-4);
          cuda::RowPlan rows_plan{};
          rows_plan.history = history;
          cuda::CrewPlan plan{};
          const bool found = cuda::plan_crew(problem, o, device, rows_plan, plan);
          CHECK(found || (dim == 2048 && device.capability == 80), "%d rows of %d: none", int(rows), int(dim));
          if (!found) continue;
          CHECK(plan.at.shared_bytes <= device.shared_per_block && plan.at_once >= 1, "%d", int(dim));
          CHECK(plan.members * plan.share >= dim && plan.members * plan.crews <= device.processors, "%d", int(dim));
          CHECK(plan.rows / plan.rows_at_once * plan.share / 4 * plan.at_once <= cuda::kCrewThreads, "%d", int(dim));
          CHECK(!plan.cluster || device.capability >= 90, "%d", int(dim));
          CHECK(plan.segments * cuda::kSegment >= plan.members * plan.share, "%d", int(dim));
          if (device.capability == 90 && rows == 1 && dim >= 1024)
            CHECK(!plan.cluster && (history != 5 || plan.replicated), "one row of %d: not by the grid", int(dim));
          rows_plan.tile_rows = 8;
          rows_plan.threads = 128;
          const bool beats = cuda::crew_beats_rows(problem, o, device, rows_plan, plan);
          CHECK(beats || rows > 1 || dim < 256, "one row of %d: by a block", int(dim));
          CHECK(!beats || rows < 10000 || dim < 512, "%d rows of %d: by a crew", int(rows), int(dim));
          o.mixed = true;
          CHECK(!cuda::crew_beats_rows(problem, o, device, rows_plan, plan), "%d: mixed", int(dim));
          o.mixed = false;
          if (device.capability == 90 && rows == 300 && dim >= 64 && dim <= 256)
            CHECK(plan.cluster, "300 rows of %d: not by clusters", int(dim));
        }
}

}  // namespace

int main() {
  plans_fit();
  for (const int64_t dim : {1, 3, 16, 33, 70, 131})
    all_solvers(AffineCase<float>(5, dim, kTanh, false, false), by_crews<float>);
  for (const int64_t dim : {7, 66}) all_solvers(AffineCase<double>(5, dim, kTanh, false, false), by_crews<double>);
  all_solvers(AffineCase<float>(30, 21, kTanh, true, false), by_crews<float>);  // more rows than a tile holds
  for (int kind = kIdentity; kind < kRelu2; ++kind)
    all_solvers(AffineCase<float>(6, 23, kind, kind % 2 == 0, false), by_crews<float>);
  all_solvers(AffineCase<float>(6, 70, kIdentity, true, true), by_crews<float>);
  a_row_with_nan_ends_alone(by_crews);
  ends_as_the_cpu_kernel_does();
  overflow_takes_a_plain_step();
  overflow_is_forgotten();
  for (const int64_t dim : {1, 40, 131, 300}) a_crew_rounds_like_a_block<float>(dim, dim == 40, dim == 131);
  a_crew_rounds_like_a_block<double>(70, true, false);
  return report();
}
