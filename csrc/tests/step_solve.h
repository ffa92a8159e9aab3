// Solves of small coupled maps by fused steps, for tests of every implementation of the step: on buffers of exactly
// the size a kernel may touch, poisoned where it may not read.
#pragma once

#include <functional>

#include "../cpu/anderson_step.h"
#include "../cpu/storage.h"
#include "check.h"

namespace ak::test {

using ak::BFloat16;
using ak::Float16;

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
inline StateType type_of<float>() {
  return StateType::kFloat32;
}
template <>
inline StateType type_of<double>() {
  return StateType::kFloat64;
}
template <>
inline StateType type_of<BFloat16>() {
  return StateType::kBFloat16;
}
template <>
inline StateType type_of<Float16>() {
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

// An implementation of the step.
struct StepMethod {
  int64_t (*columns)(int64_t groups, int64_t entries, int slots);
  std::function<void(const StepProblem&, const SolveOptions&)> step;
};

template <class T>
class Solve {
 public:
  Solve(const Shape& shape, const SolveOptions& options, int64_t first_problem, const StepMethod& method)
      : shape_(shape),
        options_(options),
        first_(first_problem),
        method_(method),
        size_(shape.problems * shape.groups * shape.entries),
        z_(size_),
        out_(size_),
        best_(size_),
        fz_(size_) {
    const int64_t slots = options.solver == kPicard ? 0 : options.history + 1;
    history_ = std::make_unique<Block<T>>(shape.problems * shape.groups * 2 * slots * (shape.entries + shape.padding));
    columns_ = method.columns(shape.groups, shape.entries, int(slots));
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
  // The map's linear part times a factor, and a constant added.
  void change_map(double factor, double constant) {
    factor_ = factor;
    constant_ = constant;
  }

  void run() {
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
      method_.step(p, options_);
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
    return factor_ * (0.6 * a * left + 0.4 * a * right) + std::sin(double(1 + i + 3 * id)) + constant_;
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
  const int64_t first_;
  const StepMethod method_;
  const int64_t size_;
  int64_t poisoned_ = -1;
  double factor_ = 1, constant_ = 0;
  Block<T> z_, out_, best_, fz_;
  std::unique_ptr<Block<T>> history_;
  std::unique_ptr<Block<double>> control_;
  std::unique_ptr<Block<float>> trace_;
  int64_t columns_;
  const T* result_ = nullptr;
};

inline SolveOptions options_for(int solver, int history, double damping, double rtol) {
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

}  // namespace ak::test
