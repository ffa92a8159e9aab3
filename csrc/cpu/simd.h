// Vectors of one instruction set, as GCC/Clang vector types: the same text is AVX-512, AVX2, SSE or NEON code,
// by the flags its file is compiled with. Everything lives in namespace ak::AK_ISA, so that objects built for
// different processors never share a symbol.
//
// Sums are always fma(a, b, c) by name, with contraction off: two instances of one template round alike, which
// is what keeps a row's bits independent of the rows beside it.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef AK_ISA
#error "compile with -DAK_ISA=<instruction set>"
#endif

#ifndef AK_VECTOR_BYTES
#if defined(__AVX512F__)
#define AK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define AK_VECTOR_BYTES 32
#else
#define AK_VECTOR_BYTES 16
#endif
#endif

namespace ak::AK_ISA {

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(AK_VECTOR_BYTES)));
};

template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
using IntVec = typename VectorOf<typename IntOf<T>::type>::type;

template <class T>
inline constexpr int kLanes = AK_VECTOR_BYTES / int(sizeof(T));

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// The first n < kLanes entries at p, the rest zero.
template <class T>
inline Vec<T> load_first(const T* p, int n) {
  Vec<T> v{};
  std::memcpy(&v, p, sizeof(T) * size_t(n));
  return v;
}

// The per-lane operations the shared mathematics (csrc/common/activations.h) is written in.
template <class T>
struct VecOps {
  using Scalar = T;
  using V = Vec<T>;
  using I = IntVec<T>;

  static V constant(T x) { return broadcast<T>(x); }

  static V fma(V a, V b, V c) {
#if defined(__AVX512F__) && AK_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    else
      return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && AK_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    else
      return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__) && AK_VECTOR_BYTES == 16
    if constexpr (sizeof(T) == 4)
      return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
    else
      return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
  }

  // max and min return the second argument where either is NaN, so a constant first lets NaN through.
  // By intrinsics, because the ternary form costs a compare and a blend where signed zeros are honoured; the
  // masked AVX-512 forms, because GCC 12 warns of an uninitialised operand in the plain ones.
  static V max(V a, V b) {
#if defined(__AVX512F__) && AK_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_maskz_max_ps(__mmask16(-1), (__m512)a, (__m512)b);
    else
      return (V)_mm512_maskz_max_pd(__mmask8(-1), (__m512d)a, (__m512d)b);
#elif defined(__AVX2__) && AK_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_max_ps((__m256)a, (__m256)b);
    else
      return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
    return a > b ? a : b;
#endif
  }
  static V min(V a, V b) {
#if defined(__AVX512F__) && AK_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_maskz_min_ps(__mmask16(-1), (__m512)a, (__m512)b);
    else
      return (V)_mm512_maskz_min_pd(__mmask8(-1), (__m512d)a, (__m512d)b);
#elif defined(__AVX2__) && AK_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_min_ps((__m256)a, (__m256)b);
    else
      return (V)_mm256_min_pd((__m256d)a, (__m256d)b);
#else
    return a < b ? a : b;
#endif
  }
  static V select(I mask, V a, V b) { return mask ? a : b; }
  static I positive(V x) { return x > V{}; }
  static I negative(V x) { return x < V{}; }
  static V abs(V x) { return (V)((I)x & ~sign_bit()); }
  static V copy_sign(V magnitude, V sign) { return (V)(((I)magnitude & ~sign_bit()) | ((I)sign & sign_bit())); }

  // 2^k and k for the integer k nearest to x, |x| < 2^21.
  static V nearest(V x, V& power) {
    constexpr T magic = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^mantissa bits
    constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
    const V shifted = x + constant(magic);
    const I bits = (I)shifted - (I)constant(magic) + (sizeof(T) == 4 ? 127 : 1023);
    power = (V)(bits << mantissa);
    return shifted - constant(magic);
  }

 private:
  static I sign_bit() { return (I)constant(T(-0.0)); }
};

template <class T>
inline Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return VecOps<T>::fma(a, b, c);
}

template <class T, int bytes>
struct VectorOfBytes {
  typedef T type __attribute__((vector_size(bytes)));
};

// The halves of v joined by `op` until `left` lanes remain.
template <class T, int left, int bytes, class Op>
inline auto fold(typename VectorOfBytes<T, bytes>::type v, const Op& op) {
  if constexpr (bytes == left * int(sizeof(T))) {
    return v;
  } else {
    typename VectorOfBytes<T, bytes / 2>::type low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return fold<T, left, bytes / 2>(op(low, high), op);
  }
}

// A row copied into whole vectors, the padding zero.
template <class T>
inline void copy_padded(T* to, const T* from, int64_t n, int64_t padded) {
  std::memcpy(to, from, size_t(n) * sizeof(T));
  for (int64_t i = n; i < padded; ++i) to[i] = T(0);
}

// Lanes added pairwise, in an order that depends on the vector width alone.
template <class T>
inline T sum_lanes(Vec<T> v) {
  return fold<T, 1, AK_VECTOR_BYTES>(v, [](auto a, auto b) { return a + b; })[0];
}

// No lane NaN.
template <class T>
inline T largest_lane(Vec<T> v) {
  return fold<T, 1, AK_VECTOR_BYTES>(v, [](auto a, auto b) { return a > b ? a : b; })[0];
}

// The lanes of a and b in turn: of their first halves, or of their second.
template <class T, bool second, size_t... lane>
inline Vec<T> interleave(Vec<T> a, Vec<T> b, std::index_sequence<lane...>) {
  constexpr int from = second ? kLanes<T> / 2 : 0;
  return __builtin_shufflevector(a, b, (from + int(lane) / 2 + (lane % 2 ? kLanes<T> : 0))...);
}

// Lane l of a, or of b where l has the bit `half`; crossed: of lane l with that bit turned.
template <class T, int half, bool crossed, size_t... lane>
inline Vec<T> choose_halves(Vec<T> a, Vec<T> b, std::index_sequence<lane...>) {
  return __builtin_shufflevector(
      a, b, ((crossed ? int(lane) ^ half : int(lane)) + ((int(lane) & half) != 0 ? kLanes<T> : 0))...);
}

template <int n, class T, int half = kLanes<T> / 2, class Op>
inline void fold_pairs(Vec<T>* rest, const Op& op) {
  constexpr std::make_index_sequence<kLanes<T>> each{};
  if constexpr (half > 0) {
    constexpr int left = n > 1 ? n / 2 : 1;
    for (int i = 0; i < left; ++i) {
      const Vec<T> a = rest[i], b = rest[n > 1 ? i + left : i];
      rest[i] = op(choose_halves<T, half, false>(a, b, each), choose_halves<T, half, true>(a, b, each));
    }
    fold_pairs<left, T, half / 2>(rest, op);
  }
}

template <class T, int apart, size_t... lane>
inline Vec<T> gather_every(Vec<T> v, std::index_sequence<lane...>) {
  return __builtin_shufflevector(v, v, (int(lane) * apart % kLanes<T>)...);
}

// The lanes of n vectors, n a power of two, joined by `op` to one each, in the order of fold; for little more than the
// price of one.
template <int n, class T, class Op>
inline void fold_each(const Vec<T>* v, T* out, const Op& op) {
  if constexpr (n > kLanes<T>) {
    fold_each<n / 2>(v, out, op);
    fold_each<n / 2>(v + n / 2, out + n / 2, op);
  } else {
    constexpr std::make_index_sequence<kLanes<T>> each{};
    Vec<T> rest[n];
    for (int i = 0; i < n; ++i) rest[i] = v[i];
    fold_pairs<n, T>(rest, op);
    const Vec<T> last = gather_every<T, kLanes<T> / n>(rest[0], each);
    std::memcpy(out, &last, size_t(n) * sizeof(T));
  }
}

template <int n, class T>
inline void sum_lanes_of_each(const Vec<T>* v, T* out) {
  fold_each<n>(v, out, [](auto a, auto b) { return a + b; });
}

// No lane NaN.
template <int n, class T>
inline void largest_lane_of_each(const Vec<T>* v, T* out) {
  fold_each<n>(v, out, [](auto a, auto b) { return a > b ? a : b; });
}

// A square of kLanes vectors transposed.
template <class T>
inline void turn(Vec<T>* v) {
  constexpr int lanes = kLanes<T>;
  constexpr std::make_index_sequence<lanes> each{};
  for (int round = 1; round < lanes; round *= 2) {
    Vec<T> next[lanes];
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave<T, false>(v[i], v[i + lanes / 2], each);
      next[2 * i + 1] = interleave<T, true>(v[i], v[i + lanes / 2], each);
    }
    for (int i = 0; i < lanes; ++i) v[i] = next[i];
  }
}

// v with the lanes from n on zero, whatever they held.
template <class T>
inline Vec<T> keep_first(Vec<T> v, int64_t n) {
  using Int = typename IntOf<T>::type;
  IntVec<T> lane;
  for (int l = 0; l < kLanes<T>; ++l) lane[l] = l;
  return (Vec<T>)((IntVec<T>)v & (lane < Int(n) - IntVec<T>{}));
}

// A set of lanes, a bit each.
using LaneSet = uint32_t;

template <class T>
constexpr LaneSet kAllLanes = LaneSet((uint64_t(1) << kLanes<T>)-1);

template <class T>
inline IntVec<T> lane_mask(LaneSet set) {
  using Int = typename IntOf<T>::type;
  IntVec<T> bit;
  for (int l = 0; l < kLanes<T>; ++l) bit[l] = Int(1) << l;
  return (Int(set) & bit) != 0;
}

// The lanes where mask, all ones or all zeros in each, is set.
template <class T>
inline LaneSet lane_set(IntVec<T> mask) {
#if defined(__AVX512DQ__) && AK_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4)
    return LaneSet(_mm512_movepi32_mask((__m512i)mask));
  else
    return LaneSet(_mm512_movepi64_mask((__m512i)mask));
#elif defined(__AVX2__) && AK_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return LaneSet(_mm256_movemask_ps((__m256)mask));
  else
    return LaneSet(_mm256_movemask_pd((__m256d)mask));
#else
  LaneSet set = 0;
  for (int l = 0; l < kLanes<T>; ++l) set |= LaneSet(mask[l] & 1) << l;
  return set;
#endif
}

// body(lane) for every lane of a set.
template <class Body>
inline void for_lanes(LaneSet set, const Body& body) {
  for (; set != 0; set &= set - 1) body(__builtin_ctz(set));
}

// body(i, keep) over a row's vectors; keep(v) is v with the lanes past the row's end zero.
template <class T, class Body>
inline void for_row(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) body(i, [](Vec<T> v) { return v; });
  if (i < n) body(i, [valid = n - i](Vec<T> v) { return keep_first<T>(v, valid); });
}

}  // namespace ak::AK_ISA
