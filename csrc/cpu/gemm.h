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

// Rows of one block: x[r][0 .. depth) times `panels` adjacent panels of `vectors` vectors each, stored to (or
// added onto) out[r][column ...). Few rows take several panels at once, or the chains of fma would wait for each
// other.
template <class T, int rows, int vectors, int panels>
inline void multiply_block(const T* const* x, int depth, const T* panel, int64_t panel_size, T* const* out,
                           int64_t column, bool add) {
  constexpr int lanes = kLanes<T>;
  constexpr int wide = vectors * panels;
  Vec<T> sum[rows][wide];
  const T* in[rows];
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
    Vec<T> w[wide];
#pragma GCC unroll 8
    for (int p = 0; p < panels; ++p)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) w[p * vectors + v] = load(panel + p * panel_size + v * lanes);
    panel += vectors * lanes;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Vec<T> xr = broadcast<T>(in[r][k]);
#pragma GCC unroll 24
      for (int v = 0; v < wide; ++v) sum[r][v] = fma<T>(xr, w[v], sum[r][v]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < wide; ++v) store(out[r] + column + v * lanes, sum[r][v]);
}

// One panel and 1..kMaxRows rows.
template <class T, int vectors>
inline void multiply_panel(int rows, const T* const* x, int depth, const T* panel, T* const* out, int64_t column,
                           bool add) {
  switch (rows) {
    case 1:
      return multiply_block<T, 1, vectors, 1>(x, depth, panel, 0, out, column, add);
    case 2:
      return multiply_block<T, 2, vectors, 1>(x, depth, panel, 0, out, column, add);
    case 3:
      return multiply_block<T, 3, vectors, 1>(x, depth, panel, 0, out, column, add);
    case 4:
      return multiply_block<T, 4, vectors, 1>(x, depth, panel, 0, out, column, add);
    case 5:
      return multiply_block<T, 5, vectors, 1>(x, depth, panel, 0, out, column, add);
    default:
      return multiply_block<T, 6, vectors, 1>(x, depth, panel, 0, out, column, add);
  }
}

template <class T>
inline void multiply_last_panel(int vectors, int rows, const T* const* x, int depth, const T* panel, T* const* out,
                                int64_t column, bool add) {
  switch (vectors) {
    case 1:
      return multiply_panel<T, 1>(rows, x, depth, panel, out, column, add);
#if AK_VECTOR_BYTES == 64
    case 2:
      return multiply_panel<T, 2>(rows, x, depth, panel, out, column, add);
    case 3:
      return multiply_panel<T, 3>(rows, x, depth, panel, out, column, add);
#endif
    default:
      return multiply_panel<T, kPanelVectors>(rows, x, depth, panel, out, column, add);
  }
}

constexpr int kMaxTile = 48;  // rows a tile can hold

// out[i][0 .. round_up(outputs)) = W x[i] for i in [0, n): rows may lie anywhere; n <= kMaxTile.
template <class T>
void multiply(const PackedMatrix<T>& w, int n, const T* const* x, T* const* out) {
  constexpr int width = kPanelVectors * kLanes<T>;
  const int blocks = (n + kMaxRows - 1) / kMaxRows;
  const int whole = w.vectors() / kPanelVectors;
  const int64_t panel_size = int64_t(w.inputs) * width;
  const T* slice[kMaxTile];
  for (int k0 = 0; k0 < w.inputs; k0 += kDepth) {
    const int depth = w.inputs - k0 < kDepth ? w.inputs - k0 : kDepth;
    const bool add = k0 > 0;
    for (int i = 0; i < n; ++i) slice[i] = x[i] + k0;
    int p = 0;
    const auto grouped = [&]<int rows, int group>() {
      for (; p + group <= whole; p += group)
        multiply_block<T, rows, kPanelVectors, group>(slice, depth, w.panel(p) + int64_t(k0) * width, panel_size, out,
                                                      int64_t(p) * width, add);
    };
    if (n == 1) grouped.template operator()<1, 4>();
    if (n == 2) grouped.template operator()<2, 3>();
    if (n == 3) grouped.template operator()<3, 2>();
    for (; p < w.panels(); ++p) {
      const int vectors = w.panel_vectors(p);
      const T* panel = w.panel(p) + int64_t(k0) * vectors * kLanes<T>;
      const int64_t column = int64_t(p) * width;
      for (int b = 0; b < blocks; ++b) {
        // n rows in blocks of nearly equal height
        const int first = n * b / blocks, rows = n * (b + 1) / blocks - first;
        if (vectors == kPanelVectors)
          multiply_panel<T, kPanelVectors>(rows, slice + first, depth, panel, out + first, column, add);
        else
          multiply_last_panel<T>(vectors, rows, slice + first, depth, panel, out + first, column, add);
      }
    }
  }
}

}  // namespace ak::AK_ISA
