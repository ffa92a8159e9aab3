// The fused step for unknown maps on a device: what the binding hands to the kernels, and how a step is cut up.
#pragma once

#include "../common/problems.h"
#include "../common/step_problem.h"
#include "plan_choices.h"

namespace ak::cuda {

constexpr int kBlockThreads = 128;
constexpr int64_t kSmallProblem = 512;  // entries up to which a warp takes a problem

// Entries whose sums are one piece, by the length of a group alone: a result depends on neither the batch nor the
// device. At most 4096 pieces a group. attractor_kernels/ops/anderson_step.py sizes `control` by it.
constexpr int64_t chunk_entries(int64_t entries) {
  int64_t chunk = 4096;
  while (chunk * 4096 < entries) chunk *= 2;
  return chunk;
}
constexpr int64_t chunks_of(int64_t entries) {
  return entries > 0 ? (entries + chunk_entries(entries) - 1) / chunk_entries(entries) : 1;
}

// A row of StepProblem::control, in doubles: StepResult, StepState and the words below, then per group its counts,
// weights and Gram matrix, then the sums of every chunk of every group.
constexpr int64_t device_control_columns(int64_t groups, int64_t entries, int slots) {
  return kResultDoubles + kStateDoubles + groups * (group_doubles(slots) + chunks_of(entries) * chunk_doubles(slots));
}

// Doubles a small system of n unknowns needs: its matrix and factor, five vectors, and the order.
constexpr int64_t solver_doubles(int n) { return 2 * int64_t(n) * n + 5 * n + (n + 1) / 2; }
// Those of a team, in whole accesses.
constexpr int64_t solvers_doubles(int solvers, int slots) {
  return slots > 1 ? (solvers * solver_doubles(slots - 1) + 3) / 4 * 4 : 0;
}

// How a step is launched. teams: of a launch; a warp or a block each.
struct StepPlan {
  bool small;        // a warp takes a problem
  bool split;        // several blocks take the chunks of a problem; needs all of them on the device at once
  bool wide_access;  // every row starts at a multiple of 16 bytes
  int64_t chunk;     // entries; a group that is one chunk may have fewer
  int64_t chunks;    // of a group
  int64_t teams;
  int solvers;         // small systems a team solves at once
  int kept_chunks;     // chunks whose h a team keeps in shared memory between the sweeps
  int64_t team_bytes;  // of shared memory
};

struct DeviceFacts {
  int processors;        // streaming multiprocessors
  int shared_per_block;  // bytes a block may have
  int capability = 0;    // 10 times the major number and the minor one
  bool wgmma = false;    // it has products by warpgroups, which exist in 9.0 alone, and so does the code
};

// Of the current device; null, or why they cannot be had.
const char* device_facts(DeviceFacts& facts);

// Kernels of whole solves keep a StepPlan in shared memory, so what they have no use for stands beside it.
struct PlannedStep {
  StepPlan plan;
  const char* refused;  // why it cannot be as chosen by hand; or null
};

PlannedStep plan_step(const StepProblem& problem, const DeviceFacts& device, StepChoices choices = {});

// Enqueues the step on a stream of the current device; null, or why that is not possible.
const char* anderson_step(const StepProblem& problem, const SolveOptions& options, const StepPlan& plan, void* stream);

}  // namespace ak::cuda
