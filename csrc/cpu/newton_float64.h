// Newton steps of float64 rows: the equations of f - x, scaled by a power of two to be float32's, are solved as those
// are, in 8 bits (newton.h). What float32 rounds is far less than what a correction leaves of the residual.
#pragma once

#include "../common/step_decision.h"
#include "chord.h"
#include "newton.h"
#include "scratch.h"

namespace ak::AK_ISA {

#if AK_HAS_INT8

template <class Operator>
class NewtonSteps<double, Operator, true> {
  using Steps = NewtonSteps<float, Operator>;

 public:
  explicit NewtonSteps(const Operator& product, float shift = 0)
      : newton_(product, shift), dim_(product.dim()), constants_(product.constants()) {}

  bool fits() const { return newton_.fits(); }

  // Evaluations are dearer than float32's, beside the same products in 8 bits.
  double aim2(bool first) const { return first ? 0.09 : 0.0025; }

  using Start = SlopeRow<double>;

  // Where J itself is had, instead of slopes: (a row's constants, float*), which puts what J is made of there.
  template <class Slopes>
  void solve(int n, Correction<double>* rows, const Slopes& slopes, const double* leak) {
    thread_local Scratch scratch;
    const int64_t ld = round_up(dim_, kLanes<float>);
    double* const slope = static_cast<double*>(
        scratch.get(size_t(ld) * sizeof(double) + size_t((n + 2) * ld + n * constants_) * sizeof(float)));
    float* const none = reinterpret_cast<float*>(slope + ld);
    float* const narrow_leak = none + ld;
    std::memset(none, 0, size_t(ld) * sizeof(float));
    std::memset(slope, 0, size_t(ld) * sizeof(double));
    if (leak != nullptr) row_to_float32(leak, dim_, narrow_leak);
    Correction<float> of[kMaxTile];
    Travel<float> travel[kMaxTile];
    float scale[kMaxTile];
    for (int k = 0; k < n; ++k) {
      const Correction<double>& c = rows[k];
      float* const g = none + (2 + k) * ld;
      scale[k] = power_near_inverse(c.largest);
      const Vec<double> by = broadcast<double>(double(scale[k]));
      narrow_row(g, [&](int64_t i) { return (load(c.f + i) - load(c.x + i)) * by; });
      of[k] = {none,
               g,
               none + (n + 2) * ld + k * constants_,
               c.r2 * double(scale[k]) * double(scale[k]),
               float(c.largest * double(scale[k])),
               c.aim2,
               c.most,
               c.corrector,
               nullptr,
               &travel[k]};
      if constexpr (!Operator::kSlopes) slopes(c.constants, of[k].constants);
    }
    newton_.solve(
        n, of,
        [&](const Correction<float>& c, const Steps::Start& start) {
          if constexpr (Operator::kSlopes) slopes(rows[&c - of], Start{slope});
          for_row<float>(dim_, [&](int64_t i, auto keep) { start.put(c, i, narrow(slope + i), keep); });
        },
        leak != nullptr ? narrow_leak : nullptr);
    for (int k = 0; k < n; ++k) {
      const Correction<double>& c = rows[k];
      const Vec<double> back = broadcast<double>(1 / double(scale[k]));
      for_row<double>(dim_, [&](int64_t i, auto keep) {
        store(c.f + i, keep(fma<double>(widen_half(of[k].f + i), back, load(c.x + i))));
      });
    }
  }

 private:
  typedef float Half __attribute__((vector_size(AK_VECTOR_BYTES / 2)));

  static Half narrow_half(Vec<double> v) { return __builtin_convertvector(v, Half); }
  static Vec<double> widen_half(const float* p) {
    Half half;
    std::memcpy(&half, p, sizeof half);
    return __builtin_convertvector(half, Vec<double>);
  }
  static Vec<float> narrow(const double* p) {
    const Half halves[2] = {narrow_half(load(p)), narrow_half(load(p + kLanes<double>))};
    Vec<float> v;
    std::memcpy(&v, halves, sizeof v);
    return v;
  }

  // to[i ..] = value(i), a vector of doubles, and zero from the row's end to whole vectors of floats.
  template <class Value>
  void narrow_row(float* to, const Value& value) const {
    std::memset(to + round_up(dim_, kLanes<double>), 0,
                size_t(round_up(dim_, kLanes<float>) - round_up(dim_, kLanes<double>)) * sizeof(float));
    for_row<double>(dim_, [&](int64_t i, auto keep) {
      const Half half = narrow_half(keep(value(i)));
      std::memcpy(to + i, &half, sizeof half);
    });
  }

  Steps newton_;
  const int64_t dim_, constants_;
};

#endif

}  // namespace ak::AK_ISA
