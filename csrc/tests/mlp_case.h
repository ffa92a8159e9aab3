// MLP cells and the linear maps of their derivative, to be solved (solve_case.h).
#pragma once

#include "solve_case.h"

namespace ak::test {

using Doubles = std::vector<double>;

// out = W x, W being row-major [outputs, inputs]
template <class T>
Doubles multiply(const Block<T>& w, int64_t outputs, int64_t inputs, const Doubles& x) {
  Doubles out(size_t(outputs), 0.0);
  for (int64_t n = 0; n < outputs; ++n)
    for (int64_t k = 0; k < inputs; ++k) out[size_t(n)] += double(w[n * inputs + k]) * x[size_t(k)];
  return out;
}

inline double mean_product(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum / double(a.size());
}

struct MlpKind {
  int64_t hidden;
  int activation;
  int norm;
  bool leaky;
  double skip;
  bool biased;
  double gain = kSmallGain;  // of either matrix
};

template <class T>
class MlpCase {
 public:
  using Scalar = T;
  using Problem = MlpProblem<T>;

  MlpCase(int64_t rows, int64_t dim, const MlpKind& kind)
      : rows(rows),
        dim(dim),
        kind_(kind),
        wide_(kind.activation == kSwiglu ? 2 * kind.hidden : kind.hidden),
        z0_(rows * dim, [](int64_t) { return normal(); }),
        u_(rows * dim, [](int64_t) { return 0.5 * normal(); }),
        w1_(random_weight<T>(wide_, dim, kind.gain)),
        w2_(random_weight<T>(dim, kind.hidden, kind.gain)),
        b1_(wide_, [](int64_t) { return 0.3 * normal(); }),
        // Large enough that a norm shrinks what follows it.
        b2_(dim, [](int64_t i) { return (i % 2 ? 3 : -1) + 0.3 * normal(); }),
        leak_(dim, [](int64_t i) { return 0.1 * double(i % 3); }) {}

  Problem problem(int64_t first, int64_t count) const {
    return {.rows = count,
            .dim = dim,
            .hidden = kind_.hidden,
            .z0 = z0_.get() + first * dim,
            .u = u_.get() + first * dim,
            .w1 = {w1_.get(), wide_, dim, dim, 1},
            .b1 = kind_.biased ? b1_.get() : nullptr,
            .w2 = {w2_.get(), dim, kind_.hidden, kind_.hidden, 1},
            .b2 = kind_.biased ? b2_.get() : nullptr,
            .leak = kind_.leaky ? leak_.get() : nullptr,
            .skip = T(kind_.skip),
            .norm = kind_.norm,
            .norm_eps = T(kEps),
            .activation = kind_.activation};
  }

  void map(int64_t row, const T* z, double* f) const {
    Doubles y(z, z + dim);
    for (int64_t i = 0; i < dim; ++i) y[size_t(i)] += double(u_[row * dim + i]);
    Doubles a = multiply(w1_, wide_, dim, y), h(size_t(kind_.hidden));
    for (size_t i = 0; kind_.biased && i < a.size(); ++i) a[i] += double(b1_[int64_t(i)]);
    for (size_t i = 0; i < h.size(); ++i)
      h[i] = kind_.activation == kSwiglu ? activate(kSilu, a[i]) * a[h.size() + i] : activate(kind_.activation, a[i]);
    Doubles o = multiply(w2_, dim, kind_.hidden, h);
    const Doubles ones(o.size(), 1.0);
    for (size_t i = 0; i < o.size(); ++i) {
      o[i] += double(T(kind_.skip)) * y[i];
      if (kind_.biased) o[i] += double(b2_[int64_t(i)]);
    }
    const double mean = kind_.norm == kLayerNorm ? mean_product(o, ones) : 0;
    for (double& x : o) x -= mean;
    const double scale = kind_.norm == kNoNorm ? 1 : 1 / std::sqrt(mean_product(o, o) + double(T(kEps)));
    for (int64_t i = 0; i < dim; ++i) f[i] = scale * o[size_t(i)] + (kind_.leaky ? double(leak_[i]) * double(z[i]) : 0);
  }

  std::string name() const {
    return text("mlp, hidden %d, activation %d, norm %d, leak %d, skip %g, bias %d", int(kind_.hidden),
                kind_.activation, kind_.norm, kind_.leaky, kind_.skip, kind_.biased);
  }

  const int64_t rows, dim;

 private:
  static constexpr double kEps = 1e-5;
  const MlpKind kind_;
  const int64_t wide_;
  const Block<T> z0_, u_, w1_, w2_, b1_, b2_, leak_;
};

struct MlpLinearKind {
  int64_t hidden;
  bool adjoint, gated;
  int norm;
  bool leaky;
  double skip;
  double gain = kSmallGain;
};

template <class T>
class MlpLinearCase {
 public:
  using Scalar = T;
  using Problem = MlpLinearProblem<T>;

  MlpLinearCase(int64_t rows, int64_t dim, const MlpLinearKind& kind)
      : rows(rows),
        dim(dim),
        kind_(kind),
        wide_(kind.gated ? 2 * kind.hidden : kind.hidden),
        w0_(rows * dim, [](int64_t) { return normal(); }),
        v_(rows * dim, [](int64_t) { return normal(); }),
        q_(rows * wide_, [](int64_t i) { return double(i % 7) / 7; }),
        n_(rows * dim, [](int64_t) { return normal(); }),
        rinv_(rows, [](int64_t i) { return 0.3 + 0.1 * double(i % 3); }),
        w1_(random_weight<T>(wide_, dim, kind.gain)),
        w2_(random_weight<T>(dim, kind.hidden, kind.gain)),
        leak_(dim, [](int64_t i) { return 0.1 * double(i % 3); }) {}

  Problem problem(int64_t first, int64_t count) const {
    return {.rows = count,
            .dim = dim,
            .hidden = kind_.hidden,
            .w0 = w0_.get() + first * dim,
            .v = v_.get() + first * dim,
            .q = q_.get() + first * wide_,
            .n = n_.get() + first * dim,
            .rinv = rinv_.get() + first,
            .w1 = {w1_.get(), wide_, dim, dim, 1},
            .w2 = {w2_.get(), dim, kind_.hidden, kind_.hidden, 1},
            .leak = kind_.leaky ? leak_.get() : nullptr,
            .skip = T(kind_.skip),
            .norm = kind_.norm,
            .adjoint = kind_.adjoint};
  }

  void map(int64_t row, const T* z, double* f) const {
    const Doubles x(z, z + dim);
    const double skip = double(T(kind_.skip));
    Doubles result;
    if (kind_.adjoint) {
      const Doubles t = through_norm(row, x);
      const Doubles r = multiply(transposed_block(w2_, dim, kind_.hidden), kind_.hidden, dim, t);
      Doubles weighed(size_t(wide_), 0.0);
      for (int64_t i = 0; i < wide_; ++i)
        weighed[size_t(i)] = double(q_[row * wide_ + i]) * r[size_t(i % kind_.hidden)];
      result = multiply(transposed_block(w1_, wide_, dim), dim, wide_, weighed);
      for (size_t i = 0; i < t.size(); ++i) result[i] += skip * t[i];
    } else {
      const Doubles a = multiply(w1_, wide_, dim, x);
      Doubles s(size_t(kind_.hidden), 0.0);
      for (int64_t i = 0; i < wide_; ++i) s[size_t(i % kind_.hidden)] += double(q_[row * wide_ + i]) * a[size_t(i)];
      result = multiply(w2_, dim, kind_.hidden, s);
      for (size_t i = 0; i < x.size(); ++i) result[i] += skip * x[i];
      result = through_norm(row, result);
    }
    for (int64_t i = 0; i < dim; ++i)
      f[i] = result[size_t(i)] + double(v_[row * dim + i]) + (kind_.leaky ? double(leak_[i]) * double(z[i]) : 0);
  }

  std::string name() const {
    return text("mlp %s, hidden %d, gated %d, norm %d, leak %d, skip %g", kind_.adjoint ? "adjoint" : "tangent",
                int(kind_.hidden), kind_.gated, kind_.norm, kind_.leaky, kind_.skip);
  }

  const int64_t rows, dim;

 private:
  static Block<T> transposed_block(const Block<T>& w, int64_t outputs, int64_t inputs) {
    return Block<T>(outputs * inputs, [&](int64_t i) { return w[i % outputs * inputs + i / outputs]; });
  }

  Doubles through_norm(int64_t row, const Doubles& x) const {
    if (kind_.norm == kNoNorm) return x;
    const Doubles n(n_.get() + row * dim, n_.get() + (row + 1) * dim), ones(x.size(), 1.0);
    const double along = mean_product(n, x), mean = kind_.norm == kLayerNorm ? mean_product(x, ones) : 0;
    Doubles t(x.size());
    for (size_t i = 0; i < x.size(); ++i) t[i] = double(rinv_[row]) * (x[i] - mean - n[i] * along);
    return t;
  }

  const MlpLinearKind kind_;
  const int64_t wide_;
  const Block<T> w0_, v_, q_, n_, rinv_, w1_, w2_, leak_;
};

// Both cells with every activation and norm, in sizes about a tile's, a slice's and a vector's; sizes: of the state.
template <class T>
void mlp_cells(std::initializer_list<int64_t> sizes, MethodOf<MlpCase<T>> solve,
               MethodOf<MlpLinearCase<T>> solve_linear) {
  for (int64_t dim : sizes)
    for (int norm : {kNoNorm, kLayerNorm, kRmsNorm}) {
      if (dim == 1 && norm == kLayerNorm) continue;  // nothing is left
      each_solver(MlpCase<T>(9, dim, {2 * dim + 1, kTanh, norm, true, 0.2, true}), solve);
      for (bool adjoint : {true, false})
        each_solver(MlpLinearCase<T>(9, dim, {dim + 3, adjoint, norm != kNoNorm, norm, true, 0.3}), solve_linear);
    }
  for (int activation = kIdentity; activation <= kSwiglu; ++activation) {
    if (activation == kPartialRelu) continue;
    each_solver(MlpCase<T>(18, 23, {37, activation, kNoNorm, false, 0, activation % 2 == 0}), solve);
    each_solver(MlpCase<T>(3, 24, {5, activation, kRmsNorm, false, 1, true}), solve);
  }
  for (bool adjoint : {true, false})
    for (bool gated : {true, false})
      each_solver(MlpLinearCase<T>(18, 23, {37, adjoint, gated, kNoNorm, false, 0}), solve_linear);
  all_solvers(MlpCase<T>(35, 21, {19, kSwiglu, kLayerNorm, true, 0.5, true}), solve);  // more rows than a tile holds
  all_solvers(MlpLinearCase<T>(35, 21, {19, true, true, kLayerNorm, true, 0.5}), solve_linear);
}

}  // namespace ak::test
