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

// How sums of products begin, take in one entry of a row and a vector of weights, and end in `out`; `column` is the
// first output of the vector. A product may differ by slices of the inputs and by rows (csrc/cpu/narrow.h).
template <class T>
struct Exact {  // as they are
  using Input = T;
  using Output = T;
  using Sum = Vec<T>;
  static constexpr bool kAdds = false;

  template <bool add>
  Sum begin(const T* out, int64_t) const {
    if constexpr (add) return load(out);
    return Sum{};
  }
  static Sum multiply_add(T x, Vec<T> w, Sum sum) { return fma<T>(broadcast<T>(x), w, sum); }
  void end(int, T* out, int64_t, Sum sum) const { store(out, sum); }

  Exact slice(int) const { return *this; }
  Exact from_row(int) const { return *this; }
};

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

// out[k * width + n] for one vector of outputs n and every input k: `lanes` rows of weights, contiguous, turned over in
// registers.
template <class T>
inline void pack_turned(const T* row, int64_t stride, int64_t inputs, T* out, int64_t width) {
  constexpr int lanes = kLanes<T>;
  int64_t k = 0;
  for (; k + lanes <= inputs; k += lanes) {
    Vec<T> v[lanes];
    for (int n = 0; n < lanes; ++n) {
      v[n] = load(row + n * stride + k);
      // Rows lie too far apart for the processor to foresee them.
      __builtin_prefetch(row + n * stride + k + 8 * lanes);
    }
    turn<T>(v);
    for (int n = 0; n < lanes; ++n) store(out + (k + n) * width, v[n]);
  }
  for (; k < inputs; ++k)
    for (int n = 0; n < lanes; ++n) out[k * width + n] = row[n * stride + k];
}

template <class T>
void pack_panel(const Matrix<T>& w, const PackedMatrix<T>& packed, int panel) {
  constexpr int lanes = kLanes<T>;
  const int width = packed.panel_vectors(panel) * lanes;
  const int64_t first = int64_t(panel) * kPanelVectors * lanes;
  T* const out = packed.panel(panel);
  const int64_t valid = w.outputs - first < width ? w.outputs - first : width;
  const T* const data = w.data + first * w.output_stride;
  if (w.output_stride == 1) {
    for (int64_t k = 0; k < w.inputs; ++k) copy_padded(out + k * width, data + k * w.input_stride, valid, width);
    return;
  }
  int64_t n = 0;
  if (w.input_stride == 1)
    for (; n + lanes <= valid; n += lanes)
      pack_turned(data + n * w.output_stride, w.output_stride, w.inputs, out + n, width);
  for (; n < width; ++n) {
    const T* const row = data + n * w.output_stride;
    for (int64_t k = 0; k < w.inputs; ++k) out[k * width + n] = n < valid ? row[k * w.input_stride] : T(0);
  }
}

// The weights of one vector of outputs from `output` on and `width` inputs from `input` on, output by output, zeros
// beyond the end of W; width is whole vectors.
template <class T>
void gather_outputs(const Matrix<T>& w, int64_t output, int64_t input, int64_t width, T* to) {
  constexpr int lanes = kLanes<T>;
  const int64_t outputs = w.outputs - output < lanes ? w.outputs - output : lanes;
  const int64_t inputs = w.inputs - input < width ? w.inputs - input : width;
  const T* const from = w.data + output * w.output_stride + input * w.input_stride;
  if (outputs < lanes || inputs < width) std::memset(to, 0, sizeof(T) * size_t(lanes * width));
  if (w.input_stride == 1) {
    for (int64_t n = 0; n < outputs; ++n)
      std::memcpy(to + n * width, from + n * w.output_stride, sizeof(T) * size_t(inputs));
    return;
  }
  int64_t k = 0;
  if (w.output_stride == 1 && outputs == lanes)
    for (; k + lanes <= inputs; k += lanes) {
      Vec<T> v[lanes];
      for (int j = 0; j < lanes; ++j) v[j] = load(from + (k + j) * w.input_stride);
      turn<T>(v);
      for (int n = 0; n < lanes; ++n) store(to + n * width + k, v[n]);
    }
  for (; k < inputs; ++k)
    for (int64_t n = 0; n < outputs; ++n) to[n * width + k] = from[n * w.output_stride + k * w.input_stride];
}

// Whether an output whose weights have this largest size, NaN left out, and this sum of sizes is for the matrix unit:
// not where one is not finite, where parts of their products could overflow, or where what is left of a weight after
// its first bits is no normal number.
inline bool fit_for_unit(float largest, float sum) { return sum <= 1e25f && (largest >= 1e-25f || sum == 0); }

// Rows of one block: x[r][0 .. depth) times `panels` adjacent panels of `vectors` vectors each, to out[r][column ...),
// or onto what is there. Few rows take several panels at once, or the chains of fma would wait for each other.
template <class Product, int rows, int vectors, int panels, bool add>
inline void multiply_block(const Product& product, const typename Product::Input* const* x, int depth,
                           const typename Product::Input* panel, int64_t panel_size,
                           typename Product::Output* const* out, int64_t column) {
  constexpr int lanes = kLanes<typename Product::Output>;
  constexpr int wide = vectors * panels;
  typename Product::Sum sum[rows][wide];
  const typename Product::Input* in[rows];
  for (int r = 0; r < rows; ++r) in[r] = x[r];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < wide; ++v)
      sum[r][v] = product.template begin<add>(out[r] + column + v * lanes, column + v * lanes);
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
    for (int v = 0; v < wide; ++v) product.end(r, out[r] + column + v * lanes, column + v * lanes, sum[r][v]);
}

// One panel and 1..kMaxRows rows.
template <class Product, int vectors, bool add>
inline void multiply_panel(const Product& product, int rows, const typename Product::Input* const* x, int depth,
                           const typename Product::Input* panel, typename Product::Output* const* out, int64_t column) {
  switch (rows) {
    case 1:
      return multiply_block<Product, 1, vectors, 1, add>(product, x, depth, panel, 0, out, column);
    case 2:
      return multiply_block<Product, 2, vectors, 1, add>(product, x, depth, panel, 0, out, column);
    case 3:
      return multiply_block<Product, 3, vectors, 1, add>(product, x, depth, panel, 0, out, column);
    case 4:
      return multiply_block<Product, 4, vectors, 1, add>(product, x, depth, panel, 0, out, column);
    case 5:
      return multiply_block<Product, 5, vectors, 1, add>(product, x, depth, panel, 0, out, column);
    default:
      return multiply_block<Product, 6, vectors, 1, add>(product, x, depth, panel, 0, out, column);
  }
}

template <class Product, bool add>
inline void multiply_any_panel(const Product& product, int vectors, int rows, const typename Product::Input* const* x,
                               int depth, const typename Product::Input* panel, typename Product::Output* const* out,
                               int64_t column) {
  switch (vectors) {
    case 1:
      return multiply_panel<Product, 1, add>(product, rows, x, depth, panel, out, column);
#if AK_VECTOR_BYTES == 64
    case 2:
      return multiply_panel<Product, 2, add>(product, rows, x, depth, panel, out, column);
    case 3:
      return multiply_panel<Product, 3, add>(product, rows, x, depth, panel, out, column);
#endif
    default:
      return multiply_panel<Product, kPanelVectors, add>(product, rows, x, depth, panel, out, column);
  }
}

constexpr int kMaxTile = 48;  // rows a tile can hold

// One slice of the inputs, x[i][0 .. depth), of all panels; offset: its place in a panel, in inputs.
template <class Product, bool add>
inline void multiply_slice(const Product& product, const PackedMatrix<typename Product::Input>& w, int n,
                           const typename Product::Input* const* x, int offset, int depth,
                           typename Product::Output* const* out) {
  constexpr int width = kPanelVectors * kLanes<typename Product::Output>;
  const int blocks = (n + kMaxRows - 1) / kMaxRows;
  const int whole = w.vectors() / kPanelVectors;
  const int64_t panel_size = int64_t(w.inputs) * width;
  int p = 0;
  const auto grouped = [&]<int rows, int group>() {
    for (; p + group <= whole; p += group)
      multiply_block<Product, rows, kPanelVectors, group, add>(product, x, depth, w.panel(p) + int64_t(offset) * width,
                                                               panel_size, out, int64_t(p) * width);
  };
  if (n == 1) grouped.template operator()<1, 4>();
  if (n == 2) grouped.template operator()<2, 3>();
  if (n == 3) grouped.template operator()<3, 2>();
  for (; p < w.panels(); ++p) {
    const int vectors = w.panel_vectors(p);
    const auto* panel = w.panel(p) + int64_t(offset) * vectors * kLanes<typename Product::Output>;
    for (int b = 0; b < blocks; ++b) {
      // n rows in blocks of nearly equal height
      const int first = n * b / blocks, rows = n * (b + 1) / blocks - first;
      multiply_any_panel<Product, add>(product.from_row(first), vectors, rows, x + first, depth, panel, out + first,
                                       int64_t(p) * width);
    }
  }
}

// out[i][0 .. round_up(outputs)) = W x[i] for i in [0, n): rows may lie anywhere; n <= kMaxTile. A product that adds
// to `out` from the start does so here too.
template <class Product>
void multiply_rows(const Product& product, const PackedMatrix<typename Product::Input>& w, int n,
                   const typename Product::Input* const* x, typename Product::Output* const* out) {
  const typename Product::Input* slice[kMaxTile];
  for (int k0 = 0; k0 < w.inputs; k0 += kDepth) {
    const int depth = w.inputs - k0 < kDepth ? w.inputs - k0 : kDepth;
    for (int i = 0; i < n; ++i) slice[i] = x[i] + k0;
    const Product part = product.slice(k0 / kDepth);
    if (Product::kAdds || k0 > 0)
      multiply_slice<Product, true>(part, w, n, slice, k0, depth, out);
    else if constexpr (!Product::kAdds)
      multiply_slice<Product, false>(part, w, n, slice, k0, depth, out);
  }
}

template <class T>
void multiply(const PackedMatrix<T>& w, int n, const T* const* x, T* const* out) {
  multiply_rows(Exact<T>{}, w, n, x, out);
}

}  // namespace ak::AK_ISA
