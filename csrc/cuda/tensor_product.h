// Products of changes on tensor cores: sums [rows, outputs] = d W^T with d and W in bfloat16, sums in float32.
//
// W's outputs are the rows of an mma and the rows of the tile its columns, so that a tile of 8 rows wastes nothing. W
// is packed once per solve in the order in which lanes want it: a warp reads 512 neighbouring bytes from the
// second-level cache into its registers, and no weight passes through shared memory. The sum over the inputs is taken
// in another order than theirs, the same for both operands: 4 lanes share 32 inputs, 8 neighbours to each, so that a
// lane loads what it needs of d for two products in one access. A sum is one chain of products over the inputs, 16 at a
// time, in every shape of the tile.
#pragma once

#include "../common/problems.h"
#include "team.h"
#include "tensor_core.h"

namespace ak::cuda {

constexpr int kTensorInputs = 2 * kMmaDepth;  // of a block of packed weights: what 16 bytes a lane of d reach
constexpr int kTensorOutputs = 32;            // that a warp takes at once

constexpr int64_t tensor_weight_bytes(int64_t outputs, int64_t inputs) {
  return padded(outputs, kTensorOutputs) * padded(inputs, kTensorInputs) * int64_t(sizeof(BFloat16));
}
// Of the 8 inputs of a lane, the first that word `word` of the first or second half's operands holds.
AK_DEVICE int tensor_input(int lane, int half, int word) { return lane % 4 * 8 + half * 4 + word * 2; }

// Writes thread i's share of the packed W: [outputs / 16, inputs / 32, 2 halves, 32 lanes] of MmaA. i counts MmaA.
AK_DEVICE void pack_tensor_weights(const Matrix<float>& w, MmaA* packed, int64_t i) {
  const int64_t blocks = padded(w.inputs, kTensorInputs) / kTensorInputs;
  const int lane = int(i % kWarp), half = int(i / kWarp % 2);
  const int64_t block = i / kWarp / 2 % blocks, tile = i / kWarp / 2 / blocks;
  MmaA a;
  AK_UNROLLED
  for (int word = 0; word < 4; ++word) {
    const int64_t n = tile * kMmaRows + mma_a_row(lane, word);
    const int64_t k = block * kTensorInputs + tensor_input(lane, half, word / 2);
    const auto entry = [&](int64_t input) {
      if (n >= w.outputs || input >= w.inputs) return 0u;
      return uint32_t(narrow<BFloat16>(w.data[n * w.output_stride + input * w.input_stride]).bits);
    };
    a.word[word] = entry(k) | entry(k + 1) << 16;
  }
  packed[i] = a;
}

// The tile of changes holds `filled` entries of every row, zero beyond the inputs, input i of a slot at place(). Its
// rows lie 64 bytes off a multiple of 128 apart, so that 8 lanes that load from two rows meet every bank once.
template <int rows>
struct TensorTile {
  AK_HD_MEMBER static constexpr int64_t filled(int64_t inputs) { return padded(inputs, kTensorInputs); }
  AK_HD_MEMBER static constexpr int64_t row_entries(int64_t inputs) { return padded(inputs, 64) + 32; }
  AK_HD_MEMBER static constexpr int64_t entries(int64_t inputs) { return rows * row_entries(inputs); }
  AK_HD_MEMBER static int64_t place(int64_t inputs, int slot, int input) { return slot * row_entries(inputs) + input; }
};

// The product of a tile of `rows` rows by a block of `threads` threads.
template <int rows, int threads, class Team>
class TensorProduct {
  using Layout = TensorTile<rows>;
  using Warp = typename Team::template Of<kWarp>;
  static constexpr int kWarps = threads / kWarp;
  static constexpr int kColumns = rows / kMmaColumns;  // mmas side by side along the tile's rows
  static constexpr int kTiles = kTensorOutputs / kMmaRows;
  static constexpr int kStages = 2;  // blocks of weights on their way
  static_assert(rows % kMmaColumns == 0);

  struct Sums {
    MmaC v[kTiles][kColumns];
  };
  struct Weights {
    MmaA v[kStages][kTiles][2];
  };
  struct Changes {
    Pack<uint32_t, 4> v[kColumns];
  };

 public:
  // weights: packed, in global memory; changes: the tile, in shared memory.
  AK_DEVICE TensorProduct(const void* weights, const BFloat16* changes, int64_t outputs, int64_t inputs)
      : weights_(static_cast<const MmaA*>(weights)),
        changes_(changes),
        outputs_(int(outputs)),
        row_entries_(int(Layout::row_entries(inputs))),
        blocks_(int(Layout::filled(inputs)) / kTensorInputs) {}

  // to[row * ld + n] += sum_k d[row][k] W[n][k] for every row with wanted[row] >= 0.
  AK_DEVICE void add_to(const Team& team, float* to, int64_t ld, const int64_t* wanted) const {
    team.warps([&](int warp) {
      const Warp lanes(nullptr);
      AK_ROLLED
      for (int first = warp * kTensorOutputs; first < outputs_; first += kWarps * kTensorOutputs)
        add_strip(lanes, first, to, ld, wanted);
    });
  }

 private:
  // Outputs [first, first + kTensorOutputs).
  AK_DEVICE void add_strip(const Warp& lanes, int first, float* to, int64_t ld, const int64_t* wanted) const {
    typename Warp::template Private<Sums> sums;
    typename Warp::template Private<Weights> weights;
    typename Warp::template Private<Changes> changes;
    lanes.each([&](int lane) {
      sums[lane] = Sums{};
      AK_UNROLLED
      for (int stage = 0; stage < kStages; ++stage) load_weights(lane, first, stage, stage, weights[lane]);
    });
    AK_ROLLED
    for (int block = 0; block < blocks_; block += kStages) {
      AK_UNROLLED
      for (int stage = 0; stage < kStages; ++stage) {
        if (block + stage >= blocks_) break;
        lanes.each([&](int lane) { load_changes(lane, block + stage, changes[lane]); });
        AK_UNROLLED
        for (int half = 0; half < 2; ++half) {
          AK_UNROLLED
          for (int t = 0; t < kTiles; ++t) {
            AK_UNROLLED
            for (int c = 0; c < kColumns; ++c)
              lanes.mma([&](int lane) -> MmaC& { return sums[lane].v[t][c]; },
                        [&](int lane) -> const MmaA& { return weights[lane].v[stage][t][half]; },
                        [&](int lane) {
                          const auto& word = changes[lane].v[c].v;
                          return MmaB{word[2 * half], word[2 * half + 1]};
                        });
          }
        }
        lanes.each([&](int lane) { load_weights(lane, first, block + stage + kStages, stage, weights[lane]); });
      }
    }
    // All loads before the stores, which the compiler could not move them across.
    lanes.each([&](int lane) {
      for_sums(lane, first, wanted, [&](int t, int c, int s, int row, int output) {
        sums[lane].v[t][c].sum[s] += load_global<1>(to + row * ld + output).v[0];
      });
      for_sums(lane, first, wanted, [&](int t, int c, int s, int row, int output) {
        store_global<1>(to + row * ld + output, {sums[lane].v[t][c].sum[s]});
      });
    });
  }

  // f(t, c, s, row, output) for every sum of a lane that is wanted.
  template <class F>
  AK_DEVICE void for_sums(int lane, int first, const int64_t* wanted, const F& f) const {
    AK_UNROLLED
    for (int c = 0; c < kColumns; ++c) {
      AK_UNROLLED
      for (int s = 0; s < 4; ++s) {
        const int row = c * kMmaColumns + mma_c_column(lane, s);
        AK_UNROLLED
        for (int t = 0; t < kTiles; ++t) {
          const int output = first + t * kMmaRows + mma_c_row(lane, s);
          if (output < outputs_ && wanted[row] >= 0) f(t, c, s, row, output);
        }
      }
    }
  }

  AK_DEVICE void load_weights(int lane, int first, int block, int stage, Weights& to) const {
    if (block >= blocks_) return;
    AK_UNROLLED
    for (int t = 0; t < kTiles; ++t) {
      AK_UNROLLED
      for (int half = 0; half < 2; ++half) {
        const int64_t tile = first / kMmaRows + t;
        const auto* const from =
            reinterpret_cast<const uint32_t*>(weights_ + ((tile * blocks_ + block) * 2 + half) * kWarp + lane);
        const Pack<uint32_t, 4> words = load_global<4>(from);
        AK_UNROLLED
        for (int i = 0; i < 4; ++i) to.v[stage][t][half].word[i] = words.v[i];
      }
    }
  }

  AK_DEVICE void load_changes(int lane, int block, Changes& to) const {
    AK_UNROLLED
    for (int c = 0; c < kColumns; ++c) {
      const int row = c * kMmaColumns + mma_b_column(lane);
      const BFloat16* const from = changes_ + row * row_entries_ + block * kTensorInputs + tensor_input(lane, 0, 0);
      to.v[c] = load_pack<4>(reinterpret_cast<const uint32_t*>(from));
    }
  }

  const MmaA* const weights_;
  const BFloat16* const changes_;
  const int outputs_, row_entries_, blocks_;
};

}  // namespace ak::cuda
