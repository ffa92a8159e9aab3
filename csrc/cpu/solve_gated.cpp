// The gated cell, (a_s, a_c) = W z + u, s = sigmoid(a_s), f = (1 - s) z + s tanh(a_c): the whole solve in one
// call, and those of the linear maps of its derivative J, w = J^T w + v and y = J y + v. The mathematics stands in
// attractor_kernels/backends/reference/gated.py.
#include "jacobian_steps.h"
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
  // c, q1 and q2 of J, as floats.
  void narrow_derivative(const T* from, float* to) const {
    if constexpr (sizeof(T) == 8)
      for (int k = 0; k < 3; ++k) row_to_float32(from + k * ld, dim, to + k * round_up(dim, kLanes<float>));
  }
  void clear(T* pair) const { std::memset(pair, 0, size_t(product) * sizeof(T)); }

  const int64_t dim;
  const int64_t ld;
  const int64_t product;  // elements of a product's pair
};

// [q1 w, q2 w], and its largest entries in size. The first half in whole vectors reaches into the second, which is
// written after it.
template <class T>
inline Vec<T> scale_pair(const T* w, const T* q, T* out, const Pairs<T>& pairs) {
  Vec<T> most{};
  for (int half = 0; half < 2; ++half)
    for (int64_t i = 0; i < pairs.ld; i += kLanes<T>) {
      const Vec<T> v = load(q + half * pairs.ld + i) * load(w + i);
      store(out + half * pairs.dim + i, v);
      most = VecOps<T>::max(most, VecOps<T>::abs(v));
    }
  return most;
}

// W = W' + D, with the diagonals of W's halves in D where they stand out of their rows (a symmetric W, a leak): W' is
// what is multiplied then, also in few bits, which would hold little but the diagonals.
template <class T>
struct GatedWeights {
  CellWeights<T, 1> cell;  // W', or its transpose for the adjoint
  Weights<T> diagonal[2];  // [dim] each, zero where there is no need

  const T* gate() const { return diagonal[0].full.data; }
  const T* candidate() const { return diagonal[1].full.data; }
  // c + q1 D_s + q2 D_c in the place of c, which q1 and q2 follow.
  void add_diagonals(T* c, const Pairs<T>& pairs) const {
    const T *const q1 = c + pairs.ld, *const q2 = q1 + pairs.ld;
    for (int64_t i = 0; i < pairs.ld; i += kLanes<T>) {
      const Vec<T> more = fma<T>(load(q2 + i), load(candidate() + i), load(c + i));
      store(c + i, fma<T>(load(q1 + i), load(gate() + i), more));
    }
  }
};

// By two entries beside each of the diagonal's.
template <class T>
bool diagonals_stand_out(const Matrix<T>& w, int64_t dim) {
  constexpr double kApart2 = 25;  // 8 bits hold such a row to 1 / 50 still
  for (int64_t half = 0; half < 2; ++half) {
    double on = 0, off = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const auto square = [&](int64_t j) {
        const double entry = double(w.data[(half * dim + i) * w.output_stride + j % dim * w.input_stride]);
        return entry * entry;
      };
      on += square(i);
      off += square(i + 1) + square(i + dim / 2);
    }
    if (on > kApart2 * 0.5 * off && finite(on)) return true;
  }
  return false;
}

template <bool adjoint>
class GatedJacobian;

#if AK_HAS_INT8

// J r = c r + q1 (W_s r) + q2 (W_c r), or J^T r = c r + [q1 r, q2 r] W, with W in 8 bits (newton.h).
template <bool adjoint>
class GatedJacobian {
 public:
  // weight: W, transposed for the adjoint. A row's constants have c, q1 and q2 from `at` on, in whole vectors.
  GatedJacobian(const Weights<float>& weight, const Pairs<float>& pairs, int64_t at)
      : product_(weight), pairs_(pairs), dim_(pairs.dim), ld_(pairs.ld), at_(at) {}

  static constexpr bool kSlopes = false;
  int64_t dim() const { return dim_; }
  int64_t constants() const { return at_ + 3 * ld_; }
  int64_t row_bytes() const { return adjoint ? round_up(dim_, 64) : product_.row_bytes(); }
  int64_t row_sums() const { return adjoint ? product_.row_sums() : ld_ + kLanes<float>; }
  bool takes_signed(int n) const { return product_.takes_signed(n); }
  void lay(Pieces& pieces, int n) {
    const int64_t rows = round_up(n, kUnitRows);
    if constexpr (adjoint) {
      pair_ = pieces.take<float>(pairs_.product);
      bytes_ = pieces.take<uint8_t>(rows * product_.row_bytes());
    } else {
      sums_ = pieces.take<int32_t>(rows * product_.row_sums());
    }
  }

  PlainNumbers numbers(float) const { return {}; }

  void apply(int n, const uint8_t* bytes, int32_t* sums, const CoarseRow* rows) const {
    if constexpr (adjoint) {
      float unit[kMaxTile];
      for (int k = 0; k < n; ++k)
        unit[k] = scale_row(rows[k], product_.takes_signed(n), bytes_ + k * product_.row_bytes());
      product_.apply(n, bytes_, sums);
      for (int k = 0; k < n; ++k) {
        float* const out = reinterpret_cast<float*>(sums + k * row_sums());
        const auto numbers = product_.numbers(unit[k]);
        const float *const r = rows[k].r, *const c = rows[k].constants + at_;
        for_row<float>(dim_, [&](int64_t i, auto keep) {
          store(out + i, keep(fma<float>(load(c + i), load(r + i), numbers(out, nullptr, i))));
        });
      }
    } else {
      product_.apply(n, bytes, sums_);
      for (int k = 0; k < n; ++k) {
        float* const out = reinterpret_cast<float*>(sums + k * row_sums());
        const float* const in = reinterpret_cast<const float*>(sums_ + k * product_.row_sums());
        const auto numbers = product_.numbers(rows[k].unit);
        const float *const r = rows[k].r, *const c = rows[k].constants + at_, *const q1 = c + ld_, *const q2 = q1 + ld_;
        for_row<float>(dim_, [&](int64_t i, auto keep) {
          const Vec<float> gate = fma<float>(load(q1 + i), numbers(in, nullptr, i), load(c + i) * load(r + i));
          store(out + i, keep(fma<float>(load(q2 + i), numbers(in, nullptr, dim_ + i), gate)));
        });
      }
    }
  }

 private:
  // The integers of [q1 r, q2 r], and what they count in.
  float scale_row(const CoarseRow& row, bool is_signed, uint8_t* to) const {
    const CoarseUnit unit(largest_lane<float>(scale_pair(row.r, row.constants + at_ + ld_, pair_, pairs_)));
    take_bytes(pair_, 2 * dim_, unit, is_signed, to);
    return unit.unit;
  }

  const CoarseProduct product_;
  const Pairs<float> pairs_;
  const int64_t dim_, ld_, at_;
  float* pair_ = nullptr;
  uint8_t* bytes_ = nullptr;
  int32_t* sums_ = nullptr;
};

#endif

// a: W' x, [2 dim]; derivative: to where c, q1 and q2 of J go, where that is asked for.
template <class T, Watch watch>
void gated_row(Evaluation<T>& e, const T* a, const Pairs<T>& pairs, const GatedWeights<T>& weights, T* derivative) {
  using Math = Activations<VecOps<T>>;
  const int64_t dim = pairs.dim;
  const T *const x_row = e.x, *const previous = e.previous;
  const T *const u_s = e.constants, *const u_c = u_s + pairs.ld;
  T* const f_row = e.f;
  const T *const d_s = weights.gate(), *const d_c = weights.candidate();
  T *const to_c = derivative, *const to_q1 = to_c + pairs.ld, *const to_q2 = to_q1 + pairs.ld;
  const Vec<T> one = broadcast<T>(T(1));
  RowSums<T, watch> sums;
  for_row<T>(dim, [&](int64_t i, auto keep) {
    const Vec<T> x = load(x_row + i);
    const Vec<T> gate_diagonal = load(d_s + i), candidate_diagonal = load(d_c + i);
    const Vec<T> s = Math::sigmoid(fma<T>(gate_diagonal, x, load(a + i)) + load(u_s + i));
    const Vec<T> c = Math::tanh(fma<T>(candidate_diagonal, x, load(a + dim + i)) + load(u_c + i));
    const Vec<T> f = keep(fma<T>(s, c - x, x));
    store(f_row + i, f);
    if constexpr (watch == kCorrected) {
      const Vec<T> rest = one - s, q1 = keep((c - x) * s * rest), q2 = keep(s * fma<T>(-c, c, one));
      store(to_c + i, fma<T>(q1, gate_diagonal, fma<T>(q2, candidate_diagonal, keep(rest))));
      store(to_q1 + i, q1);
      store(to_q2 + i, q2);
    }
    sums.add(x, f, previous + i);
  });
  sums.put(e);
}

template <class T>
class GatedMap {
 public:
  GatedMap(const GatedProblem<T>& problem, const GatedWeights<T>& weights)
      : problem_(problem),
        weights_(weights),
        product_(weights.cell.of[0]),
        pairs_(problem.dim),
        derivative_(2 * pairs_.ld + pairs_.product + product_.elements()),
        newton_(weights.cell.newton, weights.cell.coarse(0), Pairs<float>(problem.dim),
                sizeof(T) == 4 ? derivative_ : 0) {}

  int64_t slot_elements() const { return derivative_ + (corrects() ? 3 * pairs_.ld : 0); }
  double refresh2() const { return weights_.cell.refresh2(); }

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
      const Watch watch = watch_of(e);
      const auto pass = watch == kCorrected   ? gated_row<T, kCorrected>
                        : watch == kDirection ? gated_row<T, kDirection>
                                              : gated_row<T, kUnwatched>;
      pass(e, a[i], pairs_, weights_, e.constants + derivative_);
    }
  }

  bool corrects() const { return newton_.pay(); }
  double aim2(bool first) const { return newton_.aim2(first); }
  void correct(int n, Correction<T>* rows) {
    newton_.take(n, rows,
                 [&](const T* constants, float* to) { pairs_.narrow_derivative(constants + derivative_, to); });
  }

 private:
  T* products(T* constants) const { return constants + 2 * pairs_.ld; }

  const GatedProblem<T>& problem_;
  const GatedWeights<T>& weights_;
  const RowProduct<T> product_;
  const Pairs<T> pairs_;
  const int64_t derivative_;
  JacobianSteps<T, GatedJacobian<false>> newton_;
};

// c x + v plus, adjoint, a; else q1 a_s + q2 a_c.
template <class T, bool adjoint, Watch watch>
void linear_row(Evaluation<T>& e, const T* a, const Pairs<T>& pairs) {
  const int64_t dim = pairs.dim;
  const T *const x_row = e.x, *const previous = e.previous;
  const T *const v = e.constants, *const c = v + pairs.ld;
  const T *const q1 = c + pairs.ld, *const q2 = q1 + pairs.ld;
  T* const f_row = e.f;
  RowSums<T, watch> sums;
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
  GatedLinearMap(const GatedLinearProblem<T>& problem, const GatedWeights<T>& weights)
      : problem_(problem),
        weights_(weights),
        product_(weights.cell.of[0]),
        pairs_(problem.dim),
        newton_(weights.cell.newton, weights.cell.coarse(0), Pairs<float>(problem.dim),
                sizeof(T) == 4 ? pairs_.ld : 0) {}

  int64_t slot_elements() const { return 4 * pairs_.ld + pairs_.product + product_.elements(); }
  double refresh2() const { return weights_.cell.refresh2(); }

  void load(T* constants, int64_t row) {
    const int64_t dim = pairs_.dim, ld = pairs_.ld;
    copy_padded(constants, problem_.v + row * dim, dim, ld);
    copy_padded(constants + ld, problem_.c + row * dim, dim, ld);
    pairs_.load_constants(constants + 2 * ld, problem_.q, row);
    weights_.add_diagonals(constants + ld, pairs_);
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
      const Watch watch = watch_of(e);
      const auto pass = watch == kCorrected   ? linear_row<T, adjoint, kCorrected>
                        : watch == kDirection ? linear_row<T, adjoint, kDirection>
                                              : linear_row<T, adjoint, kUnwatched>;
      pass(e, a[i], pairs_);
    }
  }

  bool corrects() const { return newton_.pay(); }
  double aim2(bool first) const { return newton_.aim2(first); }
  void correct(int n, Correction<T>* rows) {
    newton_.take(n, rows, [&](const T* constants, float* to) { pairs_.narrow_derivative(constants + pairs_.ld, to); });
  }

 private:
  T* product(T* constants) const { return constants + 4 * pairs_.ld; }

  const GatedLinearProblem<T>& problem_;
  const GatedWeights<T>& weights_;
  const RowProduct<T> product_;
  const Pairs<T> pairs_;
  JacobianSteps<T, GatedJacobian<adjoint>> newton_;
};

// Packs the one matrix of a gated cell and runs make_map(packed) on every thread.
template <class T, class Problem, class MakeMap>
void solve_packed(const Problem& problem, bool adjoint, const T* start, double activations, const SolveOptions& options,
                  const SolveResult<T>& result, const Executor& executor, const MakeMap& make_map) {
  const int64_t dim = problem.dim;
  CellCost cost{2 * double(dim) * double(dim), activations * double(dim)};
  const int threads = threads_for_cell(problem.rows, cost, executor.threads);
  GatedWeights<T> weights{};
  weights.cell.newton = newton_pays(options, dim, 2 * dim);
  weights.cell.mixed = mixed_allowed(options);
  Matrix<T> matrix = problem.weight;
  const T* diagonal[2] = {};
  const bool narrow = weights.cell.newton || (weights.cell.mixed && sizeof(T) == 4 && (AK_HAS_INT8 || AK_HAS_BFLOAT16));
  if (narrow && diagonals_stand_out(matrix, dim)) {
    // No tile has begun.
    T* const w = static_cast<T*>(tile_scratch().get(size_t(2 * dim * (dim + 1)) * sizeof(T)));
    T* const d = w + 2 * dim * dim;
    for (int64_t i = 0; i < 2 * dim; ++i) {
      T* const row = w + i * dim;
      const T* const from = matrix.data + i * matrix.output_stride;
      if (matrix.input_stride == 1)
        std::memcpy(row, from, size_t(dim) * sizeof(T));
      else
        for (int64_t j = 0; j < dim; ++j) row[j] = from[j * matrix.input_stride];
      d[i] = row[i % dim];
      row[i % dim] = T(0);
    }
    matrix = {w, 2 * dim, dim, dim, 1};
    diagonal[0] = d;
    diagonal[1] = d + dim;
  }
  pack_cell<T, 1, 2>(
      {adjoint ? transposed(matrix) : matrix}, weights.cell,
      {{row_or_zeros(diagonal[0], dim), &weights.diagonal[0]}, {row_or_zeros(diagonal[1], dim), &weights.diagonal[1]}},
      threads, executor);
  cost.products = weights.cell.products();
  solve_rows<T>(problem.rows, dim, cost, options, start, result, threads, executor, [&] { return make_map(weights); });
}

template <class T>
void solve(const GatedProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  solve_packed<T>(problem, false, problem.z0, 2, options, result, executor,
                  [&](const GatedWeights<T>& weights) { return GatedMap<T>(problem, weights); });
}

template <class T>
void solve(const GatedLinearProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
           const Executor& executor) {
  constexpr double kActivations = 0.5;  // what the row passes weigh
  if (problem.adjoint)
    solve_packed<T>(problem, true, problem.w0, kActivations, options, result, executor,
                    [&](const GatedWeights<T>& weights) { return GatedLinearMap<T, true>(problem, weights); });
  else
    solve_packed<T>(problem, false, problem.w0, kActivations, options, result, executor,
                    [&](const GatedWeights<T>& weights) { return GatedLinearMap<T, false>(problem, weights); });
}

}  // namespace

AK_DEFINE_SOLVE(solve_gated, GatedProblem)
AK_DEFINE_SOLVE(solve_gated_linear, GatedLinearProblem)

}  // namespace ak::AK_ISA
