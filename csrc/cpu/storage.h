// States as they lie in memory (csrc/common/state_types.h), in vectors.
//
// load_wide and store_wide move one vector of the computing type; Whole and First name how much of it memory
// holds, so that one loop body serves full vectors and the tail.
#pragma once

#include "../common/state_types.h"
#include "simd.h"

namespace ak::AK_ISA {

typedef uint16_t HalfBits __attribute__((vector_size(AK_VECTOR_BYTES / 2)));
typedef uint32_t WideBits __attribute__((vector_size(AK_VECTOR_BYTES)));
constexpr int kHalfLanes = kLanes<float>;

inline Vec<float> widen(const BFloat16* p) {
  HalfBits h;
  std::memcpy(&h, p, sizeof h);
  return (Vec<float>)(__builtin_convertvector(h, WideBits) << 16);
}

// Round to nearest even; NaN stays NaN.
inline void narrow(BFloat16* p, Vec<float> v) {
  const WideBits bits = (WideBits)v;
  const WideBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const WideBits quiet = (bits >> 16) | 0x40;
  const HalfBits h = __builtin_convertvector(v == v ? rounded : quiet, HalfBits);
  std::memcpy(p, &h, sizeof h);
}

// Without the processor's own conversion: exponents are moved by a product with a power of two, which also
// normalises subnormals.
inline Vec<float> widen_portable(HalfBits h) {
  const WideBits wide = __builtin_convertvector(h, WideBits);
  const WideBits magnitude = (wide & 0x7fff) << 13;
  const Vec<float> scaled = (Vec<float>)magnitude * broadcast<float>(0x1p112f);
  const WideBits special = (WideBits)(magnitude >= (0x7c00u << 13));
  const WideBits bits = (special & (magnitude | 0x7f800000u)) | (~special & (WideBits)scaled);
  return (Vec<float>)(bits | ((wide & 0x8000) << 16));
}

inline HalfBits narrow_portable(Vec<float> v) {
  const WideBits bits = (WideBits)v;
  const WideBits sign = (bits >> 16) & 0x8000;
  const WideBits magnitude = bits & 0x7fffffff;
  // Normal results: shift with rounding to even and rebias. Subnormal ones: adding 0.5 aligns the last bit kept.
  const WideBits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const WideBits small = (WideBits)((Vec<float>)magnitude + broadcast<float>(0.5f)) - 0x3f000000u;
  const WideBits is_small = (WideBits)(magnitude < (113u << 23));
  const WideBits is_large = (WideBits)(magnitude >= 0x477ff000u);  // rounds to 65536 or more
  const WideBits is_nan = (WideBits)(magnitude > 0x7f800000u);
  WideBits half = (is_small & small) | (~is_small & normal);
  half = (is_large & 0x7c00) | (~is_large & half);
  half = (is_nan & 0x7e00) | (~is_nan & half);
  return __builtin_convertvector(half | sign, HalfBits);
}

inline Vec<float> widen(const Float16* p) {
  HalfBits h;
  std::memcpy(&h, p, sizeof h);
#if defined(__AVX512F__) && AK_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_maskz_cvtph_ps(__mmask16(-1), (__m256i)h);
#elif defined(__F16C__) && AK_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_cvtph_ps((__m128i)h);
#else
  return widen_portable(h);
#endif
}

inline void narrow(Float16* p, Vec<float> v) {
#if defined(__AVX512F__) && AK_VECTOR_BYTES == 64
  const HalfBits h = (HalfBits)_mm512_maskz_cvtps_ph(__mmask16(-1), (__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__) && AK_VECTOR_BYTES == 32
  const HalfBits h = (HalfBits)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  const HalfBits h = narrow_portable(v);
#endif
  std::memcpy(p, &h, sizeof h);
}

// A whole vector lies at p.
struct Whole {
  static Vec<float> load_wide(const float* p) { return load(p); }
  static Vec<double> load_wide(const double* p) { return load(p); }
  static Vec<float> load_wide(const BFloat16* p) { return widen(p); }
  static Vec<float> load_wide(const Float16* p) { return widen(p); }
  static void store_wide(float* p, Vec<float> v) { store(p, v); }
  static void store_wide(double* p, Vec<double> v) { store(p, v); }
  static void store_wide(BFloat16* p, Vec<float> v) { narrow(p, v); }
  static void store_wide(Float16* p, Vec<float> v) { narrow(p, v); }
};

// Only the first `count` entries lie at p; the others load as zero and are not stored.
struct First {
  int count;

  template <class T>
  Vec<Wide<T>> load_wide(const T* p) const {
    T lane[kLanes<Wide<T>>] = {};
    for (int i = 0; i < count; ++i) lane[i] = p[i];
    return Whole::load_wide(lane);
  }
  template <class T>
  void store_wide(T* p, Vec<Wide<T>> v) const {
    T lane[kLanes<Wide<T>>];
    Whole::store_wide(lane, v);
    for (int i = 0; i < count; ++i) p[i] = lane[i];
  }
};

// The value v has once stored as T.
template <class T>
inline Vec<Wide<T>> as_stored(Vec<Wide<T>> v) {
  if constexpr (sizeof(T) == sizeof(Wide<T>)) {
    return v;
  } else {
    T lane[kLanes<Wide<T>>];
    Whole::store_wide(lane, v);
    return Whole::load_wide(lane);
  }
}

// body(offset, access) over n entries, a vector at a time.
template <class W, class Body>
inline void for_vectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<W> <= n; i += kLanes<W>) body(i, Whole{});
  if (i < n) body(i, First{int(n - i)});
}

}  // namespace ak::AK_ISA
