// A team of threads (csrc/cuda/team.h) on a host: regions are loops over ranks, in another order each time, so that a
// region whose threads rely on each other gives changing results; sums are added in the device's order.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "../cuda/team.h"
#include "check.h"

namespace ak::test {

inline std::minstd_rand rank_order(11);

// Where the shared memory of the block begins that runs now: what addresses within it count from.
inline const void* shared_memory = nullptr;

template <int threads>
class HostTeam {
 public:
  static constexpr int kThreads = threads;
  template <int others>
  using Of = HostTeam<others>;

  template <class V>
  struct Private {
    V value[threads];
    V& operator[](int rank) { return value[rank]; }
  };

  explicit HostTeam(cuda::TeamSpace<threads>*) {}

  template <class F>
  void each(const F& f) const {
    // An odd step visits every rank of a power of two.
    const int start = int(rank_order() % threads), step = int(rank_order() % threads) | 1;
    for (int i = 0; i < threads; ++i) f((start + i * step) % threads);
  }
  template <class F>
  void warps(const F& f) const {
    const int start = int(rank_order() % (threads / cuda::kWarp));
    for (int i = 0; i < threads / cuda::kWarp; ++i) f((start + i) % (threads / cuda::kWarp));
  }
  template <class F>
  void alone(const F& f) const {
    each(f);
  }
  template <class F>
  void first(const F& f) const {
    f();
  }

  template <class W, int n, class Put>
  void total(Private<cuda::Sums<W, n>>& values, const Put& put) const {
    for (int k = 0; k < n; ++k) {
      double sum = 0;
      for (int warp = 0; warp < threads / cuda::kWarp; ++warp) {
        double lane[cuda::kWarp];
        for (int l = 0; l < cuda::kWarp; ++l) lane[l] = double(values[warp * cuda::kWarp + l].v[k]);
        sum += butterfly(lane);
      }
      put(k, sum);
    }
  }

  template <class W, int n>
  void add_groups(Private<cuda::Sums<W, n>>& packs, Private<cuda::Sums<double, n>>& totals) const {
    for (int lane = 0; lane < threads; ++lane)
      for (int k = 0; k < n; ++k) {
        const auto of = [&](int i) { return packs[lane / 4 * 4 + i].v[k]; };
        totals[lane].v[k] += double(cuda::add_packs(of(0), of(1), of(2), of(3)));
      }
  }
  template <int n, class Put>
  void total_groups(Private<cuda::Sums<double, n>>& totals, const Put& put) const {
    for (int k = 0; k < n; ++k) {
      double lanes[cuda::kSumLanes];
      for (int i = 0; i < cuda::kSumLanes; ++i) lanes[i] = totals[4 * i].v[k];
      put(k, cuda::add_lanes(lanes));
    }
  }

  template <class Get, class Put>
  void warp_totals(int count, int64_t items, const Get& get, const Put& put) const {
    for (int k = 0; k < count; ++k) {
      double lane[cuda::kWarp] = {};
      for (int l = 0; l < cuda::kWarp; ++l)
        for (int64_t i = l; i < items; i += cuda::kWarp) lane[l] += get(k, i);
      put(k, butterfly(lane));
    }
  }

  float largest(Private<float>& values) const { return *std::max_element(values.value, values.value + threads); }
  bool all(Private<bool>& values) const {
    return std::all_of(values.value, values.value + threads, [](bool b) { return b; });
  }
  template <class C, class A, class B>
  void mma(const C& c, const A& a, const B& b) const {
    using namespace cuda;
    static_assert(threads == kWarp);
    float left[kMmaRows][kMmaDepth], right[kMmaDepth][kMmaColumns];
    const auto unpack = [](uint32_t word, int half) { return float_of_bits(half ? word & 0xffff0000u : word << 16); };
    for (int lane = 0; lane < kWarp; ++lane)
      for (int half = 0; half < 2; ++half) {
        for (int w = 0; w < 4; ++w)
          left[mma_a_row(lane, w)][mma_a_depth(lane, w) + half] = unpack(a(lane).word[w], half);
        for (int w = 0; w < 2; ++w)
          right[mma_b_depth(lane, w) + half][mma_b_column(lane)] = unpack(b(lane).word[w], half);
      }
    for (int lane = 0; lane < kWarp; ++lane)
      for (int s = 0; s < 4; ++s)
        for (int k = 0; k < kMmaDepth; ++k)
          c(lane).sum[s] = multiply_add(left[mma_c_row(lane, s)][k], right[k][mma_c_column(lane, s)], c(lane).sum[s]);
  }
  // Operands are taken from where their descriptors say, by the rules of the PTX ISA for no swizzling.
  template <int n>
  void begin_products(Private<cuda::GroupC<n>>& c, uint64_t a, uint64_t b, uint64_t a_apart, uint64_t b_apart,
                      int count) const {
    using namespace cuda;
    static_assert(threads == kWarpgroup);
    for (int i = 0; i < count; ++i, a += a_apart, b += b_apart) {
      float left[kGroupRows][kMmaDepth], right[n][kMmaDepth];
      for (int k = 0; k < kMmaDepth; ++k) {
        for (int row = 0; row < kGroupRows; ++row) left[row][k] = described(a, row, k);
        for (int column = 0; column < n; ++column) right[column][k] = described(b, column, k);
      }
      for (int rank = 0; rank < threads; ++rank)
        for (int s = 0; s < n / 2; ++s)
          for (int k = 0; k < kMmaDepth; ++k)
            c[rank].sum[s] =
                multiply_add(left[group_c_row(rank, s)][k], right[group_c_column(rank, s)][k], c[rank].sum[s]);
    }
  }
  template <int n>
  void end_products(Private<cuda::GroupC<n>>&) const {}
  void publish() const {}
  uint32_t shared_address(const void* at) const {
    return uint32_t(static_cast<const char*>(at) - static_cast<const char*>(shared_memory));
  }

  void sync() const {}

 private:
  static float described(uint64_t operand, int across, int along) {
    const auto bytes = [&](int bit) { return int64_t(operand >> bit & 0x3fff) << 4; };
    CHECK(operand >> 46 == 0 && (operand & 0xc000c000) == 0, "%lx", long(operand));
    const int64_t core = bytes(0) + along / cuda::kCoreDepth * bytes(16) + across / cuda::kCoreRows * bytes(32);
    const int64_t at = core + across % cuda::kCoreRows * 16 + along % cuda::kCoreDepth * 2;
    BFloat16 entry;
    std::memcpy(&entry, static_cast<const char*>(shared_memory) + at, sizeof entry);
    return cuda::widen(entry);
  }
  static double butterfly(const double (&lane)[cuda::kWarp]) {
    double now[cuda::kWarp], next[cuda::kWarp];
    std::copy(lane, lane + cuda::kWarp, now);
    for (int offset = cuda::kWarp / 2; offset > 0; offset /= 2) {
      for (int l = 0; l < cuda::kWarp; ++l) next[l] = now[l] + now[l ^ offset];
      std::copy(next, next + cuda::kWarp, now);
    }
    return now[0];
  }
};

// Numbers 0 .. n - 1 in some order.
inline std::vector<int64_t> any_order(int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rank_order);
  return order;
}

}  // namespace ak::test
