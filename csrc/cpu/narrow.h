// Products of changes in few bits: a += W d for the change d of x, with W and d in 8 or 16 bits.
//
// d is rounded to a multiple of its own largest entry / 127 (or to bfloat16), and what rounding leaves behind stays
// in the next d: `last` is the x that a stands for, so that a errs by the rounding of W alone, in proportion to the
// distance from where it was last computed in full. csrc/common/mixed_precision.h decides when that is.
#pragma once

#include "../common/mixed_precision.h"
#include "gemm.h"

// Integer products are four times as fast as float32's, bfloat16's twice.
#if defined(AK_EMULATE_NARROW) || (defined(__AVX512VNNI__) && AK_VECTOR_BYTES == 64)
#define AK_HAS_INT8 1
#else
#define AK_HAS_INT8 0
#endif
#if defined(AK_EMULATE_NARROW) || (defined(__AVX512BF16__) && AK_VECTOR_BYTES == 64)
#define AK_HAS_BFLOAT16 1
#else
#define AK_HAS_BFLOAT16 0
#endif

namespace ak::AK_ISA {

typedef uint8_t Bytes __attribute__((vector_size(AK_VECTOR_BYTES / 4)));
typedef uint16_t Halves __attribute__((vector_size(AK_VECTOR_BYTES / 2)));

// The lowest byte of each entry. By intrinsics, because GCC 12 may take the entries apart one by one.
inline Bytes lowest_bytes(Vec<int32_t> x) {
#if defined(__AVX512F__) && AK_VECTOR_BYTES == 64
  return (Bytes)_mm512_maskz_cvtepi32_epi8(__mmask16(-1), (__m512i)x);
#else
  return __builtin_convertvector(x, Bytes);
#endif
}

// The nearest integers to x in signed bytes, or about the largest of its sign for |x| < 2^31, with the bits of `flip`
// turned. Any bytes for what is larger, or NaN.
inline Bytes nearest_bytes(Vec<float> x, uint8_t flip) {
#if defined(__AVX512F__) && AK_VECTOR_BYTES == 64
  const __m512i whole = _mm512_maskz_cvtps_epi32(__mmask16(-1), (__m512)x);
  return (Bytes)_mm512_maskz_cvtsepi32_epi8(__mmask16(-1), whole) ^ flip;
#else
  const Vec<float> most = broadcast<float>(127.0f), magic = broadcast<float>(12582912.0f);  // 1.5 * 2^23
  const Vec<float> shifted = VecOps<float>::max(-most, VecOps<float>::min(most, x)) + magic;
  return __builtin_convertvector((Vec<int32_t>)shifted, Bytes) ^ flip;
#endif
}

// The nearest integers to x, |x| < 2^22, as numbers and as themselves.
struct Rounded {
  Vec<float> value;
  Vec<int32_t> integer;
};
inline Rounded round_to_integer(Vec<float> x) {
  const Vec<float> magic = broadcast<float>(12582912.0f);  // 1.5 * 2^23
  const Vec<float> shifted = x + magic;
  return {shifted - magic, (Vec<int32_t>)shifted - (Vec<int32_t>)magic};
}

// n numbers of float64 as float32, and zeros to whole vectors.
inline void row_to_float32(const double* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = float(from[i]);
  for (int64_t i = n; i < round_up(n, kLanes<float>); ++i) to[i] = 0;
}

// A matrix of float64 as float32, its rows `ld` apart.
inline Matrix<float> matrix_to_float32(const Matrix<double>& m, int64_t ld, float* to) {
  for (int64_t i = 0; i < m.outputs; ++i)
    for (int64_t j = 0; j < m.inputs; ++j) to[i * ld + j] = float(m.data[i * m.output_stride + j * m.input_stride]);
  return {to, m.outputs, m.inputs, ld, 1};
}

// What is known of the distance from a row's x to what its product stands for.
template <class T>
struct Travel {
  T largest = T(-1);   // of its entries, in size; negative: not known
  double square = -1;  // of all of it; negative: not known
};

// A largest entry below which its share in 127 is no unit to count in: its inverse is not finite.
constexpr float kLeastScaled = 1e-36f;

// Whether entries of this largest size can be counted in shares of it. Above, they are not finite.
inline bool countable(float largest) { return largest > kLeastScaled && largest < 1e38f; }

// Of products by digits (digit_product.h): full ones this often, by the squared residual, since float32 sums of a far
// larger x are off by 2^-24 of that.
constexpr double kDigitRefresh2 = 1e-10;

// A row's change on its way into the product.
struct Change {
  uint32_t* units;        // 4 bytes each: of 8 or 16 bits an entry
  const float* diagonal;  // of W, to be multiplied in float32; or null
  float* product;
  float largest;  // of its entries, in size; negative: not known yet
  float scale;
};

// Four neighbouring entries a unit. Those of d are unsigned, 128 more than they stand for, as the instruction wants
// one operand; `start` makes up for it.
struct Int8Product {
  using Input = uint32_t;
  using Output = float;
  using Sum = Vec<int32_t>;
  static constexpr bool kAdds = true;  // to what is there, from the first slice on
  static constexpr int kPerUnit = 4;
  // Rounding of W is about 1 / 127 of its largest entries: full products this often, by the squared residual.
  static constexpr double kRefresh2 = 3e-3;
  // Largest rounding error of W, relative to W, that leaves most of that gain.
  static constexpr double kMostError = 0.03;

  const int32_t* start;  // of the slice, [outputs]: -128 times its sum of W's integers
  const float* w_scale;  // [outputs]
  const float* x_scale;  // [rows]
  int64_t outputs;       // in whole vectors

  template <bool>
  Sum begin(const float*, int64_t column) const {
    return load(start + column);
  }
  static Sum multiply_add(uint32_t x, Vec<uint32_t> w, Sum sum) {
#if defined(__AVX512VNNI__) && AK_VECTOR_BYTES == 64
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(int(x)), (__m512i)w);
#else
    for (int bit = 0; bit < 32; bit += 8) {
      const Sum weight = (Sum)(w << (24 - bit)) >> 24;
      sum += weight * int32_t((x >> bit) & 255);
    }
    return sum;
#endif
  }
  void end(int r, float* out, int64_t column, Sum sum) const {
    const Vec<float> scale = broadcast<float>(x_scale[r]) * load(w_scale + column);
    store(out, fma<float>(__builtin_convertvector(sum, Vec<float>), scale, load(out)));
  }
  Int8Product slice(int index) const { return {start + index * outputs, w_scale, x_scale, outputs}; }
  Int8Product from_row(int first) const { return {start, w_scale, x_scale + first, outputs}; }

  static float largest_change(const float* x, const float* last, int64_t inputs) {
    Vec<float> most{};
    for_row<float>(inputs, [&](int64_t i, auto keep) {
      most = VecOps<float>::max(most, VecOps<float>::abs(keep(load(x + i) - load(last + i))));
    });
    return largest_lane<float>(most);
  }

  static void take_change(const float* x, float* last, int64_t inputs, Change& change) {
    const float largest = change.largest < 0 ? largest_change(x, last, inputs) : change.largest;
    // Above, a difference is not finite: nothing moves, and the residual tells.
    const bool sane = countable(largest);
    change.scale = sane ? largest / 127.0f : 0.0f;
    const Vec<float> inverse = broadcast<float>(sane ? 127.0f / largest : 0.0f);
    const Vec<float> scale = broadcast<float>(change.scale);
    uint8_t* const bytes = reinterpret_cast<uint8_t*>(change.units);
    for_row<float>(inputs, [&](int64_t i, auto keep) {
      const Vec<float> before = load(last + i);
      const Rounded q = round_to_integer(keep(load(x + i) - before) * inverse);
      store(last + i, fma<float>(q.value, scale, before));
      if (change.diagonal != nullptr)
        store(change.product + i, fma<float>(q.value * scale, load(change.diagonal + i), load(change.product + i)));
      const Bytes narrow = lowest_bytes(q.integer + 128);
      std::memcpy(bytes + i, &narrow, sizeof narrow);
    });
  }

  // One panel of packed float32 weights; adds up |W|^2 and the squared rounding error.
  static void pack_panel(const float* from, int inputs, int width, uint32_t* to, float* scale, int32_t* start,
                         int64_t outputs, double& norm2, double& error2) {
    constexpr int lanes = kLanes<float>;
    for (int v = 0; v < width; v += lanes) {
      Vec<float> most{};
      for (int64_t k = 0; k < inputs; ++k)
        most = VecOps<float>::max(most, VecOps<float>::abs(load(from + k * width + v)));
      const Vec<float> unit = most / broadcast<float>(127.0f);
      const Vec<float> inverse =
          VecOps<float>::select(most > broadcast<float>(kLeastScaled), broadcast<float>(127.0f) / most, Vec<float>{});
      store(scale + v, unit);
      Vec<float> norm{}, error{};
      Vec<int32_t> sum{};
      const int units = (inputs + kPerUnit - 1) / kPerUnit;
      for (int64_t unit_at = 0; unit_at < units; ++unit_at) {
        Vec<uint32_t> packed{};
        for (int j = 0; j < kPerUnit; ++j) {
          const int64_t k = unit_at * kPerUnit + j;
          if (k >= inputs) break;
          const Vec<float> w = load(from + k * width + v);
          const Rounded q = round_to_integer(w * inverse);
          const Vec<float> off = fma<float>(-q.value, unit, w);
          norm = fma<float>(w, w, norm);
          error = fma<float>(off, off, error);
          sum += q.integer;
          packed |= ((Vec<uint32_t>)q.integer & 255u) << (8 * j);
        }
        store(to + unit_at * width + v, packed);
        if ((unit_at + 1) % kDepth == 0 || unit_at + 1 == units) {
          store(start + unit_at / kDepth * outputs + v, sum * -128);
          sum = Vec<int32_t>{};
        }
      }
      norm2 += double(sum_lanes<float>(norm));
      error2 += double(sum_lanes<float>(error));
    }
  }
};

// Rounded to nearest, ties to even, in the low half; x finite.
inline Vec<uint32_t> bfloat16_bits(Vec<float> x) {
  const Vec<uint32_t> bits = (Vec<uint32_t>)x;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Two neighbouring entries a unit, even index in the low half, summed in float32: for weights that 8 bits do not hold.
struct Bfloat16Product {
  using Input = uint32_t;
  using Output = float;
  using Sum = Vec<float>;
  static constexpr bool kAdds = true;
  static constexpr int kPerUnit = 2;
  static constexpr double kRefresh2 = kBfloat16Refresh2;
  static constexpr double kMostError = 0.02;

  template <bool>
  Sum begin(const float* out, int64_t) const {
    return load(out);
  }
  static Sum multiply_add(uint32_t x, Vec<uint32_t> w, Sum sum) {
#if defined(__AVX512BF16__) && AK_VECTOR_BYTES == 64
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(x)), (__m512bh)w);
#else
    const Vec<uint32_t> pair = broadcast<uint32_t>(x);
    const Vec<uint32_t> high = broadcast<uint32_t>(0xffff0000u);
    sum = fma<float>((Vec<float>)(pair & high), (Vec<float>)(w & high), sum);
    return fma<float>((Vec<float>)(pair << 16), (Vec<float>)(w << 16), sum);
#endif
  }
  void end(int, float* out, int64_t, Sum sum) const { store(out, sum); }
  Bfloat16Product slice(int) const { return *this; }
  Bfloat16Product from_row(int) const { return *this; }

  static void take_change(const float* x, float* last, int64_t inputs, Change& change) {
    uint16_t* const halves = reinterpret_cast<uint16_t*>(change.units);
    for_row<float>(inputs, [&](int64_t i, auto keep) {
      const Vec<float> before = load(last + i);
      const Vec<uint32_t> rounded = bfloat16_bits(keep(load(x + i) - before));
      store(last + i, before + (Vec<float>)(rounded << 16));
      const Halves narrow = __builtin_convertvector(rounded, Halves);
      std::memcpy(halves + i, &narrow, sizeof narrow);
    });
  }

  static void pack_panel(const float* from, int inputs, int width, uint32_t* to, float*, int32_t*, int64_t,
                         double& norm2, double& error2) {
    for (int v = 0; v < width; v += kLanes<float>) {
      Vec<float> norm{}, error{};
      for (int64_t k = 0; k < inputs; k += kPerUnit) {
        Vec<uint32_t> packed{};
        for (int64_t j = 0; j < kPerUnit && k + j < inputs; ++j) {
          const Vec<float> w = load(from + (k + j) * width + v);
          const Vec<uint32_t> bits = bfloat16_bits(w);
          const Vec<float> off = w - (Vec<float>)(bits << 16);
          norm = fma<float>(w, w, norm);
          error = fma<float>(off, off, error);
          packed |= bits << uint32_t(16 * j);
        }
        store(to + k / kPerUnit * width + v, packed);
      }
      norm2 += double(sum_lanes<float>(norm));
      error2 += double(sum_lanes<float>(error));
    }
  }
};

}  // namespace ak::AK_ISA
