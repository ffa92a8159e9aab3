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

// out rows get their columns [column, column + vectors * lanes) of the product over inputs [k0, k1).
template <class T, int rows, int vectors>
inline void multiply_block(const T* const* x, int depth, const T* panel, T* const* out, int64_t column, bool add) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[rows][vectors];
  const T* in[rows];
  for (int r = 0; r < rows; ++r) in[r] = x[r];
  if (add) {
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sum[r][v] = load(out[r] + column + v * lanes);
  } else {
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sum[r][v] = Vec<T>{};
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> w[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) w[v] = load(panel + v * lanes);
    panel += vectors * lanes;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Vec<T> xr = broadcast<T>(in[r][k]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] = fma<T>(xr, w[v], sum[r][v]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) store(out[r] + column + v * lanes, sum[r][v]);
}

template <class T, int vectors>
inline void multiply_rows(int rows, const T* const* x, int depth, const T* panel, T* const* out, int64_t column,
                          bool add) {
  switch (rows) {
    case 1:
      return multiply_block<T, 1, vectors>(x, depth, panel, out, column, add);
    case 2:
      return multiply_block<T, 2, vectors>(x, depth, panel, out, column, add);
    case 3:
      return multiply_block<T, 3, vectors>(x, depth, panel, out, column, add);
    case 4:
      return multiply_block<T, 4, vectors>(x, depth, panel, out, column, add);
    case 5:
      return multiply_block<T, 5, vectors>(x, depth, panel, out, column, add);
    default:
      return multiply_block<T, 6, vectors>(x, depth, panel, out, column, add);
  }
}

constexpr int kMaxTile = 48;  // rows a tile can hold

// out[i][0 .. round_up(outputs)) = W x[i] for i in [0, n): rows may lie anywhere; n <= kMaxTile.
template <class T>
void multiply(const PackedMatrix<T>& w, int n, const T* const* x, T* const* out) {
  const int blocks = (n + kMaxRows - 1) / kMaxRows;
  const T* slice[kMaxTile];
  for (int k0 = 0; k0 < w.inputs; k0 += kDepth) {
    const int depth = w.inputs - k0 < kDepth ? w.inputs - k0 : kDepth;
    for (int i = 0; i < n; ++i) slice[i] = x[i] + k0;
    for (int p = 0; p < w.panels(); ++p) {
      const int vectors = w.panel_vectors(p);
      const T* panel = w.panel(p) + int64_t(k0) * vectors * kLanes<T>;
      const int64_t column = int64_t(p) * kPanelVectors * kLanes<T>;
      for (int b = 0; b < blocks; ++b) {
        // n rows in blocks of nearly equal height
        const int first = n * b / blocks, rows = n * (b + 1) / blocks - first;
        switch (vectors) {
          case 1:
            multiply_rows<T, 1>(rows, slice + first, depth, panel, out + first, column, k0 > 0);
            break;
          case 2:
            multiply_rows<T, 2>(rows, slice + first, depth, panel, out + first, column, k0 > 0);
            break;
#if AK_VECTOR_BYTES == 64
          case 3:
            multiply_rows<T, 3>(rows, slice + first, depth, panel, out + first, column, k0 > 0);
            break;
          default:
            multiply_rows<T, 4>(rows, slice + first, depth, panel, out + first, column, k0 > 0);
#endif
        }
      }
    }
  }
}

}  // namespace ak::AK_ISA
