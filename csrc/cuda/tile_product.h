// The rows of a tile times a matrix, W streamed through shared memory: by one block, with any strides, of any size.
//
// A warp has 8 rows and 128 columns of the product, a thread 32 sums in registers. Both operands come in slices of a
// few inputs; while one slice is multiplied, the next one is on its way. An entry is summed in the order of
// sum_order.h: its bits depend on neither its neighbours nor the shape of the tile, nor on how many blocks share it.
#pragma once

#include "row_plan.h"
#include "sum_order.h"
#include "team.h"

namespace ak::cuda {

// One row a slot.
template <class T>
struct Rows {
  T* data;
  int64_t ld;

  AK_DEVICE T* operator[](int slot) const { return data + slot * ld; }
  AK_DEVICE Rows<const T> to_read() const { return {data, ld}; }
};

// Of W's slice in shared memory: a store along the inputs meets every bank once.
template <class T, class Shape>
inline constexpr int kSliceLd = Shape::pass + 128 / int(sizeof(T)) / Shape::slice;

template <class T, class Shape>
inline constexpr int64_t kProductBytes =
    padded(((Shape::rows + kSliceLd<T, Shape>)*Shape::slice + Shape::rows * Shape::pass) * int64_t(sizeof(T)), 32);

template <class T, class Shape_, class Team>
class TileProduct {
  using S = Shape_;
  static constexpr int kAccess = kPerAccess<T>;
  static constexpr int kShare = S::pass / S::threads;  // columns of a slice for each thread
  static constexpr int kFetches = kShare * S::slice;
  static constexpr int kRowFetches = (S::rows * S::slice + S::threads - 1) / S::threads;
  static constexpr int kLd = kSliceLd<T, S>;
  static_assert(S::threads % S::slice == 0 && kShare >= 1 && kLd % 2 == 0 && S::slice % kAccess == 0);

 public:
  using Shape = Shape_;
  using Iterates = Rows<const T>;
  static constexpr bool kMixed = false;

  // shared: kProductBytes of it, at a multiple of 32; row: what each slot works at, negative where it is idle.
  AK_DEVICE TileProduct(const Team& team, void* shared, const int64_t* row)
      : team_(team),
        row_(row),
        x_(static_cast<T*>(shared)),
        w_(x_ + S::rows * S::slice),
        totals_(w_ + kLd * S::slice) {}

  // Product `index` of an evaluation, out[slot][n] = sum_k x[slot][k] W[n][k] for every busy slot; x and out apart.
  // Returns where the product lies.
  AK_DEVICE Rows<const T> apply(int /*index*/, const Matrix<T>& w, Rows<const T> x, Rows<T> out) const {
    for (int first = 0; first < w.outputs; first += S::pass) pass(w, x, out, first);
    return out.to_read();
  }

 private:
  struct Accumulators {
    T v[kProductRows][4];
  };
  struct Fetched {
    T w[kFetches], x[kRowFetches];
  };

  // Outputs [first, first + pass).
  AK_DEVICE void pass(const Matrix<T>& w, Rows<const T> x, Rows<T> out, int first) const {
    static_assert(kSegment % S::slice == 0);
    typename Team::template Private<Accumulators> sums;
    typename Team::template Private<Fetched> fetched;
    team_.each([&](int rank) {
      AK_UNROLLED
      for (int r = 0; r < kProductRows; ++r) {
        AK_UNROLLED
        for (int c = 0; c < 4; ++c) sums[rank].v[r][c] = total(rank, r, c) = 0;
      }
      fetch(w, x, rank, first, 0, fetched[rank]);
    });
    AK_ROLLED
    for (int k0 = 0; k0 < w.inputs; k0 += S::slice) {
      team_.each([&](int rank) { put(w, rank, fetched[rank]); });
      team_.each([&](int rank) {
        if (k0 + S::slice < w.inputs) fetch(w, x, rank, first, k0 + S::slice, fetched[rank]);
        if (busy(rank)) multiply(rank, sums[rank]);
        if ((k0 + S::slice) % kSegment == 0 || k0 + S::slice >= w.inputs) add(rank, sums[rank]);
      });
    }
    team_.each([&](int rank) {
      if (!busy(rank)) return;
      const int row = rows_of(rank), column = columns_of(rank);
      AK_UNROLLED
      for (int r = 0; r < kProductRows; ++r) {
        if (row_[row + r] < 0) continue;
        AK_UNROLLED
        for (int c = 0; c < 4; ++c) {
          const int n = first + column + (c & 1) + (c & 2) * (kProductColumns / 4);
          if (n < w.outputs) out[row + r][n] = total(rank, r, c);
        }
      }
    });
  }

  // The sums of a segment join the totals, for which registers are too few.
  AK_DEVICE void add(int rank, Accumulators& sums) const {
    AK_UNROLLED
    for (int r = 0; r < kProductRows; ++r) {
      AK_UNROLLED
      for (int c = 0; c < 4; ++c) {
        total(rank, r, c) += sums.v[r][c];
        sums.v[r][c] = 0;
      }
    }
  }
  AK_DEVICE T& total(int rank, int r, int c) const { return totals_[(4 * r + c) * S::threads + rank]; }

  // Which entries of a slice of W a thread moves: those at (n + n_near i + n_far j, k + k_far j), i < kShare, j <
  // slice. Neighbouring threads take what is contiguous in memory.
  struct Share {
    int n, k, n_near, n_far, k_far;
  };
  AK_DEVICE static Share share_of(const Matrix<T>& w, int rank) {
    constexpr int kApart = S::threads / S::slice;
    if (w.input_stride <= w.output_stride) return {rank / S::slice, rank % S::slice, kApart, kShare * kApart, 0};
    return {rank, 0, S::threads, 0, 1};
  }

  AK_DEVICE void fetch(const Matrix<T>& w, Rows<const T> x, int rank, int first, int k0, Fetched& to) const {
    Share s = share_of(w, rank);
    reckon_anew(s.n_near);
    reckon_anew(s.n_far);
    const int n = first + s.n, k = k0 + s.k;
    const T* const from = w.data + n * w.output_stride + k * w.input_stride;
    const int64_t near = s.n_near * w.output_stride, far = s.n_far * w.output_stride + s.k_far * w.input_stride;
    AK_UNROLLED
    for (int j = 0; j < S::slice; ++j) {
      AK_UNROLLED
      for (int i = 0; i < kShare; ++i) {
        const bool inside = n + s.n_near * i + s.n_far * j < w.outputs && k + s.k_far * j < w.inputs;
        to.w[j * kShare + i] = inside ? load_global<1>(from + (near * i + far * j)).v[0] : T(0);
      }
    }
    AK_UNROLLED
    for (int i = 0; i < kRowFetches; ++i) {
      const int at = rank + i * S::threads, slot = at / S::slice, input = k0 + at % S::slice;
      const bool inside = slot < S::rows && input < w.inputs && row_[slot] >= 0;
      to.x[i] = inside ? load_global<1>(x[slot] + input).v[0] : T(0);
    }
  }

  AK_DEVICE void put(const Matrix<T>& w, int rank, const Fetched& fetched) const {
    const Share s = share_of(w, rank);
    T* const to = w_ + s.k * kLd + s.n;
    AK_UNROLLED
    for (int j = 0; j < S::slice; ++j) {
      AK_UNROLLED
      for (int i = 0; i < kShare; ++i) to[s.n_near * i + (s.n_far + s.k_far * kLd) * j] = fetched.w[j * kShare + i];
    }
    AK_UNROLLED
    for (int i = 0; i < kRowFetches; ++i)
      if (rank + i * S::threads < S::rows * S::slice) x_[rank + i * S::threads] = fetched.x[i];
  }

  AK_DEVICE static int rows_of(int rank) { return rank / kWarp % S::row_groups * kProductRows; }
  // The first of a thread's columns: two neighbours there, two more half a warp's width further.
  AK_DEVICE static int columns_of(int rank) {
    return rank / kWarp / S::row_groups * kProductColumns + rank % kWarp * 2;
  }
  // Whether a warp has a row to multiply.
  AK_DEVICE bool busy(int rank) const {
    bool any = false;
    AK_UNROLLED
    for (int r = 0; r < kProductRows; ++r) any = any || row_[rows_of(rank) + r] >= 0;
    return any;
  }

  AK_DEVICE void multiply(int rank, Accumulators& sums) const {
    const T* const x = x_ + rows_of(rank) * S::slice;
    const T* const w = w_ + columns_of(rank);
    // Unrolled further, more of the slice would lie in registers than there are, of float64 above all.
    if constexpr (sizeof(T) == 8) {
      AK_ROLLED
      for (int k = 0; k < S::slice; k += kAccess) multiply_access(x + k, w + k * kLd, sums);
    } else {
      AK_UNROLLED_2
      for (int k = 0; k < S::slice; k += kAccess) multiply_access(x + k, w + k * kLd, sums);
    }
  }

  // kAccess inputs of the slice.
  AK_DEVICE static void multiply_access(const T* x, const T* w, Accumulators& sums) {
    Pack<T, kAccess> in[kProductRows];
    AK_UNROLLED
    for (int r = 0; r < kProductRows; ++r) in[r] = load_pack<kAccess>(x + r * S::slice);
    AK_UNROLLED
    for (int j = 0; j < kAccess; ++j) {
      const auto low = load_pack<2>(w + j * kLd), high = load_pack<2>(w + j * kLd + kProductColumns / 2);
      AK_UNROLLED
      for (int r = 0; r < kProductRows; ++r) {
        sums.v[r][0] = multiply_add(in[r].v[j], low.v[0], sums.v[r][0]);
        sums.v[r][1] = multiply_add(in[r].v[j], low.v[1], sums.v[r][1]);
        sums.v[r][2] = multiply_add(in[r].v[j], high.v[0], sums.v[r][2]);
        sums.v[r][3] = multiply_add(in[r].v[j], high.v[1], sums.v[r][3]);
      }
    }
  }

  const Team& team_;
  const int64_t* const row_;
  T *const x_, *const w_, *const totals_;
};

}  // namespace ak::cuda
