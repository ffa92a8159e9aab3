// The gated cell, (a_s, a_c) = W z + u, s = sigmoid(a_s), f = (1 - s) z + s tanh(a_c): the whole solve in one
// call, and those of the linear maps of its derivative J, w = J^T w + v and y = J y + v. The mathematics stands in
// attractor_kernels/backends/reference/gated.py.
#include "row_sums.h"

namespace ak::AK_ISA {
namespace {

// Pairs of rows of dim entries, one for the gate and one for the candidate. Constants keep each in whole vectors;
// in what a product reads or writes the second follows the first at once, so that its vectors overlap the first's
// last and its own last one reaches past the end.
template <class T>
struct Pairs {
  explicit Pairs(int64_t dim)
      : dim(dim), ld(round_up(dim, kLanes<T>)), product(round_up(2 * dim, kLanes<T>) + kLanes<T>) {}

  void load_constants(T* to, const T* from, int64_t row) const {
    copy_padded(to, from + 2 * row * dim, dim, ld);
    copy_padded(to + ld, from + (2 * row + 1) * dim, dim, ld);
  }
  void clear(T* pair) const { std::memset(pair, 0, size_t(product) * sizeof(T)); }

  const int64_t dim;
  const int64_t ld;
  const int64_t product;  // elements of a product's pair
};

// a: W x, [2 dim]
template <class T, bool watched>
void gated_row(Evaluation<T>& e, const T* a, const Pairs<T>& pairs) {
  using Math = Activations<VecOps<T>>;
  const int64_t dim = pairs.dim;
  const T *const x_row = e.x, *const previous = e.previous;
  const T *const u_s = e.constants, *const u_c = u_s + pairs.ld;
  T* const f_row = e.f;
  RowSums<T, watched> sums;
  for_row<T>(dim, [&](int64_t i, auto keep) {
    const Vec<T> x = load(x_row + i);
    const Vec<T> s = Math::sigmoid(load(a + i) + load(u_s + i));
    const Vec<T> c = Math::tanh(load(a + dim + i) + load(u_c + i));
    const Vec<T> f = keep(fma<T>(s, c - x, x));
    store(f_row + i, f);
    sums.add(x, f, previous + i);
  });
  sums.put(e);
}

template <class T>
class GatedMap {
 public:
  GatedMap(const GatedProblem<T>& problem, const Weights<T>& weight)
      : problem_(problem), refresh2_(weight.refresh2()), product_(weight), pairs_(problem.dim) {}

  int64_t slot_elements() const { return 2 * pairs_.ld + pairs_.product + product_.elements(); }
  double refresh2() const { return refresh2_; }

  void load(T* constants, int64_t row) {
    pairs_.load_constants(constants, problem_.u, row);
    pairs_.clear(products(constants));
  }

  void evaluate(int n, Evaluation<T>* rows) {
    const T *x[kMaxTile], *a[kMaxTile];
    T *kept[kMaxTile], *out[kMaxTile];
    bool exact[kMaxTile];
    for (int i = 0; i < n; ++i) {
      x[i] = rows[i].zero ? nullptr : rows[i].x;
      out[i] = products(rows[i].constants);
      kept[i] = out[i] + pairs_.product;
      exact[i] = rows[i].exact;
    }
    product_.apply(n, x, exact, kept, out, a);
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      (e.previous != nullptr ? gated_row<T, true> : gated_row<T, false>)(e, a[i], pairs_);
    }
  }

 private:
  T* products(T* constants) const { return constants + 2 * pairs_.ld; }

  const GatedProblem<T>& problem_;
  const double refresh2_;
  const RowProduct<T> product_;
  const Pairs<T> pairs_;
};

// [q1 w, q2 w]. The first half in whole vectors reaches into the second, which is written after it.
template <class T>
void scale_pair(const T* w, const T* q, T* out, const Pairs<T>& pairs) {
  for (int half = 0; half < 2; ++half)
    for (int64_t i = 0; i < pairs.ld; i += kLanes<T>)
      store(out + half * pairs.dim + i, load(q + half * pairs.ld + i) * load(w + i));
}

// c x + v plus, adjoint, a; else q1 a_s + q2 a_c.
template <class T, bool adjoint, bool watched>
void linear_row(Evaluation<T>& e, const T* a, const Pairs<T>& pairs) {
  const int64_t dim = pairs.dim;
  const T *const x_row = e.x, *const previous = e.previous;
  const T *const v = e.constants, *const c = v + pairs.ld;
  const T *const q1 = c + pairs.ld, *const q2 = q1 + pairs.ld;
  T* const f_row = e.f;
  RowSums<T, watched> sums;
  for_row<T>(dim, [&](int64_t i, auto keep) {
    const Vec<T> x = load(x_row + i);
    Vec<T> f = load(v + i);
    if constexpr (adjoint)
      f += load(a + i);
    else
      f = fma<T>(load(q1 + i), load(a + i), fma<T>(load(q2 + i), load(a + dim + i), f));
    f = keep(fma<T>(load(c + i), x, f));
    store(f_row + i, f);
    sums.add(x, f, previous + i);
  });
  sums.put(e);
}

template <class T, bool adjoint>
class GatedLinearMap {
 public:
  // weight: W, transposed for the adjoint
  GatedLinearMap(const GatedLinearProblem<T>& problem, const Weights<T>& weight)
      : problem_(problem), refresh2_(weight.refresh2()), product_(weight), pairs_(problem.dim) {}

  int64_t slot_elements() const { return 4 * pairs_.ld + pairs_.product + product_.elements(); }
  double refresh2() const { return refresh2_; }

  void load(T* constants, int64_t row) {
    const int64_t dim = pairs_.dim, ld = pairs_.ld;
    copy_padded(constants, problem_.v + row * dim, dim, ld);
    copy_padded(constants + ld, problem_.c + row * dim, dim, ld);
    pairs_.load_constants(constants + 2 * ld, problem_.q, row);
    pairs_.clear(product(constants));
  }

  void evaluate(int n, Evaluation<T>* rows) {
    const T *x[kMaxTile], *a[kMaxTile];
    T *kept[kMaxTile], *out[kMaxTile];
    bool exact[kMaxTile];
    for (int i = 0; i < n; ++i) {
      T* const pair = product(rows[i].constants);
      if constexpr (adjoint) scale_pair(rows[i].x, rows[i].constants + 2 * pairs_.ld, pair, pairs_);
      x[i] = adjoint ? pair : rows[i].x;
      out[i] = adjoint ? rows[i].f : pair;
      kept[i] = pair + pairs_.product;
      exact[i] = rows[i].exact;
    }
    product_.apply(n, x, exact, kept, out, a);
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      const auto pass = e.previous != nullptr ? linear_row<T, adjoint, true> : linear_row<T, adjoint, false>;
      pass(e, a[i], pairs_);
    }
  }

 private:
  T* product(T* constants) const { return constants + 4 * pairs_.ld; }

  const GatedLinearProblem<T>& problem_;
  const double refresh2_;
  const RowProduct<T> product_;
  const Pairs<T> pairs_;
};

// Packs the one matrix of a gated cell and runs make_map(packed) on every thread.
template <class T, class Problem, class MakeMap>
void solve_packed(const Problem& problem, const Matrix<T>& matrix, const T* start, double activations,
                  const SolveOptions& options, const SolveResult<T>& result, const Executor& executor,
                  const MakeMap& make_map) {
  const double dim = double(problem.dim);
  CellCost cost{2 * dim * dim, activations * dim};
  const int threads = threads_for_cell(problem.rows, cost, executor.threads);
  Weights<T> weight;
  const PackRequest<T> request{matrix, &weight, mixed_allowed(options)};
  pack(&request, 1, threads, executor);
  cost.products *= weight.share();
  solve_rows<T>(problem.rows, problem.dim, cost, options, start, result, threads, executor,
                [&] { return make_map(weight); });
}

template <class T>
void solve(const GatedProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  solve_packed<T>(problem, problem.weight, problem.z0, 2, options, result, executor,
                  [&](const Weights<T>& weight) { return GatedMap<T>(problem, weight); });
}

template <class T>
void solve(const GatedLinearProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  constexpr double kActivations = 0.5;  // what the row passes weigh
  if (problem.adjoint)
    solve_packed<T>(problem, transposed(problem.weight), problem.w0, kActivations, options, result, executor,
                    [&](const Weights<T>& weight) { return GatedLinearMap<T, true>(problem, weight); });
  else
    solve_packed<T>(problem, problem.weight, problem.w0, kActivations, options, result, executor,
                    [&](const Weights<T>& weight) { return GatedLinearMap<T, false>(problem, weight); });
}

}  // namespace

AK_DEFINE_SOLVE(solve_gated, GatedProblem)
AK_DEFINE_SOLVE(solve_gated_linear, GatedLinearProblem)

}  // namespace ak::AK_ISA
