// Anderson acceleration of one row whose history lies in a tile's scratch memory.
//
// Kept: ring columns G_j = g_k - g_{k-1} (g = f - z) and P_j = h_k - h_{k-1} (h = z + damping g), the previous g
// and h, and the Gram matrix of the G_j, of which a step computes one new row. The next iterate is
// h - sum_j gamma_j P_j: each step reads every G_j once and every P_j once.
#pragma once

#include "../common/small_solve.h"
#include "narrow.h"
#include "simd.h"

namespace ak::AK_ISA {

template <class T>
struct AndersonRow {
  T* previous_g;
  T* previous_h;
  T* g;          // [history, ld]
  T* p;          // [history, ld]
  double* gram;  // [history, history]
  double level;  // lowest |g|^2 since the history was last cleared
  int limit;     // columns to use, at most `history`
  int used;      // valid columns
  int next;      // slot the next column goes to
  bool primed;   // previous_g and previous_h hold the last step

  // With a limit of 1 the one column is the last difference itself and is not stored.
  static int64_t elements(int history, int64_t ld) { return history == 1 ? 2 * ld : (2 + 2 * int64_t(history)) * ld; }

  void place(T* memory, double* gram_memory, int history, int64_t ld) {
    gram = gram_memory;
    previous_g = memory;
    previous_h = memory + ld;
    g = memory + 2 * ld;
    p = g + history * ld;
  }
  void clear() {
    used = next = 0;
    primed = false;
    level = -1;
  }
};

constexpr double kRestartFactor2 = 100;  // |g|^2 this far above its lowest: the history misleads

template <class T>
constexpr double kPivotFloor = sizeof(T) == 8 ? 1e-13 : 1e-7;

template <class T>
struct DotPair {
  double with_new, with_g;
};

// <G_j, dG> and <G_j, g> for `columns` columns at once.
template <class T, int columns>
inline void dots(int64_t ld, const T* const* column, const T* dg, const T* g, DotPair<T>* out) {
  Vec<T> a[columns]{}, b[columns]{};
  for (int64_t i = 0; i < ld; i += kLanes<T>) {
    const Vec<T> x = load(dg + i), y = load(g + i);
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) {
      const Vec<T> c = load(column[j] + i);
      a[j] = fma<T>(c, x, a[j]);
      b[j] = fma<T>(c, y, b[j]);
    }
  }
  for (int j = 0; j < columns; ++j) out[j] = {double(sum_lanes<T>(a[j])), double(sum_lanes<T>(b[j]))};
}

// Where the next iterate is measured from, or null, and whether its square is asked for too.
template <class T>
struct Whence {
  const T* x;
  bool square;
};

// Measures vectors less those at `from`.
template <class T>
class Distance {
 public:
  explicit Distance(const Whence<T>& from) : from_(from) {}
  void add(int64_t i, Vec<T> x) {
    if (from_.x == nullptr) return;
    const Vec<T> d = x - load(from_.x + i);
    most_ = VecOps<T>::max(most_, VecOps<T>::abs(d));
    if (from_.square) square_ = fma<T>(d, d, square_);
  }
  Travel<T> travel() const {
    if (from_.x == nullptr) return {};
    return {largest_lane<T>(most_), from_.square ? double(sum_lanes<T>(square_)) : -1};
  }

 private:
  const Whence<T> from_;
  Vec<T> most_{}, square_{};
};

template <class T, int columns>
inline Travel<T> subtract_columns(int64_t ld, const T* const* column, const double* weight, const Whence<T>& from,
                                  T* x) {
  Vec<T> w[columns];
  for (int j = 0; j < columns; ++j) w[j] = broadcast<T>(T(-weight[j]));
  Distance<T> distance(from);
  for (int64_t i = 0; i < ld; i += kLanes<T>) {
    Vec<T> sum = load(x + i);
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) sum = fma<T>(w[j], load(column[j] + i), sum);
    distance.add(i, sum);
    store(x + i, sum);
  }
  return distance.travel();
}

// |dG|^2 and <dG, g> of the newest column.
struct SecantSums {
  double square, along;
};

template <class T>
SecantSums secant_sums(const AndersonRow<T>& row, int64_t ld, const T* x, const T* f) {
  Vec<T> square{}, along{};
  for (int64_t i = 0; i < ld; i += kLanes<T>) {
    const Vec<T> g = load(f + i) - load(x + i);
    const Vec<T> dg = g - load(row.previous_g + i);
    square = fma<T>(dg, dg, square);
    along = fma<T>(dg, g, along);
  }
  return {double(sum_lanes<T>(square)), double(sum_lanes<T>(along))};
}

// anderson_advance for a limit of 1 once primed: gamma = <dG, g> / |dG|^2 in closed form, nothing stored but the
// last g and h.
template <class T>
Travel<T> secant_advance(AndersonRow<T>& row, int64_t ld, T damping, double ridge, const SecantSums& sums,
                         const Whence<T>& from, const T* x, T* f) {
  const Vec<T> beta = broadcast<T>(damping);
  const double diagonal = sums.square * (1 + ridge);
  double gamma = sums.along / diagonal;
  // false for NaN: a residual that did not change, or weights that are noise
  if (!(gamma <= kWeightCap && gamma >= -kWeightCap)) gamma = 0;
  const Vec<T> weight = broadcast<T>(T(-gamma));
  Distance<T> distance(from);
  for (int64_t i = 0; i < ld; i += kLanes<T>) {
    const Vec<T> xi = load(x + i), fi = load(f + i);
    const Vec<T> g = fi - xi;
    const Vec<T> h = damping == T(1) ? fi : fma<T>(beta, g, xi);
    const Vec<T> p = h - load(row.previous_h + i);
    store(row.previous_g + i, g);
    store(row.previous_h + i, h);
    const Vec<T> next = fma<T>(weight, p, h);
    distance.add(i, next);
    store(f + i, next);
  }
  return distance.travel();
}

// h and g of a step are kept, h goes to `f`; nothing else is done with them.
template <class T>
void plain_advance(AndersonRow<T>& row, int64_t ld, T damping, const T* x, T* f) {
  const Vec<T> beta = broadcast<T>(damping);
  for (int64_t i = 0; i < ld; i += kLanes<T>) {
    const Vec<T> xi = load(x + i), fi = load(f + i);
    const Vec<T> g = fi - xi;
    const Vec<T> h = damping == T(1) ? fi : fma<T>(beta, g, xi);
    store(row.previous_g + i, g);
    store(row.previous_h + i, h);
    store(f + i, h);
  }
}

// The differences of this step and the last become the newest column, and h goes to `f`. Returns <dG, g>.
template <class T>
double add_column(AndersonRow<T>& row, int64_t ld, int history, T damping, const T* x, T* f) {
  const int slot = row.next;
  T* const new_g = row.g + slot * ld;
  T* const new_p = row.p + slot * ld;
  const Vec<T> beta = broadcast<T>(damping);
  Vec<T> square{}, along{};
  for (int64_t i = 0; i < ld; i += kLanes<T>) {
    const Vec<T> xi = load(x + i), fi = load(f + i);
    const Vec<T> g = fi - xi;
    const Vec<T> h = damping == T(1) ? fi : fma<T>(beta, g, xi);
    const Vec<T> dg = g - load(row.previous_g + i);
    store(new_g + i, dg);
    store(new_p + i, h - load(row.previous_h + i));
    store(row.previous_g + i, g);
    store(row.previous_h + i, h);
    if (damping != T(1)) store(f + i, h);
    square = fma<T>(dg, dg, square);
    along = fma<T>(dg, g, along);
  }
  row.next = slot + 1 == history ? 0 : slot + 1;
  if (row.used < row.limit) row.used += 1;
  row.gram[slot * history + slot] = double(sum_lanes<T>(square));
  return double(sum_lanes<T>(along));
}

// rhs of the columns, and the new row of the Gram matrix where slot `fresh` holds a new column, the last in `order`.
template <class T>
void take_dots(AndersonRow<T>& row, int64_t ld, int history, const int* order, int fresh, double* rhs) {
  const int others = fresh < 0 ? row.used : row.used - 1;
  const T* const newest = fresh < 0 ? row.previous_g : row.g + fresh * ld;
  for (int first = 0; first < others; first += 4) {
    const int count = others - first < 4 ? others - first : 4;
    const T* column[4];
    DotPair<T> pair[4];
    for (int j = 0; j < count; ++j) column[j] = row.g + order[first + j] * ld;
    switch (count) {
      case 1:
        dots<T, 1>(ld, column, newest, row.previous_g, pair);
        break;
      case 2:
        dots<T, 2>(ld, column, newest, row.previous_g, pair);
        break;
      case 3:
        dots<T, 3>(ld, column, newest, row.previous_g, pair);
        break;
      default:
        dots<T, 4>(ld, column, newest, row.previous_g, pair);
    }
    for (int j = 0; j < count; ++j) {
      const int s = order[first + j];
      rhs[s] = pair[j].with_g;
      if (fresh >= 0) row.gram[s * history + fresh] = row.gram[fresh * history + s] = pair[j].with_new;
    }
  }
}

// f -= sum_j gamma_j P_j
template <class T>
Travel<T> subtract_all(const AndersonRow<T>& row, int64_t ld, const int* order, const double* gamma,
                       const Whence<T>& from, T* f) {
  Travel<T> travel;
  for (int first = 0; first < row.used; first += 4) {
    const int count = row.used - first < 4 ? row.used - first : 4;
    const T* column[4];
    double weight[4];
    for (int j = 0; j < count; ++j) {
      column[j] = row.p + order[first + j] * ld;
      weight[j] = gamma[order[first + j]];
    }
    const Whence<T> wanted = first + count == row.used ? from : Whence<T>{};
    switch (count) {
      case 1:
        travel = subtract_columns<T, 1>(ld, column, weight, wanted, f);
        break;
      case 2:
        travel = subtract_columns<T, 2>(ld, column, weight, wanted, f);
        break;
      case 3:
        travel = subtract_columns<T, 3>(ld, column, weight, wanted, f);
        break;
      default:
        travel = subtract_columns<T, 4>(ld, column, weight, wanted, f);
    }
  }
  return travel;
}

// In: iterate x and f(x) in `f`. Out: the next iterate in `f`. ld covers the row in whole vectors, padding zero.
// history: columns there is memory for. sums: those of a secant step, or null where they are to be made. jumped: the
// map is not quite the one of the step before, so that the difference of the two says nothing. Returns how far the
// next iterate is from `from`, as far as that is known.
template <class T>
Travel<T> anderson_advance(AndersonRow<T>& row, int64_t ld, int history, T damping, double ridge, double r2,
                           const SecantSums* sums, const Whence<T>& from, const T* x, T* f, bool jumped) {
  const bool restart = row.level >= 0 && r2 > kRestartFactor2 * row.level;
  if (restart) row.clear();
  if (row.level < 0 || r2 < row.level) row.level = r2;

  if (!row.primed || (jumped && (row.limit == 1 || row.used == 0))) {
    plain_advance(row, ld, damping, x, f);
    row.primed = true;
    return {};
  }

  if (row.limit == 1)
    return secant_advance<T>(row, ld, damping, ridge, sums != nullptr ? *sums : secant_sums<T>(row, ld, x, f), from, x,
                             f);
  double rhs[kMaxHistory], gamma[kMaxHistory];
  const int slot = row.next;
  if (jumped)
    plain_advance(row, ld, damping, x, f);
  else
    rhs[slot] = add_column(row, ld, history, damping, x, f);
  int order[kMaxHistory];  // oldest to newest
  for (int i = 0; i < row.used; ++i) {
    const int s = row.next - row.used + i;
    order[i] = s < 0 ? s + history : s;
  }
  take_dots(row, ld, history, order, jumped ? -1 : slot, rhs);
  const int solved = small_solve<double>(row.gram, history, rhs, order, row.used, ridge, kPivotFloor<T>, gamma);
  if (solved == 0) {
    row.used = row.next = 0;
    return {};
  }
  return subtract_all(row, ld, order, gamma, from, f);
}

}  // namespace ak::AK_ISA
