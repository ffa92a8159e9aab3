// The linear maps of the MLP cell's derivative J: the whole solve of w = J^T w + v (adjoint) and of y = J y + v
// (tangent) in one call. The mathematics stands in mlp_jacobian.h.
#include "mlp_jacobian.h"
#include "row_sums.h"

namespace ak::AK_ISA {
namespace {

// The constants of a row, in whole vectors.
template <class T>
struct RowConstants {
  const T* v;
  MlpDerivative<T> derivative;
  const T* leak;
  T skip;
  int64_t dim;
};

// f = leak x + skip t + a + v
template <class T, Watch watch>
void adjoint_row(Evaluation<T>& e, const T* a, const RowConstants<T>& constants, const T* t) {
  const RowConstants<T> c = constants;
  const T *const x_row = e.x, *const previous = e.previous;
  T* const f_row = e.f;
  const Vec<T> skip = broadcast<T>(c.skip);
  RowSums<T, watch> sums;
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
template <class T, int norm, Watch watch>
void tangent_row(Evaluation<T>& e, const T* a, const RowConstants<T>& constants, const T*) {
  const RowConstants<T> c = constants;
  const T *const x_row = e.x, *const previous = e.previous;
  T* const f_row = e.f;
  const Vec<T> skip = broadcast<T>(c.skip);
  for_row<T>(c.dim, [&](int64_t i, auto keep) { store(f_row + i, keep(fma<T>(skip, load(x_row + i), load(a + i)))); });
  const NormDerivative<T> derivative = norm_derivative<T, norm>(f_row, c.derivative.n, c.derivative.rinv[0], c.dim);
  RowSums<T, watch> sums;
  for_row<T>(c.dim, [&](int64_t i, auto keep) {
    const Vec<T> x = load(x_row + i);
    Vec<T> f = derivative.template apply<norm>(load(f_row + i), load(c.derivative.n + i)) + load(c.v + i);
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
using LinearPass = void (*)(Evaluation<T>& e, const T* a, const RowConstants<T>& c, const T* t);

template <class T>
struct LinearPasses {
  NormPass<T> norm;  // of the adjoint; null without a norm
  void (*hidden)(T* h, const T* a, const T* q, int64_t hidden);
  LinearPass<T> output[3];  // by Watch
};

template <class T, int norm>
LinearPasses<T> linear_passes(bool adjoint, bool gated) {
  if (adjoint)
    return {norm_pass<T>(norm),
            gated ? unfold_row<T, true> : unfold_row<T, false>,
            {adjoint_row<T, kUnwatched>, adjoint_row<T, kDirection>, adjoint_row<T, kCorrected>}};
  return {nullptr,
          gated ? fold_row<T, true> : fold_row<T, false>,
          {tangent_row<T, norm, kUnwatched>, tangent_row<T, norm, kDirection>, tangent_row<T, norm, kCorrected>}};
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
  CellWeights<T, 2> cell;  // W1 and W2, or W2^T and W1^T
  Weights<T> leak;
  const float* jacobian_leak;  // [dim], in whole vectors
};

// A slot holds v, t, what J is made of, the hidden entries, and what the two products keep.
template <class T, bool adjoint>
class MlpLinearMap {
 public:
  MlpLinearMap(const MlpLinearProblem<T>& problem, const PackedMlpLinear<T>& packed)
      : problem_(problem),
        packed_(packed),
        ld_(round_up(problem.dim, kLanes<T>)),
        places_{problem.dim, problem.hidden, problem.w1.outputs != problem.hidden ? 2 : 1, true, 2 * ld_},
        hidden_elements_(hidden_elements<T>(problem.w1.outputs)),
        first_(packed.cell.of[0]),
        second_(packed.cell.of[1]),
        passes_(linear_passes<T>(problem)),
        newton_(packed.cell.newton, packed.cell.coarse(0), packed.cell.coarse(1),
                sizeof(T) == 4 ? places_ : narrow_places(places_), packed.jacobian_leak, float(problem.skip),
                problem.norm) {}

  int64_t slot_elements() const {
    return places_.at + places_.template elements<T>() + hidden_elements_ + first_.elements() + second_.elements();
  }
  double refresh2() const { return packed_.cell.refresh2(); }

  void load(T* constants, int64_t row) {
    const int64_t dim = problem_.dim, hidden = problem_.hidden, halves = places_.halves;
    copy_padded(constants, problem_.v + row * dim, dim, ld_);
    copy_padded(places_.n(constants), problem_.n + row * dim, dim, ld_);
    places_.rinv(constants)[0] = problem_.rinv[row];
    for (int64_t half = 0; half < halves; ++half)
      copy_padded(places_.q(constants) + half * places_.template q_ld<T>(), problem_.q + (row * halves + half) * hidden,
                  hidden, places_.template q_ld<T>());
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
      if (passes_.norm != nullptr) passes_.norm(rows[i].x, places_.of(constants), problem_.dim, constants + ld_);
    }
    first_.apply(n, x, exact, kept, h, a);
    for (int i = 0; i < n; ++i) {
      passes_.hidden(h[i], a[i], places_.q(rows[i].constants), problem_.hidden);
      x[i] = h[i];
      kept[i] += first_.elements();
    }
    second_.apply(n, x, exact, kept, f, a);
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      const RowConstants<T> constants{e.constants, places_.of(e.constants), packed_.leak.full.data, problem_.skip,
                                      problem_.dim};
      passes_.output[watch_of(e)](e, a[i], constants, projected(e));
    }
  }

  bool corrects() const { return newton_.pay(); }
  double aim2(bool first) const { return newton_.aim2(first); }
  void correct(int n, Correction<T>* rows) {
    newton_.take(n, rows, [&](const T* constants, float* to) { narrow_derivative(places_, constants, to); });
  }

 private:
  // What the first product takes: t, which is x where no norm is in the way.
  const T* projected(const Evaluation<T>& e) const { return passes_.norm != nullptr ? e.constants + ld_ : e.x; }
  T* hidden_row(T* constants) const { return constants + places_.at + places_.template elements<T>(); }

  const MlpLinearProblem<T>& problem_;
  const PackedMlpLinear<T>& packed_;
  const int64_t ld_;
  const MlpPlaces places_;
  const int64_t hidden_elements_;
  const RowProduct<T> first_, second_;
  const LinearPasses<T> passes_;
  JacobianSteps<T, MlpJacobian<adjoint>> newton_;
};

template <class T>
void solve(const MlpLinearProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  const int64_t dim = problem.dim, hidden = problem.hidden;
  CellCost cost{double(dim) * double(problem.w1.outputs + hidden), 0.2 * double(hidden) + 0.5 * double(dim)};
  const int threads = threads_for_cell(problem.rows, cost, executor.threads);
  PackedMlpLinear<T> packed{};
  const bool small = is_small(dim, problem.w1.outputs, hidden);
  packed.cell.newton = !small && newton_pays(options, dim, problem.w1.outputs);
  packed.cell.mixed = !small && mixed_allowed(options);
  const Matrix<T> first = problem.adjoint ? transposed(problem.w2) : problem.w1;
  const Matrix<T> second = problem.adjoint ? transposed(problem.w1) : problem.w2;
  pack_cell<T, 2, 1>({first, second}, packed.cell, {{row_or_zeros(problem.leak, dim), &packed.leak}}, threads,
                     executor);
  packed.jacobian_leak = jacobian_leak(packed.leak);
  cost.products = packed.cell.products();
  const auto run = [&](const auto& make_map) {
    solve_rows<T>(problem.rows, dim, cost, options, problem.w0, result, threads, executor, make_map);
  };
  if (problem.adjoint)
    run([&] { return MlpLinearMap<T, true>(problem, packed); });
  else
    run([&] { return MlpLinearMap<T, false>(problem, packed); });
}

}  // namespace

AK_DEFINE_SOLVE(solve_mlp_linear, MlpLinearProblem)

}  // namespace ak::AK_ISA
