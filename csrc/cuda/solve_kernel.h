// The solve of a cell on a device: one launch of a persistent grid whose blocks take rows from a queue.
#pragma once

#include <cuda_runtime.h>

#include "row_solver.h"
#include "solve_cells.h"

namespace ak::cuda {

template <class Cell>
struct SolveArguments {
  typename Cell::Problem problem;
  SolveOptions options;
  SolveResult<typename Cell::Scalar> result;
  RowPlan plan;
  char* scratch;
};

struct RowQueue {
  unsigned long long* next;
  AK_DEVICE int64_t operator()() const { return int64_t(atomicAdd(next, 1ull)); }
};

template <class Cell, class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::threads > 128 ? 1 : 2)
    solve_kernel(const __grid_constant__ SolveArguments<Cell> a) {
  extern __shared__ __align__(32) unsigned char shared[];
  using Team = DeviceTeam<Shape::threads>;
  using Product = TileProduct<typename Cell::Scalar, Shape, Team>;
  const Team team(nullptr);
  const RowQueue queue{reinterpret_cast<unsigned long long*>(a.scratch)};
  char* const scratch = a.scratch + kQueueBytes + blockIdx.x * a.plan.block_bytes;
  RowSolver<Cell, Product, Team, RowQueue> solver(a.problem, a.options, a.result, a.plan, team, shared, scratch, queue);
  solver.solve();
}

template <class Cell>
cudaError_t launch(const SolveArguments<Cell>& a, cudaStream_t stream) {
  const auto kernel =
      with_shape<typename Cell::Scalar>(a.plan, [](auto shape) { return solve_kernel<Cell, decltype(shape)>; });
  const int shared = int(a.plan.shared_bytes);
  if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
    return error;
  if (const auto error = cudaMemsetAsync(a.scratch, 0, sizeof(unsigned long long), stream)) return error;
  kernel<<<dim3(unsigned(a.plan.blocks)), dim3(unsigned(a.plan.threads)), size_t(shared), stream>>>(a);
  return cudaGetLastError();
}

template <class Cell>
const char* solve_rows(const typename Cell::Problem& problem, const SolveOptions& options,
                       const SolveResult<typename Cell::Scalar>& result, const RowPlan& plan, void* scratch,
                       void* stream) {
  if (problem.rows == 0) return nullptr;
  const cudaError_t error =
      launch<Cell>({problem, options, result, plan, static_cast<char*>(scratch)}, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The entry points of a cell in one type.
#define AK_DEFINE_CUDA_SOLVE(Cell, Problem, T)                                                            \
  template <>                                                                                             \
  RowPlan plan_solve(const Problem<T>& problem, const SolveOptions& options, const DeviceFacts& device) { \
    return plan_rows<T>(Cell<T>::size(problem), options, device);                                         \
  }                                                                                                       \
  template <>                                                                                             \
  const char* solve(const Problem<T>& problem, const SolveOptions& options, const SolveResult<T>& result, \
                    const RowPlan& plan, void* scratch, void* stream) {                                   \
    return solve_rows<Cell<T>>(problem, options, result, plan, scratch, stream);                          \
  }

}  // namespace ak::cuda
