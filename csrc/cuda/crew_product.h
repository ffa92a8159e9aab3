// A member's part of the product: a tile of rows times the weights of its outputs, which stay in shared memory.
//
// The tile is cut into pieces of one segment of inputs, kCrewOutputs outputs and rows_at_once rows, a thread each; as
// many segments at once as there are threads for. The pieces' sums meet in shared memory and are added in order of the
// segments (sum_order.h).
#pragma once

#include "crew.h"
#include "team.h"

namespace ak::cuda {

// Where entry e of a row lies, in a buffer of whole segments of all rows of a tile.
AK_DEVICE int64_t input_place(int rows, int slot, int e) {
  return (int64_t(e / kSegment) * rows + slot) * kSegmentLd + e % kSegment;
}
constexpr int64_t inputs_size(int rows, int segments) { return int64_t(segments) * rows * kSegmentLd; }

// Where the weight of an output for input k lies.
AK_DEVICE int64_t weight_place(int share, int output, int k) {
  return (int64_t(k / kSumPack) * share + output + k / kSegment * kCrewOutputs) * kSumPack + k % kSumPack;
}
constexpr int64_t weights_size(int share, int segments) {
  return int64_t(segments) * (kSegmentPacks * share + kCrewOutputs) * kSumPack;
}

template <class T, int rows_at_once, class Team>
class CrewProduct {
 public:
  // inputs: of the tile, whole, or a buffer for as many segments as are multiplied at once; partial: for their sums.
  AK_DEVICE CrewProduct(const Team& team, const CrewPlan& plan, const T* weights, T* inputs, T* partial)
      : team_(team), plan_(plan), weights_(weights), inputs_(inputs), partial_(partial) {}

  // finish(slot, output, a) for every entry a of the product; total: [rows, share], for sums on their way.
  template <class Finish>
  AK_DEVICE void apply(T* total, const Finish& finish) const {
    AK_ROLLED
    for (int first = 0; first < plan_.segments; first += plan_.at_once) {
      team_.each([&](int rank) { multiply(rank, first, inputs_ + inputs_size(plan_.rows, first)); });
      team_.each([&](int rank) { add(rank, first, total, finish); });
    }
  }

  // The same with inputs that come piece by piece: fetch(place) is a pack of them, as input_place() counts.
  template <class Fetch, class Finish>
  AK_DEVICE void apply(T* total, const Fetch& fetch, const Finish& finish) const {
    typename Team::template Private<Fetched> fetched;
    team_.each([&](int rank) { bring(rank, 0, fetch, fetched[rank]); });
    AK_ROLLED
    for (int first = 0; first < plan_.segments; first += plan_.at_once) {
      team_.each([&](int rank) { put(rank, first, fetched[rank]); });
      team_.each([&](int rank) {
        bring(rank, first + plan_.at_once, fetch, fetched[rank]);
        multiply(rank, first, inputs_);
      });
      team_.each([&](int rank) { add(rank, first, total, finish); });
    }
  }

 private:
  struct Fetched {
    Pack<T, kSumPack> v[kCrewFetches<T>];
  };

  AK_DEVICE int segments_from(int first) const {
    const int left = plan_.segments - first;
    return left < plan_.at_once ? left : plan_.at_once;
  }

  template <class Fetch>
  AK_DEVICE void bring(int rank, int first, const Fetch& fetch, Fetched& to) const {
    const int packs = segments_from(first) * plan_.rows * kSegmentPacks;
    AK_UNROLLED
    for (int i = 0; i < kCrewFetches<T>; ++i) {
      const int pack = rank + i * kCrewThreads, line = pack / kSegmentPacks;
      if (pack < packs)
        to.v[i] = fetch(line % plan_.rows, (first + line / plan_.rows) * kSegment + pack % kSegmentPacks * kSumPack);
    }
  }

  AK_DEVICE void put(int rank, int first, const Fetched& from) const {
    const int packs = segments_from(first) * plan_.rows * kSegmentPacks;
    AK_UNROLLED
    for (int i = 0; i < kCrewFetches<T>; ++i) {
      const int pack = rank + i * kCrewThreads;
      if (pack < packs)
        store_pack<kSumPack>(inputs_ + pack / kSegmentPacks * kSegmentLd + pack % kSegmentPacks * kSumPack, from.v[i]);
    }
  }

  AK_DEVICE void multiply(int rank, int first, const T* inputs) const {
    const int share = plan_.share, quads = share / kCrewOutputs, blocks = plan_.rows / rows_at_once;
    const int quad = rank % quads, line = rank / quads, row = line % blocks * rows_at_once, s = line / blocks;
    if (s >= segments_from(first)) return;
    const T* const x = inputs + (s * plan_.rows + row) * kSegmentLd;
    const T* const w = weights_ + weights_size(share, first + s) + quad * kSumPack;
    T sum[rows_at_once][kCrewOutputs];
    AK_UNROLLED
    for (int r = 0; r < rows_at_once; ++r) {
      AK_UNROLLED
      for (int c = 0; c < kCrewOutputs; ++c) sum[r][c] = 0;
    }
    AK_UNROLLED_4
    for (int k = 0; k < kSegmentPacks; ++k) {
      Pack<T, kSumPack> weight[kCrewOutputs];
      AK_UNROLLED
      for (int c = 0; c < kCrewOutputs; ++c) weight[c] = load_pack<kSumPack>(w + (k * share + c * quads) * kSumPack);
      AK_UNROLLED
      for (int r = 0; r < rows_at_once; ++r) {
        const auto in = load_pack<kSumPack>(x + r * kSegmentLd + k * kSumPack);
        AK_UNROLLED
        for (int v = 0; v < kSumPack; ++v) {
          AK_UNROLLED
          for (int c = 0; c < kCrewOutputs; ++c) sum[r][c] = multiply_add(in.v[v], weight[c].v[v], sum[r][c]);
        }
      }
    }
    AK_UNROLLED
    for (int r = 0; r < rows_at_once; ++r) {
      AK_UNROLLED
      for (int c = 0; c < kCrewOutputs; ++c)
        partial_[(s * plan_.rows + row + r) * share + quad + c * quads] = sum[r][c];
    }
  }

  template <class Finish>
  AK_DEVICE void add(int rank, int first, T* total, const Finish& finish) const {
    const int size = plan_.rows * plan_.share, count = segments_from(first);
    const bool last = first + plan_.at_once >= plan_.segments;
    AK_ROLLED
    for (int i = rank; i < size; i += kCrewThreads) {
      T sum = first == 0 ? T(0) : total[i];
      AK_UNROLLED_4
      for (int s = 0; s < count; ++s) sum += partial_[s * size + i];
      if (last)
        finish(i / plan_.share, i % plan_.share, sum);
      else
        total[i] = sum;
    }
  }

  const Team& team_;
  const CrewPlan& plan_;
  const T* const weights_;
  T *const inputs_, *const partial_;
};

}  // namespace ak::cuda
