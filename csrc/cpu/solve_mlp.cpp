// The MLP cell, y = z + u, f = leak z + norm(skip y + W2 phi(W1 y + b1) + b2): the whole solve in one call. The
// mathematics stands in attractor_kernels/backends/reference/mlp.py.
#include "mlp_row.h"

namespace ak::AK_ISA {
namespace {

// h = phi(a + b); a may be h
template <class T, int kind>
void activate_row(T* h, const T* a, const T* const* b, int64_t hidden) {
  using Math = Activations<VecOps<T>>;
  const T* const b1 = b[0];
  for (int64_t i = 0; i < hidden; i += kLanes<T>) store(h + i, Math::template apply<kind>(load(a + i) + load(b1 + i)));
}

// h = silu(first half of a) * second half; a may be h: a vector of the first half reaches only into what has been read
// of the second.
template <class T>
void swiglu_row(T* h, const T* a, const T* const* b, int64_t hidden) {
  using Math = Activations<VecOps<T>>;
  const T *const b1 = b[0], *const b2 = b[1];
  for (int64_t i = 0; i < hidden; i += kLanes<T>) {
    const Vec<T> gate = load(a + i) + load(b1 + i);
    const Vec<T> value = load(a + hidden + i) + load(b2 + i);
    store(h + i, Math::silu(gate) * value);
  }
}

template <class T>
using HiddenPass = void (*)(T* h, const T* a, const T* const* b, int64_t hidden);

template <class T>
HiddenPass<T> hidden_pass(int activation) {
  switch (activation) {
    case kTanh:
      return activate_row<T, kTanh>;
    case kRelu:
      return activate_row<T, kRelu>;
    case kSigmoid:
      return activate_row<T, kSigmoid>;
    case kSoftplus:
      return activate_row<T, kSoftplus>;
    case kGelu:
      return activate_row<T, kGelu>;
    case kSilu:
      return activate_row<T, kSilu>;
    case kRelu2:
      return activate_row<T, kRelu2>;
    case kSwiglu:
      return swiglu_row<T>;
    default:
      return activate_row<T, kIdentity>;
  }
}

// f = leak x + norm(a + base + skip x), base = skip u + b2; a may be f
template <class T, int norm, bool watched>
void output_row(Evaluation<T>& e, const T* a, const T* base, const T* leak_row, T skip, T eps, int64_t dim) {
  const T *const x_row = e.x, *const previous = e.previous;
  T* const f_row = e.f;
  const Vec<T> skips = broadcast<T>(skip);
  const auto output = [&](int64_t i) { return fma<T>(skips, load(x_row + i), load(a + i) + load(base + i)); };
  Vec<T> mean{}, rinv{};
  if constexpr (norm != kNoNorm) {
    Vec<T> sum{};
    for_row<T>(dim, [&](int64_t i, auto keep) {
      const Vec<T> o = keep(output(i));
      store(f_row + i, o);
      sum = norm == kLayerNorm ? sum + o : fma<T>(o, o, sum);
    });
    if constexpr (norm == kLayerNorm) {
      mean = broadcast<T>(sum_lanes<T>(sum) / T(dim));
      sum = Vec<T>{};
      for_row<T>(dim, [&](int64_t i, auto keep) {
        const Vec<T> o = keep(load(f_row + i) - mean);
        sum = fma<T>(o, o, sum);
      });
    }
    rinv = broadcast<T>(T(1) / square_root(sum_lanes<T>(sum) / T(dim) + eps));
  }
  RowSums<T, watched> sums;
  for_row<T>(dim, [&](int64_t i, auto keep) {
    const Vec<T> x = load(x_row + i);
    Vec<T> f;
    if constexpr (norm == kNoNorm)
      f = output(i);
    else if constexpr (norm == kLayerNorm)
      f = (load(f_row + i) - mean) * rinv;
    else
      f = load(f_row + i) * rinv;
    f = keep(fma<T>(load(leak_row + i), x, f));
    store(f_row + i, f);
    sums.add(x, f, previous + i);
  });
  sums.put(e);
}

template <class T>
using OutputPass = void (*)(Evaluation<T>&, const T*, const T*, const T*, T, T, int64_t);

template <class T, bool watched>
OutputPass<T> output_pass(int norm) {
  return norm == kLayerNorm ? output_row<T, kLayerNorm, watched>
         : norm == kRmsNorm ? output_row<T, kRmsNorm, watched>
                            : output_row<T, kNoNorm, watched>;
}

template <class T>
struct PackedMlp {
  Weights<T> w1, w2, leak, b2;
  Weights<T> b1[2];  // of each half of a gated activation
};

// A slot holds u, base, the hidden activations, and what the two products keep.
template <class T>
class MlpMap {
 public:
  MlpMap(const MlpProblem<T>& problem, const PackedMlp<T>& packed)
      : problem_(problem),
        packed_(packed),
        first_(packed.w1),
        second_(packed.w2),
        b1_{packed.b1[0].full.data, packed.b1[1].full.data},
        ld_(round_up(problem.dim, kLanes<T>)),
        hidden_elements_(hidden_elements<T>(problem.w1.outputs)),
        hidden_pass_(hidden_pass<T>(problem.activation)),
        plain_(output_pass<T, false>(problem.norm)),
        watched_(output_pass<T, true>(problem.norm)) {}

  int64_t slot_elements() const { return 2 * ld_ + hidden_elements_ + first_.elements() + second_.elements(); }
  double refresh2() const { return larger(packed_.w1.refresh2(), packed_.w2.refresh2()); }

  void load(T* constants, int64_t row) {
    T* const base = constants + ld_;
    copy_padded(constants, problem_.u + row * problem_.dim, problem_.dim, ld_);
    std::memcpy(base, packed_.b2.full.data, size_t(ld_) * sizeof(T));
    if (problem_.skip != T(0)) add_scaled(base, problem_.skip, constants, ld_);
    std::memset(hidden(constants), 0, size_t(hidden_elements_) * sizeof(T));
  }

  void evaluate(int n, Evaluation<T>* rows) {
    const T *x[kMaxTile], *a[kMaxTile];
    T *f[kMaxTile], *h[kMaxTile], *kept[kMaxTile];
    bool exact[kMaxTile];
    for (int i = 0; i < n; ++i) {
      x[i] = f[i] = rows[i].f;  // y, until W2's product takes its place
      h[i] = hidden(rows[i].constants);
      kept[i] = h[i] + hidden_elements_;
      exact[i] = rows[i].exact;
      add_rows(f[i], rows[i].x, rows[i].constants, ld_);
    }
    first_.apply(n, x, exact, kept, h, a);
    for (int i = 0; i < n; ++i) {
      hidden_pass_(h[i], a[i], b1_, problem_.hidden);
      x[i] = h[i];
      kept[i] += first_.elements();
    }
    second_.apply(n, x, exact, kept, f, a);
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      (e.previous != nullptr ? watched_ : plain_)(e, a[i], e.constants + ld_, packed_.leak.full.data, problem_.skip,
                                                  problem_.norm_eps, problem_.dim);
    }
  }

 private:
  T* hidden(T* constants) const { return constants + 2 * ld_; }

  const MlpProblem<T>& problem_;
  const PackedMlp<T>& packed_;
  const RowProduct<T> first_, second_;
  const T* const b1_[2];
  const int64_t ld_, hidden_elements_;
  const HiddenPass<T> hidden_pass_;
  const OutputPass<T> plain_, watched_;
};

template <class T>
void solve(const MlpProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  const int64_t dim = problem.dim, hidden = problem.hidden;
  const bool gated = problem.activation == kSwiglu;
  CellCost cost{double(dim) * double(problem.w1.outputs + hidden),
                double(hidden) * activation_cost(problem.activation) + 0.5 * double(dim)};
  const int threads = threads_for_cell(problem.rows, cost, executor.threads);
  PackedMlp<T> packed;
  const T* const second = gated && problem.b1 != nullptr ? problem.b1 + hidden : nullptr;
  const PackRequest<T> requests[] = {
      {problem.w1, &packed.w1, mixed_allowed(options)},  {problem.w2, &packed.w2, mixed_allowed(options)},
      {row_or_zeros(problem.leak, dim), &packed.leak},   {row_or_zeros(problem.b2, dim), &packed.b2},
      {row_or_zeros(problem.b1, hidden), &packed.b1[0]}, {row_or_zeros(second, hidden), &packed.b1[1]},
  };
  pack(requests, gated ? 6 : 5, threads, executor);
  cost.products = double(dim) * (double(problem.w1.outputs) * packed.w1.share() + double(hidden) * packed.w2.share());
  solve_rows<T>(problem.rows, dim, cost, options, problem.z0, result, threads, executor,
                [&] { return MlpMap<T>(problem, packed); });
}

}  // namespace

AK_DEFINE_SOLVE(solve_mlp, MlpProblem)

}  // namespace ak::AK_ISA
