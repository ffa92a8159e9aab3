// Products W q for rows q of 8-bit integers, W in 8 bits too: about a hundredth of what W and a row hold, for the
// linear equations of a Newton step (newton.h), which bear that.
//
// Sums are integers and exact, whoever adds them up: vectors for few rows, the matrix unit for more. A row's bits do
// not depend on the choice.
#pragma once

#include "row_product.h"

namespace ak::AK_ISA {

#if !AK_HAS_INT8

struct CoarseProduct {
  explicit CoarseProduct(const Weights<float>&) {}
};

#else

// How a row is counted in integers, its largest entry known.
struct CoarseUnit {
  static constexpr float kLargest = 127;  // of the integers, in size

  explicit CoarseUnit(float largest)
      : unit(countable(largest) ? largest / kLargest : 0.0f), inverse(countable(largest) ? kLargest / largest : 0.0f) {}

  float unit, inverse;
};

// The integers of a row of n entries, zero from its end on to whole registers of the matrix unit; 128 more than they
// stand for unless `is_signed`.
inline void take_bytes(const float* x, int64_t n, const CoarseUnit& unit, bool is_signed, uint8_t* to) {
  const Vec<float> inverse = broadcast<float>(unit.inverse);
  const uint8_t flip = is_signed ? 0 : 128;
  for_row<float>(n, [&](int64_t i, auto keep) {
    const Bytes narrow = nearest_bytes(keep(load(x + i)) * inverse, flip);
    std::memcpy(to + i, &narrow, sizeof narrow);
  });
  for (int64_t i = round_up(n, kLanes<float>); i < round_up(n, 64); i += kLanes<float>) {
    const Bytes none{};
    std::memcpy(to + i, &none, sizeof none);
  }
}

// What an Operator (newton.h) that has J itself makes of a row: numbers already.
struct PlainNumbers {
  Vec<float> operator()(const float* out, const float*, int64_t i) const { return load(out + i); }
};

// A row whose product is taken.
struct CoarseRow {
  const float* r;
  float unit;  // what its integers count in
  const float* constants;
};

// Int8Product with its sums left as they are.
struct Int8Sums {
  using Input = uint32_t;
  using Output = int32_t;
  using Sum = Vec<int32_t>;
  static constexpr bool kAdds = false;

  const int32_t* start;  // of the slice, as in Int8Product
  int64_t outputs;

  template <bool add>
  Sum begin(const int32_t* out, int64_t column) const {
    const Sum from = load(start + column);
    if constexpr (add) return from + load(out);
    return from;
  }
  static Sum multiply_add(uint32_t x, Vec<uint32_t> w, Sum sum) { return Int8Product::multiply_add(x, w, sum); }
  void end(int, int32_t* out, int64_t, Sum sum) const { store(out, sum); }
  Int8Sums slice(int index) const { return {start + index * outputs, outputs}; }
  Int8Sums from_row(int) const { return *this; }
};

class CoarseProduct {
 public:
  // Whether there are such weights.
  static bool fits(const Weights<float>& w) { return w.coarse || w.narrow == kInt8 || w.narrow == kDigitwise; }

  explicit CoarseProduct(const Weights<float>& w)
      : weights_(w),
        row_bytes_(round_up(w.full.inputs, 64) + 64),  // not a power of two, or rows would share cache sets
        row_sums_(w.padded_outputs() + 16) {
#if AK_HAS_MATRIX_UNIT
    if (w.narrow == kDigitwise) {
      scale_ = w.digits.scale;
      diagonal_ = w.digits.diagonal;
      return;
    }
#endif
    scale_ = w.scale;
    diagonal_ = w.diagonal;
  }

  bool fits() const { return fits(weights_); }
  int64_t dim() const { return weights_.full.outputs; }
  int64_t inputs() const { return weights_.full.inputs; }

  // W r from its sums of integers.
  struct Numbers {
    Vec<float> unit;
    const float* scale;     // of each output's sums
    const float* diagonal;  // of W, which the sums lack; or null

    Vec<float> operator()(const float* sums, const float* r, int64_t i) const {
      Vec<int32_t> sum;
      std::memcpy(&sum, sums + i, sizeof sum);
      Vec<float> wr = __builtin_convertvector(sum, Vec<float>) * (unit * load(scale + i));
      if (diagonal != nullptr) wr = fma<float>(load(diagonal + i), load(r + i), wr);
      return wr;
    }
  };
  Numbers numbers(float unit) const { return {broadcast<float>(unit), scale_, diagonal_}; }

  static constexpr bool kSlopes = true;
  static constexpr int64_t constants() { return 0; }
  void lay(Pieces&, int) {}
  int64_t row_bytes() const { return row_bytes_; }
  int64_t row_sums() const { return row_sums_; }

  // Whether the unit is to multiply n rows: their entries are signed then, and 128 more than they stand for if not.
  bool takes_signed([[maybe_unused]] int n) const {
#if AK_HAS_MATRIX_UNIT
    return weights_.narrow == kDigitwise || n >= kLeastUnitRows;
#else
    return false;
#endif
  }

  // sums [n, row_sums()] of bytes [n, row_bytes()], zero from the row's end on; n <= kMaxTile, and there is memory for
  // whole registers of rows.
  void apply(int n, const uint8_t* bytes, int32_t* sums, const CoarseRow* = nullptr) const {
#if AK_HAS_MATRIX_UNIT
    if (takes_signed(n)) return apply_unit(n, bytes, sums);
#endif
    const uint32_t* in[kMaxTile];
    int32_t* out[kMaxTile];
    for (int i = 0; i < n; ++i) {
      in[i] = reinterpret_cast<const uint32_t*>(bytes + i * row_bytes_);
      out[i] = sums + i * row_sums_;
    }
    multiply_rows(Int8Sums{weights_.start, weights_.padded_outputs()}, weights_.units, n, in, out);
  }

 private:
#if AK_HAS_MATRIX_UNIT
  static constexpr int kLeastUnitRows = 5;
  static constexpr int kColumns = 16;

  UnitPlace<const void> right(int block, int64_t step) const {
    if (weights_.narrow == kDigitwise)
      return {weights_.digits.block(0, block) + step * DigitMatrix::kRegister, kUnitBytes};
    const int panel = block / kPanelVectors;
    const int64_t width = weights_.units.panel_vectors(panel) * kColumns;
    return {weights_.units.panel(panel) + step * kUnitRows * width + block % kPanelVectors * kColumns, width * 4};
  }

  void apply_unit(int n, const uint8_t* bytes, int32_t* sums) const {
    ready_unit(n);
    const int64_t steps = DigitMatrix::steps(weights_.full.inputs);
    const int blocks = int(weights_.padded_outputs() / kColumns);
    const auto from = [&]<int groups, int columns>(int group, int block) {
      multiply_bytes<groups, columns>(
          steps,
          [&](int g, int64_t step) {
            return UnitPlace<const void>{bytes + (group + g) * kUnitRows * row_bytes_ + step * kUnitBytes, row_bytes_};
          },
          [&](int c, int64_t step) { return right(block + c, step); },
          [&](int g, int c) {
            return UnitPlace<void>{sums + (group + g) * kUnitRows * row_sums_ + (block + c) * kColumns, row_sums_ * 4};
          });
    };
    const auto all = [&]<int groups, int columns>(int group) {
      int b = 0;
      for (; b + columns <= blocks; b += columns) from.template operator()<groups, columns>(group, b);
      for (; b < blocks; ++b) from.template operator()<groups, 1>(group, b);
    };
    const int groups = (n + kUnitRows - 1) / kUnitRows;
    int g = 0;
    for (; g + 2 <= groups; g += 2) all.template operator()<2, 2>(g);
    if (g < groups) all.template operator()<1, 4>(g);
  }
#endif

  const Weights<float>& weights_;
  const int64_t row_bytes_, row_sums_;
  const float *scale_, *diagonal_;
};

#endif

}  // namespace ak::AK_ISA
