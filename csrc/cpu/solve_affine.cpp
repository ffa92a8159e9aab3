// f = leak * z + scale * phi(z W^T + u): the whole solve in one call. Its adjoint is the same with phi the
// identity and scale = phi'(a).
#include "solve_rows.h"

namespace ak::AK_ISA {
namespace {

template <class T>
struct AffineOperands {
  const T* x;
  const T* product;  // x W^T; may be f
  T* f;
  const T* u;
  const T* scale;
  const T* leak;
  const T* previous;
  int64_t dim;
  int64_t first_relu;  // partial_relu
};

template <class T, int kind, bool leaky, bool scaled, bool watched>
inline void affine_row(const AffineOperands<T>& operands, double& r2, double& f2, double& dot) {
  using Math = Activations<VecOps<T>>;
  constexpr int lanes = kLanes<T>;
  const AffineOperands<T> o = operands;  // stores to f cannot change a local copy
  Vec<T> residual{}, norm{}, along{};
  const auto one = [&](int64_t i, bool last) {
    const Vec<T> x = load(o.x + i);
    const Vec<T> a = load(o.product + i) + load(o.u + i);
    Vec<T> f;
    if constexpr (kind == kPartialRelu) {
      f = i >= o.first_relu ? Math::relu(a) : a;
      if (i < o.first_relu && i + lanes > o.first_relu)
        for (int l = 0; l < lanes; ++l)
          if (i + l >= o.first_relu) f[l] = a[l] > T(0) || a[l] != a[l] ? a[l] : T(0);
    } else {
      f = Math::template apply<kind>(a);
    }
    if constexpr (scaled) f = f * load(o.scale + i);
    if constexpr (leaky) f = fma<T>(load(o.leak + i), x, f);
    if (last) f = load_first<T>(reinterpret_cast<const T*>(&f), int(o.dim - i));
    const Vec<T> g = f - x;
    residual = fma<T>(g, g, residual);
    norm = fma<T>(f, f, norm);
    if constexpr (watched) along = fma<T>(g, x - load(o.previous + i), along);
    store(o.f + i, f);
  };
  int64_t i = 0;
  for (; i + lanes <= o.dim; i += lanes) one(i, false);
  if (i < o.dim) one(i, true);
  sum_lanes_of_two<T>(residual, norm, r2, f2);
  if constexpr (watched) dot = double(sum_lanes<T>(along));
}

template <class T>
using RowFunction = void (*)(const AffineOperands<T>&, double&, double&, double&);

template <class T, int kind, bool leaky, bool scaled>
RowFunction<T> watched_or_not(bool watched) {
  return watched ? affine_row<T, kind, leaky, scaled, true> : affine_row<T, kind, leaky, scaled, false>;
}

template <class T, int kind>
RowFunction<T> leaky_or_not(bool leaky, bool watched) {
  return leaky ? watched_or_not<T, kind, true, false>(watched) : watched_or_not<T, kind, false, false>(watched);
}

template <class T>
RowFunction<T> row_function(const AffineProblem<T>& p, bool watched) {
  const bool leaky = p.leak != nullptr;
  if (p.scale != nullptr)
    return leaky ? watched_or_not<T, kIdentity, true, true>(watched)
                 : watched_or_not<T, kIdentity, false, true>(watched);
  switch (p.activation) {
    case kTanh:
      return leaky_or_not<T, kTanh>(leaky, watched);
    case kRelu:
      return leaky_or_not<T, kRelu>(leaky, watched);
    case kSigmoid:
      return leaky_or_not<T, kSigmoid>(leaky, watched);
    case kSoftplus:
      return leaky_or_not<T, kSoftplus>(leaky, watched);
    case kGelu:
      return leaky_or_not<T, kGelu>(leaky, watched);
    case kPartialRelu:
      return leaky_or_not<T, kPartialRelu>(leaky, watched);
    case kSilu:
      return leaky_or_not<T, kSilu>(leaky, watched);
    case kRelu2:
      return leaky_or_not<T, kRelu2>(leaky, watched);
    default:
      return leaky_or_not<T, kIdentity>(leaky, watched);
  }
}

// A slot holds u, scale where there is one, and what the product keeps.
template <class T>
class AffineMap {
 public:
  AffineMap(const AffineProblem<T>& problem, const Weights<T>& weight, const Weights<T>& leak)
      : problem_(problem),
        refresh2_(weight.refresh2()),
        product_(weight),
        leak_(leak.full.data),
        ld_(round_up(problem.dim, kLanes<T>)),
        kept_at_(ld_ * (problem.scale != nullptr ? 2 : 1)),
        plain_(row_function(problem, false)),
        watched_(row_function(problem, true)) {}

  int64_t slot_elements() const { return kept_at_ + product_.elements(); }
  double refresh2() const { return refresh2_; }

  void load(T* constants, int64_t row) {
    copy_padded(constants, problem_.u + row * problem_.dim, problem_.dim, ld_);
    if (problem_.scale != nullptr) copy_padded(constants + ld_, problem_.scale + row * problem_.dim, problem_.dim, ld_);
  }

  void evaluate(int n, Evaluation<T>* rows) {
    const T *x[kMaxTile], *products[kMaxTile];
    T *kept[kMaxTile], *f[kMaxTile];
    bool exact[kMaxTile];
    for (int i = 0; i < n; ++i) {
      x[i] = rows[i].zero ? nullptr : rows[i].x;
      kept[i] = rows[i].constants + kept_at_;
      f[i] = rows[i].f;
      exact[i] = rows[i].exact;
    }
    product_.apply(n, x, exact, kept, f, products);
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      const AffineOperands<T> operands{e.x,         products[i],       e.f,
                                       e.constants, e.constants + ld_, leak_,
                                       e.previous,  problem_.dim,      problem_.dim - problem_.pieces};
      (e.previous != nullptr ? watched_ : plain_)(operands, e.r2, e.f2, e.dot);
    }
  }

 private:
  const AffineProblem<T>& problem_;
  const double refresh2_;
  const RowProduct<T> product_;
  const T* const leak_;  // padded; unused without leak
  const int64_t ld_, kept_at_;
  const RowFunction<T> plain_, watched_;
};

template <class T>
void solve(const AffineProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  const double products = double(problem.dim) * double(problem.dim);
  const int threads = threads_for(problem.rows, products, executor.threads);
  Weights<T> weight, leak;
  const PackRequest<T> requests[] = {{problem.weight, &weight, mixed_allowed(options)},
                                     {vector_view(problem.leak, problem.dim), &leak}};
  pack(requests, problem.leak != nullptr ? 2 : 1, threads, executor);
  const CellCost cost{products * weight.share(), double(problem.dim)};
  solve_rows<T>(problem.rows, problem.dim, cost, options, problem.z0, result, threads, executor,
                [&] { return AffineMap<T>(problem, weight, leak); });
}

template <class T>
TilePlan tile_plan(int64_t rows, int64_t dim, const SolveOptions& options, int threads) {
  const CellCost cost{double(dim) * double(dim), double(dim)};
  const int used = threads_for(rows, cost.products, threads);
  const AffineProblem<T> problem{.rows = rows, .dim = dim};
  const Weights<T> weight{.full = {nullptr, int(dim), int(dim)}};
  AffineMap<T> map(problem, weight, weight);
  const TileShape shape = tile_shape<T>(options, cost, rows, dim, map.slot_elements(), used);
  const Tile<T, AffineMap<T>> tile(map, dim, shape, options, nullptr, {}, rows);
  return {shape.rows,
          kMaxRows,
          kPanelVectors * kLanes<T>,
          kDepth,
          used,
          shape.short_history,
          shape.price,
          PackedMatrix<T>::size(dim, dim) * int64_t(sizeof(T)),
          int64_t(tile.scratch_bytes())};
}

}  // namespace

AK_DEFINE_SOLVE(solve_affine, AffineProblem)

TilePlan plan_affine(int64_t rows, int64_t dim, int solver, int history, int element_size, int threads) {
  const SolveOptions options{.solver = solver, .history = history};
  return element_size == 8 ? tile_plan<double>(rows, dim, options, threads)
                           : tile_plan<float>(rows, dim, options, threads);
}

}  // namespace ak::AK_ISA
