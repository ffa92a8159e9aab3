// The inverse of a small matrix, in place: Gauss-Jordan elimination by blocks, all but a sixteenth of it products by
// the kernel under every cell (gemm.h). Without exchange of rows: it is for matrices near to the identity, and says so
// where one is not.
#pragma once

#include "gemm.h"

namespace ak::AK_ISA {

template <class T>
class Inverse {
  static constexpr int kBlock = 16;  // and no vector is wider

 public:
  static int64_t stride(int64_t n) { return round_up(n, kBlock) + kBlock; }  // not a power of two
  // Elements of memory it works in.
  static int64_t elements(int64_t n) { return PackedMatrix<T>::size(n, kBlock) + kMaxTile * kBlock + kBlock * kBlock; }

  // a [n, stride(n)], zero from n on; false, and a is lost, where a pivot is not at least `least`.
  static bool take(T* a, int64_t n, T least, T* memory) {
    const int64_t ld = stride(n);
    T* const factors = memory;
    T* const corner = factors + kMaxTile * kBlock;
    T* const packed = corner + kBlock * kBlock;
    for (int64_t k = 0; k < n; k += kBlock) {
      const int depth = int(n - k < kBlock ? n - k : kBlock);
      T* const rows = a + k * ld;
      for (int i = 0; i < depth; ++i) copy_block(rows + i * ld + k, corner + i * kBlock);
      if (!invert_corner(corner, depth, least)) return false;
      const PackedMatrix<T> panel{packed, int(n), depth};
      const T* in[kMaxTile];
      T* out[kMaxTile];
      // The block's rows, times the inverse of its corner, which takes the corner's place.
      pack_rows(rows, ld, panel);
      for (int i = 0; i < depth; ++i) {
        in[i] = corner + i * kBlock;
        out[i] = rows + i * ld;
      }
      multiply_slice<Exact<T>, false>({}, panel, depth, in, 0, depth, out);
      for (int i = 0; i < depth; ++i) copy_block(corner + i * kBlock, rows + i * ld + k);
      pack_rows(rows, ld, panel);
      // From all other rows.
      int count = 0;
      for (int64_t i = 0; i < n; ++i) {
        if (i < k || i >= k + depth) {
          in[count] = factors + count * kBlock;
          out[count] = a + i * ld;
          for (int j = 0; j < kBlock; j += kLanes<T>) {
            store(factors + count * kBlock + j, -load(out[count] + k + j));
            store(out[count] + k + j, Vec<T>{});
          }
          count += 1;
        }
        if (count == kMaxTile || (i == n - 1 && count > 0)) {
          multiply_slice<Exact<T>, true>({}, panel, count, in, 0, depth, out);
          count = 0;
        }
      }
    }
    return true;
  }

 private:
  // c [kBlock, kBlock] of which the first n rows and columns count. No entry is written alone: a vector read soon after
  // would wait for it.
  static bool invert_corner(T* c, int n, T least) {
    constexpr int kVectors = kBlock / kLanes<T>;
    const auto at = [&](int i, int v) { return c + i * kBlock + v * kLanes<T>; };
    IntVec<T> lane;
    for (int l = 0; l < kLanes<T>; ++l) lane[l] = l;
    for (int k = 0; k < n; ++k) {
      const T pivot = c[k * kBlock + k];
      if (!(pivot >= least) || !finite(double(pivot))) return false;
      const Vec<T> inverse = broadcast<T>(T(1) / pivot), one = broadcast<T>(T(1));
      // From row i goes c_ik times this, to leave -c_ik / pivot in column k: where c_ik is still in the way, by 1 more.
      Vec<T> from[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const IntVec<T> here = lane == lane - lane + (k - v * kLanes<T>);
        const Vec<T> row = here ? inverse : load(at(k, v)) * inverse;
        store(at(k, v), row);
        from[v] = here ? row + one : row;
      }
      for (int i = 0; i < n; ++i) {
        if (i == k) continue;
        const Vec<T> factor = broadcast<T>(-c[i * kBlock + k]);
        for (int v = 0; v < kVectors; ++v) store(at(i, v), fma<T>(factor, from[v], load(at(i, v))));
      }
    }
    return true;
  }

  static void copy_block(const T* from, T* to) {
    for (int j = 0; j < kBlock; j += kLanes<T>) store(to + j, load(from + j));
  }

  static void pack_rows(const T* rows, int64_t ld, const PackedMatrix<T>& panel) {
    for (int p = 0; p < panel.panels(); ++p) {
      const int width = panel.panel_vectors(p) * kLanes<T>;
      const T* const from = rows + int64_t(p) * kPanelVectors * kLanes<T>;
      for (int j = 0; j < panel.inputs; ++j)
        for (int n = 0; n < width; n += kLanes<T>) store(panel.panel(p) + j * width + n, load(from + j * ld + n));
    }
  }
};

}  // namespace ak::AK_ISA
