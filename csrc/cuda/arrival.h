// How a block of a grid learns that it is the last one, on a device.
#pragma once

#include "storage.h"

namespace ak::cuda {

#if defined(__CUDACC__)

// Counts this block in; true for the one that makes the count `expected`, which then sees what the others wrote. As in
// cooperative groups, a fence before the arrival and one after.
AK_DEVICE bool arrives_last(unsigned* counter, unsigned expected) {
  bool last = false;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(counter, 1u) + 1 == expected;
    __threadfence();
  }
  return __syncthreads_or(last);
}

#endif

}  // namespace ak::cuda
