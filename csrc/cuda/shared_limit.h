// How much shared memory a kernel's launches may ask for.
#pragma once

#include <cuda_runtime.h>

namespace ak::cuda {

// As much as there is: the limit is the function's, not the launch's, so two threads that launch it must not set it to
// what each needs.
template <class Kernel>
cudaError_t allow_all_shared(Kernel kernel) {
  int device = 0, most = 0;
  if (const auto error = cudaGetDevice(&device)) return error;
  if (const auto error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

}  // namespace ak::cuda
