// The two sweeps over a chunk that a step consists of, for one team: chunk_sums() reads z, f(z) and the stored
// residuals once for all inner products; chunk_combine() reads the stored h once for the next iterate.
//
// A thread sums its entries in the computing type; the threads' sums meet in double. `vector` entries are one access.
#pragma once

#include "../common/small_solve.h"
#include "team.h"

namespace ak::cuda {

enum BaseSum { kR2, kF2, kNewSquare, kNewAlong, kBaseSums };  // |g|^2, |f|^2, <d, d>, <d, g> with d = g - g_before

// Slots of one of a group's rings, from `oldest` on.
template <class T>
struct Ring {
  T* data;
  int64_t stride;
  int slots;
  int oldest;

  AK_DEVICE T* operator[](int j) const {
    const int slot = oldest + j;
    return data + (slot < slots ? slot : slot - slots) * stride;
  }
};

// One group's part of a chunk.
template <class T>
struct SumsInput {
  const T* z;
  const T* fz;
  const T* before;          // where `watching`: the iterate before z
  Wide<T> inverse_damping;  // of the plain step that led to z: g_before = (z - before) * inverse_damping
  Wide<T> damping;
  T* g;           // where g is kept, or null
  Wide<T>* kept;  // where h stays for the second sweep, or null
  Ring<T> ring;   // old residuals, the oldest first; `differences` + 1 of them
  int differences;
  int64_t entries;
  Wide<T> scale;  // a power of two: products are formed of g, d and f times it, so that none vanishes
  double* sums;   // out: the base sums, then <d_j, d>, <d_j, g> from the oldest difference on
};

enum class Before { kNone, kResidual, kIterate };

// A pass takes this many differences; each one after the first reads z, f(z) and the newest g of the chunk again.
constexpr int kColumnsAtOnce = 4;

// h = z + damping g
template <class W>
AK_DEVICE W plain_step(W z, W f, W damping) {
  return damping == W(1) ? f : multiply_add(damping, f - z, z);
}

// The base sums, if `base`, and the products with the differences [first, first + columns) of the ring; those past
// `differences` are not written.
template <class T, int vector, Before before, int columns, bool base, class Team>
AK_DEVICE void sums_pass(const Team& team, const SumsInput<T>& in, int first) {
  using W = Wide<T>;
  constexpr int kBase = base ? int(kBaseSums) : 0, kSums = kBase + 2 * columns;
  typename Team::template Private<Sums<W, kSums>> sums;
  // Past the newest, the newest itself: a difference of zero.
  const T* at[columns + 1];
  const int newest = in.differences - first;
  AK_UNROLLED
  for (int j = 0; j <= columns; ++j) at[j] = columns > 0 ? in.ring[first + (j < newest ? j : newest)] : nullptr;
  const T* const last_at = before == Before::kIterate ? in.before : in.ring[in.differences];
  // Pack i of all the entries.
  const auto add = [&](int i, W(&sum)[kSums]) {
    const Pack<T, vector> z = load_global<vector>(in.z + i), f = load_global<vector>(in.fz + i);
    Pack<T, vector> last, column[columns + 1];
    if constexpr (before != Before::kNone) last = load_global<vector>(last_at + i);
    if constexpr (columns > 0) {
      AK_UNROLLED
      for (int j = 0; j <= columns; ++j) column[j] = load_global<vector>(at[j] + i);
    }
    Pack<T, vector> g_stored;
    Pack<W, vector> h;
    AK_UNROLLED
    for (int v = 0; v < vector; ++v) {
      const W x = widen(z.v[v]), fx = widen(f.v[v]);
      const W exact = fx - x, scaled = exact * in.scale, scaled_f = fx * in.scale;
      g_stored.v[v] = narrow<T>(exact);
      const W g = widen(g_stored.v[v]);
      if constexpr (base) {
        sum[kR2] = multiply_add(scaled, scaled, sum[kR2]);
        sum[kF2] = multiply_add(scaled_f, scaled_f, sum[kF2]);
      }
      if constexpr (before != Before::kNone) {
        const W l = widen(last.v[v]);
        const W d = (g - (before == Before::kIterate ? (x - l) * in.inverse_damping : l)) * in.scale;
        const W scaled_g = g * in.scale;
        if constexpr (base) {
          sum[kNewSquare] = multiply_add(d, d, sum[kNewSquare]);
          sum[kNewAlong] = multiply_add(d, scaled_g, sum[kNewAlong]);
        }
        AK_UNROLLED
        for (int j = 0; j < columns; ++j) {
          const W difference = widen(column[j + 1].v[v]) - widen(column[j].v[v]);
          sum[kBase + 2 * j] = multiply_add(difference, d, sum[kBase + 2 * j]);
          sum[kBase + 2 * j + 1] = multiply_add(difference, scaled_g, sum[kBase + 2 * j + 1]);
        }
      }
      if constexpr (base) h.v[v] = plain_step(x, fx, in.damping);
    }
    if constexpr (base) {
      if (in.kept != nullptr) store_pack<vector>(in.kept + i, h);
      if (in.g != nullptr) store_global<vector>(in.g + i, g_stored);
    }
  };
  // The base sums hold the scale twice, the others once.
  const double unscale = 1 / double(in.scale);
  const auto put = [&](int k, double sum) {
    const int at = k < kBase ? k : int(kBaseSums) + 2 * first + k - kBase;
    if (k < kBase || k - kBase < 2 * (in.differences - first))
      in.sums[at] = k < kBase ? sum * unscale * unscale : sum * unscale;
  };
  if constexpr (Team::kThreads == kWarp && vector == kSumPack) {
    typename Team::template Private<Sums<double, kSums>> totals;
    team.each([&](int rank) {
      AK_UNROLLED
      for (int k = 0; k < kSums; ++k) totals[rank].v[k] = 0;
    });
    AK_ROLLED
    for (int start = 0; start < int(in.entries); start += kWarp * vector) {
      team.each([&](int rank) {
        AK_UNROLLED
        for (int k = 0; k < kSums; ++k) sums[rank].v[k] = W(0);
        if (start + rank * vector < int(in.entries)) add(start + rank * vector, sums[rank].v);
      });
      team.add_groups(sums, totals);
    }
    return team.total_groups(totals, put);
  }
  team.each([&](int rank) {
    AK_UNROLLED
    for (int k = 0; k < kSums; ++k) sums[rank].v[k] = W(0);
    AK_ROLLED
    for (int i = rank * vector; i < int(in.entries); i += Team::kThreads * vector) add(i, sums[rank].v);
  });
  team.total(sums, put);
}

template <class T, int vector, class Team>
AK_DEVICE void chunk_sums(const Team& team, const SumsInput<T>& in, Before before) {
  if (before == Before::kNone) return sums_pass<T, vector, Before::kNone, 0, true>(team, in, 0);
  if (before == Before::kIterate) return sums_pass<T, vector, Before::kIterate, 0, true>(team, in, 0);
  sums_pass<T, vector, Before::kResidual, kColumnsAtOnce, true>(team, in, 0);
  for (int first = kColumnsAtOnce; first < in.differences; first += kColumnsAtOnce)
    sums_pass<T, vector, Before::kResidual, kColumnsAtOnce, false>(team, in, first);
}

// The largest |f| or |f - z| of a chunk, NaN aside.
template <class T, int vector, class Team>
AK_DEVICE float chunk_largest(const Team& team, const T* z, const T* fz, int64_t entries) {
  typename Team::template Private<float> largest;
  team.each([&](int rank) {
    float x = 0;
    AK_ROLLED
    for (int i = rank * vector; i < int(entries); i += Team::kThreads * vector) {
      const Pack<T, vector> from = load_global<vector>(z + i), f = load_global<vector>(fz + i);
      AK_UNROLLED
      for (int v = 0; v < vector; ++v) {
        const float value = float(widen(f.v[v])), g = value - float(widen(from.v[v]));
        x = value > x ? value : -value > x ? -value : x;
        x = g > x ? g : -g > x ? -g : x;
      }
    }
    largest[rank] = x;
  });
  return team.largest(largest);
}

template <class T>
struct CombineInput {
  const T* z;
  const T* fz;
  const Wide<T>* kept;  // h from the first sweep, or null
  Wide<T> damping;
  T* h;                   // where h is kept, or null
  T* out;                 // may hold what fz or z points to: entries are read before they are written
  Ring<T> ring;           // old h from the oldest used on, `differences` of them
  const Wide<T>* weight;  // of ring[j + 1] - ring[j], the last of h - ring[differences - 1]
  int differences;
  int64_t entries;
};

// out = h - sum_j weight_j (h_{j+1} - h_j); false where an entry is not finite.
template <class T, int vector, class Team>
AK_DEVICE bool chunk_combine(const Team& team, const CombineInput<T>& in) {
  using W = Wide<T>;
  typename Team::template Private<bool> valid;
  team.each([&](int rank) {
    bool finite_so_far = true;
    AK_ROLLED
    for (int i = rank * vector; i < int(in.entries); i += Team::kThreads * vector) {
      W sum[vector], older[vector];
      Pack<T, vector> newest;
      if (in.kept != nullptr) {
        const Pack<W, vector> h = load_pack<vector>(in.kept + i);
        AK_UNROLLED
        for (int v = 0; v < vector; ++v) sum[v] = h.v[v];
      } else {
        const Pack<T, vector> z = in.damping == W(1) ? Pack<T, vector>{} : load_global<vector>(in.z + i);
        const Pack<T, vector> f = load_global<vector>(in.fz + i);
        AK_UNROLLED
        for (int v = 0; v < vector; ++v) sum[v] = plain_step(widen(z.v[v]), widen(f.v[v]), in.damping);
      }
      AK_UNROLLED
      for (int v = 0; v < vector; ++v) newest.v[v] = narrow<T>(sum[v]);
      if (in.differences > 0) {
        const Pack<T, vector> oldest = load_global<vector>(in.ring[0] + i);
        AK_UNROLLED
        for (int v = 0; v < vector; ++v) older[v] = widen(oldest.v[v]);
        AK_UNROLLED_4
        for (int j = 1; j < in.differences; ++j) {
          const Pack<T, vector> next = load_global<vector>(in.ring[j] + i);
          const W weight = -in.weight[j - 1];
          AK_UNROLLED
          for (int v = 0; v < vector; ++v) {
            const W x = widen(next.v[v]);
            sum[v] = multiply_add(weight, x - older[v], sum[v]);
            older[v] = x;
          }
        }
        const W weight = -in.weight[in.differences - 1];
        AK_UNROLLED
        for (int v = 0; v < vector; ++v) sum[v] = multiply_add(weight, widen(newest.v[v]) - older[v], sum[v]);
      }
      Pack<T, vector> out;
      AK_UNROLLED
      for (int v = 0; v < vector; ++v) {
        out.v[v] = narrow<T>(sum[v]);
        finite_so_far = finite_so_far && sum[v] <= kLargest<T> && sum[v] >= -kLargest<T>;  // false for NaN
      }
      if (in.h != nullptr) store_global<vector>(in.h + i, newest);
      store_global<vector>(in.out + i, out);
    }
    valid[rank] = finite_so_far;
  });
  return team.all(valid);
}

// What Anderson needs of the plain steps Auto took before it: the last of them as the ring's first entry, and g.
template <class T, int vector, class Team>
AK_DEVICE void enter_anderson(const Team& team, const T* z, const T* fz, const T* before, Wide<T> inverse_damping,
                              T* g_before, T* h_before, T* g, int64_t entries) {
  team.each([&](int rank) {
    AK_ROLLED
    for (int i = rank * vector; i < int(entries); i += Team::kThreads * vector) {
      const Pack<T, vector> x = load_global<vector>(z + i), f = load_global<vector>(fz + i);
      const Pack<T, vector> old = load_global<vector>(before + i);
      Pack<T, vector> residual_before, residual;
      AK_UNROLLED
      for (int v = 0; v < vector; ++v) {
        residual_before.v[v] = narrow<T>((widen(x.v[v]) - widen(old.v[v])) * inverse_damping);
        residual.v[v] = narrow<T>(widen(f.v[v]) - widen(x.v[v]));
      }
      store_global<vector>(g_before + i, residual_before);
      store_global<vector>(h_before + i, x);
      store_global<vector>(g + i, residual);
    }
  });
}

template <class T, int vector, class Team>
AK_DEVICE void copy_chunk(const Team& team, T* to, const T* from, int64_t entries) {
  team.each([&](int rank) {
    AK_ROLLED
    for (int i = rank * vector; i < int(entries); i += Team::kThreads * vector)
      store_global<vector>(to + i, load_global<vector>(from + i));
  });
}

}  // namespace ak::cuda
