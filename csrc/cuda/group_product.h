// Products of changes by warpgroups, where W lies in shared memory for the whole solve (tensor_product.h streams it):
// sums [rows, outputs] = d W^T with d and W in bfloat16, sums in float32.
//
// W's outputs are the rows of a wgmma, 64 at a time, and the rows of the tile its columns. A sum is one chain of
// products over the inputs, 16 at a time, in every shape of the tile.
#pragma once

#include "../common/problems.h"
#include "team.h"

namespace ak::cuda {

// 64 outputs by 16 inputs of W, as one product takes them: their core matrices one after another, those along the
// inputs apart by all of the other way.
constexpr int kGroupPanelEntries = kGroupRows * kMmaDepth;

constexpr int64_t group_weight_bytes(int64_t outputs, int64_t inputs) {
  return padded(outputs, kGroupRows) * padded(inputs, kMmaDepth) * int64_t(sizeof(BFloat16));
}

// Writes entry i of the packed W: [outputs / 64, inputs / 16, 2 halves of the inputs, 64 outputs, 8 inputs].
AK_DEVICE void pack_group_weights(const Matrix<float>& w, BFloat16* packed, int64_t i) {
  const int64_t slices = padded(w.inputs, kMmaDepth) / kMmaDepth, panel = i / kGroupPanelEntries;
  const int half = int(i / (kGroupRows * kCoreDepth) % 2);
  const int64_t n = panel / slices * kGroupRows + i / kCoreDepth % kGroupRows;
  const int64_t k = panel % slices * kMmaDepth + half * kCoreDepth + i % kCoreDepth;
  const bool inside = n < w.outputs && k < w.inputs;
  packed[i] = narrow<BFloat16>(inside ? w.data[n * w.output_stride + k * w.input_stride] : 0.0f);
}

// The tile of changes, members as of TensorTile: [inputs / 8, rows and one more, 8 inputs]. What a warp writes of a row
// meets every bank once, for that one more.
template <int rows>
struct GroupTile {
  static constexpr int kAlong = (rows + 1) * kCoreDepth;  // entries from 8 inputs to the next

  AK_HD_MEMBER static constexpr int64_t filled(int64_t inputs) { return padded(inputs, kMmaDepth); }
  AK_HD_MEMBER static constexpr int64_t entries(int64_t inputs) { return filled(inputs) / kCoreDepth * kAlong; }
  AK_HD_MEMBER static int64_t place(int64_t, int slot, int input) {
    return input / kCoreDepth * kAlong + slot * kCoreDepth + input % kCoreDepth;
  }
};

// The product of a tile of `rows` rows by a team of four warps.
template <int rows, class Team>
class GroupProduct {
  using Layout = GroupTile<rows>;
  static constexpr int kAlong = Layout::kAlong;
  static_assert(rows % kCoreRows == 0);

  using Sums = GroupC<rows>;
  using Private = typename Team::template Private<Sums>;

 public:
  // weights: packed; changes: the tile; both in shared memory.
  AK_DEVICE GroupProduct(const void* weights, const BFloat16* changes, int64_t outputs, int64_t inputs)
      : weights_(static_cast<const BFloat16*>(weights)),
        changes_(changes),
        outputs_(int(outputs)),
        slices_(int(Layout::filled(inputs)) / kMmaDepth) {}

  // to[row * ld + n] += sum_k d[row][k] W[n][k] for every row with wanted[row] >= 0.
  AK_DEVICE void add_to(const Team& team, float* to, int64_t ld, const int64_t* wanted) const {
    const auto bytes = [](int entries) { return uint32_t(entries * int(sizeof(BFloat16))); };
    const uint64_t d = group_operand(team.shared_address(changes_), bytes(kAlong), bytes(kCoreEntries));
    const uint64_t d_apart = group_operand_apart(bytes(2 * kAlong));
    const uint64_t w_apart = group_operand_apart(bytes(kGroupPanelEntries));
    Private sums, before;
    AK_ROLLED
    for (int first = 0; first < outputs_; first += kGroupRows) {
      const BFloat16* const panels = weights_ + first * slices_ * kMmaDepth;
      const uint64_t w =
          group_operand(team.shared_address(panels), bytes(kGroupRows * kCoreDepth), bytes(kCoreEntries));
      team.alone([&](int rank) { sums[rank] = Sums{}; });
      team.begin_products(sums, w, d, w_apart, d_apart, slices_);
      team.alone([&](int rank) {
        for_sums(rank, first, wanted, [&](int s, int64_t row, int output) {
          before[rank].sum[s] = load_global<1>(to + row * ld + output).v[0];
        });
      });
      team.end_products(sums);
      team.alone([&](int rank) {
        for_sums(rank, first, wanted, [&](int s, int64_t row, int output) {
          store_global<1>(to + row * ld + output, {before[rank].sum[s] + sums[rank].sum[s]});
        });
      });
    }
    team.sync();
  }

 private:
  // f(s, row, output) for every sum of a thread that is wanted.
  template <class F>
  AK_DEVICE void for_sums(int rank, int first, const int64_t* wanted, const F& f) const {
    AK_UNROLLED
    for (int s = 0; s < rows / 2; ++s) {
      const int row = group_c_column(rank, s), output = first + group_c_row(rank, s);
      if (output < outputs_ && wanted[row] >= 0) f(s, row, output);
    }
  }

  const BFloat16* const weights_;
  const BFloat16* const changes_;
  const int outputs_, slices_;
};

}  // namespace ak::cuda
