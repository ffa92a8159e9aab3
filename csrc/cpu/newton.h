// Newton steps of the rows of a tile: x + d with (1 - J) d = f(x) - x. An Operator is J in 8 bits: of an affine cell
// W of J = leak + slope W, slope = phi'(a), whose slopes are kept here (CoarseProduct); of other cells J itself.
//
// The equations are solved by conjugate residuals (GCR that remembers one direction), every product with W in 8 bits
// (coarse_product.h): a fifth to a tenth of what an evaluation of f costs, and no activation. On a spectrum spread over
// a circle they converge as Picard steps do, on real ones twice as fast and more. What 8 bits and the curvature of f
// leave of the residual is the next step's.
//
// With y = W d, d = g - r + slope y + leak d, so no d is kept: f(x) + slope y is x + d and one Picard step of the
// linear map more. Neither are directions p, but W p and p - J p. Where J itself is had, y = J d, and slopes are 1.
#pragma once

#include "coarse_product.h"
#include "tile.h"

namespace ak::AK_ISA {

// Where there are no products in few bits.
template <class T, class Operator, bool has = AK_HAS_INT8>
struct NewtonSteps {
  NewtonSteps(const Operator&, float = 0) {}
  bool fits() const { return false; }
  static double aim2(bool) { return 1; }
  struct Start {
    template <class Keep>
    void put(const Correction<T>&, int64_t, Vec<T>, const Keep&) const {}
  };
  template <class Slopes>
  void solve(int, Correction<T>*, const Slopes&, const T*) {}
};

#if AK_HAS_INT8

// Of an Operator:
//   kSlopes                               J = leak + slope times what it multiplies by, or else J itself
//   int64_t dim()
//   int64_t constants()                   floats of what J of a row is made of
//   int64_t row_bytes(), row_sums()       of a row of integers, at least round_up(dim(), 64), and words of what comes
//                                         of it
//   bool takes_signed(int n)              integers of n rows; else 128 more than they stand for
//   void lay(Pieces&, int n)              memory of its own
//   void apply(int n, const uint8_t*, int32_t*, const CoarseRow*)
//   auto numbers(float unit)              (out, r, i): a vector of what apply has made of r
template <class Operator>
class NewtonSteps<float, Operator, true> {
  static constexpr int kGroup = 4;        // rows whose lanes are added together
  static constexpr float kSpare = 1.25f;  // of a guess at the next largest entry of r

 public:
  // shift: 0, or the slope that the weights are preconditioned with (precondition.h).
  explicit NewtonSteps(const Operator& product, float shift = 0)
      : shift_(shift), product_(product), dim_(product.dim()), ld_(round_up(dim_, kLanes<float>) + kLanes<float>) {}

  bool fits() const { return product_.fits(); }  // of CoarseProduct
  int64_t dim() const { return dim_; }

  // Squared fall of a row's residual to aim at. What 8 bits and the curvature of f leave of it is mostly more, from a
  // start that is far away by far; and with P a product is not much cheaper than an evaluation.
  double aim2(bool first) const { return first ? 0.09 : shift_ != 0 ? 0.01 : 0.0064; }

  // What a row begins with, as its slopes become known.
  struct Start {
    float *slope, *r;
    uint8_t* bytes;
    float shift, inverse;  // of the unit
    uint8_t turned;

    template <class Keep>
    void put(const Correction<float>& c, int64_t i, Vec<float> phi_slope, const Keep& keep) const {
      const Vec<float> g = keep(load(c.f + i) - load(c.x + i));
      if constexpr (Operator::kSlopes) store(slope + i, keep(phi_slope) - broadcast<float>(shift));
      store(r + i, g);
      const Bytes narrow = nearest_bytes(g * broadcast<float>(inverse), turned);
      std::memcpy(bytes + i, &narrow, sizeof narrow);
    }
  };

  // slopes(row, start): start.put of phi'(a) of all of a row, which has no meaning where J itself is had.
  template <class Slopes>
  void solve(int n, Correction<float>* rows, const Slopes& slopes, const float* leak) {
    const bool leaky = leak != nullptr && shift_ == 0;  // P has it
    place(n);
    signed_ = product_.takes_signed(n);
    for (int i = 0; i < n; ++i) {
      begin(rows[i], rows_[i], i, slopes);
      active_[i] = i;
    }
    for (int count = n; count > 0;) {
      apply(count, rows);
      int left = 0;
      for (int first = 0, some; first < count; first += some) {
        // Rows that take the same kind of step.
        const bool plain = rows[active_[first]].corrector->plain;
        some = 1;
        while (some < kGroup && first + some < count && rows[active_[first + some]].corrector->plain == plain) ++some;
        if constexpr (Operator::kSlopes) {
          if (leaky) {
            plain ? substitute_all<true>(first, some, rows, leak, left)
                  : conjugate_all<true>(first, some, rows, leak, left);
            continue;
          }
        }
        plain ? substitute_all<false>(first, some, rows, leak, left)
              : conjugate_all<false>(first, some, rows, leak, left);
      }
      count = left;
      if (product_.takes_signed(count) != signed_) turn_signs(count);
    }
    for (int i = 0; i < n; ++i) {
      rows[i].corrector->spent += rows_[i].taken;
      if (rows_[i].taken > 0 && !rows_[i].ended) end(rows[i], rows_[i], leak);  // of none f is a Picard step
    }
  }

 private:
  struct Row {
    float *slope, *r, *image, *product;  // image: (1 - J) p; product: W p
    float* total;                        // W d
    float largest, unit;                 // entry of r, in size; what its integers count in
    double r2, image2;                   // image2: 0 where there is no last direction
    int taken;
    bool ended;  // f is the next iterate
  };

  static constexpr int kRows = Operator::kSlopes ? 5 : 4;  // of floats, of a row

  void place(int n) {
    const auto lay = [&](Pieces& pieces) {
      product_.lay(pieces, n);
      bytes_ = pieces.take<uint8_t>(round_up(n, 16) * product_.row_bytes());
      sums_ = pieces.take<int32_t>(round_up(n, 16) * product_.row_sums());
      float* data = pieces.take<float>(kRows * n * ld_);
      if (data == nullptr) return;
      for (int i = 0; i < n; ++i) {
        float** const to[] = {&rows_[i].r, &rows_[i].image, &rows_[i].product, &rows_[i].total, &rows_[i].slope};
        for (int k = 0; k < kRows; ++k, data += ld_) *to[k] = data;
      }
    };
    Pieces sizes(nullptr);
    lay(sizes);
    Pieces pieces(product_scratch().get(sizes.used()));
    lay(pieces);
  }

  template <class Slopes>
  void begin(const Correction<float>& c, Row& row, int at, const Slopes& slopes) const {
    const CoarseUnit unit(c.largest);
    uint8_t* const to = bytes(at);
    slopes(c, Start{row.slope, row.r, to, shift_, unit.inverse, flip()});
    for (int64_t i = round_up(dim_, kLanes<float>); i < round_up(dim_, 64); i += kLanes<float>) {
      const Bytes none{};
      std::memcpy(to + i, &none, sizeof none);
    }
    row.unit = unit.unit;
    row.largest = c.largest;
    row.r2 = c.r2;
    row.taken = 0;
    row.image2 = 0;
    row.ended = false;
    if (c.corrector->plain) clear(row.total);
  }

  void apply(int count, const Correction<float>* rows) {
    CoarseRow in[Operator::kSlopes ? 1 : kMaxTile];
    if constexpr (!Operator::kSlopes)
      for (int i = 0; i < count; ++i) {
        const Row& row = rows_[active_[i]];
        in[i] = {row.r, row.unit, rows[active_[i]].constants};
      }
    product_.apply(count, bytes_, sums_, in);
  }

  // Of a row; 1 where J itself is had.
  struct Slopes {
    const float* row;
    Vec<float> operator[](int64_t i) const {
      if constexpr (Operator::kSlopes) return load(row + i);
      return broadcast<float>(1.0f);
    }
  };

  void clear(float* to) const { std::memset(to, 0, size_t(ld_) * sizeof(float)); }

  uint8_t* bytes(int at) const { return bytes_ + at * product_.row_bytes(); }
  float* out(int at) const { return reinterpret_cast<float*>(sums_ + at * product_.row_sums()); }
  uint8_t flip() const { return signed_ ? 0 : 128; }

  // The integers of all rows, for who wants them the other way.
  void turn_signs(int count) {
    signed_ = !signed_;
    for (int i = 0; i < count; ++i) {
      uint8_t* const row = bytes(i);
      for (int64_t k = 0; k < round_up(dim_, kLanes<float>); ++k) row[k] ^= 128;
    }
  }

  // Whether a row is done once its residual has come to r2.
  static bool done(const Correction<float>& c, const Row& row, double r2) {
    return r2 <= c.aim2 * c.r2 || row.taken + 1 >= c.most;
  }

  // Steps of `some` rows from the first-th active one on. Those that go on move up to `left`, which counts them.
  template <bool leaky>
  void substitute_all(int first, int some, const Correction<float>* rows, const float* leak, int& left) {
    Vec<float> square[kGroup], most[kGroup];
    for (int i = some; i < kGroup; ++i) square[i] = most[i] = Vec<float>{};
    for (int i = 0; i < some; ++i) {
      const int id = active_[first + i];
      substitute<leaky>(rows_[id], first + i, rows[id].corrector->reach, leak, square[i], most[i]);
    }
    float sums[kGroup], largest[kGroup];
    sum_lanes_of_each<kGroup>(square, sums);
    largest_lane_of_each<kGroup>(most, largest);
    for (int i = 0; i < some; ++i) {
      const int id = active_[first + i];
      const Correction<float>& c = rows[id];
      Row& row = rows_[id];
      Corrector& corrector = *c.corrector;
      const double r2 = double(sums[i]);
      constexpr double kMostGrowth2 = 4;
      corrector.on = r2 < row.r2 || (!corrector.conjugate && r2 < kMostGrowth2 * row.r2);
      corrector.conjugate = corrector.conjugate || !(r2 < row.r2);
      // A few slow modes are left when it has become slower by so much: they are for the others.
      corrector.plain = r2 <= 0.5 * (1 + corrector.rate2) * row.r2;
      if (!corrector.plain) clear(row.image), clear(row.product), row.image2 = 0;
      row.r2 = r2;
      row.largest = largest[i];
      if (!corrector.on) continue;
      const bool last = done(c, row, r2);
      row.taken += 1;
      if (last) continue;
      if (left != first + i) std::memcpy(bytes(left), bytes(first + i), size_t(product_.row_bytes()));
      active_[left++] = id;
    }
  }

  template <bool leaky>
  void conjugate_all(int first, int some, const Correction<float>* rows, const float* leak, int& left) {
    constexpr int kSums = 4;  // of a row: <A r, A p>, |A r|^2, <r, A r> and one to make it a power of two
    Vec<float> lanes[kSums * kGroup], most[kGroup], square[kGroup];
    for (int i = some; i < kGroup; ++i)
      for (int k = 0; k < kSums; ++k) lanes[kSums * i + k] = Vec<float>{};
    for (int i = 0; i < some; ++i) {
      const Row& row = rows_[active_[first + i]];
      row.taken == 0 ? measure<leaky, true>(row, out(first + i), leak, lanes + kSums * i)
                     : measure<leaky, false>(row, out(first + i), leak, lanes + kSums * i);
    }
    float sums[kSums * kGroup], largest[kGroup], travelled[kGroup];
    sum_lanes_of_each<kSums * kGroup>(lanes, sums);
    for (int i = 0; i < kGroup; ++i) most[i] = square[i] = Vec<float>{};
    Steps steps{};
    for (int i = 0; i < some; ++i) {
      const Row& row = rows_[active_[first + i]];
      steps.cross[i] = double(sums[kSums * i]);
      steps.square[i] = double(sums[kSums * i + 1]);
      steps.along[i] = double(sums[kSums * i + 2]);
      steps.r2[i] = row.r2;
      steps.last_image2[i] = row.image2;
    }
    steps.choose();
    int ids[kGroup];
    for (int i = 0; i < some; ++i) {
      const int id = ids[i] = active_[first + i];
      const Correction<float>& c = rows[id];
      Row& row = rows_[id];
      if (!steps.sound(i)) {
        c.corrector->on = false;
        continue;
      }
      // Where successive substitution would have left nearly as little, its steps are the cheaper ones.
      constexpr double kNearly = 0.85;
      constexpr int kSettled = 2;  // steps before
      const double r2 = steps.left2[i];
      if (row.taken >= kSettled && r2 > kNearly * steps.plain2[i] && !c.corrector->conjugate) {
        c.corrector->plain = true;
        c.corrector->rate2 = steps.plain2[i] / row.r2;
        c.corrector->reach = kSpare * float(square_root(c.corrector->rate2));
      }
      const Step step{float(steps.alpha[i]), float(steps.beta[i])};
      const bool last = done(c, row, r2);
      if (last && leak == nullptr) {
        row.taken == 0 ? finish<true>(c, row, out(first + i), step, most[i], square[i])
                       : finish<false>(c, row, out(first + i), step, most[i], square[i]);
        row.ended = true;
      } else {
        const CoarseUnit unit(row.largest * kSpare * float(steps.fall[i]));
        uint8_t* const to = bytes(left);
        most[i] = row.taken == 0 ? move<leaky, true>(row, out(first + i), leak, step, unit.inverse, to)
                                 : move<leaky, false>(row, out(first + i), leak, step, unit.inverse, to);
        row.unit = unit.unit;
      }
      row.image2 = steps.image2[i];
      row.r2 = r2;
      row.taken += 1;
      if (!last) active_[left++] = id;
    }
    largest_lane_of_each<kGroup>(most, largest);
    sum_lanes_of_each<kGroup>(square, travelled);
    for (int i = 0; i < some; ++i) {
      Row& row = rows_[ids[i]];
      row.largest = largest[i];
      const Correction<float>& c = rows[ids[i]];
      if (row.ended && c.stands_for != nullptr) *c.travel = {largest[i], double(travelled[i])};
    }
  }

  // r - J r
  template <bool leaky>
  static Vec<float> image_of(Vec<float> slope, Vec<float> r, const float* leak, Vec<float> wr, int64_t i) {
    const Vec<float> image = fma<float>(-slope, wr, r);
    return leaky ? fma<float>(-load(leak + i), r, image) : image;
  }

  // Successive substitution: r is J r from now on. It is counted in integers while it is made, by a guess at its
  // largest entry: `reach` times the last one. One that is larger still loses a little.
  template <bool leaky>
  void substitute(Row& row, int at, float reach, const float* leak, Vec<float>& square, Vec<float>& most) const {
    const CoarseUnit next(row.largest * reach);
    const Vec<float> inverse = broadcast<float>(next.inverse);
    const Slopes slope{row.slope};
    const float* const sums = out(at);
    const auto numbers = product_.numbers(row.unit);
    float *const r_row = row.r, *const total = row.total;
    uint8_t* const to = bytes(at);
    const uint8_t turned = flip();
    const int64_t dim = dim_;
    Vec<float> sum{}, largest{};
    for (int64_t i = 0; i < dim; i += kLanes<float>) {
      const Vec<float> wr = numbers(sums, r_row, i);
      Vec<float> r = slope[i] * wr;
      if constexpr (leaky) r = fma<float>(load(leak + i), load(r_row + i), r);
      store(r_row + i, r);
      store(total + i, load(total + i) + wr);
      sum = fma<float>(r, r, sum);
      largest = VecOps<float>::max(largest, VecOps<float>::abs(r));
      const Bytes narrow = nearest_bytes(r * inverse, turned);
      std::memcpy(to + i, &narrow, sizeof narrow);
    }
    row.unit = next.unit;
    square = sum;
    most = largest;
  }

  // Conjugate residuals: alpha along the direction r + beta (the last one).
  struct Step {
    float alpha, beta;
  };

  // Of a group of rows.
  struct Steps {
    typedef double Numbers __attribute__((vector_size(kGroup * sizeof(double))));
    Numbers cross, square, along, r2, last_image2;  // last_image2: 0 where there is no last direction
    Numbers beta, image2, alpha;
    Numbers left2, plain2;  // |r|^2 after this step, and after one of successive substitution
    Numbers fall;           // of |r|

    void choose() {
      const Numbers none{};
      beta = last_image2 > none ? -cross / last_image2 : none;
      image2 = square + beta * cross;
      alpha = along / image2;
      plain2 = r2 - 2 * along + square;
      left2 = r2 - alpha * along;
      const Numbers fall2 = left2 > none ? left2 / r2 : none;
      for (int i = 0; i < kGroup; ++i) fall[i] = square_root(fall2[i]);
    }
    bool sound(int i) const { return along[i] > 0 && image2[i] > 0 && finite(alpha[i]) && finite(beta[i]); }
  };

  // The sums that decide a step. Sums of integers become W r, in the same place.
  template <bool leaky, bool first>
  void measure(const Row& row, float* out, const float* leak, Vec<float>* sums) const {
    const Slopes slope{row.slope};
    const float *const r_row = row.r, *const image_row = row.image;
    const auto numbers = product_.numbers(row.unit);
    const int64_t dim = dim_;
    Vec<float> cross{}, square{}, along{};
    for (int64_t i = 0; i < dim; i += kLanes<float>) {
      const Vec<float> r = load(r_row + i), wr = numbers(out, r_row, i);
      const Vec<float> image = image_of<leaky>(slope[i], r, leak, wr, i);
      if constexpr (Operator::kSlopes) store(out + i, wr);
      if constexpr (!first) cross = fma<float>(image, load(image_row + i), cross);
      square = fma<float>(image, image, square);
      along = fma<float>(r, image, along);
    }
    sums[0] = cross;
    sums[1] = square;
    sums[2] = sums[3] = along;
  }

  // ... and the step; the largest entries of what is left of r, which is counted in integers by a guess at them.
  template <bool leaky, bool first>
  Vec<float> move(const Row& row, const float* wr, const float* leak, const Step& step, float inverse_unit,
                  uint8_t* to) const {
    const Vec<float> alpha = broadcast<float>(step.alpha), beta = broadcast<float>(step.beta);
    const Vec<float> inverse = broadcast<float>(inverse_unit);
    const Slopes slope{row.slope};
    float *const r_row = row.r, *const image_row = row.image, *const product_row = row.product,
                 *const total = row.total;
    const uint8_t turned = flip();
    const int64_t dim = dim_;
    Vec<float> most{};
    for (int64_t i = 0; i < dim; i += kLanes<float>) {
      Vec<float> product = load(wr + i), r = load(r_row + i);
      Vec<float> image = image_of<leaky>(slope[i], r, leak, product, i);
      if constexpr (!first) {
        image = fma<float>(beta, load(image_row + i), image);
        product = fma<float>(beta, load(product_row + i), product);
      }
      r = fma<float>(-alpha, image, r);
      store(image_row + i, image);
      store(product_row + i, product);
      store(r_row + i, r);
      store(total + i, first ? alpha * product : fma<float>(alpha, product, load(total + i)));
      most = VecOps<float>::max(most, VecOps<float>::abs(r));
      const Bytes narrow = nearest_bytes(r * inverse, turned);
      std::memcpy(to + i, &narrow, sizeof narrow);
    }
    return most;
  }

  // A row's last step, without a leak: the next iterate in the place of f, and how far from what its product stands
  // for.
  template <bool first>
  void finish(const Correction<float>& c, const Row& row, const float* wr, const Step& step, Vec<float>& most,
              Vec<float>& square) const {
    const Vec<float> alpha = broadcast<float>(step.alpha), beta = broadcast<float>(step.beta);
    const Vec<float> shift = broadcast<float>(shift_);
    const Slopes slope{row.slope};
    const float *const product_row = row.product, *const total_row = row.total;
    const float* const from = c.stands_for != nullptr ? c.stands_for : c.x;
    float* const f = c.f;
    const int64_t dim = dim_;
    Vec<float> largest{}, sum{};
    for (int64_t i = 0; i < dim; i += kLanes<float>) {
      Vec<float> product = load(wr + i), total;
      if constexpr (first) {
        total = alpha * product;
      } else {
        product = fma<float>(beta, load(product_row + i), product);
        total = fma<float>(alpha, product, load(total_row + i));
      }
      const Vec<float> next = fma<float>(slope[i] + shift, total, load(f + i));
      const Vec<float> travelled = next - load(from + i);
      store(f + i, next);
      largest = VecOps<float>::max(largest, VecOps<float>::abs(travelled));
      sum = fma<float>(travelled, travelled, sum);
    }
    most = largest;
    square = sum;
  }

  void end(const Correction<float>& c, const Row& row, const float* leak) const {
    float* const f_row = c.f;
    Distance<float> distance({c.stands_for, true});
    const Slopes slopes{row.slope};
    for (int64_t i = 0; i < dim_; i += kLanes<float>) {
      const Vec<float> slope = slopes[i] + broadcast<float>(shift_);
      const Vec<float> total = load(row.total + i), f = load(f_row + i);
      Vec<float> next;
      if (leak == nullptr) {
        next = fma<float>(slope, total, f);
      } else {
        // (1 - leak) d = g - r + slope y
        const Vec<float> x = load(c.x + i), one = broadcast<float>(1.0f);
        next = x + (f - x - load(row.r + i) + slope * total) / (one - load(leak + i));
        if (i + kLanes<float> > dim_) next = keep_first<float>(next, dim_ - i);
      }
      distance.add(i, next);
      store(f_row + i, next);
    }
    *c.travel = distance.travel();
  }

  const float shift_;
  Operator product_;
  const int64_t dim_, ld_;
  bool signed_ = false;
  uint8_t* bytes_ = nullptr;
  int32_t* sums_ = nullptr;
  int active_[kMaxTile];
  Row rows_[kMaxTile];
};

#endif

}  // namespace ak::AK_ISA
