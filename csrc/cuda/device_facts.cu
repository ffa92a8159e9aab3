#include <cuda_runtime.h>

#include "anderson_step.h"

namespace ak::cuda {

const char* device_facts(DeviceFacts& facts) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&facts.processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&facts.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ak::cuda
