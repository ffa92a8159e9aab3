// Newton steps of the rows of a tile: x + d with (1 - J) d = f(x) - x, J = leak + slope W, slope = phi'(a).
//
// The equations are solved by conjugate residuals (GCR that remembers one direction), every product with W in 8 bits
// (coarse_product.h): a fifth to a tenth of what an evaluation of f costs, and no activation. On a spectrum spread over
// a circle they converge as Picard steps do, on real ones twice as fast and more. What 8 bits and the curvature of f
// leave of the residual is the next step's.
//
// With y = W d, d = g - r + slope y + leak d, so no d is kept: f(x) + slope y is x + d and one Picard step of the
// linear map more. Neither are directions p, but W p and p - J p.
#pragma once

#include "coarse_product.h"
#include "tile.h"

namespace ak::AK_ISA {

// Where there are no products in few bits.
template <class T, bool has = AK_HAS_INT8 && sizeof(T) == 4>
struct NewtonSteps {
  NewtonSteps(const Weights<T>&, T) {}
  bool fits() const { return false; }
  template <class Slopes>
  void solve(int, Correction<T>*, const Slopes&, const T*) {}
};

#if AK_HAS_INT8

template <>
class NewtonSteps<float, true> {
  static constexpr int kGroup = 4;  // rows whose lanes are added together

 public:
  // shift: 0, or the slope that the weights are preconditioned with (precondition.h).
  NewtonSteps(const Weights<float>& w, float shift)
      : fits_(CoarseProduct::fits(w)),
        shift_(shift),
        product_(w),
        dim_(w.full.outputs),
        ld_(round_up(dim_, kLanes<float>) + kLanes<float>) {}

  bool fits() const { return fits_; }

  // slopes(row, to): phi'(a) of one of them, zero from its end to whole vectors.
  template <class Slopes>
  void solve(int n, Correction<float>* rows, const Slopes& slopes, const float* leak) {
    const float* const leak_of_steps = shift_ != 0 ? nullptr : leak;  // P has it
    place(n);
    signed_ = product_.takes_signed(n);
    for (int i = 0; i < n; ++i) {
      slopes(rows[i], rows_[i].slope);
      if (shift_ != 0) shift_slopes(rows_[i].slope);
      begin(rows[i], rows_[i]);
      take_bytes(rows_[i], i);
      active_[i] = i;
    }
    for (int count = n; count > 0;) {
      product_.apply(count, bytes_, sums_);
      int left = 0;
      for (int first = 0, some; first < count; first += some) {
        // Rows that take the same kind of step.
        const bool plain = rows[active_[first]].corrector->plain;
        some = 1;
        while (some < kGroup && first + some < count && rows[active_[first + some]].corrector->plain == plain) ++some;
        leak_of_steps != nullptr ? step<true>(plain, first, some, rows, leak, left)
                                 : step<false>(plain, first, some, rows, leak, left);
      }
      count = left;
      if (product_.takes_signed(count) != signed_) turn_signs(count);
    }
    for (int i = 0; i < n; ++i) end(rows[i], rows_[i], leak);
  }

 private:
  struct Row {
    float *slope, *r, *image, *product, *total;  // image: (1 - J) p; product: W p; total: W d
    float largest, unit;                         // entry of r, in size; what its integers count in
    double r2, image2;
    int taken;
    bool fresh;  // no direction yet
  };

  void place(int n) {
    const auto lay = [&](Pieces& pieces) {
      bytes_ = pieces.take<uint8_t>(round_up(n, 16) * product_.row_bytes());
      sums_ = pieces.take<int32_t>(round_up(n, 16) * product_.row_sums());
      float* data = pieces.take<float>(5 * n * ld_);
      if (data == nullptr) return;
      for (int i = 0; i < n; ++i)
        for (float** to : {&rows_[i].slope, &rows_[i].r, &rows_[i].image, &rows_[i].product, &rows_[i].total}) {
          *to = data;
          data += ld_;
        }
    };
    Pieces sizes(nullptr);
    lay(sizes);
    Pieces pieces(product_scratch().get(sizes.used()));
    lay(pieces);
  }

  void begin(const Correction<float>& c, Row& row) const {
    const float *const f = c.f, *const x = c.x;
    float *const r = row.r, *const total = row.total;
    Vec<float> most{};
    for_row<float>(dim_, [&](int64_t i, auto keep) {
      const Vec<float> g = keep(load(f + i) - load(x + i));
      store(r + i, g);
      store(total + i, Vec<float>{});
      most = VecOps<float>::max(most, VecOps<float>::abs(g));
    });
    row.largest = largest_lane<float>(most);
    row.r2 = c.r2;
    row.taken = 0;
    row.fresh = true;
  }

  void shift_slopes(float* slope) const {
    for (int64_t i = 0; i < dim_; i += kLanes<float>) store(slope + i, load(slope + i) - broadcast<float>(shift_));
  }

  uint8_t* bytes(int at) const { return bytes_ + at * product_.row_bytes(); }
  float* out(int at) const { return reinterpret_cast<float*>(sums_ + at * product_.row_sums()); }
  uint8_t flip() const { return signed_ ? 0 : 128; }

  // How r is counted in integers.
  struct Unit {
    float unit, inverse;
  };
  static Unit unit_for(float largest) {
    const bool sane = countable(largest);
    return {sane ? largest / CoarseProduct::kLargest : 0.0f, sane ? CoarseProduct::kLargest / largest : 0.0f};
  }

  // r as integers, for the product's row `at`.
  void take_bytes(Row& row, int at) const {
    const Unit unit = unit_for(row.largest);
    row.unit = unit.unit;
    const Vec<float> inverse = broadcast<float>(unit.inverse);
    const float* const r = row.r;
    uint8_t* const to = bytes(at);
    const uint8_t turned = flip();
    const int64_t dim = dim_, padded = product_.row_bytes();
    int64_t i = 0;
    for (; i < dim; i += kLanes<float>) {
      const Bytes narrow = nearest_bytes(load(r + i) * inverse, turned);
      std::memcpy(to + i, &narrow, sizeof narrow);
    }
    const Bytes none{};
    for (; i < padded; i += kLanes<float>) std::memcpy(to + i, &none, sizeof none);
  }

  // The integers of all rows, for who wants them the other way.
  void turn_signs(int count) {
    signed_ = !signed_;
    for (int i = 0; i < count; ++i) {
      uint8_t* const row = bytes(i);
      for (int64_t k = 0; k < round_up(dim_, kLanes<float>); ++k) row[k] ^= 128;
    }
  }

  // A step of `some` rows from the first-th active one on. Those that go on move up to `left`, which counts them.
  template <bool leaky>
  void step(bool plain, int first, int some, const Correction<float>* rows, const float* leak, int& left) {
    bool goes_on[kGroup];
    Vec<float> most[kGroup];
    for (int i = some; i < kGroup; ++i) most[i] = Vec<float>{};
    plain ? substitute_all<leaky>(first, some, rows, leak, most, goes_on)
          : conjugate_all<leaky>(first, some, rows, leak, most, goes_on);
    float largest[kGroup];
    largest_lane_of_each<kGroup>(most, largest);
    for (int i = 0; i < some; ++i) {
      const int id = active_[first + i];
      Row& row = rows_[id];
      if (!goes_on[i]) {
        rows[id].corrector->on = false;
        continue;
      }
      row.taken += 1;
      row.largest = largest[i];
      if (row.r2 <= rows[id].aim2 * rows[id].r2 || row.taken >= rows[id].most) continue;
      if (!plain)
        take_bytes(row, left);
      else if (left != first + i)
        std::memcpy(bytes(left), bytes(first + i), size_t(product_.row_bytes()));
      active_[left++] = id;
    }
  }

  template <bool leaky>
  void substitute_all(int first, int some, const Correction<float>* rows, const float* leak, Vec<float>* most,
                      bool* goes_on) {
    Vec<float> square[kGroup];
    for (int i = some; i < kGroup; ++i) square[i] = Vec<float>{};
    for (int i = 0; i < some; ++i) {
      const int id = active_[first + i];
      substitute<leaky>(rows_[id], first + i, rows[id].corrector->reach, leak, square[i], most[i]);
    }
    float sums[kGroup];
    sum_lanes_of_each<kGroup>(square, sums);
    for (int i = 0; i < some; ++i) {
      const int id = active_[first + i];
      Row& row = rows_[id];
      Corrector& corrector = *rows[id].corrector;
      const double r2 = double(sums[i]);
      constexpr double kMostGrowth2 = 4;
      goes_on[i] = r2 < row.r2 || (!corrector.conjugate && r2 < kMostGrowth2 * row.r2);
      corrector.conjugate = corrector.conjugate || !(r2 < row.r2);
      // A few slow modes are left when it has become slower by so much: they are for the others.
      corrector.plain = r2 <= 0.5 * (1 + corrector.rate2) * row.r2;
      row.fresh = true;
      row.r2 = r2;
    }
  }

  template <bool leaky>
  void conjugate_all(int first, int some, const Correction<float>* rows, const float* leak, Vec<float>* most,
                     bool* goes_on) {
    constexpr int kSums = 4;  // of a row: <A r, A p>, |A r|^2, <r, A r> and one to make it a power of two
    Vec<float> lanes[kSums * kGroup];
    for (int i = some; i < kGroup; ++i)
      for (int k = 0; k < kSums; ++k) lanes[kSums * i + k] = Vec<float>{};
    for (int i = 0; i < some; ++i) {
      const Row& row = rows_[active_[first + i]];
      row.fresh ? measure<leaky, true>(row, out(first + i), leak, lanes + kSums * i)
                : measure<leaky, false>(row, out(first + i), leak, lanes + kSums * i);
    }
    float sums[kSums * kGroup];
    sum_lanes_of_each<kSums * kGroup>(lanes, sums);
    for (int i = 0; i < some; ++i) {
      const int id = active_[first + i];
      Row& row = rows_[id];
      const double cross = double(sums[kSums * i]), square = double(sums[kSums * i + 1]);
      const double along = double(sums[kSums * i + 2]);
      const double beta = row.fresh ? 0 : -cross / row.image2;
      const double image2 = square + beta * cross, alpha = along / image2;
      goes_on[i] = along > 0 && image2 > 0 && finite(alpha) && finite(beta);
      most[i] = Vec<float>{};
      if (!goes_on[i]) continue;
      most[i] = row.fresh ? move<leaky, true>(row, out(first + i), leak, float(alpha), float(beta))
                          : move<leaky, false>(row, out(first + i), leak, float(alpha), float(beta));
      // What successive substitution would have left; where that is nearly as little, its steps are the cheaper ones.
      constexpr double kNearly = 0.85;
      constexpr int kSettled = 2;  // steps before
      const double plain2 = row.r2 - 2 * along + square, r2 = row.r2 - alpha * along;
      if (row.taken >= kSettled && r2 > kNearly * plain2 && !rows[id].corrector->conjugate) {
        rows[id].corrector->plain = true;
        rows[id].corrector->rate2 = plain2 / row.r2;
        constexpr float kSpare = 1.25f;
        rows[id].corrector->reach = kSpare * float(square_root(plain2 / row.r2));
      }
      row.image2 = image2;
      row.r2 = r2;
      row.fresh = false;
    }
  }

  // W r from its sums of integers
  static Vec<float> number(const float* out, const float* scale, const float* diagonal, const float* r, Vec<float> unit,
                           int64_t i) {
    Vec<int32_t> sum;
    std::memcpy(&sum, out + i, sizeof sum);
    Vec<float> wr = __builtin_convertvector(sum, Vec<float>) * (unit * load(scale + i));
    if (diagonal != nullptr) wr = fma<float>(load(diagonal + i), load(r + i), wr);
    return wr;
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
    const Unit next = unit_for(row.largest * reach);
    const Vec<float> unit = broadcast<float>(row.unit), inverse = broadcast<float>(next.inverse);
    const float *const slope = row.slope, *const sums = out(at);
    const float *const scale = product_.scale(), *const diagonal = product_.diagonal();
    float *const r_row = row.r, *const total = row.total;
    uint8_t* const to = bytes(at);
    const uint8_t turned = flip();
    const int64_t dim = dim_;
    Vec<float> sum{}, largest{};
    for (int64_t i = 0; i < dim; i += kLanes<float>) {
      const Vec<float> wr = number(sums, scale, diagonal, r_row, unit, i);
      Vec<float> r = load(slope + i) * wr;
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

  // Conjugate residuals: the sums that decide a step. Sums of integers become W r, in the same place.
  template <bool leaky, bool fresh>
  void measure(const Row& row, float* out, const float* leak, Vec<float>* sums) const {
    const Vec<float> unit = broadcast<float>(row.unit);
    const float *const slope = row.slope, *const r_row = row.r, *const image_row = row.image;
    const float *const scale = product_.scale(), *const diagonal = product_.diagonal();
    const int64_t dim = dim_;
    Vec<float> cross{}, square{}, along{};
    for (int64_t i = 0; i < dim; i += kLanes<float>) {
      const Vec<float> r = load(r_row + i), wr = number(out, scale, diagonal, r_row, unit, i);
      const Vec<float> image = image_of<leaky>(load(slope + i), r, leak, wr, i);
      store(out + i, wr);
      if constexpr (!fresh) cross = fma<float>(image, load(image_row + i), cross);
      square = fma<float>(image, image, square);
      along = fma<float>(r, image, along);
    }
    sums[0] = cross;
    sums[1] = square;
    sums[2] = sums[3] = along;
  }

  // ... and the step along the new direction; the largest entries of what is left of r.
  template <bool leaky, bool fresh>
  Vec<float> move(const Row& row, const float* wr, const float* leak, float by, float turn) const {
    const Vec<float> alpha = broadcast<float>(by), beta = broadcast<float>(turn);
    const float* const slope = row.slope;
    float *const r_row = row.r, *const image_row = row.image, *const product_row = row.product,
                 *const total = row.total;
    const int64_t dim = dim_;
    Vec<float> most{};
    for (int64_t i = 0; i < dim; i += kLanes<float>) {
      Vec<float> product = load(wr + i), r = load(r_row + i);
      Vec<float> image = image_of<leaky>(load(slope + i), r, leak, product, i);
      if constexpr (!fresh) {
        image = fma<float>(beta, load(image_row + i), image);
        product = fma<float>(beta, load(product_row + i), product);
      }
      r = fma<float>(-alpha, image, r);
      store(image_row + i, image);
      store(product_row + i, product);
      store(r_row + i, r);
      store(total + i, fma<float>(alpha, product, load(total + i)));
      most = VecOps<float>::max(most, VecOps<float>::abs(r));
    }
    return most;
  }

  void end(const Correction<float>& c, const Row& row, const float* leak) const {
    c.corrector->spent += row.taken;
    if (row.taken == 0) return;  // f is a Picard step
    float* const f_row = c.f;
    for (int64_t i = 0; i < dim_; i += kLanes<float>) {
      const Vec<float> slope = load(row.slope + i) + broadcast<float>(shift_);
      const Vec<float> step = slope * load(row.total + i), f = load(f_row + i);
      if (leak == nullptr) {
        store(f_row + i, f + step);
        continue;
      }
      // (1 - leak) d = g - r + slope y
      const Vec<float> x = load(c.x + i), one = broadcast<float>(1.0f);
      const Vec<float> next = x + (f - x - load(row.r + i) + step) / (one - load(leak + i));
      store(f_row + i, i + kLanes<float> <= dim_ ? next : keep_first<float>(next, dim_ - i));
    }
  }

  const bool fits_;
  const float shift_;
  const CoarseProduct product_;
  const int64_t dim_, ld_;
  bool signed_ = false;
  uint8_t* bytes_ = nullptr;
  int32_t* sums_ = nullptr;
  int active_[kMaxTile];
  Row rows_[kMaxTile];
};

#endif

}  // namespace ak::AK_ISA
