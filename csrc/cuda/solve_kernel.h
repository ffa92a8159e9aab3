// The solve of a cell on a device: one launch of a persistent grid whose blocks take rows from a queue.
#pragma once

#include <cuda_runtime.h>

#include "row_solver.h"
#include "shared_limit.h"
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

// Blocks whose teams share W in shared memory have a multiprocessor to themselves.
template <class Shape, ProductKind products>
constexpr int kSolveThreads = Shape::threads * (products == kWgmma ? kGroupTeams : 1);

template <class Cell, class Shape, ProductKind products>
__global__ void __launch_bounds__(kSolveThreads<Shape, products>, kSolveThreads<Shape, products> > 128 ? 1 : 2)
    solve_kernel(const __grid_constant__ SolveArguments<Cell> a) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int kTeams = kSolveThreads<Shape, products> / Shape::threads;
  using Team = DeviceTeam<Shape::threads, kTeams>;
  using Product = ProductOf<typename Cell::Scalar, Shape, products, Team>;
  const Team team(nullptr);
  const RowQueue queue{reinterpret_cast<unsigned long long*>(a.scratch)};
  const char* packed = a.scratch + kQueueBytes;
  // From lane 0, so that the compiler knows that all lanes have the same.
  const int which = kTeams > 1 ? __shfl_sync(~0u, int(threadIdx.x) / Shape::threads, 0) : 0;
  unsigned char* space = shared + which * a.plan.team_shared;
  if constexpr (products == kWgmma) {
    const auto* const from = reinterpret_cast<const uint4*>(packed);
    for (int i = int(threadIdx.x); i < int(a.plan.packed_bytes) / 16; i += int(blockDim.x))
      reinterpret_cast<uint4*>(shared)[i] = from[i];
    team.publish();
    __syncthreads();
    packed = reinterpret_cast<const char*>(shared);
    space += a.plan.packed_bytes;
  }
  char* const scratch =
      a.scratch + kQueueBytes + a.plan.packed_bytes + (blockIdx.x * a.plan.teams + which) * a.plan.team_bytes;
  RowSolver<Cell, Product, Team, RowQueue> solver(a.problem, a.options, a.result, a.plan, team, space, scratch, packed,
                                                  queue);
  solver.solve();
}

template <ProductKind products>
__global__ void pack_kernel(const __grid_constant__ Matrix<float> weight, char* packed, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  if constexpr (products == kMma)
    pack_tensor_weights(weight, reinterpret_cast<MmaA*>(packed), i);
  else
    pack_group_weights(weight, reinterpret_cast<BFloat16*>(packed), i);
}

// Packs all weights of a solve.
template <ProductKind products, class Cell>
void pack(const SolveArguments<Cell>& a, cudaStream_t stream) {
  constexpr int kThreads = 256;
  for (int index = 0; index < Cell::kProducts; ++index) {
    const Matrix<float> weight = Cell::matrix(a.problem, index);
    char* const packed = a.scratch + kQueueBytes + a.plan.place[index].packed;
    const int64_t count = products == kMma
                              ? tensor_weight_bytes(weight.outputs, weight.inputs) / int64_t(sizeof(MmaA))
                              : group_weight_bytes(weight.outputs, weight.inputs) / int64_t(sizeof(BFloat16));
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    pack_kernel<products><<<dim3(unsigned(blocks)), dim3(kThreads), 0, stream>>>(weight, packed, count);
  }
}

template <class Cell>
cudaError_t launch(const SolveArguments<Cell>& a, cudaStream_t stream) {
  const auto kernel = with_variant<Cell>(
      a.plan, [](auto shape, auto products) { return solve_kernel<Cell, decltype(shape), products>; });
  if (const auto error = allow_all_shared(kernel)) return error;
  if (const auto error = cudaMemsetAsync(a.scratch, 0, sizeof(unsigned long long), stream)) return error;
  if constexpr (Cell::kMixed) {
    if (a.plan.products == kMma) pack<kMma>(a, stream);
    if (a.plan.products == kWgmma) pack<kWgmma>(a, stream);
  }
  const int threads = a.plan.threads * a.plan.teams;
  kernel<<<dim3(unsigned(a.plan.blocks)), dim3(unsigned(threads)), size_t(a.plan.shared_bytes), stream>>>(a);
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
