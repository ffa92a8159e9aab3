// Products by the matrix unit: out = W x for the rows of a tile, with W and x as sums of bfloat16 numbers.
//
// Three such numbers hold a float32 to its last bit. A product in full adds up the six products of terms whose sizes
// multiply to 2^-16 of the largest or more; what is left out is below the rounding of a float32 sum. Each entry is
// summed in an order that depends on the size of W only, so that a row's bits do not depend on the rows beside it.
// Sizes below 2^-126 count as zero.
#pragma once

#include "matrix_unit.h"
#include "narrow.h"
#include "scratch.h"

#if AK_HAS_MATRIX_UNIT

namespace ak::AK_ISA {

constexpr int kTerms = 3;

// The terms of W, in registers' worth of 32 inputs by 16 outputs: rows of pairs of inputs, output by output.
struct SplitMatrix {
  uint32_t* data = nullptr;
  int outputs = 0, inputs = 0;

  static int64_t steps(int64_t inputs) { return (inputs + kUnitDepth - 1) / kUnitDepth; }
  static int64_t size(int64_t outputs, int64_t inputs) {
    return kTerms * round_up(outputs, kUnitColumns) / kUnitColumns * steps(inputs) * kUnitWords;
  }
  int64_t steps() const { return steps(inputs); }
  int blocks() const { return int(round_up(outputs, kUnitColumns) / kUnitColumns); }
  uint32_t* block(int term, int index) const {
    return data + (int64_t(term) * blocks() + index) * steps() * kUnitWords;
  }
};

// 32 numbers rounded to bfloat16, in order, and what rounding leaves of them.
inline Vec<uint32_t> take_term(Vec<float>& low, Vec<float>& high) {
#if defined(__AVX512BF16__)
  const Vec<uint32_t> pairs = (Vec<uint32_t>)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  Halves halves[2];
  std::memcpy(halves, &pairs, sizeof pairs);
#else
  const Halves halves[2] = {__builtin_convertvector(bfloat16_bits(low), Halves),
                            __builtin_convertvector(bfloat16_bits(high), Halves)};
  Vec<uint32_t> pairs;
  std::memcpy(&pairs, halves, sizeof pairs);
#endif
  low -= (Vec<float>)(__builtin_convertvector(halves[0], Vec<uint32_t>) << 16);
  high -= (Vec<float>)(__builtin_convertvector(halves[1], Vec<uint32_t>) << 16);
  return pairs;
}

// Packs 16 outputs; false where one is not for the unit.
inline bool split_block(const Matrix<float>& w, const SplitMatrix& to, int index) {
  const int64_t first = int64_t(index) * kUnitColumns;
  const bool rows_in_order = w.input_stride == 1 && first + kUnitColumns <= w.outputs;
  Vec<float> most[kUnitColumns] = {}, sum[kUnitColumns] = {};
  for (int64_t step = 0; step < to.steps(); ++step) {
    float gathered[kUnitColumns * kUnitDepth];
    const float* from = gathered;
    int64_t stride = kUnitDepth;
    if (rows_in_order && (step + 1) * kUnitDepth <= w.inputs) {
      from = w.data + first * w.output_stride + step * kUnitDepth;
      stride = w.output_stride;
    } else {
      gather_outputs(w, first, step * kUnitDepth, kUnitDepth, gathered);
    }
    Vec<uint32_t> terms[kTerms][kUnitColumns];
    for (int n = 0; n < kUnitColumns; ++n) {
      Vec<float> low = load(from + n * stride), high = load(from + n * stride + kLanes<float>);
      // Rows lie too far apart for the processor to foresee them.
      __builtin_prefetch(from + n * stride + 4 * kUnitDepth);
      const Vec<float> sizes[2] = {VecOps<float>::abs(low), VecOps<float>::abs(high)};
      most[n] = VecOps<float>::max(most[n], VecOps<float>::max(sizes[0], sizes[1]));
      sum[n] += sizes[0] + sizes[1];
      for (int t = 0; t < kTerms; ++t) terms[t][n] = take_term(low, high);
    }
    for (int t = 0; t < kTerms; ++t) {
      turn<uint32_t>(terms[t]);
      for (int k = 0; k < kUnitRows; ++k) store(to.block(t, index) + step * kUnitWords + k * kUnitColumns, terms[t][k]);
    }
  }
  for (int n = 0; n < kUnitColumns; ++n)
    if (!fit_for_unit(largest_lane<float>(most[n]), sum_lanes<float>(sum[n]))) return false;
  return true;
}

// The rows of a tile on their way through the unit, in the calling thread's scratch: their terms, and their products.
class SplitRows {
 public:
  SplitRows(int n, const SplitMatrix& w) : groups_((n + kUnitRows - 1) / kUnitRows), steps_(w.steps()), ld_(stride(w)) {
    const int64_t left = int64_t(kTerms) * groups_ * steps_ * kUnitWords;
    left_ = static_cast<uint32_t*>(product_scratch().get(size_t(left + int64_t(groups_) * kUnitRows * ld_) * 4));
    products_ = reinterpret_cast<float*>(left_ + left);
  }

  int groups() const { return groups_; }
  int64_t steps() const { return steps_; }
  int64_t ld() const { return ld_; }
  uint32_t* left(int term, int group) const { return left_ + (int64_t(term) * groups_ + group) * steps_ * kUnitWords; }
  // Where entries 32 step to 32 step + 32 of row i go.
  uint32_t* row(int term, int i, int64_t step) const {
    return left(term, i / kUnitRows) + step * kUnitWords + i % kUnitRows * kUnitColumns;
  }
  float* products(int i) const { return products_ + i * ld_; }

  // x [inputs] as row i.
  void split(int i, const float* x, int64_t inputs) const {
    for_steps(inputs, [&](int64_t step, int64_t k, bool two, auto keep_low, auto keep_high) {
      Vec<float> low = keep_low(load(x + k)), high{};
      if (two) high = keep_high(load(x + k + kLanes<float>));
      for (int t = 0; t < kTerms; ++t) store(row(t, i, step), take_term(low, high));
    });
  }

 private:
  // body(step, k, two, keep_low, keep_high) for 32 inputs from k on, of which there are 16 or, with `two`, more; the
  // last two make lanes past the end of the row zero.
  template <class Body>
  static void for_steps(int64_t inputs, const Body& body) {
    const auto all = [](Vec<float> v) { return v; };
    int64_t step = 0, k = 0;
    for (; k + kUnitDepth <= inputs; ++step, k += kUnitDepth) body(step, k, true, all, all);
    if (k == inputs) return;
    const auto first = [n = inputs - k](Vec<float> v) { return keep_first<float>(v, n); };
    const auto rest = [n = inputs - k - kLanes<float>](Vec<float> v) { return keep_first<float>(v, n); };
    body(step, k, inputs - k > kLanes<float>, first, rest);
  }

  // Rows a power of two apart would share cache sets.
  static int64_t stride(const SplitMatrix& w) { return int64_t(w.blocks()) * kUnitColumns + kUnitColumns; }

  const int groups_;
  const int64_t steps_, ld_;
  uint32_t* left_;
  float* products_;
};

// The products that make up one in full, smallest first, each with one factor of the one before.
struct TermPair {
  int left, right;
};
inline constexpr TermPair kPairs[] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {2, 0}, {0, 0}};

// `groups` groups of rows times `columns` blocks of 16 outputs, their sums in registers: 2 x 2 or 1 x 4 at most.
template <int groups, int columns>
inline void multiply_split_block(const SplitMatrix& w, const SplitRows& rows, int group, int block) {
  using Unit = MatrixUnit;
  constexpr int kSum = 0, kLeft = 4, kRight = 6;
  static_assert(groups * columns <= 4 && groups <= 2);
  constexpr std::make_integer_sequence<int, groups> each_group{};
  constexpr std::make_integer_sequence<int, columns> each_column{};
  constexpr std::make_integer_sequence<int, int(sizeof kPairs / sizeof kPairs[0])> each_pair{};
  each(std::make_integer_sequence<int, groups * columns>{}, [](auto i) { Unit::zero<kSum + i>(); });
  for (int64_t step = 0; step < rows.steps(); ++step) {
    each(each_pair, [&](auto pair) {
      constexpr TermPair now = kPairs[pair], before = pair > 0 ? kPairs[pair - 1] : TermPair{-1, -1};
      if constexpr (now.left != before.left)
        each(each_group,
             [&](auto g) { Unit::load<kLeft + g>(rows.left(now.left, group + g) + step * kUnitWords, 64); });
      each(each_column, [&](auto c) {
        // More than two columns take turns in two registers.
        if constexpr (now.right != before.right || columns > 2)
          Unit::load<kRight + c % 2>(w.block(now.right, block + c) + step * kUnitWords, 64);
        each(each_group, [&](auto g) { Unit::multiply_add<kSum + g * columns + c, kLeft + g, kRight + c % 2>(); });
      });
    });
  }
  each(each_group, [&](auto g) {
    each(each_column, [&](auto c) {
      Unit::store<kSum + g * columns + c>(rows.products((group + g) * kUnitRows) + (block + c) * kUnitColumns,
                                          rows.ld() * 4);
    });
  });
}

// rows.products(i) = W row i, from the terms in `rows`.
inline void multiply_split(const SplitMatrix& w, const SplitRows& rows) {
  const int blocks = w.blocks(), paired = rows.groups() / 2 * 2;
  const auto whole = [&]<int groups, int columns>(int from, int group) {
    int b = from;
    for (; b + columns <= blocks; b += columns) multiply_split_block<groups, columns>(w, rows, group, b);
    return b;
  };
  // A block of W serves all pairs of groups while it is in the first-level cache.
  for (int b = 0; b < blocks; b += 2)
    for (int group = 0; group < paired; group += 2)
      if (b + 2 <= blocks)
        multiply_split_block<2, 2>(w, rows, group, b);
      else
        multiply_split_block<2, 1>(w, rows, group, b);
  if (paired == rows.groups()) return;
  int b = whole.template operator()<1, 4>(0, paired);
  b = whole.template operator()<1, 2>(b, paired);
  whole.template operator()<1, 1>(b, paired);
}

}  // namespace ak::AK_ISA

#endif
