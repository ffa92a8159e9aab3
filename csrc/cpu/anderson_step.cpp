#include "anderson_step.h"

#include "step_control.h"

namespace ak::AK_ISA {
namespace {

// Entries below which waking another thread costs more than it saves, per sweep over one vector.
constexpr int64_t kThreadEntries = 16384;

// body(begin, end) over [0, n) in blocks of `unit`, dealt to threads in turn, the same way at every step: a thread
// finds its problems in its own cache, and problems that have ended leave holes in every thread's share alike.
template <class Body>
void for_blocks(int64_t n, int64_t unit, const Executor& executor, const Body& body) {
  const int64_t blocks = (n + unit - 1) / unit;
  const int tasks = int(blocks < executor.threads ? blocks : executor.threads);
  if (tasks <= 1) {
    body(int64_t(0), n);
    return;
  }
  struct Shared {
    const Body& body;
    int64_t n, unit;
    int tasks;
  } shared{body, n, unit, tasks};
  executor.run(
      tasks,
      [](void* context, int task) {
        const Shared& s = *static_cast<const Shared*>(context);
        for (int64_t begin = task * s.unit; begin < s.n; begin += s.tasks * s.unit)
          s.body(begin, begin + s.unit < s.n ? begin + s.unit : s.n);
      },
      &shared);
}

template <class T>
class Step {
 public:
  Step(const StepProblem& problem, const SolveOptions& options)
      : p_(problem),
        o_(options),
        chunks_(step_chunks(problem.entries)),
        context_{problem,
                 options,
                 {{options.rtol, options.atol, kEpsilon<T>, options.max_steps, options.min_steps},
                  options.solver,
                  options.keep_best,
                  problem.slots,
                  kUnknownMapPrice,
                  problem.groups,
                  problem.entries},
                 kStepPivotFloor<T>,
                 chunks_} {}

  void run(const Executor& executor) {
    *p_.active = 0;
    const int64_t size = p_.groups * p_.entries;
    const bool split = p_.problems < 4 * executor.threads && size > kThreadEntries && p_.groups * chunks_ > 1;
    if (split) return run_split(executor);
    const int64_t unit = size >= kThreadEntries ? 1 : kThreadEntries / (size > 0 ? size : 1);
    for_blocks(p_.problems, unit, executor, [&](int64_t begin, int64_t end) {
      int64_t running = 0;
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t g = 0; g < p_.groups; ++g)
          for (int64_t c = 0; c < chunks_; ++c) first_sweep(i, g, c);
        decide(context_, i);
        for (int64_t g = 0; g < p_.groups; ++g)
          for (int64_t c = 0; c < chunks_; ++c) second_sweep(i, g, c);
        running += complete(i);
      }
      __atomic_fetch_add(p_.active, running, __ATOMIC_RELAXED);
    });
  }

 private:
  // Few large problems: their chunks go to different threads.
  void run_split(const Executor& executor) {
    const int64_t per_problem = p_.groups * chunks_;
    const int64_t entries = p_.entries < kStepChunk ? p_.entries : kStepChunk;
    const int64_t unit = entries >= kThreadEntries ? 1 : kThreadEntries / entries;
    const auto sweep = [&](void (Step::*of_chunk)(int64_t, int64_t, int64_t)) {
      for_blocks(p_.problems * per_problem, unit, executor, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          (this->*of_chunk)(i / per_problem, i % per_problem / chunks_, i % chunks_);
      });
    };
    sweep(&Step::first_sweep);
    for (int64_t i = 0; i < p_.problems; ++i) decide(context_, i);
    sweep(&Step::second_sweep);
    for (int64_t i = 0; i < p_.problems; ++i) *p_.active += complete(i);
  }

  struct Range {
    int64_t offset;  // of the chunk in the state
    int64_t start;   // of the chunk in its group
    int64_t entries;
  };

  Range range(int64_t problem, int64_t g, int64_t chunk) const {
    const int64_t start = chunk * kStepChunk;
    const int64_t left = p_.entries - start;
    return {(problem * p_.groups + g) * p_.entries + start, start, left < kStepChunk ? left : kStepChunk};
  }

  T* ring(int64_t problem, int64_t g, int kind, int slot) const {
    const int64_t row = ((problem * p_.groups + g) * 2 + kind) * p_.slots + slot;
    return static_cast<T*>(p_.history) + row * p_.stride;
  }
  T* ring_g(int64_t problem, int64_t g, int slot) const { return ring(problem, g, 0, slot); }
  T* ring_h(int64_t problem, int64_t g, int slot) const { return ring(problem, g, 1, slot); }

  const T* z() const { return static_cast<const T*>(p_.z); }
  const T* fz() const { return static_cast<const T*>(p_.fz); }
  T* out() const { return static_cast<T*>(p_.out); }
  T* best() const { return static_cast<T*>(p_.best); }

  void first_sweep(int64_t problem, int64_t g, int64_t chunk) {
    ControlRow row(p_, problem);
    const StepState& s = row.state();
    if (s.phase >= kStepEnded) return;
    const Range r = range(problem, g, chunk);
    SumsInput<T> in{};
    in.z = z() + r.offset;
    in.fz = fz() + r.offset;
    in.entries = r.entries;
    in.scale = s.phase == kStepFresh               ? first_scale<T>(in.z, in.fz, r.entries)
               : sizeof(Wide<T>) == sizeof(double) ? Wide<T>(1)
                                                   : Wide<T>(s.scale);
    double* const sums = row.sums(g, chunk);
    if (step_watches(s, context_.rules)) {
      in.before = out() + r.offset;
      in.inverse_damping = Wide<T>(1 / o_.damping);
      return chunk_sums<T, Before::kIterate>(in, sums);
    }
    if (!step_keeps_history(s, context_.rules)) return chunk_sums<T, Before::kNone>(in, sums);
    const int newest = s.phase == kStepFresh ? -1 : s.newest;
    in.g = ring_g(problem, g, next_ring_slot(newest, p_.slots)) + r.start;
    if (newest < 0) return chunk_sums<T, Before::kNone>(in, sums);
    in.before = ring_g(problem, g, newest) + r.start;
    in.differences = kept_differences(row.group(g), p_.slots);
    for (int j = 0; j <= in.differences; ++j)
      in.ring[j] = ring_g(problem, g, ring_slot_of(newest - in.differences + j, p_.slots)) + r.start;
    chunk_sums<T, Before::kResidual>(in, sums);
  }

  void second_sweep(int64_t problem, int64_t g, int64_t chunk) {
    ControlRow row(p_, problem);
    const StepState& s = row.state();
    if (s.write == kWriteNothing) return;
    const Range r = range(problem, g, chunk);
    T* const to = out() + r.offset;
    if (s.save_best) copy(best() + r.offset, to, r.entries);
    if (s.write == kWriteCurrent) return copy(to, z() + r.offset, r.entries);
    if (s.write == kWriteBest) return copy(to, best() + r.offset, r.entries);
    CombineInput<T> in{};
    in.z = z() + r.offset;
    in.fz = fz() + r.offset;
    in.damping = Wide<T>(o_.damping);
    in.out = to;
    in.entries = r.entries;
    if (s.write == kWriteAnderson) {
      if (s.enter)
        enter_anderson<T>(in.z, to, Wide<T>(1 / o_.damping), ring_g(problem, g, 0) + r.start,
                          ring_h(problem, g, 0) + r.start, in.fz, ring_g(problem, g, 1) + r.start, r.entries);
      in.h = ring_h(problem, g, s.newest) + r.start;
      in.differences = row.group(g).used;
      for (int j = 0; j < in.differences; ++j) {
        in.ring[j] = ring_h(problem, g, ring_slot_of(s.newest - in.differences + j, p_.slots)) + r.start;
        in.weight[j] = Wide<T>(row.weights(g)[j]);
      }
    }
    row.valid(g, chunk) = chunk_combine<T>(in) ? 1 : 0;
  }

  // After the second sweep: a combination that overflowed gives way to the plain step. 1 while the problem runs.
  int64_t complete(int64_t problem) {
    ControlRow row(p_, problem);
    const StepState& s = row.state();
    if (s.write == kWriteAnderson)
      for (int64_t g = 0; g < p_.groups; ++g) {
        if (row.group(g).used == 0) continue;
        bool valid = true;
        for (int64_t c = 0; c < chunks_; ++c) valid = valid && row.valid(g, c) != 0;
        if (valid) continue;
        row.group(g) = {0, 0};
        copy(out() + (problem * p_.groups + g) * p_.entries, ring_h(problem, g, s.newest), p_.entries);
      }
    return s.phase == kStepIterating ? 1 : 0;
  }

  static void copy(T* to, const T* from, int64_t n) { std::memmove(to, from, size_t(n) * sizeof(T)); }

  const StepProblem& p_;
  const SolveOptions& o_;
  const int64_t chunks_;
  const StepContext context_;
};

template <class T>
void residual_squares(const ResidualProblem& p, const Executor& executor) {
  const int64_t chunks = step_chunks(p.entries);
  const int64_t entries = p.entries < kStepChunk ? p.entries : kStepChunk;
  const int64_t unit = entries >= kThreadEntries ? 1 : kThreadEntries / (entries > 0 ? entries : 1);
  for_blocks(p.problems * chunks, unit, executor, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = i % chunks * kStepChunk, offset = i / chunks * p.entries + start;
      SumsInput<T> in{};
      in.z = static_cast<const T*>(p.z) + offset;
      in.fz = static_cast<const T*>(p.fz) + offset;
      in.entries = p.entries - start < kStepChunk ? p.entries - start : kStepChunk;
      in.scale = first_scale<T>(in.z, in.fz, in.entries);
      double sums[kBaseSums];
      chunk_sums<T, Before::kNone>(in, sums);
      p.squares[2 * i] = sums[kR2];
      p.squares[2 * i + 1] = sums[kF2];
    }
  });
}

// call(T{}) for the type states are stored in.
template <class Call>
void with_state_type(StateType type, const Call& call) {
  switch (type) {
    case StateType::kFloat32:
      return call(float{});
    case StateType::kFloat64:
      return call(double{});
    case StateType::kBFloat16:
      return call(BFloat16{});
    case StateType::kFloat16:
      return call(Float16{});
  }
}

void anderson_step(const StepProblem& problem, const SolveOptions& options, const Executor& executor) {
  with_state_type(problem.type, [&](auto zero) { Step<decltype(zero)>(problem, options).run(executor); });
}

void residual_norm(const ResidualProblem& problem, const Executor& executor) {
  with_state_type(problem.type, [&](auto zero) { residual_squares<decltype(zero)>(problem, executor); });
}

}  // namespace

extern const StepKernels step_kernels{anderson_step, residual_norm};

}  // namespace ak::AK_ISA
