// The gated cell, (a_s, a_c) = W z + u, s = sigmoid(a_s), f = (1 - s) z + s tanh(a_c), and the linear maps of its
// derivative. The mathematics stands in attractor_kernels/backends/reference/gated.py. Members are as in affine_cell.h.
#pragma once

#include "row_pass.h"

namespace ak::cuda {

template <class T>
class GatedCell {
 public:
  using Scalar = T;
  using Problem = GatedProblem<T>;
  static constexpr bool kMixed = sizeof(T) == 4;
  static constexpr int kProducts = 1;

  static CellSize size(const Problem& p) { return {p.rows, p.dim, 6 * double(p.dim), kept(p), {{2 * p.dim, p.dim}}}; }
  AK_DEVICE static const T* start(const Problem& p) { return p.z0; }
  AK_HD_MEMBER static constexpr int64_t kept(const Problem& p) { return 2 * p.dim; }
  AK_HD_MEMBER static const Matrix<T>& matrix(const Problem& p, int) { return p.weight; }

  AK_DEVICE explicit GatedCell(const Problem& problem) : p_(problem) {}

  template <class Tile>
  AK_DEVICE Rows<const T> evaluate(const Tile& tile) const {
    return tile.product.apply(0, matrix(p_, 0), tile.z, tile.kept);
  }

  template <class Tile, class Row>
  AK_DEVICE void finish(const Tile& tile, const Row& at, const T* a) const {
    const int64_t dim = p_.dim;
    const T *const z = tile.z[at.slot], *const u = p_.u + at.row * 2 * dim;
    T* const f = tile.f[at.slot];
    at.each(dim, [&](int i) {
      const T s = Math<T>::sigmoid(a[i] + u[i]), c = Math<T>::tanh(a[dim + i] + u[dim + i]);
      f[i] = multiply_add(s, c - z[i], z[i]);
    });
  }

 private:
  const Problem& p_;
};

// adjoint  w = c w + [q1 w, q2 w] W + v
// tangent  w = c w + q1 (W_s w) + q2 (W_c w) + v
template <class T>
class GatedLinearCell {
 public:
  using Scalar = T;
  using Problem = GatedLinearProblem<T>;
  static constexpr bool kMixed = sizeof(T) == 4;
  static constexpr int kProducts = 1;

  static CellSize size(const Problem& p) {
    const int64_t pair = 2 * p.dim;
    return {
        p.rows, p.dim, 9 * double(p.dim), kept(p), {p.adjoint ? ProductSize{p.dim, pair} : ProductSize{pair, p.dim}}};
  }
  AK_DEVICE static const T* start(const Problem& p) { return p.w0; }
  AK_HD_MEMBER static constexpr int64_t kept(const Problem& p) { return 2 * p.dim; }
  AK_HD_MEMBER static Matrix<T> matrix(const Problem& p, int) { return p.adjoint ? transposed(p.weight) : p.weight; }

  AK_DEVICE explicit GatedLinearCell(const Problem& problem) : p_(problem) {}

  template <class Tile>
  AK_DEVICE Rows<const T> evaluate(const Tile& tile) const {
    if (p_.adjoint)
      tile.each_row([&](const auto& at) {
        const int64_t dim = p_.dim;
        const T *const z = tile.z[at.slot], *const q = p_.q + at.row * 2 * dim;
        T* const pair = tile.kept[at.slot];
        at.each(dim, [&](int i) {
          pair[i] = q[i] * z[i];
          pair[dim + i] = q[dim + i] * z[i];
        });
      });
    using Iterates = typename Tile::Iterates;
    const Iterates x = p_.adjoint ? Iterates(tile.kept.to_read()) : Iterates(tile.z);
    return tile.product.apply(0, matrix(p_, 0), x, p_.adjoint ? tile.f : tile.kept);
  }

  template <class Tile, class Row>
  AK_DEVICE void finish(const Tile& tile, const Row& at, const T* a) const {
    const int64_t dim = p_.dim, first = at.row * dim;
    const T *const z = tile.z[at.slot], *const q = p_.q + 2 * first;
    T* const f = tile.f[at.slot];
    at.each(dim, [&](int i) {
      const T v = p_.v[first + i];
      const T x = p_.adjoint ? a[i] + v : multiply_add(q[i], a[i], multiply_add(q[dim + i], a[dim + i], v));
      f[i] = multiply_add(p_.c[first + i], z[i], x);
    });
  }

 private:
  const Problem& p_;
};

}  // namespace ak::cuda
