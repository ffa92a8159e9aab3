// f = leak * z + scale * phi(z W^T + u): the whole solve in one call. Its adjoint is the same with phi the
// identity and scale = phi'(a).
#include "chord.h"
#include "newton_float64.h"
#include "slope_at.h"
#include "solve_rows.h"

namespace ak::AK_ISA {
namespace {

// What all rows share. A row's constants are u and, from `ld` on, its scale.
template <class T>
struct AffineRows {
  const T* leak;
  int64_t ld, dim;
  int64_t first_relu;  // partial_relu
};

enum Watch { kUnwatched, kDirection, kSecant };

// What is asked of this step: nothing, the largest entry of f - x, with it how far f is from what the row's product
// stands for, or the same where that is x, with the size of the product (Evaluation::rounding2).
enum Reach { kNear, kLargest, kFar, kMoving };

// The row passes of a few rows, whose lanes are added together.
constexpr int kGroup = 4;

// The sums of a group, before their lanes are added.
template <class T>
struct LaneSums {
  Vec<T> residual_and_norm[2 * kGroup], along[kGroup], square[kGroup], largest[kGroup], change[kGroup], product[kGroup];

  void set(int r, Vec<T> residual, Vec<T> norm, Vec<T> row_along, Vec<T> row_square, Vec<T> row_largest,
           Vec<T> row_change, Vec<T> row_product) {
    residual_and_norm[r] = residual;
    residual_and_norm[kGroup + r] = norm;
    along[r] = row_along;
    square[r] = row_square;
    largest[r] = row_largest;
    change[r] = row_change;
    product[r] = row_product;
  }
};

template <class T, int kind, bool leaky, bool scaled, Reach reach, Watch watch>
inline void affine_row(const AffineRows<T>& all, const T* product, const Evaluation<T>& e, int r, LaneSums<T>& out) {
  using Math = Activations<VecOps<T>>;
  constexpr int lanes = kLanes<T>;
  // Locals, which stores to f cannot change.
  const T *const x_row = e.x, *const u = e.constants, *const scale = u + all.ld, *const leak = all.leak;
  const T *const before = watch == kSecant ? e.previous_g : e.previous, *const stands_for = e.stands_for;
  T* const f_row = e.f;
  const int64_t dim = all.dim, first_relu = all.first_relu;
  Vec<T> residual{}, norm{}, along{}, square{}, largest{}, change{}, size{};
  const auto one = [&](int64_t i, bool last) {
    const Vec<T> x = load(x_row + i);
    Vec<T> p = load(product + i);
    const Vec<T> a = p + load(u + i);
    Vec<T> f;
    if constexpr (kind == kPartialRelu) {
      const Vec<T> rectified = Math::relu(a);
      f = i >= first_relu ? rectified : a;
      if (i < first_relu && i + lanes > first_relu)
        for (int l = 0; l < lanes; ++l)
          if (i + l >= first_relu) f[l] = rectified[l];
    } else {
      f = Math::template apply<kind>(a);
    }
    if constexpr (scaled) f = f * load(scale + i);
    if constexpr (leaky) f = fma<T>(load(leak + i), x, f);
    if (last) f = load_first<T>(reinterpret_cast<const T*>(&f), int(dim - i));
    const Vec<T> g = f - x;
    residual = fma<T>(g, g, residual);
    norm = fma<T>(f, f, norm);
    if constexpr (watch == kDirection) along = fma<T>(g, x - load(before + i), along);
    if constexpr (watch == kSecant) {
      const Vec<T> dg = g - load(before + i);
      square = fma<T>(dg, dg, square);
      along = fma<T>(dg, g, along);
    }
    if constexpr (reach == kFar) change = VecOps<T>::max(change, VecOps<T>::abs(f - load(stands_for + i)));
    if constexpr (reach != kNear) largest = VecOps<T>::max(largest, VecOps<T>::abs(g));
    if constexpr (reach == kMoving) {
      // As far as what p is off by reaches f: the slopes of the other activations are 1 or little more.
      if constexpr (scaled) p = p * load(scale + i);
      if constexpr (kind == kRelu2) p = p * (a + a);
      size = fma<T>(p, p, size);
    }
    store(f_row + i, f);
  };
  int64_t i = 0;
  for (; i + lanes <= dim; i += lanes) one(i, false);
  if (i < dim) one(i, true);
  out.set(r, residual, norm, along, square, largest, change, size);
}

template <class T, int kind, bool leaky, bool scaled, Reach reach>
void affine_rows(const AffineRows<T>& all, int n, const T* const* products, Evaluation<T>* rows) {
  LaneSums<T> lanes;
  bool watched = false, secant = false;
  const Vec<T> none{};
  for (int r = n; r < kGroup; ++r) lanes.set(r, none, none, none, none, none, none, none);
  for (int r = 0; r < n; ++r) {
    const Evaluation<T>& e = rows[r];
    if (e.previous_g != nullptr) {
      affine_row<T, kind, leaky, scaled, reach, kSecant>(all, products[r], e, r, lanes);
      secant = true;
    } else if (e.previous != nullptr) {
      affine_row<T, kind, leaky, scaled, reach, kDirection>(all, products[r], e, r, lanes);
      watched = true;
    } else {
      affine_row<T, kind, leaky, scaled, reach, kUnwatched>(all, products[r], e, r, lanes);
    }
  }
  T sums[2 * kGroup], along[kGroup], square[kGroup], largest[kGroup], change[kGroup], size[kGroup];
  sum_lanes_of_each<2 * kGroup>(lanes.residual_and_norm, sums);
  if (watched || secant) sum_lanes_of_each<kGroup>(lanes.along, along);
  if (secant) sum_lanes_of_each<kGroup>(lanes.square, square);
  if constexpr (reach != kNear) largest_lane_of_each<kGroup>(lanes.largest, largest);
  if constexpr (reach == kFar) largest_lane_of_each<kGroup>(lanes.change, change);
  if constexpr (reach == kMoving) sum_lanes_of_each<kGroup>(lanes.product, size);
  for (int r = 0; r < n; ++r) {
    Evaluation<T>& e = rows[r];
    e.r2 = double(sums[r]);
    e.f2 = double(sums[kGroup + r]);
    if (watched) e.dot = double(along[r]);
    if (e.previous_g != nullptr) {
      e.secant_known = true;
      e.secant = {double(square[r]), double(along[r])};
    }
    if constexpr (reach != kNear) e.largest = largest[r];
    if constexpr (reach == kFar) e.travel.largest = change[r];
    if constexpr (reach == kMoving) {
      constexpr double kUnit2 = 0x1p-48;
      e.travel = {largest[r], e.r2};
      e.rounding2 += kUnit2 * double(size[r]);
    }
  }
}

// choose<kind, scaled>() for the problem's activation.
template <class T, class Choose>
auto by_activation(const AffineProblem<T>& p, const Choose& choose) {
  if (p.scale != nullptr) return choose.template operator()<kIdentity, true>();
  switch (p.activation) {
    case kTanh:
      return choose.template operator()<kTanh, false>();
    case kRelu:
      return choose.template operator()<kRelu, false>();
    case kSigmoid:
      return choose.template operator()<kSigmoid, false>();
    case kSoftplus:
      return choose.template operator()<kSoftplus, false>();
    case kGelu:
      return choose.template operator()<kGelu, false>();
    case kPartialRelu:
      return choose.template operator()<kPartialRelu, false>();
    case kSilu:
      return choose.template operator()<kSilu, false>();
    case kRelu2:
      return choose.template operator()<kRelu2, false>();
    default:
      return choose.template operator()<kIdentity, false>();
  }
}

template <class T>
using RowFunction = void (*)(const AffineRows<T>&, int n, const T* const* products, Evaluation<T>*);

template <class T, int kind, bool leaky, bool scaled>
RowFunction<T> by_reach(Reach reach) {
#if AK_HAS_INT8
  if (reach == kLargest) return affine_rows<T, kind, leaky, scaled, kLargest>;
#endif
  if constexpr (sizeof(T) == 4) {
#if AK_HAS_MATRIX_UNIT
    if (reach == kMoving) return affine_rows<T, kind, leaky, scaled, kMoving>;
#endif
    if (reach == kFar) return affine_rows<T, kind, leaky, scaled, kFar>;
  }
  return affine_rows<T, kind, leaky, scaled, kNear>;
}

template <class T>
RowFunction<T> row_function(const AffineProblem<T>& p, Reach reach) {
  return by_activation(p, [&]<int kind, bool scaled>() {
    return p.leak != nullptr ? by_reach<T, kind, true, scaled>(reach) : by_reach<T, kind, false, scaled>(reach);
  });
}

// sink.put of phi'(a) of all of a row, by `product` or, where that is gone, by f.
template <class T, class Sink>
using SlopeFunction = void (*)(const AffineRows<T>&, const T* product, const Correction<T>&, const Sink&);

// With a leak phi(a) is had by a difference, whose sign is nothing to go by.
constexpr bool slopes_by_value(int kind, bool leaky) { return slope_by_value(kind) && (kind != kRelu || !leaky); }

template <class T, class Sink, int kind, bool leaky, bool scaled>
void affine_slopes(const AffineRows<T>& all, const T* product, const Correction<T>& c, const Sink& sink) {
  using Math = Activations<VecOps<T>>;
  const T *const u = c.constants, *const scale = u + all.ld;
  for_row<T>(all.dim, [&](int64_t i, auto keep) {
    Vec<T> slope;
    if constexpr (scaled) {
      slope = load(scale + i);
    } else if constexpr (slopes_by_value(kind, leaky)) {
      const Vec<T> f = load(c.f + i);
      slope = slope_at<T, kind>(leaky ? fma<T>(-load(all.leak + i), load(c.x + i), f) : f);
    } else if constexpr (kind == kPartialRelu) {
      slope = Math::template derivative<kRelu>(load(product + i) + load(u + i));
      for (int l = 0; l < kLanes<T>; ++l)
        if (i + l < all.first_relu) slope[l] = T(1);
    } else {
      slope = Math::template derivative<kind>(load(product + i) + load(u + i));
    }
    sink.put(c, i, slope, keep);
  });
}

// Whether a row's slopes can be had: not without its product, of some activations. And Newton steps divide by 1 - leak.
template <class T>
bool has_slopes(const AffineProblem<T>& p, bool has_product) {
  constexpr T kMostLeak = T(0.9375);
  for (int64_t i = 0; p.leak != nullptr && i < p.dim; ++i)
    if (!(p.leak[i] <= kMostLeak && p.leak[i] >= -1)) return false;
  return has_product || p.scale != nullptr || slopes_by_value(p.activation, p.leak != nullptr);
}

// null: they cannot.
template <class T, class Sink>
SlopeFunction<T, Sink> slope_function(const AffineProblem<T>& p, bool has_product) {
  if (!has_slopes(p, has_product)) return nullptr;
  return by_activation(p, [&]<int kind, bool scaled>() -> SlopeFunction<T, Sink> {
    return p.leak != nullptr ? affine_slopes<T, Sink, kind, true, scaled> : affine_slopes<T, Sink, kind, false, scaled>;
  });
}

template <class T>
struct AffineWeights {
  Weights<T> weight, leak;
  Weights<T> preconditioned{};  // precondition.h
  T slope = 0;                  // that they are by; 0: there are none
  Weights<float> coarse{};      // of float64: what Newton steps are by
  float coarse_slope = 0;

  const Weights<float>& of_newton() const {
    if constexpr (sizeof(T) == 8)
      return coarse;
    else
      return preconditioned.coarse ? preconditioned : weight;
  }
  float shift() const { return sizeof(T) == 8 ? coarse_slope : preconditioned.coarse ? float(slope) : 0.0f; }
  ChordSteps<T> chord() const {
    const bool fit = slope != 0 && !preconditioned.coarse;
    return {fit ? preconditioned.full : PackedMatrix<T>{}, slope, leak.full.data};
  }
};

// What the Newton steps of float64 rows are by, in 8 bits: P or, beyond the states that have one, W.
inline void pack_coarse(const AffineProblem<double>& p, AffineWeights<double>& weights, int threads,
                        const Executor& executor) {
  thread_local Scratch narrow, packed;
  const int64_t dim = p.dim, ld = round_up(dim, kLanes<float>);
  float* const w = static_cast<float*>(narrow.get(size_t((dim + 1) * ld) * sizeof(float)));
  const Matrix<float> weight = matrix_to_float32(p.weight, ld, w);
  float* const leak = w + dim * ld;
  if (p.leak != nullptr) row_to_float32(p.leak, dim, leak);
  // Of rows there are none: only whether they have a scale is asked for.
  const AffineProblem<float> problem{.rows = 0,
                                     .dim = dim,
                                     .weight = weight,
                                     .leak = p.leak != nullptr ? leak : nullptr,
                                     .scale = p.scale != nullptr ? w : nullptr,
                                     .activation = p.activation,
                                     .pieces = p.pieces};
  if (const Preconditioned<float>* const kept = preconditioned(problem, true, threads, executor)) {
    weights.coarse = kept->weights;
    weights.coarse_slope = typical_slope(problem);
    return;
  }
  const PackRequest<float> request{problem.weight, &weights.coarse, false, false, true, true, true};
  pack(&request, 1, threads, executor, packed);
}

// A slot holds u, scale where there is one, and what the product keeps.
template <class T>
class AffineMap {
  using ChordSlopes = SlopeRow<T>;
  using Newton = NewtonSteps<T, CoarseProduct>;
  using NewtonStart = typename Newton::Start;

 public:
  AffineMap(const AffineProblem<T>& problem, const AffineWeights<T>& weights)
      : problem_(problem),
        moves_(weights.weight.narrow == kDigitwise),
        refresh2_(weights.weight.refresh2()),
        product_(weights.weight),
        all_{weights.leak.full.data, round_up(problem.dim, kLanes<T>), problem.dim, problem.dim - problem.pieces},
        kept_at_(all_.ld * (problem.scale != nullptr ? 2 : 1)),
        chord_(weights.chord()),
        newton_(CoarseProduct(weights.of_newton()), weights.shift()) {
    if (chord_.fit())
      chord_slopes_ = slope_function<T, ChordSlopes>(problem, false);
    else if (newton_.fits())
      newton_slopes_ = slope_function<T, NewtonStart>(problem, weights.weight.narrow != kFull);
    rows_pass_ = row_function(problem, moves_                           ? kMoving
                                       : weights.weight.narrow == kInt8 ? kFar
                                       : newton_slopes_ != nullptr      ? kLargest
                                                                        : kNear);
  }

  int64_t slot_elements() const { return kept_at_ + product_.elements(moves_); }
  double refresh2() const { return refresh2_; }

  void load(T* constants, int64_t row) {
    const int64_t dim = all_.dim, ld = all_.ld;
    copy_padded(constants, problem_.u + row * dim, dim, ld);
    if (problem_.scale != nullptr) copy_padded(constants + ld, problem_.scale + row * dim, dim, ld);
  }

  // Where x may move to what its product stands for, only the rounding of sums is between the product and one in full,
  // which is kept account of. It is cleared at times, or it would add up; and before a row ends, where it has come to
  // much.
  void evaluate(int n, Evaluation<T>* rows) {
    constexpr int kClear = 64;
    const T *x[kMaxTile], *products[kMaxTile];
    T *kept[kMaxTile], *f[kMaxTile], *moving[kMaxTile];
    const T* last[kMaxTile];
    Travel<T> travel[kMaxTile];
    bool exact[kMaxTile];
    for (int i = 0; i < n; ++i) {
      Evaluation<T>& e = rows[i];
      x[i] = e.zero ? nullptr : e.x;
      moving[i] = e.x;
      last[i] = e.last_x;
      kept[i] = e.constants + kept_at_;
      f[i] = e.f;
      exact[i] = e.exact || (moves_ && e.step % kClear == 0);
      travel[i] = e.travel;
      e.stands_for = moves_ ? e.x : product_.stands_for(kept[i]);
      e.moves = moves_;
      if (exact[i] && moves_) e.rounding2 = 0;
    }
    const Moving<T> moves{moving, last};
    product_.apply(n, x, exact, kept, f, products, travel, moves_ ? &moves : nullptr);
    for (int first = 0; first < n; first += kGroup)
      rows_pass_(all_, n - first < kGroup ? n - first : kGroup, products + first, rows + first);
  }

  // Whether rows can be corrected, which writes their next iterates to f: of rows whose products have just been taken.
  bool corrects() const { return newton_slopes_ != nullptr || chord_.fit(); }
  double aim2(bool first) const { return newton_.aim2(first); }
  void correct(int n, Correction<T>* rows) {
    const auto by = [&](const auto& slopes) {
      return [&](const Correction<T>& c, const auto& sink) { slopes(all_, c.constants + kept_at_, c, sink); };
    };
    if (chord_.fit())
      chord_.take(n, rows, chord_slopes_ != nullptr, by(chord_slopes_));
    else
      newton_.solve(n, rows, by(newton_slopes_), all_.leak);
  }

 private:
  const AffineProblem<T>& problem_;
  const bool moves_;
  const double refresh2_;
  const RowProduct<T> product_;
  const AffineRows<T> all_;
  const int64_t kept_at_;
  RowFunction<T> rows_pass_;
  const ChordSteps<T> chord_;
  Newton newton_;
  SlopeFunction<T, ChordSlopes> chord_slopes_ = nullptr;
  SlopeFunction<T, NewtonStart> newton_slopes_ = nullptr;
};

// Whether a state is small enough for rows to be solved side by side. Beyond, what all lanes spend on those few that
// mix several columns outweighs (benchmarks/NOTES.md).
template <class T>
constexpr bool fits_lanes(int64_t dim) {
  return kLanes<T> >= 4 && dim >= 1 && dim <= (AK_VECTOR_BYTES == 64 ? 80 : 48);
}

// The largest state of which chord steps, and side by side, are sooner done than Newton steps row by row.
#if defined(AK_EMULATE_NARROW)
constexpr int64_t kMostChord = 48;  // for tests
#else
constexpr int64_t kMostChord = 56;
#endif
inline bool newton_pays(const SolveOptions& options, int64_t dim) {
  return options.solver == kAuto && options.damping == 1 && dim > kMostChord;
}
inline bool chord_pays(const SolveOptions& options, int64_t dim) {
  return options.solver == kAuto && options.damping == 1 && dim <= kMostChord;
}

// Whether evaluations are sooner done by changes in few bits than in full: between Newton steps, or row by row instead
// of side by side. Of processors with a matrix unit even vectors multiply twice as fast.
inline bool few_bits_pay(int64_t dim, bool newton) {
#if defined(AK_EMULATE_NARROW)
  return dim > 48;  // for tests
#endif
  return dim > (AK_HAS_MATRIX_UNIT && !newton ? 80 : 64);
}

// Whether a solve side by side pays: a thread has the rows to fill its lanes.
template <class T>
bool lanes_pay(const AffineWeights<T>& weights, int64_t rows, int64_t dim, int threads) {
  const int64_t share = (rows + threads - 1) / threads;
  const int step = dim <= 48 ? 13 : 17;  // in a lane, at most, where one alone is 20
  return fits_lanes<T>(dim) && weights.weight.for_lanes() && !weights.of_newton().coarse &&
         20 * share >= step * kLanes<T>;
}

// f from the product in its place, of rows side by side.
template <class T, int kind, bool scaled>
void affine_lanes(const AffineRows<T>& all, LaneEvaluation<T>& e) {
  using Math = Activations<VecOps<T>>;
  const Vec<T>*const x = e.x, *const u = e.constants, *const scale = u + all.dim;
  const T* const leak = all.leak;
  Vec<T>* const f_rows = e.f;
  const int64_t dim = all.dim, first_relu = all.first_relu;
  for (int64_t i = 0; i < dim; ++i) {
    const Vec<T> a = f_rows[i] + u[i];
    Vec<T> f;
    if constexpr (kind == kPartialRelu)
      f = i >= first_relu ? Math::relu(a) : a;
    else
      f = Math::template apply<kind>(a);
    if constexpr (scaled) f = f * scale[i];
    if (leak != nullptr) f = fma<T>(broadcast<T>(leak[i]), x[i], f);
    f_rows[i] = f;
  }
}

// affine_slopes of rows side by side, by f.
template <class T, int kind, bool leaky, bool scaled>
void lane_slopes(const AffineRows<T>& all, const Vec<T>* x, const Vec<T>* f, const Vec<T>* constants, Vec<T>* to) {
  const Vec<T>* const scale = constants + all.dim;
  for (int64_t i = 0; i < all.dim; ++i) {
    if constexpr (scaled)
      to[i] = scale[i];
    else
      to[i] = slope_at<T, kind>(leaky ? fma<T>(-broadcast<T>(all.leak[i]), x[i], f[i]) : f[i]);
  }
}

// AffineMap for rows side by side, all products in full. A lane's constants are u and its scale.
template <class T>
class AffineLanes {
  using Function = void (*)(const AffineRows<T>&, LaneEvaluation<T>&);
  using Slopes = void (*)(const AffineRows<T>&, const Vec<T>* x, const Vec<T>* f, const Vec<T>* constants, Vec<T>* to);

 public:
  AffineLanes(const AffineProblem<T>& problem, const AffineWeights<T>& weights)
      : problem_(problem),
        weight_(weights.weight.full),
        all_{weights.leak.full.data, problem.dim, problem.dim, problem.dim - problem.pieces},
        pass_(
            by_activation(problem, []<int kind, bool scaled>() -> Function { return affine_lanes<T, kind, scaled>; })),
        chord_(weights.chord()),
        slopes_(by_activation(problem, [&]<int kind, bool scaled>() -> Slopes {
          return problem.leak != nullptr ? by_leak<kind, true, scaled>() : by_leak<kind, false, scaled>();
        })) {}

  int64_t slot_elements() const { return all_.dim * (problem_.scale != nullptr ? 2 : 1); }

  void load(Vec<T>* constants, int lane, int64_t row) const {
    const int64_t dim = all_.dim;
    const T *const u = problem_.u + row * dim, *const scale = problem_.scale;
    for (int64_t i = 0; i < dim; ++i) constants[i][lane] = u[i];
    if (scale != nullptr)
      for (int64_t i = 0; i < dim; ++i) constants[dim + i][lane] = scale[row * dim + i];
  }

  void evaluate(LaneEvaluation<T>& e) const {
    if (e.zero == e.rows) {
      std::memset(static_cast<void*>(e.f), 0, size_t(all_.dim) * sizeof(Vec<T>));
    } else {
      multiply_lanes(weight_, e.x, e.f);
      if (e.zero != 0) {
        const IntVec<T> zero = lane_mask<T>(e.zero);
        for (int64_t i = 0; i < all_.dim; ++i) e.f[i] = zero ? Vec<T>{} : e.f[i];
      }
    }
    pass_(all_, e);
  }

  // As AffineMap corrects. room: vectors, correction_elements() of them.
  bool corrects() const { return chord_.fit(); }
  int64_t correction_elements() const { return chord_.fit() ? ChordSteps<T>::room(all_.dim) : 0; }
  void correct(LaneSet lanes, const Vec<T>* x, Vec<T>* f, const Vec<T>* constants, Vec<T>* room) const {
    chord_.take(lanes, x, f, slopes_ != nullptr, [&](Vec<T>* to) { slopes_(all_, x, f, constants, to); }, room);
  }

 private:
  template <int kind, bool leaky, bool scaled>
  static Slopes by_leak() {
    if constexpr (scaled || slopes_by_value(kind, leaky)) return lane_slopes<T, kind, leaky, scaled>;
    return nullptr;
  }

  const AffineProblem<T>& problem_;
  const PackedMatrix<T> weight_;
  const AffineRows<T> all_;
  const Function pass_;
  const ChordSteps<T> chord_;
  const Slopes slopes_;  // null: not by f
};

template <class T>
using AffineBoth = LanesAndRows<AffineLanes<T>, AffineMap<T>>;

template <class T>
void solve(const AffineProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  const double products = double(problem.dim) * double(problem.dim);
  const int threads = threads_for(problem.rows, products, executor.threads);
  AffineWeights<T> weights;
  const auto changes_pay = [&](bool newton) { return few_bits_pay(problem.dim, newton); };
  const bool newton_paying = newton_pays(options, problem.dim);
  // "best" compares residuals to the last bit.
  bool digits = AK_HAS_MATRIX_UNIT && sizeof(T) == 4 && newton_paying && changes_pay(true) && !options.keep_best;
  const bool newton = newton_paying && has_slopes(problem, digits || (mixed_allowed(options) && changes_pay(true)));
  digits = digits && newton;
  const bool mixed = mixed_allowed(options) && changes_pay(newton);
  const bool chord = chord_pays(options, problem.dim) && has_slopes(problem, true);
  const bool coarse = newton && AK_HAS_INT8 && sizeof(T) == 4;
  if constexpr (AK_HAS_INT8 && sizeof(T) == 8)
    if (newton) pack_coarse(problem, weights, threads, executor);
  Preconditioned<T>* const p = chord || coarse ? preconditioned(problem, coarse, threads, executor) : nullptr;
  const PackRequest<T> requests[] = {{vector_view(problem.leak, problem.dim), &weights.leak},
                                     {problem.weight, &weights.weight, mixed, digits, newton, newton && p == nullptr}};
  const int first = problem.leak != nullptr ? 0 : 1, end = p == nullptr ? 2 : 1;
  pack(requests + first, end - first, threads, executor);
  if (p != nullptr) {
    weights.weight = p->weight(requests[1], threads, executor);
    weights.preconditioned = p->weights;
    weights.slope = typical_slope(problem);
  }
  const CellCost cost{products * weights.weight.share(), double(problem.dim), weights.weight.most_rows()};
  if (lanes_pay<T>(weights, problem.rows, problem.dim, threads))
    return solve_rows<T, LaneTile>(problem.rows, problem.dim, cost, options, problem.z0, result, threads, executor,
                                   [&] { return AffineBoth<T>(problem, weights); });
  solve_rows<T>(problem.rows, problem.dim, cost, options, problem.z0, result, threads, executor,
                [&] { return AffineMap<T>(problem, weights); });
}

template <class T>
TilePlan tile_plan(int64_t rows, int64_t dim, const SolveOptions& options, int threads) {
  const CellCost cost{double(dim) * double(dim), double(dim)};
  const int used = threads_for(rows, cost.products, threads);
  const AffineProblem<T> problem{.rows = rows, .dim = dim};
  const bool newton = AK_HAS_INT8 && newton_pays(options, dim), coarse = newton && sizeof(T) == 4;
  const Weights<T> weight{.full = {nullptr, int(dim), int(dim)}, .coarse = coarse};
  AffineWeights<T> weights{weight, weight};
  if (newton) weights.coarse = {.full = {nullptr, int(dim), int(dim)}, .coarse = true};
  AffineMap<T> map(problem, weights);
  const TileShape shape = tile_shape<T>(options, cost, rows, dim, map.slot_elements(), used);
  const Tile<T, AffineMap<T>> tile(map, dim, shape, options, nullptr, {}, rows);
  if (lanes_pay(weights, rows, dim, used)) {
    AffineBoth<T> both(problem, weights);
    const LaneTile<T, AffineBoth<T>> tile(both, dim, shape, options, nullptr, {}, rows);
    return {kLanes<T>,
            kLanes<T>,
            kLaneOutputs,
            int(dim),
            used,
            shape.short_history,
            shape.price,
            PackedMatrix<T>::size(dim, dim) * int64_t(sizeof(T)),
            int64_t(tile.scratch_bytes())};
  }
  TilePlan plan{shape.rows,
                kMaxRows,
                kPanelVectors * kLanes<T>,
                kDepth,
                used,
                shape.short_history,
                shape.price,
                PackedMatrix<T>::size(dim, dim) * int64_t(sizeof(T)),
                int64_t(tile.scratch_bytes())};
#if AK_HAS_MATRIX_UNIT
  const bool digits = coarse && few_bits_pay(dim, true);
  if (sizeof(T) == 4 && (digits || unit_pays(dim, dim, false))) {
    plan.block_rows = plan.block_columns = 2 * kUnitRows;
    plan.depth = digits ? kUnitBytes : kUnitDepth;
    plan.packed_bytes = digits ? DigitMatrix::size(dim, dim) : SplitMatrix::size(dim, dim) * 4;
  }
#endif
  return plan;
}

}  // namespace

AK_DEFINE_SOLVE(solve_affine, AffineProblem)

TilePlan plan_affine(int64_t rows, int64_t dim, int solver, int history, int element_size, int threads) {
  const SolveOptions options{.solver = solver, .history = history, .damping = 1};
  return element_size == 8 ? tile_plan<double>(rows, dim, options, threads)
                           : tile_plan<float>(rows, dim, options, threads);
}

}  // namespace ak::AK_ISA
