// The fused step for unknown maps: solves small coupled maps of every dtype with it, on buffers of exactly the size
// the kernels may touch and poisoned where they may not read.
#include "step_solve.h"

namespace ak::AK_ISA {
extern const StepKernels step_kernels;
}

namespace {

using namespace ak;
using namespace ak::test;

StepMethod on(const Executor& executor) {
  return {control_columns, [&executor](const StepProblem& p, const SolveOptions& o) {
            AK_ISA::step_kernels.anderson_step(p, o, executor);
          }};
}

template <class T>
void solves(const Shape& shape, int solver, double damping) {
  const SolveOptions options = options_for(solver, shape.history, damping, kTolerance<T>);
  const int64_t n = shape.groups * shape.entries;
  Solve<T> one(shape, options, 0, on(kOneThread)), threaded(shape, options, 0, on(kThreads));
  Solve<T> poisoned(shape, options, 0, on(kThreads));
  one.run();
  threaded.run();
  poisoned.poison(shape.problems / 2);
  poisoned.run();
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
    Solve<T> alone(alone_shape, options, i, on(kThreads));
    alone.run();
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
