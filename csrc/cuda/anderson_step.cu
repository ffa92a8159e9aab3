// The fused step on a device: one launch, no host read, no allocation (csrc/README.md has the counts).
//
// A problem belongs to one team (a warp or a block), or, where problems are few and large, its chunks belong to the
// blocks of a cooperative grid. Those meet once per problem: the block that brings the last chunk's sums decides for
// all, the others wait for its word. A block waits only after all its own sums are written, and a cooperative launch
// has every block on the device, so nobody waits for a block that waits.
#include <cuda_runtime.h>

#include "arrival.h"
#include "shared_limit.h"
#include "step_body.h"

namespace ak::cuda {
namespace {

struct Arguments {
  StepProblem problem;
  SolveOptions options;
  StepPlan plan;
};

// Between blocks of a cooperative grid.
AK_DEVICE void release(unsigned* flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicExch(flag, 1u);
  }
}

AK_DEVICE void wait_for(unsigned* flag) {
  if (threadIdx.x == 0) {
    while (*static_cast<volatile unsigned*>(flag) == 0) __nanosleep(64);
    __threadfence();
  }
  __syncthreads();
}

// How many teams are done, and how many problems run in what they did: the last one writes the number.
AK_DEVICE void end_team(const StepProblem& p, StepWords& words, int64_t teams, unsigned running) {
  const unsigned long long before = atomicAdd(&words.ended, (1ull << 32) + running);
  if (int64_t(before >> 32) + 1 != teams) return;
  *p.active = int64_t((before & 0xffffffffull) + running);
  words.ended = 0;
}

// The last block of a cooperative grid: problems still running are counted and the words set back.
template <class Body>
AK_DEVICE void end_grid(const Body& body, const DeviceTeam<kBlockThreads>& team, const StepProblem& p) {
  if (!arrives_last(reinterpret_cast<unsigned*>(&body.row(0).words().ended), gridDim.x)) return;
  for (int64_t problem = 0; problem < p.problems; ++problem) body.repair(problem);
  team.warp_totals(
      1, p.problems, [&](int, int64_t i) { return body.row(i).state().phase == kStepIterating ? 1.0 : 0.0; },
      [&](int, double running) { *p.active = int64_t(running); });
  team.each([&](int rank) {
    for (int64_t i = rank; i < p.problems; i += kBlockThreads) body.row(i).words() = {0, 0, 0};
  });
}

template <class T, int vector, int threads>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerProcessor)
    step_kernel(const __grid_constant__ Arguments arguments) {
  extern __shared__ __align__(32) unsigned char shared[];
  constexpr int kTeams = kBlockThreads / threads;
  const StepProblem& p = arguments.problem;
  const StepPlan& plan = arguments.plan;
  const int in_block = threads == kWarp ? int(threadIdx.x) / kWarp : 0;
  auto* const space = reinterpret_cast<StepSpace<threads>*>(shared + in_block * plan.team_bytes);
  const DeviceTeam<threads> team(&space->team);
  const StepRules rules = rules_for<T>(arguments.options, p.slots, p.groups, p.entries, kUnknownMapPrice);
  const StepBody<T, vector, DeviceTeam<threads>> body(p, arguments.options, plan, rules, team, space);
  const bool split = threads > kWarp && plan.split;
  const int64_t own = int64_t(blockIdx.x) * kTeams + in_block, pieces = body.chunks_per_problem();
  unsigned running = 0;
  // One round for the chunks of a split step; else one for every problem of this team.
  for (int64_t round = split ? 0 : own; round < (split ? 1 : p.problems); round += plan.teams) {
    const int64_t begin = split ? own : round * pieces, end = (split ? p.problems : round + 1) * pieces;
    const int64_t stride = split ? plan.teams : 1;
    int64_t turn = 0;
    for (int64_t i = begin; i < end; i += stride, ++turn) {
      const int64_t problem = i / pieces;
      body.first_sweep(problem, i - problem * pieces, turn);
      StepWords& words = body.row(problem).words();
      if (split ? !arrives_last(&words.arrived, unsigned(pieces)) : i + 1 < end) continue;
      body.decide(problem, problem);
      if (!split || plan.chunks > 1) body.solve_groups(problem, 0, p.groups);
      if (split) release(&words.decided);
    }
    turn = 0;
    for (int64_t i = begin; i < end; i += stride, ++turn) {
      const int64_t problem = i / pieces;
      if (split) {
        wait_for(&body.row(problem).words().decided);
        if (plan.chunks == 1) body.solve_groups(problem, i - problem * pieces, 1);
      }
      body.second_sweep(problem, i - problem * pieces, turn);
    }
    if (split) continue;
    body.repair(round);
    running += body.row(round).state().phase == kStepIterating;
  }
  if constexpr (threads > kWarp) {
    if (split) return end_grid(body, team, p);
  }
  if (team.rank() == 0) end_team(p, body.row(0).words(), plan.teams, running);
}

using Kernel = void (*)(Arguments);

template <class T>
Kernel kernel_for(const StepPlan& plan) {
  if (plan.small) return step_kernel<T, 1, kWarp>;
  return plan.wide_access ? step_kernel<T, kPerAccess<T>, kBlockThreads> : step_kernel<T, 1, kBlockThreads>;
}

Kernel kernel_for(StateType type, const StepPlan& plan) {
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

cudaError_t launch(const StepProblem& problem, const SolveOptions& options, const StepPlan& plan, cudaStream_t stream) {
  const Arguments arguments{problem, options, plan};
  const Kernel kernel = kernel_for(problem.type, plan);
  const int teams_per_block = plan.small ? kBlockThreads / kWarp : 1;
  const size_t shared = size_t(plan.team_bytes) * size_t(teams_per_block);
  if (const auto error = allow_all_shared(kernel)) return error;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned((plan.teams + teams_per_block - 1) / teams_per_block));
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = plan.split ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace

const char* anderson_step(const StepProblem& problem, const SolveOptions& options, const StepPlan& plan, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const cudaError_t error = problem.problems == 0 ? cudaMemsetAsync(problem.active, 0, sizeof(int64_t), queue)
                                                  : launch(problem, options, plan, queue);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ak::cuda
