// Activation functions, written once over a lane type: a vector of the CPU kernels or a scalar of a GPU thread.
//
// Ops supplies constant, fma, min, max, select, positive, negative, abs, copy_sign and nearest. Everything is
// accurate to a few units in the last place where the function is not about to vanish, and NaN passes through.
#pragma once

#include "activation_coefficients.h"
#include "stopping.h"

namespace ak {

enum Activation {
  kIdentity = 0,
  kTanh = 1,
  kRelu = 2,
  kSigmoid = 3,
  kSoftplus = 4,
  kGelu = 5,
  kPartialRelu = 6,
  kSilu = 7,
  kRelu2 = 8,
  kSwiglu = 9,
};

template <class Ops>
struct Activations {
  using V = typename Ops::V;
  using T = typename Ops::Scalar;
  static constexpr bool kDouble = sizeof(T) == 8;

  AK_HD_MEMBER static V c(double x) { return Ops::constant(T(x)); }

  template <int N>
  AK_HD_MEMBER static V polynomial(const double (&coefficients)[N], V x) {  // highest power first
    V sum = c(coefficients[0]);
    AK_UNROLLED
#if !defined(__CUDACC__)
#pragma GCC unroll 32
#endif
    for (int i = 1; i < N; ++i) sum = Ops::fma(sum, x, c(coefficients[i]));
    return sum;
  }

  // e^x - 1 = power * (1 + reduced) - 1 with |r| <= ln 2 / 2; reduced = e^r - 1 by its Taylor series, whose
  // first omitted term is below half a unit in the last place there.
  struct ExpParts {
    V power;
    V reduced;
  };
  AK_HD_MEMBER static ExpParts exp_parts(V x) {
    static constexpr double series_float[] = {1. / 5040, 1. / 720, 1. / 120, 1. / 24, 1. / 6, 1. / 2};
    static constexpr double series_double[] = {1. / 6227020800., 1. / 479001600., 1. / 39916800., 1. / 3628800,
                                               1. / 362880,      1. / 40320,      1. / 5040,      1. / 720,
                                               1. / 120,         1. / 24,         1. / 6,         1. / 2};
    ExpParts parts;
    const V k = Ops::nearest(x * c(1.4426950408889634), parts.power);
    // ln 2 in two pieces, the first short enough that k times it is exact.
    V r = Ops::fma(k, c(kDouble ? -6.93147180369123816490e-01 : -0.693359375), x);
    r = Ops::fma(k, c(kDouble ? -1.90821492927058770002e-10 : 2.12194440054690583e-4), r);
    V series;
    if constexpr (kDouble)
      series = polynomial(series_double, r);
    else
      series = polynomial(series_float, r);
    parts.reduced = Ops::fma(r * r, series, r);
    return parts;
  }

  // x is held to where the result is a normal number.
  AK_HD_MEMBER static V exp(V x) {
    x = Ops::max(c(kDouble ? -708. : -87.), Ops::min(c(kDouble ? 709. : 88.), x));
    const ExpParts p = exp_parts(x);
    return Ops::fma(p.power, p.reduced, p.power);
  }

  AK_HD_MEMBER static V tanh(V x) {
    if constexpr (kDouble) {
      // Past the bound tanh rounds to 1. tanh(a) = (e^2a - 1) / (e^2a + 1), exact in form near 0.
      const V a = Ops::min(c(20.), Ops::abs(x));
      const ExpParts p = exp_parts(a + a);
      const V numerator = Ops::fma(p.power, p.reduced, p.power - c(1.));
      return Ops::copy_sign(numerator / (numerator + c(2.)), x);
    } else {
      static constexpr auto p = tanh_p(), q = tanh_q();
      // Half the operations of the form above, and half its chain; at most 5 units in the last place.
      x = Ops::max(c(-9.), Ops::min(c(9.), x));
      const V x2 = x * x;
      const V ratio = x * polynomial(p.c, x2) / polynomial(q.c, x2);
      return Ops::max(c(-1.), Ops::min(c(1.), ratio));
    }
  }

  AK_HD_MEMBER static V relu(V x) { return Ops::max(c(0.), x); }

  AK_HD_MEMBER static V sigmoid(V x) { return c(1.) / (c(1.) + exp(-x)); }

  AK_HD_MEMBER static V silu(V x) { return x / (c(1.) + exp(-x)); }

  // log(1 + e^x) = max(x, 0) + log1p(y), y = e^-|x| <= 1, and log1p(y) = 2 atanh(y / (2 + y)).
  AK_HD_MEMBER static V softplus(V x) {
    static constexpr double series_float[] = {1. / 15, 1. / 13, 1. / 11, 1. / 9, 1. / 7, 1. / 5, 1. / 3};
    static constexpr double series_double[] = {1. / 33, 1. / 31, 1. / 29, 1. / 27, 1. / 25, 1. / 23, 1. / 21, 1. / 19,
                                               1. / 17, 1. / 15, 1. / 13, 1. / 11, 1. / 9,  1. / 7,  1. / 5,  1. / 3};
    const V y = exp(-Ops::abs(x));
    const V s = y / (c(2.) + y);
    const V s2 = s * s;
    V series;
    if constexpr (kDouble)
      series = polynomial(series_double, s2);
    else
      series = polynomial(series_float, s2);
    const V log1p = c(2.) * Ops::fma(s * s2, series, s);
    return relu(x) + log1p;
  }

  // The normal distribution at x: for x <= 0, Phi(x) = erfcx(t) exp(-t^2) / 2 with t = |x| / sqrt 2, and 1 - Phi(-x)
  // above. erfcx by a Chebyshev fit in (t - 2) / (t + 2) (tools/fit_activations.py makes the coefficients).
  struct Normal {
    V distribution;
    V density;
  };
  AK_HD_MEMBER static Normal normal(V x) {
    const V t = Ops::min(c(kDouble ? 26. : 9.), Ops::abs(x) * c(0.70710678118654752));
    const V q = (t - c(2.)) / (t + c(2.));
    V erfcx;
    static constexpr auto coefficients_float = erfcx_float();
    static constexpr auto coefficients_double = erfcx_double();
    if constexpr (kDouble)
      erfcx = polynomial(coefficients_double.c, q);
    else
      erfcx = polynomial(coefficients_float.c, q);
    const V bell = exp(-t * t);
    const V tail = c(0.5) * erfcx * bell;
    return {Ops::select(Ops::negative(x), tail, c(1.) - tail), bell * c(0.3989422804014327)};
  }

  AK_HD_MEMBER static V gelu(V x) { return x * normal(x).distribution; }

  AK_HD_MEMBER static V relu2(V x) {
    const V r = relu(x);
    return r * r;
  }

  template <int kind>
  AK_HD_MEMBER static V apply(V x) {
    if constexpr (kind == kTanh) return tanh(x);
    if constexpr (kind == kRelu) return relu(x);
    if constexpr (kind == kSigmoid) return sigmoid(x);
    if constexpr (kind == kSoftplus) return softplus(x);
    if constexpr (kind == kGelu) return gelu(x);
    if constexpr (kind == kSilu) return silu(x);
    if constexpr (kind == kRelu2) return relu2(x);
    return x;
  }

  // phi'(x); at a kink the derivative from the left.
  template <int kind>
  AK_HD_MEMBER static V derivative(V x) {
    const V one = c(1.);
    if constexpr (kind == kTanh) {
      const V t = tanh(x);
      return Ops::fma(-t, t, one);
    }
    if constexpr (kind == kRelu) return Ops::select(Ops::negative(-x), one, c(0.));
    if constexpr (kind == kSigmoid) {
      const V s = sigmoid(x);
      return s * (one - s);
    }
    if constexpr (kind == kSoftplus) return sigmoid(x);
    if constexpr (kind == kGelu) {
      const Normal at = normal(x);
      return Ops::fma(x, at.density, at.distribution);
    }
    if constexpr (kind == kSilu) {
      const V s = sigmoid(x);
      return s * Ops::fma(x, one - s, one);
    }
    if constexpr (kind == kRelu2) return c(2.) * relu(x);
    return one;
  }
};

}  // namespace ak
