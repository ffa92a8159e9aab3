// The MLP cell, y = z + u, f = leak z + norm(skip y + W2 phi(W1 y + b1) + b2), and the linear maps of its derivative.
// The mathematics stands in attractor_kernels/backends/reference/mlp.py. Members are as in affine_cell.h.
#pragma once

#include "row_pass.h"

namespace ak::cuda {

// f = leak z + x, in place of f; x(i) may read f[i].
template <class T, class Row, class X>
AK_DEVICE void put_leaky(const Row& at, const T* leak, const T* z, T* f, int64_t dim, const X& x) {
  at.each(dim, [&](int i) { f[i] = leak != nullptr ? multiply_add(leak[i], z[i], x(i)) : x(i); });
}

template <class T>
class MlpCell {
 public:
  using Scalar = T;
  using Problem = MlpProblem<T>;
  static constexpr bool kMixed = sizeof(T) == 4;
  static constexpr int kProducts = 2;

  static CellSize size(const Problem& p) {
    const int64_t wide = p.w1.outputs, moved = (p.norm == kNoNorm ? 6 : 10) * p.dim + wide + 2 * p.hidden;
    return {p.rows, p.dim, double(moved), kept(p), {{wide, p.dim}, {p.dim, p.hidden}}};
  }
  AK_DEVICE static const T* start(const Problem& p) { return p.z0; }
  AK_HD_MEMBER static constexpr int64_t kept(const Problem& p) { return p.w1.outputs; }
  AK_HD_MEMBER static const Matrix<T>& matrix(const Problem& p, int index) { return index == 0 ? p.w1 : p.w2; }

  AK_DEVICE explicit MlpCell(const Problem& problem) : p_(problem) {}

  template <class Tile>
  AK_DEVICE Rows<const T> evaluate(const Tile& tile) const {
    // y lies in f until W2's product does.
    tile.each_row([&](const auto& at) {
      const T* const u = p_.u + at.row * p_.dim;
      at.each(p_.dim, [&](int i) { tile.f[at.slot][i] = tile.z[at.slot][i] + u[i]; });
    });
    const Rows<const T> a = tile.product.apply(0, matrix(p_, 0), tile.f.to_read(), tile.kept);
    tile.each_row([&](const auto& at) { activate(at, a[at.slot], tile.kept[at.slot]); });
    return tile.product.apply(1, matrix(p_, 1), tile.kept.to_read(), tile.f);
  }

  template <class Tile, class Row>
  AK_DEVICE void finish(const Tile& tile, const Row& at, const T* a) const {
    const T *const z = tile.z[at.slot], *const u = p_.u + at.row * p_.dim;
    T* const f = tile.f[at.slot];
    const auto output = [&](int i) {
      return multiply_add(p_.skip, z[i] + u[i], p_.b2 != nullptr ? a[i] + p_.b2[i] : a[i]);
    };
    if (p_.norm == kNoNorm) return put_leaky(at, p_.leak, z, f, p_.dim, output);
    const double n = double(p_.dim);
    T mean = 0;
    const auto first = at.template total<T, 2>(p_.dim, [&](int i, T* sums) {
      const T o = f[i] = output(i);
      sums[0] += o;
      sums[1] = multiply_add(o, o, sums[1]);
    });
    double squares = first.v[1];
    if (p_.norm == kLayerNorm) {
      mean = T(first.v[0] / n);
      squares = at.template total<T, 1>(p_.dim, [&](int i, T* sums) {
                    const T o = f[i] - mean;
                    sums[0] = multiply_add(o, o, sums[0]);
                  }).v[0];
    }
    const T rinv = T(1 / square_root(squares / n + double(p_.norm_eps)));
    put_leaky(at, p_.leak, z, f, p_.dim, [&](int i) { return (f[i] - mean) * rinv; });
  }

 private:
  // h = phi(a + b1), or of its two halves; a may be h.
  template <class Row>
  AK_DEVICE void activate(const Row& at, const T* a, T* h) const {
    const int64_t hidden = p_.hidden;
    const auto with_bias = [&](int64_t i) { return p_.b1 != nullptr ? a[i] + p_.b1[i] : a[i]; };
    if (p_.activation == kSwiglu)
      return at.each(hidden, [&](int i) { h[i] = Math<T>::silu(with_bias(i)) * with_bias(hidden + i); });
    with_activation<T>(p_.activation,
                       [&](const auto& phi) { at.each(hidden, [&](int i) { h[i] = phi(with_bias(i)); }); });
  }

  const Problem& p_;
};

// adjoint  J^T w = leak w + skip t + (q [W2^T t, once or twice]) W1,  t = N w
// tangent  J y = leak y + N (skip y + W2 s),  s = q (W1 y), its halves added when gated
template <class T>
class MlpLinearCell {
 public:
  using Scalar = T;
  using Problem = MlpLinearProblem<T>;
  static constexpr bool kMixed = sizeof(T) == 4;
  static constexpr int kProducts = 2;

  static CellSize size(const Problem& p) {
    const int64_t wide = p.w1.outputs, moved = (p.norm == kNoNorm ? 4 : 9) * p.dim + 2 * wide + 2 * p.hidden;
    const int64_t between = p.adjoint ? p.hidden : wide, weighed = p.adjoint ? wide : p.hidden;
    return {p.rows, p.dim, double(moved), kept(p), {{between, p.dim}, {p.dim, weighed}}};
  }
  AK_DEVICE static const T* start(const Problem& p) { return p.w0; }
  // Hidden entries, then t.
  AK_HD_MEMBER static constexpr int64_t kept(const Problem& p) {
    return row_ld(p.w1.outputs) + (p.adjoint && p.norm != kNoNorm ? p.dim : 0);
  }
  AK_HD_MEMBER static Matrix<T> matrix(const Problem& p, int index) {
    if (p.adjoint) return transposed(index == 0 ? p.w2 : p.w1);
    return index == 0 ? p.w1 : p.w2;
  }

  AK_DEVICE explicit MlpLinearCell(const Problem& problem) : p_(problem) {}

  template <class Tile>
  AK_DEVICE Rows<const T> evaluate(const Tile& tile) const {
    if (projects())
      tile.each_row([&](const auto& at) {
        const T* const z = tile.z[at.slot];
        T* const t = projected(tile)[at.slot];
        const Projection n = projection(at, z);
        at.each(p_.dim, [&](int i) { t[i] = n(z[i], i); });
      });
    using Iterates = typename Tile::Iterates;
    const Iterates x = projects() ? Iterates(projected(tile).to_read()) : Iterates(tile.z);
    const Rows<const T> a = tile.product.apply(0, matrix(p_, 0), x, tile.kept);
    tile.each_row([&](const auto& at) { weigh(at, a[at.slot], tile.kept[at.slot]); });
    return tile.product.apply(1, matrix(p_, 1), tile.kept.to_read(), tile.f);
  }

  template <class Tile, class Row>
  AK_DEVICE void finish(const Tile& tile, const Row& at, const T* a) const {
    const T *const z = tile.z[at.slot], *const v = p_.v + at.row * p_.dim;
    T* const f = tile.f[at.slot];
    if (p_.adjoint) {
      const T* const t = projects() ? projected(tile)[at.slot] : z;
      return put_leaky(at, p_.leak, z, f, p_.dim, [&](int i) { return multiply_add(p_.skip, t[i], a[i] + v[i]); });
    }
    at.each(p_.dim, [&](int i) { f[i] = multiply_add(p_.skip, z[i], a[i]); });
    const Projection n = projection(at, f);
    put_leaky(at, p_.leak, z, f, p_.dim, [&](int i) { return n(f[i], i) + v[i]; });
  }

 private:
  // N x = rinv (x - [mean x, layer only] - n mean(n x)), the derivative of the norm.
  struct Projection {
    const T* n;  // null: no norm
    T rinv, along, mean;

    AK_DEVICE T operator()(T x, int i) const { return n == nullptr ? x : multiply_add(-along, n[i], x - mean) * rinv; }
  };

  template <class Row>
  AK_DEVICE Projection projection(const Row& at, const T* x) const {
    if (p_.norm == kNoNorm) return {nullptr, 1, 0, 0};
    const T* const n = p_.n + at.row * p_.dim;
    const auto sums = at.template total<T, 2>(p_.dim, [&](int i, T* sums) {
      sums[0] = multiply_add(n[i], x[i], sums[0]);
      sums[1] += x[i];
    });
    const double size = double(p_.dim);
    return {n, p_.rinv[at.row], T(sums.v[0] / size), p_.norm == kLayerNorm ? T(sums.v[1] / size) : T(0)};
  }

  AK_DEVICE bool projects() const { return p_.adjoint && p_.norm != kNoNorm; }
  template <class Tile>
  AK_DEVICE Rows<T> projected(const Tile& tile) const {
    return {tile.kept.data + row_ld(p_.w1.outputs), tile.kept.ld};
  }

  // h = q a: of both halves for the adjoint when gated, for the tangent their sum. a may be h.
  template <class Row>
  AK_DEVICE void weigh(const Row& at, const T* a, T* h) const {
    const int64_t hidden = p_.hidden;
    const bool gated = p_.w1.outputs != hidden;
    const T *const q = p_.q + at.row * p_.w1.outputs, *const q2 = q + hidden;
    at.each(hidden, [&](int i) {
      const T x = a[i];
      T weighed = q[i] * x;
      if (gated && p_.adjoint) h[hidden + i] = q2[i] * x;
      if (gated && !p_.adjoint) weighed = multiply_add(q2[i], a[hidden + i], weighed);
      h[i] = weighed;
    });
  }

  const Problem& p_;
};

}  // namespace ak::cuda
