// Anderson acceleration of rows side by side: anderson_row.h, for a row in each lane.
//
// The ring turns for all lanes at once; a lane has its own number of valid columns, always the newest ones. What is
// stored in other lanes, or older, may be anything, NaN included, and is kept from mixing in by selects alone.
#pragma once

#include "anderson_row.h"
#include "lane_sums.h"

namespace ak::AK_ISA {

template <class T>
class LaneAnderson {
  using V = Vec<T>;
  using D = Vec<double>;

 public:
  LaneAnderson(int history, int64_t dim, int64_t ld, double damping, double ridge)
      : history_(history), columns_(history > 1 ? history : 0), dim_(dim), ld_(ld), damping_(damping), ridge_(ridge) {}

  int64_t vectors() const { return (2 + 2 * columns_) * ld_; }
  int64_t gram_elements() const { return columns_ * columns_; }

  void place(V* memory, LaneDoubles<T>* gram) {
    previous_g_ = memory;
    previous_h_ = memory + ld_;
    g_ = memory + 2 * ld_;
    p_ = g_ + columns_ * ld_;
    gram_ = gram;
  }

  void clear(LaneSet lanes) {
    primed_ &= ~lanes;
    for_lanes(lanes, [&](int l) {
      used_[l] = 0;
      level_[l] = -1;
    });
  }

  // The step from `before` to x was a plain one: it becomes what the first difference is taken to.
  void prime(LaneSet lanes, const V* before, const V* x) {
    const IntVec<T> mask = lane_mask<T>(lanes);
    const V scale = broadcast<T>(T(1 / damping_));
    for (int64_t i = 0; i < dim_; ++i) {
      previous_h_[i] = mask ? x[i] : previous_h_[i];
      previous_g_[i] = mask ? (x[i] - before[i]) * scale : previous_g_[i];
    }
    primed_ |= lanes;
  }

  // What a lane's row has, for its own kernel, whose columns are row_ld apart. copy(from, to): of the lane.
  template <class Copy>
  void hand_over(int l, AndersonRow<T>& row, int64_t row_ld, const Copy& copy) const {
    row.level = level_[l];
    row.primed = (primed_ >> l & 1) != 0;
    if (history_ == 0) return;
    copy(previous_g_, row.previous_g);
    copy(previous_h_, row.previous_h);
    const int used = row.used = int(used_[l]);
    row.next = used == history_ ? 0 : used;
    for (int i = 0; i < used; ++i) {
      const int64_t from = slot(used - 1 - i);
      copy(g_ + from * ld_, row.g + i * row_ld);
      copy(p_ + from * ld_, row.p + i * row_ld);
      for (int j = 0; j < used; ++j) row.gram[i * history_ + j] = gram_[from * history_ + slot(used - 1 - j)][l];
    }
  }

  // In: iterates x and f(x) in `f`. Out: in `f`, the next iterates: Anderson's in `lanes`, damped ones in all others.
  // limits: columns to use.
  void advance(LaneSet lanes, const LaneInts<T>& limits, const LaneDoubles<T>& r2, const V* x, V* f) {
    LaneSet single = 0;
    for_lane_doubles<T>([&](int at) {
      const IntVec<double> mask = doubles_mask(lanes, at);
      const D level = level_.at(at), now = r2.at(at);
      const IntVec<double> restart = mask & (level >= 0.0) & (now > kRestartFactor2 * level);
      primed_ &= ~(lane_set<double>(restart) << at);
      used_.put(at, restart, IntVec<double>{});
      level_.put(at, mask & (restart | (level < 0.0) | (now < level)), now);
      single |= lane_set<double>(limits.at(at) == 1) << at;
    });
    const LaneSet secant = lanes & primed_ & single, several = lanes & primed_ & ~single;
    primed_ |= lanes;
    if (columns_ > 0) next_ = next_ + 1 == history_ ? 0 : next_ + 1;
    LaneDoubles<T> square, along;
    if ((secant | several) != 0) {
      V sums[2];
      sum_in_row_order<T, 2>(dim_, sums, [&](int64_t i, V* sum) {
        const V g = f[i] - x[i];
        const V dg = g - previous_g_[i];
        sum[0] = fma<T>(dg, dg, sum[0]);
        sum[1] = fma<T>(dg, g, sum[1]);
      });
      square = lane_doubles<T>(sums[0]);
      along = lane_doubles<T>(sums[1]);
    }
    const V weight = secant != 0 ? secant_weight(square, along) : V{};
    several != 0 ? take_step<true>(secant, weight, x, f) : take_step<false>(secant, weight, x, f);
    if (several != 0) mix(several, limits, square, along, f);
  }

 private:
  // The small system of a step with several columns, from the oldest to the newest.
  struct System {
    LaneDoubles<T> rhs[kMaxHistory], gamma[kMaxHistory];
  };

  V secant_weight(const LaneDoubles<T>& square, const LaneDoubles<T>& along) const {
    LaneDoubles<T> weight;
    for_lane_doubles<T>([&](int at) {
      const D gamma = along.at(at) / (square.at(at) * (1 + ridge_));
      weight.put(at, -(within_cap(gamma) ? gamma : D{}));
    });
    return narrow_lanes<T>(weight);
  }

  // False for NaN.
  static IntVec<double> within_cap(D weight) { return (weight <= kWeightCap) & (weight >= -kWeightCap); }

  // All that is done entry by entry: the newest column, what the next difference is taken to, and the next iterate but
  // for what mix subtracts.
  template <bool keeps_column>
  void take_step(LaneSet secant, V weight, const V* x, V* f) {
    const IntVec<T> secant_lanes = lane_mask<T>(secant);
    const bool damped = T(damping_) != T(1);
    const V beta = broadcast<T>(T(damping_));
    V *const new_g = g_ + next_ * ld_, *const new_p = p_ + next_ * ld_;
    for (int64_t i = 0; i < dim_; ++i) {
      const V g = f[i] - x[i];
      const V h = damped ? fma<T>(beta, g, x[i]) : f[i];
      const V p = h - previous_h_[i];
      if constexpr (keeps_column) {
        new_g[i] = g - previous_g_[i];
        new_p[i] = p;
      }
      previous_g_[i] = g;
      previous_h_[i] = h;
      f[i] = secant_lanes ? fma<T>(weight, p, h) : h;
    }
  }

  // The place in the ring of the column `age` steps old.
  int64_t slot(int64_t age) const { return next_ >= age ? next_ - age : next_ - age + history_; }
  LaneDoubles<T>& gram(int64_t a, int64_t b) { return gram_[a * history_ + b]; }

  void mix(LaneSet lanes, const LaneInts<T>& limits, const LaneDoubles<T>& square, const LaneDoubles<T>& along, V* f) {
    int count = 0;
    for_lanes(lanes, [&](int l) {
      if (used_[l] < limits[l]) used_[l] += 1;
      if (used_[l] > count) count = int(used_[l]);
    });
    gram(next_, next_) = square;
    System system;
    system.rhs[count - 1] = along;
    take_dots(count, system);
    solve(lanes, count, system);
    for (int first = 0; first < count; first += 4) {
      switch (count - first) {
        case 1:
          subtract<1>(lanes, count, first, system, f);
          break;
        case 2:
          subtract<2>(lanes, count, first, system, f);
          break;
        case 3:
          subtract<3>(lanes, count, first, system, f);
          break;
        default:
          subtract<4>(lanes, count, first, system, f);
      }
    }
  }

  // Of the newest column with those before it, and of these with g.
  void take_dots(int count, System& system) {
    for (int age = 1; age < count; age += 4) {
      switch (count - age) {
        case 1:
          dots_of<1>(age, count, system);
          break;
        case 2:
          dots_of<2>(age, count, system);
          break;
        case 3:
          dots_of<3>(age, count, system);
          break;
        default:
          dots_of<4>(age, count, system);
      }
    }
  }

  template <int columns>
  void dots_of(int age, int count, System& system) {
    const V* column[columns];
    for (int j = 0; j < columns; ++j) column[j] = g_ + slot(age + j) * ld_;
    const V *const newest = g_ + next_ * ld_, *const g = previous_g_;
    V sums[2 * columns];
    sum_in_row_order<T, 2 * columns>(dim_, sums, [&](int64_t i, V* sum) {
      const V dg = newest[i], gi = g[i];
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) {
        const V c = column[j][i];
        sum[2 * j] = fma<T>(c, dg, sum[2 * j]);
        sum[2 * j + 1] = fma<T>(c, gi, sum[2 * j + 1]);
      }
    });
    for (int j = 0; j < columns; ++j) {
      gram(slot(age + j), next_) = gram(next_, slot(age + j)) = lane_doubles<T>(sums[2 * j]);
      system.rhs[count - 1 - age - j] = lane_doubles<T>(sums[2 * j + 1]);
    }
  }

  // small_solve for all lanes at once, for those whose columns are independent; the others, one by one, by itself.
  void solve(LaneSet lanes, int count, System& system) {
    LaneSet solved = 0;
    for_lane_doubles<T>([&](int at) { solved |= lane_set<double>(solve_at(at, count, system)) << at; });
    for_lanes(lanes & ~solved, [&](int l) { solve_one(l, count, system); });
  }

  // A lane with fewer columns has a system of its own and, before it, a diagonal of ones and nothing else: that adds
  // nothing but zeros.
  IntVec<double> solve_at(int at, int count, System& system) {
    D lower[kMaxHistory][kMaxHistory], inverse[kMaxHistory], y[kMaxHistory], scaled[kMaxHistory], weights[kMaxHistory];
    IntVec<double> valid[kMaxHistory];
    const D one = broadcast<double>(1), none{};
    const IntVec<double> used = used_.at(at);
    const auto entry = [&](int i, int j) { return gram(slot(count - 1 - i), slot(count - 1 - j)).at(at); };
    D mean{};
    for (int i = 0; i < count; ++i) {
      valid[i] = used >= count - i;
      mean += valid[i] ? entry(i, i) : none;
    }
    const D shift = ridge_ * mean / __builtin_convertvector(used, D);
    IntVec<double> usable = (mean > none) & (mean - mean == none);
    for (int i = 0; i < count; ++i) {
      const D diagonal = valid[i] ? entry(i, i) + shift : one;
      D pivot = diagonal, rest = valid[i] ? system.rhs[i].at(at) : none;
      for (int j = 0; j < i; ++j) {
        D sum = valid[j] ? entry(i, j) : none;
        for (int k = 0; k < j; ++k) sum -= scaled[k] * lower[j][k];
        scaled[j] = sum;
        lower[i][j] = sum * inverse[j];
        pivot -= sum * lower[i][j];
        rest -= lower[i][j] * y[j];
      }
      usable &= pivot > kPivotFloor<T> * diagonal;
      inverse[i] = one / pivot;
      y[i] = rest;
    }
    for (int i = count - 1; i >= 0; --i) {
      D weight = y[i] * inverse[i];
      for (int k = i + 1; k < count; ++k) weight -= lower[k][i] * weights[k];
      weights[i] = valid[i] ? weight : none;
      system.gamma[i].put(at, weights[i]);
      usable &= within_cap(weights[i]);
    }
    return usable;
  }

  void solve_one(int l, int count, System& system) {
    const int used = int(used_[l]), first = count - used;
    double small[kMaxHistory * kMaxHistory], right[kMaxHistory], weights[kMaxHistory];
    int order[kMaxHistory];
    for (int i = 0; i < used; ++i) {
      order[i] = i;
      right[i] = system.rhs[first + i][l];
      for (int j = 0; j < used; ++j) small[i * used + j] = gram(slot(used - 1 - i), slot(used - 1 - j))[l];
    }
    if (small_solve<double>(small, used, right, order, used, ridge_, kPivotFloor<T>, weights) == 0) used_[l] = 0;
    for (int i = 0; i < used; ++i) system.gamma[first + i][l] = weights[i];
  }

  // f -= sum_j gamma_j P_j of up to four columns from `first` on, counted from the oldest.
  template <int columns>
  void subtract(LaneSet lanes, int count, int first, const System& system, V* f) {
    const V* column[columns];
    V weight[columns];
    IntVec<T> mask[columns];
    for (int j = 0; j < columns; ++j) {
      const int age = count - 1 - first - j;
      column[j] = p_ + slot(age) * ld_;
      weight[j] = -narrow_lanes<T>(system.gamma[first + j]);
      LaneSet valid = 0;
      for_lane_doubles<T>([&](int at) { valid |= lane_set<double>(used_.at(at) > age) << at; });
      mask[j] = lane_mask<T>(lanes & valid);
    }
    for (int64_t i = 0; i < dim_; ++i) {
      V sum = f[i];
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) sum = mask[j] ? fma<T>(weight[j], column[j][i], sum) : sum;
      f[i] = sum;
    }
  }

  const int64_t history_, columns_, dim_, ld_;
  const double damping_, ridge_;
  V *previous_g_ = nullptr, *previous_h_ = nullptr;
  V *g_ = nullptr, *p_ = nullptr;   // [history, ld]
  LaneDoubles<T>* gram_ = nullptr;  // [history, history]
  int64_t next_ = 0;                // the ring's newest column
  LaneSet primed_ = 0;
  LaneInts<T> used_{};
  LaneDoubles<T> level_{};
};

}  // namespace ak::AK_ISA
