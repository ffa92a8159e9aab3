// The linear maps of the MLP cell's derivative J: the whole solve of w = J^T w + v (adjoint) and of y = J y + v
// (tangent) in one call. The mathematics stands in attractor_kernels/backends/reference/mlp.py:
//
//   adjoint  J^T w = leak w + skip t + (q [W2^T t, once or twice]) W1,  t = N w
//   tangent  J y = leak y + N (skip y + W2 s),  s = q (W1 y), its halves added when gated
#include "mlp_row.h"

namespace ak::AK_ISA {
namespace {

// N x = rinv (x - [mean x, layer only] - n mean(n x)), the derivative of a norm: what it takes from x, broadcast.
template <class T>
struct NormDerivative {
  Vec<T> rinv, along, mean;

  template <int norm>
  Vec<T> apply(Vec<T> x, Vec<T> n) const {
    if constexpr (norm == kNoNorm) return x;
    if constexpr (norm == kLayerNorm) x = x - mean;
    return (x - n * along) * rinv;
  }
};

template <class T, int norm>
inline NormDerivative<T> norm_derivative(const T* x_row, const T* n_row, T rinv, int64_t dim) {
  Vec<T> along{}, sum{};
  for_row<T>(dim, [&](int64_t i, auto keep) {
    const Vec<T> x = keep(load(x_row + i));
    along = fma<T>(load(n_row + i), x, along);
    if constexpr (norm == kLayerNorm) sum = sum + x;
  });
  return {broadcast<T>(rinv), broadcast<T>(sum_lanes<T>(along) / T(dim)), broadcast<T>(sum_lanes<T>(sum) / T(dim))};
}

// The constants of a row, in whole vectors.
template <class T>
struct RowConstants {
  const T *v, *n, *q, *rinv, *leak;
  T skip;
  int64_t dim;
};

// t = N x
template <class T, int norm>
void norm_row(const T* x, const RowConstants<T>& c, T* t) {
  const NormDerivative<T> derivative = norm_derivative<T, norm>(x, c.n, c.rinv[0], c.dim);
  for_row<T>(c.dim, [&](int64_t i, auto keep) {
    store(t + i, keep(derivative.template apply<norm>(load(x + i), load(c.n + i))));
  });
}

// f = leak x + skip t + a + v
template <class T, bool watched>
void adjoint_row(Evaluation<T>& e, const T* a, const RowConstants<T>& constants, const T* t) {
  const RowConstants<T> c = constants;
  const T *const x_row = e.x, *const previous = e.previous;
  T* const f_row = e.f;
  const Vec<T> skip = broadcast<T>(c.skip);
  RowSums<T, watched> sums;
  for_row<T>(c.dim, [&](int64_t i, auto keep) {
    const Vec<T> x = load(x_row + i);
    Vec<T> f = fma<T>(skip, load(t + i), load(a + i) + load(c.v + i));
    f = keep(fma<T>(load(c.leak + i), x, f));
    store(f_row + i, f);
    sums.add(x, f, previous + i);
  });
  sums.put(e);
}

// f = leak x + N (skip x + a) + v
template <class T, int norm, bool watched>
void tangent_row(Evaluation<T>& e, const T* a, const RowConstants<T>& constants, const T*) {
  const RowConstants<T> c = constants;
  const T *const x_row = e.x, *const previous = e.previous;
  T* const f_row = e.f;
  const Vec<T> skip = broadcast<T>(c.skip);
  for_row<T>(c.dim, [&](int64_t i, auto keep) { store(f_row + i, keep(fma<T>(skip, load(x_row + i), load(a + i)))); });
  const NormDerivative<T> derivative = norm_derivative<T, norm>(f_row, c.n, c.rinv[0], c.dim);
  RowSums<T, watched> sums;
  for_row<T>(c.dim, [&](int64_t i, auto keep) {
    const Vec<T> x = load(x_row + i);
    Vec<T> f = derivative.template apply<norm>(load(f_row + i), load(c.n + i)) + load(c.v + i);
    f = keep(fma<T>(load(c.leak + i), x, f));
    store(f_row + i, f);
    sums.add(x, f, previous + i);
  });
  sums.put(e);
}

// h = q a, where gated [q1 a, q2 a]; a may be h: the second half first, of which the end of a may be a part; the first
// must then stop where the second begins.
template <class T, bool gated>
void unfold_row(T* h, const T* a, const T* q, int64_t hidden) {
  const int64_t ld = round_up(hidden, kLanes<T>);
  if constexpr (gated)
    for (int64_t i = 0; i < hidden; i += kLanes<T>) store(h + hidden + i, load(q + ld + i) * load(a + i));
  int64_t i = 0;
  for (; i + kLanes<T> <= hidden; i += kLanes<T>) store(h + i, load(q + i) * load(a + i));
  for (; i < hidden; ++i) h[i] = q[i] * a[i];
}

// h = q a, where gated the sum of the halves; a may be h (see swiglu_row).
template <class T, bool gated>
void fold_row(T* h, const T* a, const T* q, int64_t hidden) {
  const int64_t ld = round_up(hidden, kLanes<T>);
  for (int64_t i = 0; i < hidden; i += kLanes<T>) {
    Vec<T> s = load(q + i) * load(a + i);
    if constexpr (gated) s = fma<T>(load(q + ld + i), load(a + hidden + i), s);
    store(h + i, s);
  }
}

template <class T>
struct LinearPasses {
  void (*norm)(const T* x, const RowConstants<T>& c, T* t);  // adjoint; null without a norm
  void (*hidden)(T* h, const T* a, const T* q, int64_t hidden);
  void (*plain)(Evaluation<T>& e, const T* a, const RowConstants<T>& c, const T* t);
  void (*watched)(Evaluation<T>& e, const T* a, const RowConstants<T>& c, const T* t);
};

template <class T, int norm>
LinearPasses<T> linear_passes(bool adjoint, bool gated) {
  if (adjoint)
    return {norm == kNoNorm ? nullptr : norm_row<T, norm>, gated ? unfold_row<T, true> : unfold_row<T, false>,
            adjoint_row<T, false>, adjoint_row<T, true>};
  return {nullptr, gated ? fold_row<T, true> : fold_row<T, false>, tangent_row<T, norm, false>,
          tangent_row<T, norm, true>};
}

template <class T>
LinearPasses<T> linear_passes(const MlpLinearProblem<T>& p) {
  const bool gated = p.w1.outputs != p.hidden;
  return p.norm == kLayerNorm ? linear_passes<T, kLayerNorm>(p.adjoint, gated)
         : p.norm == kRmsNorm ? linear_passes<T, kRmsNorm>(p.adjoint, gated)
                              : linear_passes<T, kNoNorm>(p.adjoint, gated);
}

template <class T>
struct PackedMlpLinear {
  Weights<T> first, second, leak;  // in the order they are multiplied: W1, W2 or W2^T, W1^T
};

// A slot holds v, n, t, rinv, q and the hidden entries.
template <class T>
class MlpLinearMap {
 public:
  MlpLinearMap(const MlpLinearProblem<T>& problem, const PackedMlpLinear<T>& packed)
      : problem_(problem),
        packed_(packed),
        ld_(round_up(problem.dim, kLanes<T>)),
        q_ld_(round_up(problem.hidden, kLanes<T>)),
        q_halves_(problem.w1.outputs != problem.hidden ? 2 : 1),
        hidden_elements_(hidden_elements<T>(problem.w1.outputs)),
        first_(packed.first),
        second_(packed.second),
        passes_(linear_passes<T>(problem)) {}

  int64_t slot_elements() const {
    return 3 * ld_ + kLanes<T> + q_halves_ * q_ld_ + hidden_elements_ + first_.elements() + second_.elements();
  }
  double refresh2() const { return larger(packed_.first.refresh2(), packed_.second.refresh2()); }

  void load(T* constants, int64_t row) {
    const int64_t dim = problem_.dim, hidden = problem_.hidden;
    copy_padded(constants, problem_.v + row * dim, dim, ld_);
    copy_padded(constants + ld_, problem_.n + row * dim, dim, ld_);
    constants[3 * ld_] = problem_.rinv[row];
    for (int half = 0; half < q_halves_; ++half)
      copy_padded(q(constants) + half * q_ld_, problem_.q + (row * q_halves_ + half) * hidden, hidden, q_ld_);
    std::memset(hidden_row(constants), 0, size_t(hidden_elements_) * sizeof(T));
  }

  void evaluate(int n, Evaluation<T>* rows) {
    const T *x[kMaxTile], *a[kMaxTile];
    T *f[kMaxTile], *h[kMaxTile], *kept[kMaxTile];
    bool exact[kMaxTile];
    for (int i = 0; i < n; ++i) {
      T* const constants = rows[i].constants;
      f[i] = rows[i].f;
      h[i] = hidden_row(constants);
      kept[i] = h[i] + hidden_elements_;
      exact[i] = rows[i].exact;
      x[i] = projected(rows[i]);
      if (passes_.norm != nullptr) passes_.norm(rows[i].x, row_constants(constants), constants + 2 * ld_);
    }
    first_.apply(n, x, exact, kept, h, a);
    for (int i = 0; i < n; ++i) {
      passes_.hidden(h[i], a[i], q(rows[i].constants), problem_.hidden);
      x[i] = h[i];
      kept[i] += first_.elements();
    }
    second_.apply(n, x, exact, kept, f, a);
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      (e.previous != nullptr ? passes_.watched : passes_.plain)(e, a[i], row_constants(e.constants), projected(e));
    }
  }

 private:
  // What the first product takes: t, which is x where no norm is in the way.
  const T* projected(const Evaluation<T>& e) const { return passes_.norm != nullptr ? e.constants + 2 * ld_ : e.x; }
  T* q(T* constants) const { return constants + 3 * ld_ + kLanes<T>; }
  T* hidden_row(T* constants) const { return q(constants) + q_halves_ * q_ld_; }
  RowConstants<T> row_constants(T* constants) const {
    return {constants,     constants + ld_, q(constants), constants + 3 * ld_, packed_.leak.full.data,
            problem_.skip, problem_.dim};
  }

  const MlpLinearProblem<T>& problem_;
  const PackedMlpLinear<T>& packed_;
  const int64_t ld_, q_ld_;
  const int q_halves_;
  const int64_t hidden_elements_;
  const RowProduct<T> first_, second_;
  const LinearPasses<T> passes_;
};

template <class T>
void solve(const MlpLinearProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  const int64_t dim = problem.dim, hidden = problem.hidden;
  CellCost cost{double(dim) * double(problem.w1.outputs + hidden), 0.2 * double(hidden) + 0.5 * double(dim)};
  const int threads = threads_for_cell(problem.rows, cost, executor.threads);
  PackedMlpLinear<T> packed;
  const PackRequest<T> requests[] = {
      {problem.adjoint ? transposed(problem.w2) : problem.w1, &packed.first, mixed_allowed(options)},
      {problem.adjoint ? transposed(problem.w1) : problem.w2, &packed.second, mixed_allowed(options)},
      {row_or_zeros(problem.leak, dim), &packed.leak},
  };
  pack(requests, 3, threads, executor);
  cost.products = 0;
  for (const Weights<T>* w : {&packed.first, &packed.second})
    cost.products += double(w->full.outputs) * double(w->full.inputs) * w->share();
  solve_rows<T>(problem.rows, dim, cost, options, problem.w0, result, threads, executor,
                [&] { return MlpLinearMap<T>(problem, packed); });
}

}  // namespace

AK_DEFINE_SOLVE(solve_mlp_linear, MlpLinearProblem)

}  // namespace ak::AK_ISA
