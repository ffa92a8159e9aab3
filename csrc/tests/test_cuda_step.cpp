// The fused step of CUDA devices, run on the host: the kernels' own text (csrc/cuda/step_body.h) with a host team in
// the place of a warp or block, and blocks in any order where the device's may run in any. Compared with the CPU
// kernel; whole and split steps, batches and lone problems bit by bit.
#include "../cuda/step_body.h"
#include "host_team.h"
#include "step_solve.h"

namespace ak::AK_ISA {
extern const StepKernels step_kernels;
}

namespace {

using namespace ak;
using namespace ak::test;

// A block's shared memory, full of NaN at first.
class SharedMemory {
 public:
  explicit SharedMemory(int64_t bytes) : words_(size_t(bytes / 32)) { std::memset(words_.data(), 0xff, size_t(bytes)); }
  void* get() { return words_.data(); }

 private:
  struct alignas(32) Word {
    char bytes[32];
  };
  std::vector<Word> words_;
};

// What step_kernel of csrc/cuda/anderson_step.cu does, a team at a time.
template <class T, int vector, int threads>
class Launch {
  using Team = HostTeam<threads>;
  using Body = cuda::StepBody<T, vector, Team>;

 public:
  Launch(const StepProblem& p, const SolveOptions& o, const cuda::StepPlan& plan) : p_(p), o_(o), plan_(plan) {
    for (int64_t i = 0; i < (plan.split ? plan.teams : 1); ++i) shared_.emplace_back(plan.team_bytes);
  }

  void run() {
    if (plan_.split) return run_split();
    int64_t running = 0;
    for (const int64_t problem : any_order(p_.problems))
      with_body(0, [&](const Body& body) {
        const int64_t pieces = body.chunks_per_problem();
        for (int64_t i = 0; i < pieces; ++i) body.first_sweep(problem, i, i);
        body.decide(problem, problem);
        body.solve_groups(problem, 0, p_.groups);
        for (int64_t i = 0; i < pieces; ++i) body.second_sweep(problem, i, i);
        body.repair(problem);
        running += body.row(problem).state().phase == kStepIterating;
      });
    *p_.active = running;
  }

 private:
  template <class Use>
  void with_body(int64_t team_index, const Use& use) {
    auto* const space = static_cast<cuda::StepSpace<threads>*>(shared_[size_t(team_index)].get());
    const Team team(&space->team);
    const StepRules rules = cuda::rules_for<T>(o_, p_.slots, p_.groups, p_.entries, kUnknownMapPrice);
    use(Body(p_, o_, plan_, rules, team, space));
  }

  // Every block's first sweeps, the last of a problem's deciding; then every block's second sweeps; then the last.
  void run_split() {
    std::vector<int64_t> arrived(size_t(p_.problems), 0);
    const int64_t pieces = p_.groups * plan_.chunks, all = p_.problems * pieces;
    for (const int64_t block : any_order(plan_.teams))
      with_body(block, [&](const Body& body) {
        int64_t turn = 0;
        for (int64_t i = block; i < all; i += plan_.teams, ++turn) {
          const int64_t problem = i / pieces;
          body.first_sweep(problem, i % pieces, turn);
          if (++arrived[size_t(problem)] < pieces) continue;
          body.decide(problem, problem);
          if (plan_.chunks > 1) body.solve_groups(problem, 0, p_.groups);
        }
      });
    for (const int64_t block : any_order(plan_.teams))
      with_body(block, [&](const Body& body) {
        int64_t turn = 0;
        for (int64_t i = block; i < all; i += plan_.teams, ++turn) {
          const int64_t problem = i / pieces;
          if (plan_.chunks == 1) body.solve_groups(problem, i % pieces, 1);
          body.second_sweep(problem, i % pieces, turn);
        }
      });
    *p_.active = 0;
    with_body(0, [&](const Body& body) {
      for (int64_t problem = 0; problem < p_.problems; ++problem) {
        body.repair(problem);
        *p_.active += body.row(problem).state().phase == kStepIterating;
      }
    });
  }

  const StepProblem& p_;
  const SolveOptions& o_;
  const cuda::StepPlan& plan_;
  std::vector<SharedMemory> shared_;
};

template <class T>
StepMethod device_step(int processors, const cuda::StepChoices& choices = {}) {
  return {cuda::device_control_columns, [=](const StepProblem& p, const SolveOptions& o) {
            const auto [plan, refused] = cuda::plan_step(p, {processors, 232448}, choices);
            CHECK(refused == nullptr, "%s", refused);
            CHECK(plan.team_bytes * (plan.small ? cuda::kBlockThreads / 32 : 1) <= 232448, "%ld bytes",
                  long(plan.team_bytes));
            if (plan.small) return Launch<T, 1, 32>(p, o, plan).run();
            if (plan.wide_access) return Launch<T, cuda::kPerAccess<T>, cuda::kBlockThreads>(p, o, plan).run();
            Launch<T, 1, cuda::kBlockThreads>(p, o, plan).run();
          }};
}

StepMethod cpu_step() {
  return {control_columns,
          [](const StepProblem& p, const SolveOptions& o) { AK_ISA::step_kernels.anderson_step(p, o, kOneThread); }};
}

#define WHERE                                                                                                \
  "problem %ld of %ld x %ld x %ld, %zu bytes, history %d, solver %d, damping %g", long(i), long(s.problems), \
      long(s.groups), long(s.entries), sizeof(T), s.history, o.solver, o.damping

template <class T>
void same_ends(const Solve<T>& a, const Solve<T>& b, const Shape& s, const SolveOptions& o, int64_t but = -1) {
  const int64_t n = s.groups * s.entries;
  for (int64_t i = 0; i < s.problems; ++i) {
    if (i == but) continue;
    CHECK(same(a.result(i), b.result(i), n), WHERE);
    CHECK(same(&a.end(i), &b.end(i), 1), WHERE);
  }
}

template <class T>
void solves(const Shape& s, const SolveOptions& o) {
  Solve<T> planned(s, o, 0, device_step<T>(3)), whole(s, o, 0, device_step<T>(3, {.split = 0, .kept = 0}));
  Solve<T> unkept(s, o, 0, device_step<T>(1, {.kept = 0})), poisoned(s, o, 0, device_step<T>(3));
  Solve<T> cpu(s, o, 0, cpu_step());
  planned.run();
  whole.run();
  unkept.run();
  cpu.run();
  poisoned.poison(s.problems / 2);
  poisoned.run();
  same_ends(planned, whole, s, o);
  same_ends(planned, unkept, s, o);
  same_ends(planned, poisoned, s, o, s.problems / 2);
  const int64_t n = s.groups * s.entries;
  for (int64_t i = 0; i < s.problems; ++i) {
    const StepResult &end = planned.end(i), &want = cpu.end(i);
    CHECK(end.status == want.status, WHERE);
    CHECK(std::fabs(end.steps - want.steps) <= 1 + 0.1 * want.steps, WHERE);
    CHECK(float(end.residual) == planned.traced(int(end.steps), i), WHERE);
    if (int(end.status) == kConverged) CHECK(planned.residual(i) <= 1.5 * kTolerance<T>, WHERE);
    // As far as rounding does not show, both take the same way.
    for (int step = 1; step <= 3 && step <= end.steps && step <= want.steps; ++step) {
      const double got = double(planned.traced(step, i)), other = double(cpu.traced(step, i));
      CHECK(std::fabs(got - other) <= (sizeof(T) == 2 ? 0.1 : 1e-3) * other + 8 * kEpsilon<T>, WHERE);
    }
    Shape lone = s;
    lone.problems = 1;
    Solve<T> alone(lone, o, i, device_step<T>(3));
    alone.run();
    CHECK(same(planned.result(i), alone.result(0), n), WHERE);
    if (i != s.problems / 2) continue;
    CHECK(int(poisoned.end(i).status) == kNonfinite && poisoned.end(i).steps == 2, WHERE);
    for (int64_t k = 0; k < n; ++k) CHECK(std::isfinite(to_double(poisoned.result(i)[k])), WHERE);
  }
}

template <class T>
void solves_every_shape() {
  // Warps; blocks, kept and not; blocks that share a problem, with one chunk a group and with several.
  const Shape shapes[] = {{1, 1, 1, 1, 0},    {2, 1, 3, 3, 0},    {9, 2, 7, 5, 0},    {2, 3, 16, 2, 3},
                          {5, 1, 33, 10, 0},  {2, 1, 40, 32, 0},  {1, 4, 9, 5, 0},    {3, 1, 64, 1, 0},
                          {3, 1, 600, 5, 8},  {1, 1, 513, 7, 1},  {2, 5, 130, 4, 0},  {7, 3, 512, 9, 80},
                          {1, 6, 1024, 5, 0}, {1, 1, 9001, 3, 0}, {2, 2, 8192, 5, 8}, {7, 1, 4100, 2, 0}};
  for (const Shape& s : shapes)
    for (int solver : {int(kPicard), int(kAnderson), int(kAuto)}) {
      if (s.entries > 1024 && (sizeof(T) == 8 || solver == kPicard)) continue;  // the sanitizers are slow
      solves<T>(s, options_for(solver, s.history, 1, kTolerance<T>));
      if (s.entries < 100 && sizeof(T) >= 4) solves<T>(s, options_for(solver, s.history, 0.7, kTolerance<T>));
      SolveOptions best = options_for(solver, s.history, 1, 1e-30);
      best.keep_best = true;
      best.max_steps = 25;
      if (s.entries < 100) solves<T>(s, best);
    }
}

// Of the choices only a warp in the place of a block, or the other way round, changes bits.
template <class T>
void plans_chosen_by_hand() {
  const Shape shapes[] = {
      {5, 1, 33, 10, 0}, {3, 4, 100, 5, 0}, {3, 1, 600, 5, 8}, {2, 5, 130, 4, 0}, {2, 2, 4100, 5, 0}};
  const cuda::StepChoices choices[] = {{.warp = 1},  {.warp = 0},    {.blocks = 2},  {.blocks = 3, .kept = 2},
                                       {.split = 1}, {.kept = 1000}, {.solvers = 1}, {.split = 0, .solvers = 32}};
  for (const Shape& s : shapes) {
    if (sizeof(T) == 8 && s.entries > 1024) continue;  // the sanitizers are slow
    const bool small = s.groups * s.entries <= cuda::kSmallProblem;
    const SolveOptions o = options_for(kAnderson, s.history, 1, kTolerance<T>);
    Solve<T> model(s, o, 0, device_step<T>(3));
    model.run();
    for (const cuda::StepChoices& chosen : choices) {
      if (chosen.split == 1 && (small || s.groups * cuda::chunks_of(s.entries) == 1)) continue;
      Solve<T> told(s, o, 0, device_step<T>(3, chosen));
      told.run();
      if (chosen.warp < 0 || (chosen.warp == 1) == small) {
        same_ends(model, told, s, o);
        continue;
      }
      for (int64_t i = 0; i < s.problems; ++i) {
        CHECK(int(told.end(i).status) == kConverged && int(model.end(i).status) == kConverged, WHERE);
        CHECK(std::fabs(told.end(i).steps - model.end(i).steps) <= 1 + 0.1 * model.end(i).steps, WHERE);
        CHECK(told.residual(i) <= 1.5 * kTolerance<T>, WHERE);
      }
    }
  }
}

// A map that grows sends a solve back to plain steps, to a restart, to the best iterate.
template <class T>
void a_diverging_map_ends() {
  for (int solver : {int(kPicard), int(kAnderson), int(kAuto)})
    for (const Shape& s : {Shape{3, 1, 20, 4, 0}, Shape{2, 1, 700, 4, 0}, Shape{1, 2, 4200, 4, 0}}) {
      SolveOptions o = options_for(solver, s.history, 1, kTolerance<T>);
      o.max_steps = 60;
      Solve<T> device(s, o, 0, device_step<T>(3)), cpu(s, o, 0, cpu_step());
      device.change_map(-6, 0);
      cpu.change_map(-6, 0);
      device.run();
      cpu.run();
      for (int64_t i = 0; i < s.problems; ++i) {
        CHECK(device.end(i).status == cpu.end(i).status, WHERE);
        CHECK(solver != kPicard || device.end(i).steps == cpu.end(i).steps, WHERE);
      }
    }
}

// The fixed points lie past float16, so that combinations overflow before f does: plain steps take their place.
void an_overflowing_combination_gives_way() {
  using T = Float16;
  for (int solver : {int(kAnderson), int(kAuto)})
    for (const Shape& s : {Shape{3, 2, 20, 4, 0}, Shape{2, 1, 700, 4, 0}, Shape{2, 3, 1024, 4, 80}}) {
      const SolveOptions o = options_for(solver, s.history, 1, kTolerance<T>);
      Solve<T> device(s, o, 0, device_step<T>(3)), cpu(s, o, 0, cpu_step());
      device.change_map(1.1, 20000);
      cpu.change_map(1.1, 20000);
      device.run();
      cpu.run();
      for (int64_t i = 0; i < s.problems; ++i) {
        CHECK(int(device.end(i).status) == kNonfinite && int(cpu.end(i).status) == kNonfinite, WHERE);
        CHECK(device.end(i).steps == cpu.end(i).steps && device.end(i).steps > 1, WHERE);
        CHECK(same(device.result(i), cpu.result(i), s.groups * s.entries), WHERE);
      }
    }
}

void conversions_match_the_cpu() {
  for (uint32_t bits = 0; bits < 1u << 16; ++bits) {
    const uint16_t half = uint16_t(bits);
    const float b = cuda::widen(BFloat16{half}), h = cuda::widen(Float16{half});
    CHECK(std::isnan(b) || double(b) == to_double(BFloat16{half}), "bfloat16 %04x", bits);
    CHECK(std::isnan(h) ? std::isnan(to_double(Float16{half})) : double(h) == to_double(Float16{half}), "float16 %04x",
          bits);
  }
  for (int k = 0; k < 200000; ++k) {
    const float x = cuda::float_of_bits(uint32_t(generator()));
    const float y = float(std::ldexp(normal(), int(generator() % 60) - 30));
    for (const float v : {x, y}) {
      if (std::isnan(v)) continue;
      CHECK(cuda::narrow<Float16>(v).bits == from_double<Float16>(double(v)).bits, "%a", double(v));
      CHECK(cuda::narrow<BFloat16>(v).bits == from_double<BFloat16>(double(v)).bits, "%a", double(v));
    }
  }
}

}  // namespace

int main() {
  conversions_match_the_cpu();
  solves_every_shape<float>();
  solves_every_shape<double>();
  solves_every_shape<BFloat16>();
  solves_every_shape<Float16>();
  plans_chosen_by_hand<float>();
  plans_chosen_by_hand<double>();
  plans_chosen_by_hand<BFloat16>();
  a_diverging_map_ends<float>();
  a_diverging_map_ends<double>();
  a_diverging_map_ends<Float16>();
  an_overflowing_combination_gives_way();
  return report();
}
