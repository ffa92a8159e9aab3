// States as they lie in memory (csrc/common/state_types.h), entry by entry on both sides. The conversions of the host
// are for the tests that run the kernels' text there.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/state_types.h"
#include "../common/stopping.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define AK_DEVICE __device__ __forceinline__
#else
#define AK_DEVICE inline
#endif

namespace ak::cuda {

// n, or the next multiple of unit.
constexpr int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

AK_DEVICE float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
AK_DEVICE uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

AK_DEVICE float widen(float x) { return x; }
AK_DEVICE double widen(double x) { return x; }
AK_DEVICE float widen(BFloat16 x) { return float_of_bits(uint32_t(x.bits) << 16); }
AK_DEVICE float widen(Float16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  // Exponents are moved by a product with a power of two, which also normalises subnormals.
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  const uint32_t bits =
      magnitude >= 0x7c00u << 13 ? magnitude | 0x7f800000u : bits_of_float(float_of_bits(magnitude) * 0x1p112f);
  return float_of_bits(bits | uint32_t(x.bits & 0x8000u) << 16);
#endif
}

template <class T>
AK_DEVICE T narrow(Wide<T> x) {
  return x;
}
// Rounded to nearest, ties to even; NaN stays NaN.
template <>
AK_DEVICE BFloat16 narrow<BFloat16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  const uint32_t bits = bits_of_float(x);
  return {uint16_t(x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}
template <>
AK_DEVICE Float16 narrow<Float16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000u)
    half = 0x7e00;
  else if (magnitude >= 0x477ff000u)  // rounds to 65536 or more
    half = 0x7c00;
  else if (magnitude < 113u << 23)  // subnormal: adding 0.5 aligns the last bit kept
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  else
    half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  return {uint16_t(half | sign)};
#endif
}

// n neighbouring entries, moved in one access: 16 bytes where n is kPerAccess<T>.
template <class T>
inline constexpr int kPerAccess = 16 / int(sizeof(T));

template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T v[n];
};

template <int n, class T>
AK_DEVICE Pack<T, n> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, n>*>(p);
}
template <int n, class T>
AK_DEVICE void store_pack(T* p, const Pack<T, n>& x) {
  *reinterpret_cast<Pack<T, n>*>(p) = x;
}

// The same where p is known to be in global memory, whatever the compiler can see of where p came from.
template <int n, class T>
AK_DEVICE Pack<T, n> load_global(const T* p) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(p));
#endif
  return load_pack<n>(p);
}
template <int n, class T>
AK_DEVICE void store_global(T* p, const Pack<T, n>& x) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(p));
#endif
  store_pack<n>(p, x);
}

// Hides where x comes from, so that what follows from it is reckoned anew each time, not kept in registers over a loop.
AK_DEVICE void reckon_anew(int& x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#else
  (void)x;
#endif
}
AK_DEVICE void reckon_anew(int64_t& x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x));
#else
  (void)x;
#endif
}

AK_DEVICE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
AK_DEVICE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

}  // namespace ak::cuda
