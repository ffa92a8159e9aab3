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

// Packs 16 outputs, without the diagonal where to.diagonal has a place for it, if digits hold them well, and says so.
inline Packed pack_digits(const Matrix<float>& w, const DigitMatrix& to, int index) {
  constexpr int lanes = kLanes<float>;
  static_assert(lanes == kUnitColumns);
  const int64_t first = int64_t(index) * kUnitColumns, padded = to.steps() * kUnitBytes;
  float* const rows = static_cast<float*>(product_scratch().get(size_t(kUnitColumns * padded) * sizeof(float)));
  gather_outputs(w, first, 0, padded, rows);
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
    if (largest * float(to.inputs) > kMostSpread * total) return Packed::kSpread;
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
          const Bytes narrow = lowest_bytes(q.integer);
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
  return Packed::kWell;
}

// What rounding to one digit leaves of a change, squared and relative to it, that needs a second.
constexpr double kCoarse2 = 4e-4;

constexpr int kUnitGroups = 4;  // of rows of digits in one go through W

// A change on its way into a row's product, from what that stands for to x.
struct DigitChange {
  const float* x;
  const float* before;  // what the product stands for; null: nothing yet, it is zero
  float* after;         // where what it will stand for goes; may be x or `before`
  float largest;        // entry of the change, in size
  int digits;           // 1 to kDigits
  float* product;
};

// The changes of some of a tile's rows, in the calling thread's scratch: a row of 8-bit digits for each digit.
class DigitRows {
 public:
  explicit DigitRows(const DigitMatrix& w) : steps_(w.steps()), inputs_(w.inputs), diagonal_(w.diagonal) {
    left_ = static_cast<int8_t*>(product_scratch().get(size_t(kUnitGroups * steps_ * DigitMatrix::kRegister)));
  }

  int count() const { return count_; }
  int taken() const { return taken_; }
  int groups() const { return (taken_ + kUnitRows - 1) / kUnitRows; }
  int64_t steps() const { return steps_; }
  const int8_t* left(int group) const { return left_ + group * steps_ * DigitMatrix::kRegister; }

  struct Row {
    float* product;
    float unit;         // of its first digit; of each other one 1 / kDigitBase of the one before
    int first, digits;  // rows of digits
  };
  const Row& operator[](int i) const { return row_[i]; }

  bool fits(int digits) const { return taken_ + digits <= kUnitGroups * kUnitRows; }

  // Takes the largest entry and the square of a change where they are not known.
  static void measure(const float* x, const float* before, int64_t inputs, Travel<float>& change) {
    if (change.largest >= 0 && change.square >= 0) return;
    Vec<float> most{}, square{};
    for_row<float>(inputs, [&](int64_t i, auto keep) {
      const Vec<float> d = keep(before != nullptr ? load(x + i) - load(before + i) : load(x + i));
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

  void take(const DigitChange& change) {
    switch (change.digits) {
      case 1:
        return take_digits<1>(change);
      case 2:
        return take_digits<2>(change);
      default:
        return take_digits<kDigits>(change);
    }
  }

 private:
  template <int digits>
  void take_digits(const DigitChange& change) {
    // Above, a difference is not finite: nothing moves, and the residual tells.
    const bool sane = countable(change.largest);
    const float *const x = change.x, *const from = change.before;
    float *const after = sane || change.after != x ? change.after : nullptr, *const product = change.product;
    Vec<float> unit[digits], inverse[digits];
    float one = sane ? change.largest / kDigit : 0.0f;
    row_[count_++] = {product, one, taken_, digits};
    for (int d = 0; d < digits; ++d, one /= kDigitBase) {
      unit[d] = broadcast<float>(one);
      inverse[d] = broadcast<float>(d == 0               ? (sane ? kDigit / change.largest : 0.0f)
                                    : one > kLeastScaled ? 1 / one
                                                         : 0.0f);
    }
    int8_t* to[digits];
    for (int d = 0; d < digits; ++d, ++taken_)
      to[d] = left_ + taken_ / kUnitRows * steps_ * DigitMatrix::kRegister + taken_ % kUnitRows * kUnitBytes;
    const auto place = [](int64_t k) { return k / kUnitBytes * DigitMatrix::kRegister + k % kUnitBytes; };
    for_row<float>(inputs_, [&](int64_t k, auto keep) {
      const Vec<float> wanted = load(x + k);
      Vec<float> now = from != nullptr ? load(from + k) : Vec<float>{};
      Vec<float> said{};
      for (int d = 0; d < digits; ++d) {
        const Rounded q = round_to_integer(keep(wanted - now) * inverse[d]);
        now = fma<float>(q.value, unit[d], now);
        if (diagonal_ != nullptr) said = fma<float>(q.value, unit[d], said);
        const Bytes narrow = lowest_bytes(q.integer);
        std::memcpy(to[d] + place(k), &narrow, sizeof narrow);
      }
      if (after != nullptr) store(after + k, now);
      if (diagonal_ != nullptr) store(product + k, fma<float>(said, load(diagonal_ + k), load(product + k)));
    });
    for (int64_t k = round_up(inputs_, kLanes<float>); k < steps_ * kUnitBytes; k += kLanes<float>)
      for (int d = 0; d < digits; ++d) std::memset(to[d] + place(k), 0, size_t(kLanes<float>));
  }

  const int64_t steps_, inputs_;
  const float* const diagonal_;
  int8_t* left_;
  int count_ = 0, taken_ = 0;
  Row row_[kMaxTile];
};

// The digits of `columns` blocks of W, added to the rows' products while their sums are in the first-level cache.
template <int groups, int columns>
inline void add_digits(const DigitMatrix& w, const DigitRows& rows, int block) {
  alignas(64) int32_t sums[kDigits][groups][columns][kUnitWords];
  for (int digit = 0; digit < kDigits; ++digit)
    multiply_bytes<groups, columns>(
        rows.steps(),
        [&](int g, int64_t step) {
          return UnitPlace<const int8_t>{rows.left(g) + step * DigitMatrix::kRegister, kUnitBytes};
        },
        [&](int c, int64_t step) {
          return UnitPlace<const int8_t>{w.block(digit, block + c) + step * DigitMatrix::kRegister, kUnitBytes};
        },
        [&](int g, int c) { return UnitPlace<int32_t>{sums[digit][g][c], kUnitBytes}; });
  const Vec<float> base = broadcast<float>(1 / kDigitBase);
  const int64_t first = int64_t(block) * kUnitColumns;
  Vec<float> scale[columns];
  for (int c = 0; c < columns; ++c) scale[c] = load(w.scale + first + c * kUnitColumns);
  const auto number = [](const int32_t* p) { return __builtin_convertvector(load(p), Vec<float>); };
  for (int i = 0; i < rows.count(); ++i) {
    const DigitRows::Row& row = rows[i];
    float* const product = row.product + first;
    Vec<float> unit = broadcast<float>(row.unit);
    for (int r = row.first; r < row.first + row.digits; ++r, unit *= base) {
      const int group = r / kUnitRows, at = r % kUnitRows * kUnitColumns;
      for (int c = 0; c < columns; ++c) {
        const Vec<float> low = fma<float>(number(sums[2][group][c] + at), base, number(sums[1][group][c] + at));
        const Vec<float> sum = fma<float>(low, base, number(sums[0][group][c] + at));
        float* const to = product + c * kUnitColumns;
        store(to, fma<float>(sum, unit * scale[c], load(to)));
      }
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
  static_assert(kUnitGroups == 4);
  switch (rows.groups()) {
    case 1:
      return all.template operator()<1, 4>();
    case 2:
      return all.template operator()<2, 2>();
    case 3:
      return all.template operator()<3, 1>();
    default:
      return all.template operator()<4, 1>();
  }
}

}  // namespace ak::AK_ISA

#endif
