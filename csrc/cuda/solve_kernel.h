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

template <class Cell, class Shape, bool mixed>
__global__ void __launch_bounds__(Shape::threads, Shape::threads > 128 ? 1 : 2)
    solve_kernel(const __grid_constant__ SolveArguments<Cell> a) {
  extern __shared__ __align__(32) unsigned char shared[];
  using Team = DeviceTeam<Shape::threads>;
  using Product = ProductOf<typename Cell::Scalar, Shape, mixed, Team>;
  const Team team(nullptr);
  const RowQueue queue{reinterpret_cast<unsigned long long*>(a.scratch)};
  const char* const packed = a.scratch + kQueueBytes;
  char* const scratch = a.scratch + kQueueBytes + a.plan.packed_bytes + blockIdx.x * a.plan.block_bytes;
  RowSolver<Cell, Product, Team, RowQueue> solver(a.problem, a.options, a.result, a.plan, team, shared, scratch, packed,
                                                  queue);
  solver.solve();
}

template <class T>
__global__ void pack_kernel(const __grid_constant__ Matrix<T> weight, MmaA* packed, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) pack_tensor_weights(weight, packed, i);
}

// Packs all weights of a solve.
template <class Cell>
void pack(const SolveArguments<Cell>& a, cudaStream_t stream) {
  constexpr int kThreads = 256;
  for (int index = 0; index < Cell::kProducts; ++index) {
    const Matrix<float> weight = Cell::matrix(a.problem, index);
    auto* const packed = reinterpret_cast<MmaA*>(a.scratch + kQueueBytes + a.plan.place[index].packed);
    const int64_t count = tensor_weight_bytes(weight.outputs, weight.inputs) / int64_t(sizeof(MmaA));
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    pack_kernel<float><<<dim3(unsigned(blocks)), dim3(kThreads), 0, stream>>>(weight, packed, count);
  }
}

template <class Cell>
cudaError_t launch(const SolveArguments<Cell>& a, cudaStream_t stream) {
  const auto kernel =
      with_variant<Cell>(a.plan, [](auto shape, auto mixed) { return solve_kernel<Cell, decltype(shape), mixed>; });
  const int shared = int(a.plan.shared_bytes);
  if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
    return error;
  if (const auto error = cudaMemsetAsync(a.scratch, 0, sizeof(unsigned long long), stream)) return error;
  if constexpr (Cell::kMixed)
    if (a.plan.mixed) pack(a, stream);
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
  RowPlan plan_solve(const Problem<T>& problem, const SolveOptions& options, const DeviceFacts& device,   \
                     const PlanChoices& choices) {                                                        \
    return plan_rows<T>(Cell<T>::size(problem), options, device, choices);                                \
  }                                                                                                       \
  template <>                                                                                             \
  const char* solve(const Problem<T>& problem, const SolveOptions& options, const SolveResult<T>& result, \
                    const RowPlan& plan, void* scratch, void* stream) {                                   \
    return solve_rows<Cell<T>>(problem, options, result, plan, scratch, stream);                          \
  }

}  // namespace ak::cuda
