// f = leak * z + scale * phi(z W^T + u). Its adjoint is the same with phi the identity and scale = phi'(a).
#pragma once

#include "row_pass.h"

namespace ak::cuda {

template <class T>
class AffineCell {
 public:
  using Scalar = T;
  using Problem = AffineProblem<T>;
  static constexpr bool kMixed = sizeof(T) == 4;  // there are kernels with products of changes
  static constexpr int kProducts = 1;             // of an evaluation

  static CellSize size(const Problem& p) { return {p.rows, p.dim, 2 * double(p.dim), kept(p), {{p.dim, p.dim}}}; }
  AK_DEVICE static const T* start(const Problem& p) { return p.z0; }
  // Entries of scratch of a row.
  AK_HD_MEMBER static constexpr int64_t kept(const Problem&) { return 0; }

  // What product `index` of an evaluation multiplies by, as large as size() says.
  AK_HD_MEMBER static const Matrix<T>& matrix(const Problem& p, int) { return p.weight; }

  AK_DEVICE explicit AffineCell(const Problem& problem) : p_(problem) {}

  // The products of an evaluation and all passes but the last; returns what that one takes.
  template <class Tile>
  AK_DEVICE Rows<const T> evaluate(const Tile& tile) const {
    return tile.product.apply(0, matrix(p_, 0), tile.z, tile.f);
  }

  // The last pass over a row, a being its part of what evaluate() returned.
  template <class Tile, class Row>
  AK_DEVICE void finish(const Tile& tile, const Row& at, const T* a) const {
    const T* const z = tile.z[at.slot];
    T* const f = tile.f[at.slot];
    const int kind = p_.scale != nullptr ? int(kIdentity) : p_.activation;
    if (kind == kPartialRelu) {
      const int first = int(p_.dim - p_.pieces);
      return pass(at, a, z, f, [=](T x, int i) { return i >= first ? Math<T>::relu(x) : x; });
    }
    with_activation<T>(kind, [&](const auto& phi) { pass(at, a, z, f, [&](T x, int) { return phi(x); }); });
  }

 private:
  template <class Row, class Phi>
  AK_DEVICE void pass(const Row& at, const T* a, const T* z, T* f, const Phi& phi) const {
    const int64_t first = at.row * p_.dim;
    at.each(p_.dim, [&](int i) {
      T value = phi(a[i] + p_.u[first + i], i);
      if (p_.scale != nullptr) value *= p_.scale[first + i];
      f[i] = p_.leak != nullptr ? multiply_add(p_.leak[i], z[i], value) : value;
    });
  }

  const Problem& p_;
};

}  // namespace ak::cuda
