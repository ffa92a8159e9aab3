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
Kernel kernel_for(const ResidualPlan& plan) {
  if (plan.small) return residual_kernel<T, 1, kWarp>;
  return plan.wide_access ? residual_kernel<T, kPerAccess<T>, kBlockThreads> : residual_kernel<T, 1, kBlockThreads>;
}

Kernel kernel_for(StateType type, const ResidualPlan& plan) {
  switch (type) {
    case StateType::kFloat32:
      return kernel_for<float>(plan);
    case StateType::kFloat64:
      return kernel_for<double>(plan);
    case StateType::kBFloat16:
      return kernel_for<BFloat16>(plan);
    default:
      return kernel_for<Float16>(plan);
  }
}

cudaError_t launch(const ResidualProblem& p, const ResidualPlan& plan, cudaStream_t stream) {
  if (p.arrived != nullptr)
    if (const auto error = cudaMemsetAsync(p.arrived, 0, size_t(p.problems) * sizeof(unsigned), stream)) return error;
  kernel_for(p.type, plan)<<<dim3(unsigned(plan.blocks)), dim3(kBlockThreads), 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

const char* residual_norm(const ResidualProblem& problem, const ResidualPlan& plan, void* stream) {
  const cudaError_t error = launch(problem, plan, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ak::cuda
