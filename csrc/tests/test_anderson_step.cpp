// The fused step for unknown maps: solves small coupled maps of every dtype with it, on buffers of exactly the size
// the kernels may touch and poisoned where they may not read.
#include "../cpu/anderson_step.h"
#include "../cpu/storage.h"
#include "check.h"

namespace ak::AK_ISA {
extern const StepKernels step_kernels;
}

namespace {

using namespace ak;
using ak::AK_ISA::BFloat16;
using ak::AK_ISA::Float16;

template <class T>
double to_double(T x) {
  if constexpr (sizeof(T) == 2) {
    return double(AK_ISA::First{1}.load_wide(&x)[0]);
  } else {
    return double(x);
  }
}

template <class T>
T from_double(double x) {
  if constexpr (sizeof(T) == 2) {
    T result;
    AK_ISA::First{1}.store_wide(&result, AK_ISA::broadcast<float>(float(x)));
    return result;
  } else {
    return T(x);
  }
}

template <class T>
StateType type_of();
template <>
StateType type_of<float>() {
  return StateType::kFloat32;
}
template <>
StateType type_of<double>() {
  return StateType::kFloat64;
}
template <>
StateType type_of<BFloat16>() {
  return StateType::kBFloat16;
}
template <>
StateType type_of<Float16>() {
  return StateType::kFloat16;
}

template <class T>
constexpr double kTolerance = sizeof(T) == 8   ? 1e-10
                              : sizeof(T) == 4 ? 1e-5
                                               : 2e-2;

struct Shape {
  int64_t problems, groups, entries;
  int history;
  int64_t padding;
};

template <class T>
class Solve {
 public:
  Solve(const Shape& shape, const SolveOptions& options, int64_t first_problem)
      : shape_(shape),
        options_(options),
        first_(first_problem),
        size_(shape.problems * shape.groups * shape.entries),
        z_(size_),
        out_(size_),
        best_(size_),
        fz_(size_) {
    const int64_t slots = options.solver == kPicard ? 0 : options.history + 1;
    history_ = std::make_unique<Block<T>>(shape.problems * shape.groups * 2 * slots * (shape.entries + shape.padding));
    columns_ = control_columns(shape.groups, shape.entries, int(slots));
    control_ = std::make_unique<Block<double>>(shape.problems * columns_, [](int64_t) { return 0; });
    trace_ = std::make_unique<Block<float>>(shape.problems * options.max_steps, [](int64_t) { return NAN; });
    for (int64_t i = 0; i < size_; ++i) {
      z_[i] = from_double<T>(0);
      out_[i] = best_[i] = from_double<T>(NAN);
    }
    for (int64_t i = 0; i < history_->size; ++i) (*history_)[i] = from_double<T>(NAN);
  }

  // The problem that is not a number from its third step on.
  void poison(int64_t problem) { poisoned_ = problem; }

  void run(const Executor& executor) {
    T *z = z_.get(), *out = out_.get();
    int64_t active = -1;
    for (int step = 0; active != 0; ++step) {
      evaluate(z, step);
      StepProblem p{};
      p.type = type_of<T>();
      p.problems = shape_.problems;
      p.groups = shape_.groups;
      p.entries = shape_.entries;
      p.z = z;
      p.fz = fz_.get();
      p.out = out;
      p.best = best_.get();
      p.history = history_->get();
      p.slots = options_.solver == kPicard ? 0 : options_.history + 1;
      p.stride = shape_.entries + shape_.padding;
      p.control = control_->get();
      p.columns = columns_;
      p.trace = trace_->get();
      p.active = &active;
      AK_ISA::step_kernels.anderson_step(p, options_, executor);
      std::swap(z, out);
      CHECK(step < options_.max_steps, "does not end");
      if (step >= options_.max_steps) break;
    }
    result_ = z;
    // Ended problems stand still.
    evaluate(z, 2);
  }

  const T* result(int64_t problem) const { return result_ + problem * shape_.groups * shape_.entries; }
  const StepResult& end(int64_t problem) const {
    return *reinterpret_cast<const StepResult*>(control_->get() + problem * columns_);
  }
  float traced(int step, int64_t problem) const { return (*trace_)[(step - 1) * shape_.problems + problem]; }

  // |f(z) - z| / |f(z)| of the result, in double
  double residual(int64_t problem) const {
    double r2 = 0, f2 = 0;
    const int64_t n = shape_.groups * shape_.entries;
    for (int64_t i = 0; i < n; ++i) {
      const double f = map(result_, problem, i), r = f - to_double(result_[problem * n + i]);
      r2 += r * r;
      f2 += f * f;
    }
    return r2 == 0 ? 0 : std::sqrt(r2 / f2);
  }

 private:
  // A contraction that couples neighbours, other for every problem.
  double map(const T* z, int64_t problem, int64_t i) const {
    const int64_t n = shape_.groups * shape_.entries, id = first_ + problem;
    const double a = 0.9 - 0.5 * double((i * 7 + id) % 11) / 11;
    const double left = to_double(z[problem * n + i]), right = to_double(z[problem * n + (i + 1) % n]);
    return 0.6 * a * left + 0.4 * a * right + std::sin(double(1 + i + 3 * id));
  }

  void evaluate(const T* z, int step) {
    const int64_t n = shape_.groups * shape_.entries;
    for (int64_t i = 0; i < size_; ++i) {
      const bool bad = i / n == poisoned_ && step >= 2 && i % n == n - 1;
      fz_[i] = from_double<T>(bad ? NAN : map(z, i / n, i % n));
    }
  }

  const Shape shape_;
  const SolveOptions options_;
  const int64_t first_, size_;
  int64_t poisoned_ = -1;
  Block<T> z_, out_, best_, fz_;
  std::unique_ptr<Block<T>> history_;
  std::unique_ptr<Block<double>> control_;
  std::unique_ptr<Block<float>> trace_;
  int64_t columns_;
  const T* result_ = nullptr;
};

SolveOptions options_for(int solver, int history, double damping, double rtol) {
  SolveOptions o;
  o.solver = solver;
  o.history = history;
  o.damping = damping;
  o.ridge = 1e-8;
  o.rtol = rtol;
  o.max_steps = 300;
  return o;
}

template <class T>
bool same(const T* a, const T* b, int64_t n) {
  return std::memcmp(a, b, size_t(n) * sizeof(T)) == 0;
}

template <class T>
void solves(const Shape& shape, int solver, double damping) {
  const SolveOptions options = options_for(solver, shape.history, damping, kTolerance<T>);
  const int64_t n = shape.groups * shape.entries;
  Solve<T> one(shape, options, 0), threaded(shape, options, 0), poisoned(shape, options, 0);
  one.run(kOneThread);
  threaded.run(kThreads);
  poisoned.poison(shape.problems / 2);
  poisoned.run(kThreads);
  for (int64_t i = 0; i < shape.problems; ++i) {
    const char* format = "problem %ld of %ld x %ld x %ld, %zu bytes, solver %d: status %g, %g";
#define WHERE \
  format, long(i), long(shape.problems), long(shape.groups), long(shape.entries), sizeof(T), solver, one.end(i).status
    CHECK(int(one.end(i).status) == kConverged, WHERE, one.end(i).residual);
    CHECK(one.residual(i) <= 1.5 * kTolerance<T>, WHERE, one.residual(i));
    CHECK(float(one.end(i).residual) == one.traced(int(one.end(i).steps), i), WHERE, one.end(i).residual);
    CHECK(same(one.result(i), threaded.result(i), n), WHERE, threaded.end(i).steps);
    CHECK(same(&one.end(i), &threaded.end(i), 1), WHERE, threaded.end(i).steps);
    Shape alone_shape = shape;
    alone_shape.problems = 1;
    Solve<T> alone(alone_shape, options, i);
    alone.run(kThreads);
    CHECK(same(one.result(i), alone.result(0), n), WHERE, alone.end(0).steps);
    if (i == shape.problems / 2) {
      CHECK(int(poisoned.end(i).status) == kNonfinite && poisoned.end(i).steps == 2, WHERE, poisoned.end(i).steps);
      for (int64_t k = 0; k < n; ++k) CHECK(std::isfinite(to_double(poisoned.result(i)[k])), WHERE, double(k));
    } else {
      CHECK(same(one.result(i), poisoned.result(i), n), WHERE, poisoned.end(i).steps);
    }
#undef WHERE
  }
}

template <class T>
void solves_every_shape() {
  const Shape shapes[] = {{1, 1, 1, 1, 0},   {2, 1, 3, 3, 0},    {3, 2, 7, 5, 0},      {2, 3, 16, 2, 3},
                          {5, 1, 33, 10, 0}, {1, 1, 513, 5, 80}, {2, 1, 40, 32, 0},    {1, 4, 9, 5, 0},
                          {3, 1, 64, 1, 0},  {1, 2, 9001, 3, 1}, {2, 1, 66000, 2, 80}, {1, 1, 131075, 3, 0}};
  for (const Shape& shape : shapes)
    for (int solver : {int(kPicard), int(kAnderson), int(kAuto)}) {
      // Large states once are enough: the sanitizers are slow.
      if (shape.entries > 10000 && (sizeof(T) != 4 || solver == kAuto)) continue;
      solves<T>(shape, solver, 1);
      if (shape.entries < 100 && sizeof(T) >= 4) solves<T>(shape, solver, 0.7);
    }
}

void float16_matches_the_compiler() {
#if defined(__FLT16_MANT_DIG__)
  for (int bits = 0; bits < 1 << 16; bits += AK_ISA::kHalfLanes) {
    uint16_t lane[AK_ISA::kHalfLanes];
    for (int i = 0; i < AK_ISA::kHalfLanes; ++i) lane[i] = uint16_t(bits + i);
    AK_ISA::HalfBits half;
    std::memcpy(&half, lane, sizeof half);
    const auto wide = AK_ISA::widen_portable(half);
    const AK_ISA::HalfBits back = AK_ISA::narrow_portable(wide);
    for (int i = 0; i < AK_ISA::kHalfLanes; ++i) {
      _Float16 expected;
      std::memcpy(&expected, &lane[i], sizeof expected);
      const float value = float(expected);
      if (std::isnan(value)) {
        CHECK(std::isnan(wide[i]) && (back[i] & 0x7c00) == 0x7c00 && (back[i] & 0x3ff) != 0, "NaN %04x", lane[i]);
      } else {
        CHECK(wide[i] == value && std::signbit(wide[i]) == std::signbit(value), "%04x widens to %g", lane[i], wide[i]);
        CHECK(back[i] == lane[i], "%04x comes back as %04x", lane[i], back[i]);
      }
    }
  }
  for (int k = 0; k < 200000; ++k) {
    const uint32_t bits = uint32_t(generator());
    float x;
    std::memcpy(&x, &bits, sizeof x);
    if (k % 2 == 0) x = std::ldexp(1 + float(generator() % (1 << 24)) * 0x1p-24f, int(generator() % 50) - 30);
    if (std::isnan(x)) continue;
    const _Float16 expected = _Float16(x);
    uint16_t want;
    std::memcpy(&want, &expected, sizeof want);
    const uint16_t portable = AK_ISA::narrow_portable(AK_ISA::broadcast<float>(x))[0];
    CHECK(portable == want, "%a narrows to %04x, not %04x", x, portable, want);
    CHECK(from_double<Float16>(double(x)).bits == want, "%a is stored as %04x", x, want);
  }
#endif
}

void bfloat16_rounds_to_even() {
  const float halfway = 1 + 0x1p-8f, above = 1 + 3 * 0x1p-8f;
  CHECK(to_double(from_double<BFloat16>(double(halfway))) == 1, "down to even");
  CHECK(to_double(from_double<BFloat16>(double(above))) == 1 + 0x1p-6, "up to even");
  CHECK(std::isnan(to_double(from_double<BFloat16>(NAN))), "NaN");
  CHECK(std::isinf(to_double(from_double<BFloat16>(3.4e38))), "overflow");
}

}  // namespace

int main() {
  float16_matches_the_compiler();
  bfloat16_rounds_to_even();
  solves_every_shape<float>();
  solves_every_shape<double>();
  solves_every_shape<BFloat16>();
  solves_every_shape<Float16>();
  return report();
}
