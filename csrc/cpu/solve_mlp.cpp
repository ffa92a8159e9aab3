// The MLP cell, y = z + u, f = leak z + norm(skip y + W2 phi(W1 y + b1) + b2): the whole solve in one call. The
// mathematics stands in attractor_kernels/backends/reference/mlp.py.
#include "mlp_jacobian.h"
#include "row_sums.h"
#include "slope_at.h"

namespace ak::AK_ISA {
namespace {

// h = phi(a + b) and, where asked for, q = phi'(a + b); a may be h
template <class T, int kind, bool slopes>
void activate_row(T* h, const T* a, const T* const* b, int64_t hidden, T* q) {
  using Math = Activations<VecOps<T>>;
  const T* const b1 = b[0];
  for_row<T>(hidden, [&](int64_t i, auto keep) {
    const Vec<T> in = load(a + i) + load(b1 + i), out = Math::template apply<kind>(in);
    store(h + i, out);
    if constexpr (slopes)
      store(q + i, keep(slope_by_value(kind) ? slope_at<T, kind>(out) : Math::template derivative<kind>(in)));
  });
}

// h = silu(first half of a) * second half, q its derivatives by both; a may be h: a vector of the first half reaches
// only into what has been read of the second.
template <class T, bool slopes>
void swiglu_row(T* h, const T* a, const T* const* b, int64_t hidden, T* q) {
  using Math = Activations<VecOps<T>>;
  const T *const b1 = b[0], *const b2 = b[1];
  const int64_t ld = round_up(hidden, kLanes<T>);
  for_row<T>(hidden, [&](int64_t i, auto keep) {
    const Vec<T> gate = load(a + i) + load(b1 + i);
    const Vec<T> value = load(a + hidden + i) + load(b2 + i);
    const Vec<T> open = Math::silu(gate);
    store(h + i, open * value);
    if constexpr (slopes) {
      store(q + i, keep(Math::template derivative<kSilu>(gate) * value));
      store(q + ld + i, keep(open));
    }
  });
}

template <class T>
using HiddenPass = void (*)(T* h, const T* a, const T* const* b, int64_t hidden, T* q);

// choose<kind>() for an activation.
template <class Choose>
auto by_activation(int activation, const Choose& choose) {
  switch (activation) {
    case kTanh:
      return choose.template operator()<kTanh>();
    case kRelu:
      return choose.template operator()<kRelu>();
    case kSigmoid:
      return choose.template operator()<kSigmoid>();
    case kSoftplus:
      return choose.template operator()<kSoftplus>();
    case kGelu:
      return choose.template operator()<kGelu>();
    case kSilu:
      return choose.template operator()<kSilu>();
    case kRelu2:
      return choose.template operator()<kRelu2>();
    case kSwiglu:
      return choose.template operator()<kSwiglu>();
    default:
      return choose.template operator()<kIdentity>();
  }
}

template <class T, bool slopes>
HiddenPass<T> hidden_pass(int activation) {
  return by_activation(activation, []<int kind>() -> HiddenPass<T> {
    if constexpr (kind == kSwiglu) return swiglu_row<T, slopes>;
    return activate_row<T, kind, slopes>;
  });
}

// f = leak x + norm(a + base + skip x), base = skip u + b2; a may be f. to_n, to_rinv: where those of the norm go,
// where that is asked for.
template <class T, int norm, Watch watch>
void output_row(Evaluation<T>& e, const T* a, const T* base, const T* leak_row, T skip, T eps, int64_t dim,
                [[maybe_unused]] T* to_n, [[maybe_unused]] T* to_rinv) {
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
  constexpr bool keeps = watch == kCorrected && norm != kNoNorm;
  if constexpr (keeps) store(to_rinv, rinv);
  RowSums<T, watch> sums;
  for_row<T>(dim, [&](int64_t i, auto keep) {
    const Vec<T> x = load(x_row + i);
    Vec<T> f;
    if constexpr (norm == kNoNorm)
      f = output(i);
    else if constexpr (norm == kLayerNorm)
      f = (load(f_row + i) - mean) * rinv;
    else
      f = load(f_row + i) * rinv;
    if constexpr (keeps) store(to_n + i, keep(f));
    f = keep(fma<T>(load(leak_row + i), x, f));
    store(f_row + i, f);
    sums.add(x, f, previous + i);
  });
  sums.put(e);
}

template <class T>
using OutputPass = void (*)(Evaluation<T>&, const T*, const T*, const T*, T, T, int64_t, T*, T*);

template <class T, Watch watch>
OutputPass<T> output_pass(int norm) {
  return norm == kLayerNorm ? output_row<T, kLayerNorm, watch>
         : norm == kRmsNorm ? output_row<T, kRmsNorm, watch>
                            : output_row<T, kNoNorm, watch>;
}

template <class T>
struct PackedMlp {
  CellWeights<T, 2> cell;  // W1 and W2
  Weights<T> leak, b2;
  Weights<T> b1[2];            // of each half of a gated activation
  const float* jacobian_leak;  // [dim], in whole vectors
};

// A slot holds u, base, the hidden activations, what the two products keep and, for Newton steps, what J is made of.
template <class T>
class MlpMap {
 public:
  MlpMap(const MlpProblem<T>& problem, const PackedMlp<T>& packed)
      : problem_(problem),
        packed_(packed),
        first_(packed.cell.of[0]),
        second_(packed.cell.of[1]),
        b1_{packed.b1[0].full.data, packed.b1[1].full.data},
        ld_(round_up(problem.dim, kLanes<T>)),
        hidden_elements_(hidden_elements<T>(problem.w1.outputs)),
        places_{problem.dim, problem.hidden, problem.activation == kSwiglu ? 2 : 1, problem.norm != kNoNorm,
                2 * ld_ + hidden_elements_ + first_.elements() + second_.elements()},
        newton_(packed.cell.newton, packed.cell.coarse(0), packed.cell.coarse(1),
                sizeof(T) == 4 ? places_ : narrow_places(places_), packed.jacobian_leak, float(problem.skip),
                problem.norm),
        hidden_passes_{hidden_pass<T, false>(problem.activation), hidden_pass<T, true>(problem.activation)},
        output_passes_{output_pass<T, kUnwatched>(problem.norm), output_pass<T, kDirection>(problem.norm),
                       output_pass<T, kCorrected>(problem.norm)} {}

  int64_t slot_elements() const { return places_.at + (corrects() ? places_.template elements<T>() : 0); }
  double refresh2() const { return packed_.cell.refresh2(); }

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
      const bool corrected = watch_of(rows[i]) == kCorrected;
      hidden_passes_[corrected](h[i], a[i], b1_, problem_.hidden, places_.q(rows[i].constants));
      x[i] = h[i];
      kept[i] += first_.elements();
    }
    second_.apply(n, x, exact, kept, f, a);
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      output_passes_[watch_of(e)](e, a[i], e.constants + ld_, packed_.leak.full.data, problem_.skip, problem_.norm_eps,
                                  problem_.dim, places_.n(e.constants), places_.rinv(e.constants));
    }
  }

  bool corrects() const { return newton_.pay(); }
  double aim2(bool first) const { return newton_.aim2(first); }
  void correct(int n, Correction<T>* rows) {
    newton_.take(n, rows, [&](const T* constants, float* to) { narrow_derivative(places_, constants, to); });
  }

 private:
  T* hidden(T* constants) const { return constants + 2 * ld_; }

  const MlpProblem<T>& problem_;
  const PackedMlp<T>& packed_;
  const RowProduct<T> first_, second_;
  const T* const b1_[2];
  const int64_t ld_, hidden_elements_;
  const MlpPlaces places_;
  JacobianSteps<T, MlpJacobian<false>> newton_;
  const HiddenPass<T> hidden_passes_[2];  // and with slopes
  const OutputPass<T> output_passes_[3];  // by Watch
};

// out, hidden vectors, from phi's arguments in the same place: of rows side by side. b: as HiddenPass has it.
template <class T, int kind>
void activate_lanes(Vec<T>* out, const T* const* b, int64_t hidden) {
  using Math = Activations<VecOps<T>>;
  for (int64_t i = 0; i < hidden; ++i) {
    const Vec<T> in = out[i] + broadcast<T>(b[0][i]);
    if constexpr (kind == kSwiglu)
      out[i] = Math::silu(in) * (out[hidden + i] + broadcast<T>(b[1][i]));
    else
      out[i] = Math::template apply<kind>(in);
  }
}

// MlpMap for rows side by side, without a norm, all products in full. A lane's constant is u.
template <class T>
class MlpLanes {
 public:
  MlpLanes(const MlpProblem<T>& problem, const PackedMlp<T>& packed)
      : problem_(problem),
        packed_(packed),
        b1_{packed.b1[0].full.data, packed.b1[1].full.data},
        activate_(by_activation(problem.activation, []<int kind>() -> Activate { return activate_lanes<T, kind>; })) {}

  int64_t slot_elements() const { return problem_.dim; }

  void load(Vec<T>* constants, int lane, int64_t row) const {
    const T* const u = problem_.u + row * problem_.dim;
    for (int64_t i = 0; i < problem_.dim; ++i) constants[i][lane] = u[i];
  }

  void evaluate(LaneEvaluation<T>& e) const {
    const int64_t dim = problem_.dim, outputs = packed_.cell.of[0].padded_outputs();
    Vec<T>* const h = static_cast<Vec<T>*>(product_scratch().get(size_t(outputs) * sizeof(Vec<T>)));
    const Vec<T>*const x = e.x, *const u = e.constants;
    Vec<T>* const f = e.f;
    for (int64_t i = 0; i < dim; ++i) f[i] = x[i] + u[i];
    multiply_lanes(packed_.cell.of[0].full, f, h);
    activate_(h, b1_, problem_.hidden);
    multiply_lanes(packed_.cell.of[1].full, h, f);
    const T *const b2 = packed_.b2.full.data, *const leak = packed_.leak.full.data;
    const Vec<T> skip = broadcast<T>(problem_.skip);
    for (int64_t i = 0; i < dim; ++i) {
      Vec<T> base = broadcast<T>(b2[i]);
      if (problem_.skip != T(0)) base = fma<T>(skip, u[i], base);
      f[i] = fma<T>(broadcast<T>(leak[i]), x[i], fma<T>(skip, x[i], f[i] + base));
    }
  }

  bool corrects() const { return false; }
  int64_t correction_elements() const { return 0; }
  void correct(LaneSet, const Vec<T>*, Vec<T>*, const Vec<T>*, Vec<T>*) const {}

 private:
  using Activate = void (*)(Vec<T>* out, const T* const* b, int64_t hidden);

  const MlpProblem<T>& problem_;
  const PackedMlp<T>& packed_;
  const T* const b1_[2];
  const Activate activate_;
};

template <class T>
using MlpBoth = LanesAndRows<MlpLanes<T>, MlpMap<T>>;

// Whether rows side by side are sooner done of a small problem: they fill the lanes.
template <class T>
bool lanes_pay(const MlpProblem<T>& p, int threads) {
  const int64_t share = (p.rows + threads - 1) / threads;
  return kLanes<T> >= 4 && p.dim >= 1 && p.norm == kNoNorm && 20 * share >= 13 * kLanes<T>;
}

template <class T>
void solve(const MlpProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  const int64_t dim = problem.dim, hidden = problem.hidden;
  const bool gated = problem.activation == kSwiglu;
  CellCost cost{double(dim) * double(problem.w1.outputs + hidden),
                double(hidden) * activation_cost(problem.activation) + 0.5 * double(dim)};
  const int threads = threads_for_cell(problem.rows, cost, executor.threads);
  PackedMlp<T> packed{};
  const T* const second = gated && problem.b1 != nullptr ? problem.b1 + hidden : nullptr;
  const bool small = is_small(dim, problem.w1.outputs, hidden);
  packed.cell.newton = !small && newton_pays(options, dim, problem.w1.outputs);
  packed.cell.mixed = !small && mixed_allowed(options);
  pack_cell<T, 2, 4>({problem.w1, problem.w2}, packed.cell,
                     {{row_or_zeros(problem.leak, dim), &packed.leak},
                      {row_or_zeros(problem.b2, dim), &packed.b2},
                      {row_or_zeros(problem.b1, hidden), &packed.b1[0]},
                      {row_or_zeros(second, hidden), &packed.b1[1]}},
                     threads, executor);
  packed.jacobian_leak = jacobian_leak(packed.leak);
  cost.products = packed.cell.products();
  if (small && lanes_pay(problem, threads) && packed.cell.of[0].for_lanes() && packed.cell.of[1].for_lanes())
    return solve_rows<T, LaneTile>(problem.rows, dim, cost, options, problem.z0, result, threads, executor,
                                   [&] { return MlpBoth<T>(problem, packed); });
  solve_rows<T>(problem.rows, dim, cost, options, problem.z0, result, threads, executor,
                [&] { return MlpMap<T>(problem, packed); });
}

}  // namespace

AK_DEFINE_SOLVE(solve_mlp, MlpProblem)

}  // namespace ak::AK_ISA
