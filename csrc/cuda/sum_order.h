// The order in which a row's sums are added up, from its length alone: however many threads or blocks share a row, its
// bits are the same.
//
// A row product sum_k z_k W_nk: chains of fma over kSegment inputs, added in order. An inner product of two states: a
// chain of fma over kSumPack entries; the packs of a group pairwise; groups in double, every kSumLanes-th in order;
// the lanes as a butterfly adds them.
#pragma once

#include "storage.h"

namespace ak::cuda {

constexpr int kSegment = 64;
constexpr int kSumPack = 4;
constexpr int kSumGroup = 16;
constexpr int kSumLanes = 8;

template <class T>
AK_DEVICE T add_packs(T a, T b, T c, T d) {
  return (a + b) + (c + d);
}

AK_DEVICE double add_lanes(const double* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

}  // namespace ak::cuda
