// When a problem ends, and with which status. One text for every backend.
//
// All norms come in squared, so the common path needs no square root.
#pragma once

#include <cstdint>

// Before a function, and before a member function, that both sides call.
#if defined(__CUDACC__)
#define AK_HD __host__ __device__ __forceinline__
#define AK_HD_MEMBER __host__ __device__ __forceinline__
#else
// Internal linkage: a copy shared by objects built for different processors would run on the wrong one.
#define AK_HD static inline
#define AK_HD_MEMBER
#endif

// Before a loop of a scalar part: unrolled, it would cost a device registers that the sweeps need. And before one
// whose arrays are to lie in registers.
#if defined(__CUDA_ARCH__)
#define AK_ROLLED _Pragma("unroll 1")
#define AK_UNROLLED _Pragma("unroll")
#define AK_UNROLLED_2 _Pragma("unroll 2")
#define AK_UNROLLED_4 _Pragma("unroll 4")
#else
#define AK_ROLLED
#define AK_UNROLLED
#define AK_UNROLLED_2
#define AK_UNROLLED_4
#endif

namespace ak {

// The values are part of the Python interface (attractor_kernels.Status).
enum Status : uint8_t {
  kConverged = 0,
  kMaxSteps = 1,
  kDiverged = 2,
  kNonfinite = 3,
  kStagnated = 4,
  kRunning = 255,
};

// A residual this many times the first one ends the problem as diverged.
constexpr double kDivergenceFactor = 1e4;
// Stagnated: no new lowest residual for this many steps ...
constexpr int kStagnationSteps = 10;
// ... while the lowest is within this many units of the state's rounding.
constexpr double kStagnationEps = 8.0;

template <class S>
struct StopRule {
  S rtol;
  S atol;
  S eps;  // rounding unit of the state's dtype, for stagnation
  int max_steps;
  int min_steps;
};

template <class S>
struct Progress {
  S first2 = S(-1);   // |g|^2 at the first step; negative before it
  S best_r2 = S(0);   // |g|^2 and |f|^2 of the best iterate
  S best_f2 = S(-1);  // negative before the first finite step
  int best_step = 0;
  int steps = 0;  // evaluations of f so far
};

template <class S>
struct Judgement {
  Status status;
  bool new_best;  // the iterate just evaluated has the lowest relative residual so far
};

// True where x is neither NaN nor Inf, whatever the compiler assumes of comparisons.
template <class S>
AK_HD bool finite(S x) {
  return x - x == S(0);
}

template <class S>
AK_HD S square_root(S x) {
#if defined(__CUDA_ARCH__)
  return sqrt(x);
#else
  return __builtin_sqrt(x);
#endif
}

// |g| <= atol + rtol |f|
template <class S>
AK_HD bool within_tolerance(S r2, S f2, const StopRule<S>& rule) {
  if (rule.atol == S(0)) return r2 <= rule.rtol * rule.rtol * f2;
  const S bound = rule.atol + rule.rtol * square_root(f2);
  return r2 <= bound * bound;
}

// Counts one evaluation with |f(z) - z|^2 = r2 and |f(z)|^2 = f2 and says how the problem stands.
template <class S>
AK_HD Judgement<S> judge(Progress<S>& p, S r2, S f2, const StopRule<S>& rule) {
  p.steps += 1;
  if (!finite(r2) || !finite(f2)) return {kNonfinite, false};
  if (p.first2 < S(0)) p.first2 = r2;
  // r2 / f2 < best_r2 / best_f2 without a division; the first finite iterate always counts.
  const bool best = p.best_f2 < S(0) || r2 * p.best_f2 < p.best_r2 * f2;
  if (best) {
    p.best_r2 = r2;
    p.best_f2 = f2;
    p.best_step = p.steps;
  }
  if (p.steps >= rule.min_steps && within_tolerance(r2, f2, rule)) return {kConverged, best};
  if (r2 > S(kDivergenceFactor * kDivergenceFactor) * p.first2) return {kDiverged, best};
  if (p.steps >= rule.max_steps) return {kMaxSteps, best};
  const S floor = S(kStagnationEps) * rule.eps;
  if (p.steps >= rule.min_steps && p.steps - p.best_step >= kStagnationSteps && p.best_r2 <= floor * floor * p.best_f2)
    return {kStagnated, best};
  return {kRunning, best};
}

// |g| / |f|; 0 / 0 is 0 (a map whose fixed point is the origin, at it).
template <class S>
AK_HD S relative_residual(S r2, S f2) {
  if (r2 == S(0)) return S(0);
  return square_root(r2) / square_root(f2);
}

}  // namespace ak
