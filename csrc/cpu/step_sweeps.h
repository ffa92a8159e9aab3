// The two sweeps over a chunk that a step consists of: sums() reads z, f(z) and the stored residuals once for all
// inner products; combine() reads the stored h once for the next iterate.
//
// The rings hold g_k and h_k themselves; differences are formed as they are read. That writes two vectors a step
// where stored differences would cost four, and rounds the same.
#pragma once

#include "../common/step_decision.h"
#include "storage.h"

namespace ak::AK_ISA {

// Sums run in the computing type over a block and in double over blocks.
constexpr int64_t kBlock = 512;

enum BaseSum { kR2, kF2, kNewSquare, kNewAlong, kBaseSums };  // |g|^2, |f|^2, <d, d>, <d, g> with d = g - g_before
constexpr int kMaxSums = kBaseSums + 2 * kMaxHistory;

// One group's part of a chunk.
template <class T>
struct SumsInput {
  const T* z;
  const T* fz;
  const T* before;          // g_before, or where `inverse_damping` is set, the iterate before z; null at the first step
  Wide<T> inverse_damping;  // of the plain step that led to z: g_before = (z - before) * inverse_damping
  T* g;                     // where g is kept, or null
  const T* ring[kMaxHistory + 1];  // old residuals from the oldest to g_before
  int differences;                 // between them
  int64_t entries;
  Wide<T> scale;  // a power of two: products are formed of g, d and f times it, so that none vanishes
};

template <class W>
class LaneSums {
 public:
  explicit LaneSums(int count) : count_(count) {
    for (int i = 0; i < count; ++i) std::memset(lane_[i], 0, sizeof lane_[i]);
  }
  void add(int index, Vec<W> v) {
    W part[kLanes<W>];
    std::memcpy(part, &v, sizeof v);
    for (int i = 0; i < kLanes<W>; ++i) lane_[index][i] += double(part[i]);
  }
  // Divided by what the products were scaled with: the base sums twice, the others once.
  void write(double scale, double* out) {
    const double unscale = 1 / scale;
    for (int k = 0; k < count_; ++k) {
      const double sum = pairwise<kLanes<W>>(lane_[k]);
      out[k] = k < kBaseSums ? sum * unscale * unscale : sum * unscale;
    }
  }

 private:
  template <int n>
  static double pairwise(const double* x) {
    if constexpr (n == 1) {
      return x[0];
    } else {
      double half[n / 2];
      for (int i = 0; i < n / 2; ++i) half[i] = x[i] + x[i + n / 2];
      return pairwise<n / 2>(half);
    }
  }

  int count_;
  alignas(64) double lane_[kMaxSums][kLanes<W>];
};

// scale * g of a block, and scale * d with d the difference to the residual before, in the first-level cache.
template <class W>
struct BlockResidual {
  alignas(64) W g[kBlock];
  alignas(64) W d[kBlock];
};

enum class Before { kNone, kResidual, kIterate };

template <class T, Before before>
inline void block_residual(const SumsInput<T>& in, int64_t start, int64_t n, BlockResidual<Wide<T>>& block,
                           LaneSums<Wide<T>>& sums) {
  using W = Wide<T>;
  const T* const z = in.z + start;
  const T* const fz = in.fz + start;
  const T* const old = before == Before::kNone ? nullptr : in.before + start;
  T* const kept = in.g == nullptr ? nullptr : in.g + start;
  const Vec<W> inverse = broadcast<W>(in.inverse_damping), scale = broadcast<W>(in.scale);
  Vec<W> r2{}, f2{}, square{}, along{};
  for_vectors<W>(n, [&](int64_t i, auto access) {
    const Vec<W> x = access.load_wide(z + i), f = access.load_wide(fz + i);
    const Vec<W> exact = f - x;
    const Vec<W> scaled_exact = exact * scale, scaled_f = f * scale;
    r2 = fma<W>(scaled_exact, scaled_exact, r2);
    f2 = fma<W>(scaled_f, scaled_f, f2);
    const Vec<W> g = as_stored<T>(exact);
    if (kept != nullptr) access.store_wide(kept + i, g);
    if constexpr (before != Before::kNone) {
      const Vec<W> last = access.load_wide(old + i);
      const Vec<W> d = (g - (before == Before::kIterate ? (x - last) * inverse : last)) * scale;
      const Vec<W> scaled_g = g * scale;
      square = fma<W>(d, d, square);
      along = fma<W>(d, scaled_g, along);
      store(block.g + i, scaled_g);
      store(block.d + i, d);
    }
  });
  sums.add(kR2, r2);
  sums.add(kF2, f2);
  if constexpr (before != Before::kNone) {
    sums.add(kNewSquare, square);
    sums.add(kNewAlong, along);
  }
}

// <d_j, scale d> and <d_j, scale g> for `count` neighbouring differences d_j = ring[j + 1] - ring[j].
template <class T, int count>
inline void block_dots(const T* const* ring, int64_t start, int64_t n, const BlockResidual<Wide<T>>& block,
                       LaneSums<Wide<T>>& sums, int first_sum) {
  using W = Wide<T>;
  const T* at[count + 1];
  for (int j = 0; j <= count; ++j) at[j] = ring[j] + start;
  Vec<W> with_d[count]{}, with_g[count]{};
  for_vectors<W>(n, [&](int64_t i, auto access) {
    const Vec<W> d = load(block.d + i), g = load(block.g + i);
    Vec<W> older = access.load_wide(at[0] + i);
#pragma GCC unroll 4
    for (int j = 0; j < count; ++j) {
      const Vec<W> newer = access.load_wide(at[j + 1] + i);
      const Vec<W> difference = newer - older;
      with_d[j] = fma<W>(difference, d, with_d[j]);
      with_g[j] = fma<W>(difference, g, with_g[j]);
      older = newer;
    }
  });
  for (int j = 0; j < count; ++j) {
    sums.add(first_sum + 2 * j, with_d[j]);
    sums.add(first_sum + 2 * j + 1, with_g[j]);
  }
}

// out: the base sums, then <d_j, d>, <d_j, g> from the oldest difference on.
template <class T, Before before>
void chunk_sums(const SumsInput<T>& in, double* out) {
  using W = Wide<T>;
  LaneSums<W> sums(kBaseSums + 2 * in.differences);
  BlockResidual<W> block;
  for (int64_t start = 0; start < in.entries; start += kBlock) {
    const int64_t n = in.entries - start < kBlock ? in.entries - start : kBlock;
    block_residual<T, before>(in, start, n, block, sums);
    for (int j = 0; j < in.differences; j += 4) {
      const T* const* ring = in.ring + j;
      const int sum = kBaseSums + 2 * j;
      switch (in.differences - j) {
        case 1:
          block_dots<T, 1>(ring, start, n, block, sums, sum);
          break;
        case 2:
          block_dots<T, 2>(ring, start, n, block, sums, sum);
          break;
        case 3:
          block_dots<T, 3>(ring, start, n, block, sums, sum);
          break;
        default:
          block_dots<T, 4>(ring, start, n, block, sums, sum);
      }
    }
  }
  sums.write(double(in.scale), out);
}

// The scale of a chunk whose f and f - z no earlier step has measured.
template <class T>
Wide<T> first_scale(const T* z, const T* fz, int64_t entries) {
  if constexpr (sizeof(Wide<T>) == sizeof(double)) {
    return 1;
  } else {
    Vec<float> largest{};
    for_vectors<float>(entries, [&](int64_t i, auto access) {
      const Vec<float> f = access.load_wide(fz + i);
      largest = VecOps<float>::max(VecOps<float>::abs(f), largest);
      largest = VecOps<float>::max(VecOps<float>::abs(f - access.load_wide(z + i)), largest);
    });
    float all = 0;
    for (int k = 0; k < kLanes<float>; ++k) all = largest[k] > all ? largest[k] : all;
    return power_near_inverse(all);
  }
}

template <class T>
struct CombineInput {
  const T* z;
  const T* fz;
  Wide<T> damping;
  T* h;                         // where h = z + damping (f(z) - z) is kept, or null
  T* out;                       // may hold what fz or z points to: entries are read before they are written
  const T* ring[kMaxHistory];   // old h from the oldest used on
  Wide<T> weight[kMaxHistory];  // of ring[j + 1] - ring[j], the last of h - ring[differences - 1]
  int differences;
  int64_t entries;
};

// out = h - sum_j weight_j (h_{j+1} - h_j); false where an entry is not finite.
template <class T, int vectors, class Access>
inline IntVec<Wide<T>> combine_block(const CombineInput<T>& in, int64_t start, const Access& access) {
  using W = Wide<T>;
  constexpr int lanes = kLanes<W>;
  Vec<W> sum[vectors], newest[vectors], older[vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const int64_t i = start + v * lanes;
    const Vec<W> f = access.load_wide(in.fz + i);
    Vec<W> h = f;
    if (in.damping != W(1)) {
      const Vec<W> x = access.load_wide(in.z + i);
      h = fma<W>(broadcast<W>(in.damping), f - x, x);
    }
    sum[v] = h;
    newest[v] = as_stored<T>(h);
  }
  if (in.differences > 0) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) older[v] = access.load_wide(in.ring[0] + start + v * lanes);
    for (int j = 1; j < in.differences; ++j) {
      const Vec<W> weight = broadcast<W>(-in.weight[j - 1]);
      const T* const column = in.ring[j] + start;
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const Vec<W> next = access.load_wide(column + v * lanes);
        sum[v] = fma<W>(weight, next - older[v], sum[v]);
        older[v] = next;
      }
    }
    const Vec<W> weight = broadcast<W>(-in.weight[in.differences - 1]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[v] = fma<W>(weight, newest[v] - older[v], sum[v]);
  }
  IntVec<W> valid = ~IntVec<W>{};
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const int64_t i = start + v * lanes;
    if (in.h != nullptr) access.store_wide(in.h + i, newest[v]);
    access.store_wide(in.out + i, sum[v]);
    valid &= VecOps<W>::abs(sum[v]) <= broadcast<W>(Wide<T>(kLargest<T>));
  }
  return valid;
}

template <class T>
bool chunk_combine(const CombineInput<T>& in) {
  using W = Wide<T>;
  constexpr int lanes = kLanes<W>;
  IntVec<W> valid = ~IntVec<W>{};
  int64_t i = 0;
  for (; i + 4 * lanes <= in.entries; i += 4 * lanes) valid &= combine_block<T, 4>(in, i, Whole{});
  for (; i + lanes <= in.entries; i += lanes) valid &= combine_block<T, 1>(in, i, Whole{});
  if (i < in.entries) valid &= combine_block<T, 1>(in, i, First{int(in.entries - i)});
  bool all = true;
  for (int k = 0; k < lanes; ++k) all = all && valid[k] != 0;
  return all;
}

// What Anderson needs of the plain steps Auto took before it: the last of them as the ring's first entry.
template <class T>
void enter_anderson(const T* z, const T* before, Wide<T> inverse_damping, T* g_before, T* h_before, const T* fz, T* g,
                    int64_t entries) {
  using W = Wide<T>;
  for_vectors<W>(entries, [&](int64_t i, auto access) {
    const Vec<W> x = access.load_wide(z + i);
    access.store_wide(g_before + i, (x - access.load_wide(before + i)) * broadcast<W>(inverse_damping));
    access.store_wide(h_before + i, x);
    access.store_wide(g + i, access.load_wide(fz + i) - x);
  });
}

}  // namespace ak::AK_ISA
