// Products of a few state rows with packed weights: out[i] (+)= W x[i], the one kernel under every cell.
//
// Weights are packed into column panels, panel[k][width], so that the inner loop reads them in order; a block
// of kMaxRows rows by kPanelVectors vectors of outputs stays in registers over the whole inner loop. Entry
// (i, n) is one chain of fma over k in order, whatever block it is computed in: that, and nothing else, makes a
// row's result independent of the rows beside it.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace ak::AK_ISA {

#if AK_VECTOR_BYTES == 64
constexpr int kMaxRows = 6;
constexpr int kPanelVectors = 4;  // 24 of 32 registers accumulate
constexpr int kDepth = 128;       // a panel slice of kDepth stays in the first-level cache
#else
constexpr int kMaxRows = 6;
constexpr int kPanelVectors = 2;  // 12 of 16
constexpr int kDepth = 256;
#endif

// How one entry of a row meets a vector of weights. Exact: as they are.
template <class T>
struct Exact {
  using Input = T;
  using Output = T;
  static Vec<T> multiply_add(T x, Vec<T> w, Vec<T> sum) { return fma<T>(broadcast<T>(x), w, sum); }
};

// Two neighbouring inputs at a time, each rounded to bfloat16 (even index in the low half), summed in float32.
struct Bfloat16Pairs {
  using Input = uint32_t;
  using Output = float;
  static Vec<float> multiply_add(uint32_t x, Vec<uint32_t> w, Vec<float> sum) {
#if defined(__AVX512BF16__) && AK_VECTOR_BYTES == 64
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(x)), (__m512bh)w);
#else
    const Vec<uint32_t> pair = broadcast<uint32_t>(x);
    const Vec<uint32_t> high = broadcast<uint32_t>(0xffff0000u);
    sum = fma<float>((Vec<float>)(pair & high), (Vec<float>)(w & high), sum);
    return fma<float>((Vec<float>)(pair << 16), (Vec<float>)(w << 16), sum);
#endif
  }
};

// Rounded to nearest, ties to even; x finite.
inline uint32_t bfloat16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

template <class T>
struct PackedMatrix {
  T* data;
  int outputs, inputs;

  static int64_t size(int64_t outputs, int64_t inputs) { return round_up(outputs, kLanes<T>) * inputs; }
  int vectors() const { return int(round_up(outputs, kLanes<T>) / kLanes<T>); }
  int panels() const { return (vectors() + kPanelVectors - 1) / kPanelVectors; }
  int panel_vectors(int panel) const {
    const int left = vectors() - panel * kPanelVectors;
    return left < kPanelVectors ? left : kPanelVectors;
  }
  T* panel(int index) const { return data + int64_t(index) * kPanelVectors * kLanes<T> * inputs; }
};

template <class T>
void pack_panel(const Matrix<T>& w, const PackedMatrix<T>& packed, int panel) {
  const int width = packed.panel_vectors(panel) * kLanes<T>;
  const int64_t first = int64_t(panel) * kPanelVectors * kLanes<T>;
  T* out = packed.panel(panel);
  const int64_t valid = w.outputs - first < width ? w.outputs - first : width;
  constexpr int64_t kTile = 16;  // both strides stay in cache over a tile
  for (int64_t k0 = 0; k0 < w.inputs; k0 += kTile) {
    const int64_t k1 = k0 + kTile < w.inputs ? k0 + kTile : w.inputs;
    for (int64_t n = 0; n < width; ++n) {
      const T* row = w.data + (first + n) * w.output_stride;
      for (int64_t k = k0; k < k1; ++k) out[k * width + n] = n < valid ? row[k * w.input_stride] : T(0);
    }
  }
}

// The same panel of bfloat16 pairs; an odd last input is paired with zero.
inline void pack_panel(const Matrix<float>& w, const PackedMatrix<uint32_t>& packed, int panel) {
  const int width = packed.panel_vectors(panel) * kLanes<float>;
  const int64_t first = int64_t(panel) * kPanelVectors * kLanes<float>;
  uint32_t* out = packed.panel(panel);
  const int64_t valid = w.outputs - first < width ? w.outputs - first : width;
  for (int64_t k = 0; k < packed.inputs; ++k) {
    for (int64_t n = 0; n < width; ++n) {
      const float* entry = w.data + (first + n) * w.output_stride + 2 * k * w.input_stride;
      const uint32_t low = n < valid ? bfloat16_bits(*entry) : 0;
      const uint32_t high = n < valid && 2 * k + 1 < w.inputs ? bfloat16_bits(entry[w.input_stride]) : 0;
      out[k * width + n] = low | high << 16;
    }
  }
}

// Rows of one block: x[r][0 .. depth) times `panels` adjacent panels of `vectors` vectors each, stored to (or
// added onto) out[r][column ...). Few rows take several panels at once, or the chains of fma would wait for each
// other.
template <class Product, int rows, int vectors, int panels>
inline void multiply_block(const typename Product::Input* const* x, int depth, const typename Product::Input* panel,
                           int64_t panel_size, typename Product::Output* const* out, int64_t column, bool add) {
  using T = typename Product::Output;
  constexpr int lanes = kLanes<T>;
  constexpr int wide = vectors * panels;
  Vec<T> sum[rows][wide];
  const typename Product::Input* in[rows];
  for (int r = 0; r < rows; ++r) in[r] = x[r];
  if (add) {
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < wide; ++v) sum[r][v] = load(out[r] + column + v * lanes);
  } else {
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < wide; ++v) sum[r][v] = Vec<T>{};
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Vec<typename Product::Input> w[wide];
#pragma GCC unroll 8
    for (int p = 0; p < panels; ++p)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) w[p * vectors + v] = load(panel + p * panel_size + v * lanes);
    panel += vectors * lanes;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 24
      for (int v = 0; v < wide; ++v) sum[r][v] = Product::multiply_add(in[r][k], w[v], sum[r][v]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < wide; ++v) store(out[r] + column + v * lanes, sum[r][v]);
}

// One panel and 1..kMaxRows rows.
template <class Product, int vectors>
inline void multiply_panel(int rows, const typename Product::Input* const* x, int depth,
                           const typename Product::Input* panel, typename Product::Output* const* out, int64_t column,
                           bool add) {
  switch (rows) {
    case 1:
      return multiply_block<Product, 1, vectors, 1>(x, depth, panel, 0, out, column, add);
    case 2:
      return multiply_block<Product, 2, vectors, 1>(x, depth, panel, 0, out, column, add);
    case 3:
      return multiply_block<Product, 3, vectors, 1>(x, depth, panel, 0, out, column, add);
    case 4:
      return multiply_block<Product, 4, vectors, 1>(x, depth, panel, 0, out, column, add);
    case 5:
      return multiply_block<Product, 5, vectors, 1>(x, depth, panel, 0, out, column, add);
    default:
      return multiply_block<Product, 6, vectors, 1>(x, depth, panel, 0, out, column, add);
  }
}

template <class Product>
inline void multiply_any_panel(int vectors, int rows, const typename Product::Input* const* x, int depth,
                               const typename Product::Input* panel, typename Product::Output* const* out,
                               int64_t column, bool add) {
  switch (vectors) {
    case 1:
      return multiply_panel<Product, 1>(rows, x, depth, panel, out, column, add);
#if AK_VECTOR_BYTES == 64
    case 2:
      return multiply_panel<Product, 2>(rows, x, depth, panel, out, column, add);
    case 3:
      return multiply_panel<Product, 3>(rows, x, depth, panel, out, column, add);
#endif
    default:
      return multiply_panel<Product, kPanelVectors>(rows, x, depth, panel, out, column, add);
  }
}

constexpr int kMaxTile = 48;  // rows a tile can hold

// out[i][0 .. round_up(outputs)) = W x[i], or += with `onto`, for i in [0, n): rows may lie anywhere; n <= kMaxTile.
template <class Product>
void multiply_rows(const PackedMatrix<typename Product::Input>& w, int n, const typename Product::Input* const* x,
                   typename Product::Output* const* out, bool onto = false) {
  constexpr int width = kPanelVectors * kLanes<typename Product::Output>;
  const int blocks = (n + kMaxRows - 1) / kMaxRows;
  const int whole = w.vectors() / kPanelVectors;
  const int64_t panel_size = int64_t(w.inputs) * width;
  const typename Product::Input* slice[kMaxTile];
  for (int k0 = 0; k0 < w.inputs; k0 += kDepth) {
    const int depth = w.inputs - k0 < kDepth ? w.inputs - k0 : kDepth;
    const bool add = onto || k0 > 0;
    for (int i = 0; i < n; ++i) slice[i] = x[i] + k0;
    int p = 0;
    const auto grouped = [&]<int rows, int group>() {
      for (; p + group <= whole; p += group)
        multiply_block<Product, rows, kPanelVectors, group>(slice, depth, w.panel(p) + int64_t(k0) * width, panel_size,
                                                            out, int64_t(p) * width, add);
    };
    if (n == 1) grouped.template operator()<1, 4>();
    if (n == 2) grouped.template operator()<2, 3>();
    if (n == 3) grouped.template operator()<3, 2>();
    for (; p < w.panels(); ++p) {
      const int vectors = w.panel_vectors(p);
      const auto* panel = w.panel(p) + int64_t(k0) * vectors * kLanes<typename Product::Output>;
      for (int b = 0; b < blocks; ++b) {
        // n rows in blocks of nearly equal height
        const int first = n * b / blocks, rows = n * (b + 1) / blocks - first;
        multiply_any_panel<Product>(vectors, rows, slice + first, depth, panel, out + first, int64_t(p) * width, add);
      }
    }
  }
}

template <class T>
void multiply(const PackedMatrix<T>& w, int n, const T* const* x, T* const* out) {
  multiply_rows<Exact<T>>(w, n, x, out);
}

}  // namespace ak::AK_ISA
