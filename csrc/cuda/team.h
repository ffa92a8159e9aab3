// Teams of threads, the one thing that differs between a kernel on a device and the same text run on a host.
//
// A team works in regions: `each(f)` runs f(rank) for every thread and ends with a barrier, so what one region
// writes the next may read, and nothing else may be assumed. What a thread keeps from region to region in its
// registers is declared `Private`. csrc/tests/host_team.h has the same members, with the barriers as the ends of
// loops over ranks in an order that changes from region to region.
#pragma once

#include "sum_order.h"
#include "tensor_core.h"

namespace ak::cuda {

constexpr int kWarp = 32;
constexpr int kMaxSumsAtOnce = 12;

template <class W, int n>
struct Sums {
  W v[n];
};

// What every team needs of shared memory.
template <int threads>
struct TeamSpace {
  double partial[threads / kWarp][kMaxSumsAtOnce];
};

#if defined(__CUDACC__)

// A warp, a whole block, or one of several teams of a block, which no barrier of theirs ties together.
template <int threads, int teams = 1>
class DeviceTeam {
 public:
  static constexpr int kThreads = threads;
  template <int others>
  using Of = DeviceTeam<others>;

  template <class V>
  struct Private {
    V value;
    AK_DEVICE V& operator[](int) { return value; }
  };

  AK_DEVICE explicit DeviceTeam(TeamSpace<threads>* space) : space_(space) {}

  template <class F>
  AK_DEVICE void each(const F& f) const {
    f(rank());
    sync();
  }
  // Without the barrier: what f writes only its own thread reads.
  template <class F>
  AK_DEVICE void alone(const F& f) const {
    f(rank());
  }
  template <class F>
  AK_DEVICE void first(const F& f) const {
    if (rank() == 0) f();
    sync();
  }

  // f(warp) for every warp, by teams of its lanes, then a barrier.
  template <class F>
  AK_DEVICE void warps(const F& f) const {
    const int warp = rank() / kWarp;
    f(warp);
    sync();
  }

  // put(k, sum over threads of values.v[k]) for k < n, n <= kMaxSumsAtOnce: a butterfly within warps, warps in order.
  template <class W, int n, class Put>
  AK_DEVICE void total(Private<Sums<W, n>>& values, const Put& put) const {
    static_assert(n <= kMaxSumsAtOnce);
    AK_UNROLLED
    for (int k = 0; k < n; ++k) {
      const double sum = butterfly(double(values.value.v[k]));
      if (rank() % kWarp == 0) space_->partial[rank() / kWarp][k] = sum;
    }
    sync();
    if (rank() < n) {
      double sum = 0;
      for (int warp = 0; warp < threads / kWarp; ++warp) sum += space_->partial[warp][rank()];
      put(rank(), sum);
    }
    sync();
  }

  // Of a warp whose lanes hold sums over neighbouring packs: the groups' sums join the totals, in each of a group's
  // lanes; at last put(k, the row's sum). In the order of sum_order.h.
  template <class W, int n>
  AK_DEVICE void add_groups(Private<Sums<W, n>>& packs, Private<Sums<double, n>>& totals) const {
    AK_UNROLLED
    for (int k = 0; k < n; ++k) {
      W sum = packs.value.v[k];
      AK_UNROLLED
      for (int offset = 1; offset < kSumGroup / kSumPack; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
      totals.value.v[k] += double(sum);
    }
  }
  template <int n, class Put>
  AK_DEVICE void total_groups(Private<Sums<double, n>>& totals, const Put& put) const {
    AK_UNROLLED
    for (int k = 0; k < n; ++k) {
      double sum = totals.value.v[k];
      AK_UNROLLED
      for (int offset = kWarp / 2; offset >= kSumGroup / kSumPack; offset /= 2)
        sum += __shfl_xor_sync(~0u, sum, offset);
      if (rank() == 0) put(k, sum);
    }
    sync();
  }

  // put(k, sum over i < items of get(k, i)) for k < count. One warp sums a value: lane l takes items l, l + 32, ...
  template <class Get, class Put>
  AK_DEVICE void warp_totals(int count, int64_t items, const Get& get, const Put& put) const {
    for (int k = rank() / kWarp; k < count; k += threads / kWarp) {
      double sum = 0;
      for (int64_t i = rank() % kWarp; i < items; i += kWarp) sum += get(k, i);
      sum = butterfly(sum);
      if (rank() % kWarp == 0) put(k, sum);
    }
    sync();
  }

  // The largest of the threads' values, to every thread.
  AK_DEVICE float largest(Private<float>& values) const {
    float x = values.value;
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
    if constexpr (threads > kWarp) {
      if (rank() % kWarp == 0) space_->partial[rank() / kWarp][0] = double(x);
      sync();
      for (int warp = 0; warp < threads / kWarp; ++warp) x = fmaxf(x, float(space_->partial[warp][0]));
      sync();
    }
    return x;
  }

  AK_DEVICE bool all(Private<bool>& values) const {
    static_assert(teams == 1);
    if constexpr (threads > kWarp)
      return __syncthreads_and(values.value);
    else
      return __all_sync(~0u, values.value);
  }

  // c(lane) += a(lane) b(lane), the lanes' parts of the operands; a warp's only.
  template <class C, class A, class B>
  AK_DEVICE void mma(const C& c, const A& a, const B& b) const {
    static_assert(threads == kWarp);
    mma_sync(c(rank()), a(rank()), b(rank()));
  }

  // A warpgroup's: c(rank) += A_i B_i for i < count, the operands described and so far apart (tensor_core.h). The sums
  // are complete after end_products; only then may what the operands lie in be written again.
  template <int n>
  AK_DEVICE void begin_products(Private<GroupC<n>>& c, uint64_t a, uint64_t b, uint64_t a_apart, uint64_t b_apart,
                                int count) const {
    static_assert(threads == kWarpgroup);
    group_begin(c.value);
    AK_UNROLLED_2
    for (int i = 0; i < count; ++i) group_multiply(c.value, a + i * a_apart, b + i * b_apart);
    group_commit();
  }
  template <int n>
  AK_DEVICE void end_products(Private<GroupC<n>>& c) const {
    group_wait(c.value);
  }
  // After a thread has written operands and before the barrier that others see them from.
  AK_DEVICE void publish() const { publish_to_group(); }
  AK_DEVICE uint32_t shared_address(const void* at) const { return uint32_t(__cvta_generic_to_shared(at)); }

  AK_DEVICE int rank() const { return teams > 1 || threads == kWarp ? int(threadIdx.x) % threads : int(threadIdx.x); }
  AK_DEVICE void sync() const {
    if constexpr (threads > kWarp && teams > 1)
      asm volatile("barrier.sync %0, %1;" ::"r"(1 + int(threadIdx.x) / threads), "n"(threads) : "memory");
    else if constexpr (threads > kWarp)
      __syncthreads();
    else
      __syncwarp();
  }

 private:
  AK_DEVICE static double butterfly(double x) {
    AK_UNROLLED
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
  }

  TeamSpace<threads>* space_;
};

#endif

}  // namespace ak::cuda
