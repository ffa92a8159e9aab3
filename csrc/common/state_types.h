// Types states are stored in: float and double compute in their own type, bfloat16 and float16 in float.
#pragma once

#include <cstdint>

namespace ak {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct WideOf {
  using type = T;
};
template <>
struct WideOf<BFloat16> {
  using type = float;
};
template <>
struct WideOf<Float16> {
  using type = float;
};
template <class T>
using Wide = typename WideOf<T>::type;

// Largest finite value of T.
template <class T>
inline constexpr Wide<T> kLargest = Wide<T>(0);
template <>
inline constexpr float kLargest<float> = 0x1.fffffep127f;
template <>
inline constexpr double kLargest<double> = 0x1.fffffffffffffp1023;
template <>
inline constexpr float kLargest<BFloat16> = 0x1.fep127f;
template <>
inline constexpr float kLargest<Float16> = 65504.0f;

// Spacing of T at 1.
template <class T>
inline constexpr double kEpsilon = 0;
template <>
inline constexpr double kEpsilon<float> = 0x1p-23;
template <>
inline constexpr double kEpsilon<double> = 0x1p-52;
template <>
inline constexpr double kEpsilon<BFloat16> = 0x1p-7;
template <>
inline constexpr double kEpsilon<Float16> = 0x1p-10;

}  // namespace ak
