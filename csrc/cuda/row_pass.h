// What a cell sees of the rows a block iterates together, and what its passes over them are made of.
#pragma once

#include <type_traits>

#include "../common/activations.h"
#include "step_space.h"
#include "tile_product.h"

namespace ak::cuda {

// The operations of activations.h for one number of a thread.
template <class T>
struct ScalarOps {
  using Scalar = T;
  using V = T;
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

  AK_DEVICE static T constant(T x) { return x; }
  AK_DEVICE static T fma(T a, T b, T c) { return multiply_add(a, b, c); }
  // The second argument where either is NaN.
  AK_DEVICE static T max(T a, T b) { return a > b ? a : b; }
  AK_DEVICE static T min(T a, T b) { return a < b ? a : b; }
  AK_DEVICE static T select(bool mask, T a, T b) { return mask ? a : b; }
  AK_DEVICE static bool negative(T x) { return x < 0; }
  AK_DEVICE static T abs(T x) { return of_bits(bits_of(x) & ~kSign); }
  AK_DEVICE static T copy_sign(T size, T sign) { return of_bits((bits_of(size) & ~kSign) | (bits_of(sign) & kSign)); }
  // 2^k and k for the integer k nearest to x, |x| < 2^21.
  AK_DEVICE static T nearest(T x, T& power) {
    constexpr T magic = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^mantissa bits
    constexpr int mantissa = sizeof(T) == 4 ? 23 : 52, bias = sizeof(T) == 4 ? 127 : 1023;
    const T shifted = x + magic;
    power = of_bits((bits_of(shifted) - bits_of(magic) + bias) << mantissa);
    return shifted - magic;
  }

 private:
  static constexpr Bits kSign = Bits(1) << (8 * sizeof(T) - 1);
  AK_DEVICE static Bits bits_of(T x) {
    Bits bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
  }
  AK_DEVICE static T of_bits(Bits bits) {
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
};

template <class T>
using Math = Activations<ScalarOps<T>>;

// use(phi) for the elementwise activation of this kind.
template <class T, class Use>
AK_DEVICE void with_activation(int kind, const Use& use) {
  switch (kind) {
    case kTanh:
      return use([](T a) { return Math<T>::tanh(a); });
    case kRelu:
      return use([](T a) { return Math<T>::relu(a); });
    case kSigmoid:
      return use([](T a) { return Math<T>::sigmoid(a); });
    case kSoftplus:
      return use([](T a) { return Math<T>::softplus(a); });
    case kGelu:
      return use([](T a) { return Math<T>::gelu(a); });
    case kSilu:
      return use([](T a) { return Math<T>::silu(a); });
    case kRelu2:
      return use([](T a) { return Math<T>::relu2(a); });
    default:
      return use([](T a) { return a; });
  }
}

// A row at work, and the warp it belongs to for the time of a pass.
template <class Warp>
class TileRow {
 public:
  AK_DEVICE TileRow(int slot, int64_t row, StepSpace<kWarp>* space)
      : slot(slot), row(row), space(space), lanes(&space->team) {}

  // f(i) for i < n
  template <class F>
  AK_DEVICE void each(int64_t n, const F& f) const {
    lanes.each([&](int lane) {
      AK_ROLLED
      for (int i = lane; i < int(n); i += kWarp) f(i);
    });
  }

  // What f(i, sums) adds up for i < n, in an order that n alone decides; to every lane.
  template <class T, int sums, class F>
  AK_DEVICE Sums<double, sums> total(int64_t n, const F& f) const {
    static_assert(sums <= int(sizeof(space->total) / sizeof(double)));
    typename Warp::template Private<Sums<T, sums>> parts;
    lanes.each([&](int lane) {
      for (int k = 0; k < sums; ++k) parts[lane].v[k] = 0;
      AK_ROLLED
      for (int i = lane; i < int(n); i += kWarp) f(i, parts[lane].v);
    });
    lanes.total(parts, [&](int k, double sum) { space->total[k] = sum; });
    Sums<double, sums> result;
    for (int k = 0; k < sums; ++k) result.v[k] = space->total[k];
    return result;
  }

  const int slot;     // its place in the tile
  const int64_t row;  // and in the batch
  StepSpace<kWarp>* const space;
  const Warp lanes;
};

// The rows of a block at one evaluation: z is given, f wanted; `kept` is the cell's own.
template <class T, class Product, class Team>
struct Tile {
  using Warp = typename Team::template Of<kWarp>;
  using Iterates = typename Product::Iterates;
  static constexpr int kWarps = Team::kThreads / kWarp;

  // pass(row) for every row at work, by a warp each, then a barrier.
  template <class Pass>
  AK_DEVICE void each_row(const Pass& pass) const {
    team.warps([&](int warp) {
      for (int slot = warp; slot < Product::Shape::rows; slot += kWarps)
        if (row[slot] >= 0) pass(TileRow<Warp>(slot, row[slot], space_of(warp)));
    });
  }
  AK_DEVICE StepSpace<kWarp>* space_of(int warp) const {
    return reinterpret_cast<StepSpace<kWarp>*>(warp_space + warp * warp_bytes);
  }

  const Team& team;
  const Product& product;
  const int64_t* row;  // that each slot works at; negative: none
  char* warp_space;    // of every warp a StepSpace with a small system, warp_bytes apart
  int64_t warp_bytes;
  Iterates z;
  Rows<T> f;
  Rows<T> kept;
};

}  // namespace ak::cuda
