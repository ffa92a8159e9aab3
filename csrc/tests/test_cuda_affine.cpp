// The affine solve of CUDA devices, run on the host: the kernel's own text (csrc/cuda/row_solver.h) with a host team in
// the place of a block, in every shape of its tile.
#include "../cuda/affine_cell.h"
#include "../cuda/row_solver.h"
#include "affine_case.h"
#include "host_team.h"

namespace ak::AK_ISA {
void solve_affine(const AffineProblem<float>&, const SolveOptions&, const SolveResult<float>&, const Executor&);
}

namespace {

using namespace ak;
using namespace ak::test;

// Rows for one block at a time, at most `share` each, as if the blocks after it took the rest.
struct Queue {
  int64_t* next;
  int64_t* share;
  int64_t rows;
  int64_t operator()() const { return (*share)-- > 0 ? (*next)++ : rows; }
};

struct alignas(32) Chunk {
  char bytes[32];
};
std::vector<Chunk> poisoned(int64_t bytes) {
  std::vector<Chunk> memory(size_t((bytes + 31) / 32));
  std::memset(memory.data(), 0xff, memory.size() * sizeof(Chunk));
  return memory;
}

template <class Cell>
void on_device(const typename Cell::Problem& p, const SolveOptions& o, const SolveResult<typename Cell::Scalar>& r,
               bool again) {
  using T = typename Cell::Scalar;
  const cuda::DeviceFacts device{again ? 132 : 1, 232448, 80};
  const cuda::RowPlan plan = cuda::plan_rows<T>(Cell::size(p), o, device);
  CHECK(plan.shared_bytes <= device.shared_per_block, "%ld", long(plan.shared_bytes));
  std::vector<cuda::MmaA> packed(size_t(plan.packed_bytes) / sizeof(cuda::MmaA));
  if constexpr (Cell::kMixed)
    for (size_t i = 0; i < packed.size(); ++i)
      cuda::pack_tensor_weights(Cell::mixed_weight(p), packed.data(), int64_t(i));
  cuda::with_variant<Cell>(plan, [&](auto shape, auto mixed) {
    using Shape = decltype(shape);
    using Team = HostTeam<Shape::threads>;
    using Product = cuda::ProductOf<T, Shape, mixed, Team>;
    CHECK(plan.tile_rows == Shape::rows && plan.threads == Shape::threads, "%d", plan.tile_rows);
    int64_t next = 0;
    for (int64_t block = 0; next < p.rows; ++block) {
      int64_t share = block + 1 < plan.blocks ? 1 + int64_t(rank_order() % 20) : p.rows;
      auto shared = poisoned(plan.shared_bytes), scratch = poisoned(plan.block_bytes);
      const Team team(nullptr);
      const Queue queue{&next, &share, p.rows};
      cuda::RowSolver<Cell, Product, Team, Queue> solver(p, o, r, plan, team, shared.data(), scratch.data(),
                                                         packed.data(), queue);
      solver.solve();
    }
  });
}

template <class T>
void on_device(const AffineProblem<T>& p, const SolveOptions& o, const SolveResult<T>& r, bool again) {
  on_device<cuda::AffineCell<T>>(p, o, r, again);
}

SolveOptions options_for(int solver, int history, double rtol) {
  SolveOptions o;
  o.solver = solver;
  o.history = history;
  o.damping = 1;
  o.ridge = 1e-8;
  o.rtol = rtol;
  o.max_steps = 200;
  return o;
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
    CHECK(cuda::plan_rows<float>(cuda::AffineCell<float>::size(problem), o, {132, 232448, 80}).mixed, "%s",
          family.name);
    on_device(problem, o, mixed.pointers(), false);
    AK_ISA::solve_affine(problem, o, cpu.pointers(), kOneThread);
    int64_t full_steps = 0, mixed_steps = 0;
    for (int64_t row = 0; row < rows; ++row) {
      full_steps += full.steps[row];
      mixed_steps += mixed.steps[row];
      CHECK(mixed.status[row] == family.ending && full.status[row] == family.ending && cpu.status[row] == family.ending,
            "%s: row %d ends with %d, in full with %d, on the CPU with %d", family.name, int(row), mixed.status[row],
            full.status[row], cpu.status[row]);
      const double residual = affine_residual(problem, row, mixed.z.get() + row * dim);
      CHECK(std::fabs(residual - double(mixed.residual[row])) <= 1e-2 * residual + 3e-7,
            "%s: row %d reports %g, is at %g", family.name, int(row), double(mixed.residual[row]), residual);
    }
    CHECK(double(mixed_steps) <= 1.12 * double(full_steps) + 2 * double(rows), "%s: %d steps for %d", family.name,
          int(mixed_steps), int(full_steps));
  }
}

}  // namespace

int main() {
  for (int64_t dim : {1, 3, 16, 33, 131}) all_solvers(Case<float>(on_device, 9, dim, kTanh, false, false));
  all_solvers(Case<float>(on_device, 50, 21, kTanh, true, false));  // more rows than a tile holds
  for (int kind = kIdentity; kind < kRelu2; ++kind)
    all_solvers(Case<float>(on_device, 18, 23, kind, kind % 2 == 0, false));
  all_solvers(Case<float>(on_device, 17, 29, kIdentity, true, true));
  for (int64_t dim : {1, 7, 40}) all_solvers(Case<double>(on_device, 11, dim, kGelu, true, false));
  const Case<float> several_passes(on_device, 18, 530, kTanh, false, false);
  several_passes.check(options_for(kAnderson, 3, 1e-5));
  for (const auto& [dim, mixed] : {std::pair(37, false), std::pair(97, true)}) {
    a_row_with_nan_ends_alone(on_device, dim, mixed);
    ends_as_told(dim, mixed);
  }
  all_solvers(Case<float>(on_device, 40, 97, kTanh, true, false));  // mixed from about 80 entries on
  all_solvers(Case<float>(on_device, 9, 101, kIdentity, true, true));
  mixed_ends_as_full_does();
  return report();
}
