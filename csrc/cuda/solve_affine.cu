// The affine solve on a device: one launch of a persistent grid whose blocks take rows from a queue.
#include <cuda_runtime.h>

#include "affine_body.h"

namespace ak::cuda {
namespace {

struct Arguments {
  AffineProblem<float> problem;
  SolveOptions options;
  SolveResult<float> result;
  AffinePlan plan;
  char* scratch;
};

struct RowQueue {
  unsigned long long* next;
  AK_DEVICE int64_t operator()() const { return int64_t(atomicAdd(next, 1ull)); }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::threads > 128 ? 1 : 2)
    affine_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(32) unsigned char shared[];
  const DeviceTeam<Shape::threads> team(nullptr);
  const RowQueue queue{reinterpret_cast<unsigned long long*>(a.scratch)};
  char* const scratch = a.scratch + kQueueBytes + blockIdx.x * a.plan.block_bytes;
  AffineBody<Shape, DeviceTeam<Shape::threads>, RowQueue> body(a.problem, a.options, a.result, a.plan, team, shared,
                                                               scratch, queue);
  body.solve();
}

cudaError_t launch(const Arguments& a, cudaStream_t stream) {
  const auto kernel = a.plan.tile_rows == WideTile::rows ? affine_kernel<WideTile> : affine_kernel<NarrowTile>;
  const int shared = int(a.plan.shared_bytes);
  if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
    return error;
  if (const auto error = cudaMemsetAsync(a.scratch, 0, sizeof(unsigned long long), stream)) return error;
  kernel<<<dim3(unsigned(a.plan.blocks)), dim3(unsigned(a.plan.threads)), size_t(shared), stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

const char* solve_affine(const AffineProblem<float>& problem, const SolveOptions& options,
                         const SolveResult<float>& result, const AffinePlan& plan, void* scratch, void* stream) {
  if (problem.rows == 0) return nullptr;
  const cudaError_t error =
      launch({problem, options, result, plan, static_cast<char*>(scratch)}, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ak::cuda
