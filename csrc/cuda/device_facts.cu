#include <cuda_runtime.h>

#include "anderson_step.h"

namespace ak::cuda {

const char* device_facts(DeviceFacts& facts) {
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto read = [&](int& fact, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&fact, attribute, device);
  };
  read(facts.processors, cudaDevAttrMultiProcessorCount);
  read(facts.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(major, cudaDevAttrComputeCapabilityMajor);
  read(minor, cudaDevAttrComputeCapabilityMinor);
  facts.capability = 10 * major + minor;
  facts.wgmma = AK_BUILT_WITH_WGMMA && facts.capability == 90;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ak::cuda
