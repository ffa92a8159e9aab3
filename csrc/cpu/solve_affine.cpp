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
  r2 = double(sum_lanes<T>(residual));
  f2 = double(sum_lanes<T>(norm));
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

#if defined(__AVX512BF16__) || defined(AK_EMULATE_BFLOAT16)
template <class T>
constexpr bool kHasMixed = sizeof(T) == 4;
#else
template <class T>
constexpr bool kHasMixed = false;
#endif

// precision="mixed": a row keeps its product a = W x and adds W d for the change d of x, W and d in bfloat16. What
// rounding d leaves behind is added to the next d, so a errs by the rounding of W alone, in proportion to the
// distance from where a was last computed in full: it is, whenever the residual has fallen by this factor since.
constexpr double kRefresh2 = 1e-4;

struct MixedRow {
  double level2;  // squared relative residual at the last full product
  bool valid, refresh;
};

template <class T>
class AffineMap {
 public:
  AffineMap(const AffineProblem<T>& problem, const PackedMatrix<T>& weight, const PackedMatrix<T>& leak,
            const PackedMatrix<uint32_t>* pairs)
      : problem_(problem),
        weight_(weight),
        leak_(leak.data),
        pairs_(pairs),
        ld_(round_up(problem.dim, kLanes<T>)),
        scale_at_(ld_),
        product_at_(ld_ * (problem.scale != nullptr ? 2 : 1)),
        plain_(row_function(problem, false)),
        watched_(row_function(problem, true)) {}

  int64_t slot_elements() const {
    // In mixed precision also the product, the x it stands for, the pairs of d, and the row's state.
    return product_at_ + (pairs_ != nullptr ? 3 * ld_ + int64_t(sizeof(MixedRow) / sizeof(T)) : 0) + kLanes<T>;
  }

  void load(T* constants, int64_t row) {
    copy_padded(constants, problem_.u + row * problem_.dim, problem_.dim, ld_);
    if (problem_.scale != nullptr)
      copy_padded(constants + scale_at_, problem_.scale + row * problem_.dim, problem_.dim, ld_);
    if (pairs_ != nullptr) *mixed_row(constants) = {0, false, false};
  }

  void evaluate(int n, Evaluation<T>* rows) {
    if constexpr (kHasMixed<T>) {
      if (pairs_ != nullptr) return evaluate_mixed(n, rows);
    }
    products(n, rows, [](const Evaluation<T>& e) { return e.f; });
    for (int i = 0; i < n; ++i) finish(rows[i], rows[i].f);
  }

 private:
  static constexpr int kStateAt = 3;  // in rows after the product

  T* product(T* constants) const { return constants + product_at_; }
  T* stands_for(T* constants) const { return constants + product_at_ + ld_; }
  uint32_t* change(T* constants) const { return reinterpret_cast<uint32_t*>(constants + product_at_ + 2 * ld_); }
  MixedRow* mixed_row(T* constants) const {
    return reinterpret_cast<MixedRow*>(constants + product_at_ + kStateAt * ld_);
  }

  // Full products of the rows for which `to` names a place.
  template <class To>
  void products(int n, const Evaluation<T>* rows, const To& to) {
    const T* x[kMaxTile];
    T* out[kMaxTile];
    int count = 0;
    for (int i = 0; i < n; ++i) {
      T* const place = to(rows[i]);
      if (place == nullptr) continue;
      if (rows[i].zero) {
        std::memset(place, 0, size_t(ld_) * sizeof(T));
      } else {
        x[count] = rows[i].x;
        out[count++] = place;
      }
    }
    multiply<T>(weight_, count, x, out);
  }

  void finish(Evaluation<T>& e, const T* product) const {
    const AffineOperands<T> operands{e.x,
                                     product,
                                     e.f,
                                     e.constants,
                                     e.constants + scale_at_,
                                     leak_,
                                     e.previous,
                                     problem_.dim,
                                     problem_.dim - problem_.pieces};
    (e.previous != nullptr ? watched_ : plain_)(operands, e.r2, e.f2, e.dot);
  }

  void evaluate_mixed(int n, Evaluation<T>* rows) {
    const uint32_t* changes[kMaxTile];
    T* out[kMaxTile];
    int count = 0;
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      const MixedRow& state = *mixed_row(e.constants);
      e.exact = e.must_be_exact || !state.valid || state.refresh;
      if (e.exact) {
        std::memcpy(stands_for(e.constants), e.x, size_t(ld_) * sizeof(T));
      } else {
        take_change(e.x, stands_for(e.constants), change(e.constants));
        changes[count] = change(e.constants);
        out[count++] = product(e.constants);
      }
    }
    products(n, rows, [&](const Evaluation<T>& e) { return e.exact ? product(e.constants) : nullptr; });
    if constexpr (kHasMixed<T>) multiply_rows<Bfloat16Pairs>(*pairs_, count, changes, out, true);
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      finish(e, product(e.constants));
      MixedRow& state = *mixed_row(e.constants);
      const double level2 = e.f2 > 0 ? e.r2 / e.f2 : 0;
      if (e.exact) state = {level2, true, false};
      state.refresh = level2 < kRefresh2 * state.level2;
    }
  }

  // d = bfloat16(x - last), last += d.
  void take_change(const T* x, T* last, uint32_t* pairs) const {
    if constexpr (kHasMixed<T>) {
      typedef uint16_t Half __attribute__((vector_size(AK_VECTOR_BYTES / 2)));
      for (int64_t i = 0; i < ld_; i += kLanes<T>) {
        const Vec<T> before = ::ak::AK_ISA::load(last + i);
        const Vec<uint32_t> bits = (Vec<uint32_t>)(::ak::AK_ISA::load(x + i) - before);
        const Vec<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        store(last + i, before + (Vec<T>)(rounded << 16));
        const Half half = __builtin_convertvector(rounded, Half);
        std::memcpy(reinterpret_cast<uint16_t*>(pairs) + i, &half, sizeof half);
      }
    }
  }

  const AffineProblem<T>& problem_;
  const PackedMatrix<T>& weight_;
  const T* const leak_;                        // padded; unused without leak
  const PackedMatrix<uint32_t>* const pairs_;  // null: full precision
  const int64_t ld_, scale_at_, product_at_;
  const RowFunction<T> plain_, watched_;
};

template <class T>
void solve(const AffineProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  const double products = double(problem.dim) * double(problem.dim);
  const CellCost cost{products, double(problem.dim)};
  const int threads = threads_for(problem.rows, products, executor.threads);
  PackedMatrix<T> weight, leak;
  PackedMatrix<uint32_t> pairs;
  // "best" compares residuals of different steps, which in mixed precision are not of one kind.
  const bool mixed = kHasMixed<T> && options.mixed && !options.keep_best;
  const PackRequest<T> requests[] = {{problem.weight, &weight, mixed ? &pairs : nullptr},
                                     {vector_view(problem.leak, problem.dim), &leak}};
  pack(requests, problem.leak != nullptr ? 2 : 1, threads, executor);
  solve_rows<T>(problem.rows, problem.dim, cost, options, problem.z0, result, threads, executor,
                [&] { return AffineMap<T>(problem, weight, leak, mixed ? &pairs : nullptr); });
}

template <class T>
TilePlan tile_plan(int64_t rows, int64_t dim, const SolveOptions& options, int threads) {
  const CellCost cost{double(dim) * double(dim), double(dim)};
  const int used = threads_for(rows, cost.products, threads);
  const AffineProblem<T> problem{.rows = rows, .dim = dim};
  const PackedMatrix<T> weight{nullptr, int(dim), int(dim)};
  AffineMap<T> map(problem, weight, weight, nullptr);
  const TileShape shape = tile_shape<T>(options, cost, rows, dim, map.slot_elements(), used);
  const Tile<T, AffineMap<T>> tile(map, dim, shape, options, nullptr, {}, rows);
  return {shape.rows,
          kMaxRows,
          kPanelVectors * kLanes<T>,
          kDepth,
          used,
          shape.history,
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
