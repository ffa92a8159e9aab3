// Slopes of an activation by its value.
#pragma once

#include "../common/activations.h"
#include "simd.h"

namespace ak::AK_ISA {

// phi'(a) by phi(a), but of activations that do not tell.
template <class T, int kind>
inline Vec<T> slope_at(Vec<T> phi) {
  using Math = Activations<VecOps<T>>;
  const Vec<T> one = broadcast<T>(T(1));
  if constexpr (kind == kTanh) return fma<T>(-phi, phi, one);
  if constexpr (kind == kSigmoid) return phi * (one - phi);
  if constexpr (kind == kSoftplus) return one - Math::exp(-phi);
  if constexpr (kind == kRelu) return phi > Vec<T>{} ? one : Vec<T>{};
  return one;
}

// Whether it does.
constexpr bool slope_by_value(int kind) {
  return kind == kIdentity || kind == kTanh || kind == kSigmoid || kind == kSoftplus || kind == kRelu;
}

}  // namespace ak::AK_ISA
