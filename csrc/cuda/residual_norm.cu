// The relative residual on a device. A problem of one chunk belongs to a team (a warp or a block). The chunks of a
// larger one go to blocks of their own, and the block that brings the last one's sums adds them up.
#include <cuda_runtime.h>

#include "arrival.h"
#include "residual_body.h"

namespace ak::cuda {
namespace {

template <class T, int vector, int threads>
__global__ void __launch_bounds__(kBlockThreads, 8) residual_kernel(const __grid_constant__ ResidualProblem p) {
  constexpr int kTeams = kBlockThreads / threads;
  __shared__ ResidualSpace<threads> spaces[kTeams];
  const int in_block = threads == kWarp ? int(threadIdx.x) / kWarp : 0;
  const DeviceTeam<threads> team(&spaces[in_block].team);
  const ResidualBody<T, vector, DeviceTeam<threads>> body(p, team, &spaces[in_block]);
  const int64_t chunks = body.chunks(), all = p.problems * chunks;
  for (int64_t i = int64_t(blockIdx.x) * kTeams + in_block; i < all; i += int64_t(gridDim.x) * kTeams) {
    const int64_t problem = i / chunks;
    body.sum_chunk(problem, i - problem * chunks);
    if constexpr (threads > kWarp)
      if (chunks > 1 && !arrives_last(p.arrived + problem, unsigned(chunks))) continue;
    body.finish(problem);
  }
}

using Kernel = void (*)(ResidualProblem);

template <class T>
Kernel kernel_for(const ResidualProblem& p) {
  if (p.entries <= kSmallProblem) return residual_kernel<T, 1, kWarp>;
  return wide_access(p) ? residual_kernel<T, kPerAccess<T>, kBlockThreads> : residual_kernel<T, 1, kBlockThreads>;
}

Kernel kernel_for(const ResidualProblem& p) {
  switch (p.type) {
    case StateType::kFloat32:
      return kernel_for<float>(p);
    case StateType::kFloat64:
      return kernel_for<double>(p);
    case StateType::kBFloat16:
      return kernel_for<BFloat16>(p);
    default:
      return kernel_for<Float16>(p);
  }
}

cudaError_t launch(const ResidualProblem& p, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = int64_t(1) << 20;
  if (p.arrived != nullptr)
    if (const auto error = cudaMemsetAsync(p.arrived, 0, size_t(p.problems) * sizeof(unsigned), stream)) return error;
  const int64_t teams = p.entries <= kSmallProblem ? kBlockThreads / kWarp : 1;
  const int64_t blocks = (p.problems * chunks_of(p.entries) + teams - 1) / teams;
  kernel_for(p)<<<dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks)), dim3(kBlockThreads), 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

const char* residual_norm(const ResidualProblem& problem, void* stream) {
  const cudaError_t error = launch(problem, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ak::cuda
