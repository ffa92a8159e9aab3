// Products of changes by the matrix unit, exact but for float32 rounding: a += W d with W as three 8-bit digits an
// entry.
//
// An output's weights are multiples of 1 / (127 * 254^2) of its largest, which is 2^-23: as close as float32 holds
// them. A change d of x is rounded to one digit, a multiple of its own largest entry / 127, and x itself moves by what
// was rounded (`last`): the product always belongs to `last`. A product in full makes good no more than the rounding of
// sums. Where a digit says too little of d, or d has to be had to the last bit, d is sent digit by digit.
//
// The unit adds up integers, in any order, without rounding: a row's bits do not depend on the rows beside it.
#pragma once

#include "matrix_unit.h"
#include "narrow.h"
#include "scratch.h"

#if AK_HAS_MATRIX_UNIT

namespace ak::AK_ISA {

constexpr int kDigits = 3;
constexpr float kDigit = 127;      // largest of a first digit
constexpr float kDigitBase = 254;  // of what a digit leaves, at most half a unit, the next makes at most 127

constexpr int kUnitBytes = 64;  // 8-bit entries in a row of a register

// The digits of W, in registers' worth of 64 inputs by 16 outputs: rows of four inputs, output by output.
struct DigitMatrix {
  int8_t* data = nullptr;
  float* scale = nullptr;  // [outputs, in whole vectors] of the first digit
  // Where W's diagonal stands out of its rows (a leak, a symmetric W), multiplied in float32; or null.
  float* diagonal = nullptr;  // [outputs, in whole vectors]
  int outputs = 0, inputs = 0;

  static int64_t steps(int64_t inputs) { return (inputs + kUnitBytes - 1) / kUnitBytes; }
  static int64_t size(int64_t outputs, int64_t inputs) {
    return kDigits * round_up(outputs, kUnitColumns) / kUnitColumns * steps(inputs) * kRegister;
  }
  static constexpr int64_t kRegister = kUnitWords * 4;  // bytes

  int64_t steps() const { return steps(inputs); }
  int blocks() const { return int(round_up(outputs, kUnitColumns) / kUnitColumns); }
  int8_t* block(int digit, int index) const { return data + (int64_t(digit) * blocks() + index) * steps() * kRegister; }
};

// How much of an output's mean weight, in size, its largest may be: digits hold all of its weights to 2^-24 of that.
constexpr float kMostSpread = 16;

enum class Packed { kWell, kSpread, kNotFit };

// Packs 16 outputs, without the diagonal where to.diagonal has a place for it, and says how well digits hold them.
inline Packed pack_digits(const Matrix<float>& w, const DigitMatrix& to, int index) {
  constexpr int lanes = kLanes<float>;
  static_assert(lanes == kUnitColumns);
  const int64_t first = int64_t(index) * kUnitColumns, padded = to.steps() * kUnitBytes;
  float* const rows = static_cast<float*>(product_scratch().get(size_t(kUnitColumns * padded) * sizeof(float)));
  gather_outputs(w, first, 0, padded, rows);
  Packed how = Packed::kWell;
  float unit[kDigits][kUnitColumns], inverse[kDigits][kUnitColumns];
  for (int n = 0; n < kUnitColumns; ++n) {
    float* const row = rows + n * padded;
    if (to.diagonal != nullptr) {
      const bool inside = first + n < to.outputs;
      to.diagonal[first + n] = inside ? row[first + n] : 0.0f;
      if (inside) row[first + n] = 0;
    }
    Vec<float> most{}, sum{};
    for (int64_t k = 0; k < padded; k += lanes) {
      const Vec<float> size = VecOps<float>::abs(load(row + k));
      most = VecOps<float>::max(most, size);
      sum += size;
    }
    const float largest = largest_lane<float>(most), total = sum_lanes<float>(sum);
    const float apart = to.diagonal != nullptr ? to.diagonal[first + n] : 0.0f;
    if (!fit_for_unit(largest, total) || !(apart <= 1e25f && apart >= -1e25f)) return Packed::kNotFit;
    if (largest * float(to.inputs) > kMostSpread * total) how = Packed::kSpread;
    float one = largest > kLeastScaled ? largest / kDigit : 0.0f;
    for (int digit = 0; digit < kDigits; ++digit, one /= kDigitBase) {
      unit[digit][n] = one;
      inverse[digit][n] = one > kLeastScaled ? 1 / one : 0.0f;
    }
  }
  std::memcpy(to.scale + first, unit[0], sizeof unit[0]);
  for (int64_t step = 0; step < to.steps(); ++step) {
    Vec<uint32_t> quads[kDigits][kUnitColumns];
    for (int n = 0; n < kUnitColumns; ++n) {
      uint8_t bytes[kDigits][kUnitBytes];
      for (int k = 0; k < kUnitBytes; k += lanes) {
        Vec<float> rest = load(rows + n * padded + step * kUnitBytes + k);
        for (int digit = 0; digit < kDigits; ++digit) {
          const Rounded q = round_to_integer(rest * broadcast<float>(inverse[digit][n]));
          rest = fma<float>(-q.value, broadcast<float>(unit[digit][n]), rest);
          const Bytes narrow = __builtin_convertvector(q.integer, Bytes);
          std::memcpy(bytes[digit] + k, &narrow, sizeof narrow);
        }
      }
      for (int digit = 0; digit < kDigits; ++digit) std::memcpy(&quads[digit][n], bytes[digit], sizeof quads[digit][n]);
    }
    for (int digit = 0; digit < kDigits; ++digit) {
      turn<uint32_t>(quads[digit]);
      std::memcpy(to.block(digit, index) + step * DigitMatrix::kRegister, quads[digit], sizeof quads[digit]);
    }
  }
  return how;
}

// What rounding to one digit leaves of a change, squared and relative to it, that needs a second.
constexpr double kCoarse2 = 4e-4;

// The changes of a tile's rows as one digit each, in the calling thread's scratch, and the products they go to.
class DigitRows {
 public:
  DigitRows(int n, const DigitMatrix& w)
      : n_(n), groups_((n + kUnitRows - 1) / kUnitRows), steps_(w.steps()), diagonal_(w.diagonal) {
    left_ = static_cast<int8_t*>(product_scratch().get(size_t(groups_ * steps_ * DigitMatrix::kRegister)));
  }

  int count() const { return n_; }
  int groups() const { return groups_; }
  int64_t steps() const { return steps_; }
  int8_t* left(int group) const { return left_ + group * steps_ * DigitMatrix::kRegister; }
  float unit(int i) const { return unit_[i]; }
  float* product(int i) const { return product_[i]; }

  // Takes the largest entry and the square of a change where they are not known.
  static void measure(const float* x, const float* last, int64_t inputs, Travel<float>& change) {
    if (change.largest >= 0 && change.square >= 0) return;
    Vec<float> most{}, square{};
    for_row<float>(inputs, [&](int64_t i, auto keep) {
      const Vec<float> d = keep(load(x + i) - load(last + i));
      most = VecOps<float>::max(most, VecOps<float>::abs(d));
      square = fma<float>(d, d, square);
    });
    change = {largest_lane<float>(most), double(sum_lanes<float>(square))};
  }

  // Whether one digit says too little of a change: a few of its entries are far larger than the others.
  static bool coarse(const Travel<float>& change, int64_t inputs) {
    const double unit = double(change.largest) / kDigit;
    return double(inputs) * unit * unit / 12 > kCoarse2 * change.square;
  }

  // Row i's change from `last` to x, of the size `largest`, as one digit; last moves by what that says, and `moved`,
  // which may be x or null, with it. `product`: what its product will be added to.
  void take(int i, const float* x, float* last, float* moved, int64_t inputs, float largest, float* product) {
    // Above, a difference is not finite: nothing moves, and the residual tells.
    const bool sane = largest > kLeastScaled && largest < 1e38f;
    if (!sane) moved = nullptr;
    unit_[i] = sane ? largest / kDigit : 0.0f;
    product_[i] = product;
    const Vec<float> inverse = broadcast<float>(sane ? kDigit / largest : 0.0f), units = broadcast<float>(unit_[i]);
    int8_t* const to = left(i / kUnitRows) + i % kUnitRows * kUnitBytes;
    const auto place = [&](int64_t k) { return to + k / kUnitBytes * DigitMatrix::kRegister + k % kUnitBytes; };
    for_row<float>(inputs, [&](int64_t k, auto keep) {
      const Vec<float> before = load(last + k);
      const Rounded q = round_to_integer(keep(load(x + k) - before) * inverse);
      const Vec<float> now = fma<float>(q.value, units, before);
      store(last + k, now);
      if (moved != nullptr) store(moved + k, now);
      if (diagonal_ != nullptr) store(product + k, fma<float>(q.value * units, load(diagonal_ + k), load(product + k)));
      const Bytes narrow = __builtin_convertvector(q.integer, Bytes);
      std::memcpy(place(k), &narrow, sizeof narrow);
    });
    for (int64_t k = round_up(inputs, kLanes<float>); k < steps_ * kUnitBytes; k += kLanes<float>)
      std::memset(place(k), 0, size_t(kLanes<float>));
  }

 private:
  const int n_, groups_;
  const int64_t steps_;
  const float* const diagonal_;
  int8_t* left_;
  float unit_[kMaxTile];
  float* product_[kMaxTile];
};

// `groups` groups of rows times `columns` blocks of 16 outputs of one digit, the sums in registers, up to 3 x 2 or 1 x
// 4, and then in `to`, block by block of each group.
template <int groups, int columns>
inline void multiply_digit(const DigitMatrix& w, const DigitRows& rows, int digit, int block, int32_t* to) {
  using Unit = MatrixUnit;
  constexpr std::make_integer_sequence<int, groups> each_group{};
  constexpr std::make_integer_sequence<int, columns> each_column{};
  constexpr std::make_integer_sequence<int, groups * columns> each_sum{};
  each(each_sum, [](auto i) { Unit::zero<i>(); });
  for (int64_t step = 0; step < rows.steps(); ++step) {
    const int64_t at = step * DigitMatrix::kRegister;
    each(each_column, [&](auto c) {
      // Six sums leave one register for either factor: every second column goes through the rows backwards.
      constexpr bool crowded = groups == 3, backwards = crowded && c % 2 == 1;
      constexpr int right = crowded ? 6 : 6 + c % 2;
      Unit::load<right>(w.block(digit, block + c) + at, kUnitBytes);
      each(each_group, [&](auto i) {
        constexpr int g = backwards ? groups - 1 - i : i;
        constexpr int left = crowded ? 7 : 4 + g;
        if constexpr (crowded ? i > 0 || c == 0 : c == 0) Unit::load<left>(rows.left(g) + at, kUnitBytes);
        Unit::multiply_add_bytes<g * columns + c, left, right>();
      });
    });
  }
  each(each_sum, [&](auto i) { Unit::store<i>(to + i * kUnitWords, kUnitBytes); });
}

// The digits of `columns` blocks of W, added to the rows' products while their sums are in the first-level cache.
template <int groups, int columns>
inline void add_digits(const DigitMatrix& w, const DigitRows& rows, int block) {
  alignas(64) int32_t sums[kDigits][groups][columns][kUnitWords];
  for (int digit = 0; digit < kDigits; ++digit)
    multiply_digit<groups, columns>(w, rows, digit, block, &sums[digit][0][0][0]);
  const Vec<float> base = broadcast<float>(1 / kDigitBase);
  const int64_t first = int64_t(block) * kUnitColumns;
  const auto number = [](const int32_t* p) { return __builtin_convertvector(load(p), Vec<float>); };
  for (int i = 0; i < rows.count(); ++i) {
    const int group = i / kUnitRows, at = i % kUnitRows * kUnitColumns;
    const Vec<float> unit = broadcast<float>(rows.unit(i));
    float* const product = rows.product(i) + first;
    for (int c = 0; c < columns; ++c) {
      const Vec<float> low = fma<float>(number(sums[2][group][c] + at), base, number(sums[1][group][c] + at));
      const Vec<float> sum = fma<float>(low, base, number(sums[0][group][c] + at));
      const Vec<float> scale = unit * load(w.scale + first + c * kUnitColumns);
      store(product + c * kUnitColumns, fma<float>(sum, scale, load(product + c * kUnitColumns)));
    }
  }
}

// Adds W times the rows' changes to their products.
inline void multiply_digits(const DigitMatrix& w, const DigitRows& rows) {
  const auto all = [&]<int groups, int columns>() {
    int b = 0;
    for (; b + columns <= w.blocks(); b += columns) add_digits<groups, columns>(w, rows, b);
    for (; b < w.blocks(); ++b) add_digits<groups, 1>(w, rows, b);
  };
  static_assert(kMaxTile <= 3 * kUnitRows);
  switch (rows.groups()) {
    case 1:
      return all.template operator()<1, 4>();
    case 2:
      return all.template operator()<2, 2>();
    default:
      return all.template operator()<3, 2>();
  }
}

}  // namespace ak::AK_ISA

#endif
