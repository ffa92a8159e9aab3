// How a step is cut up, from its shape and the device. Nothing here changes a bit of the result: the order of every
// sum follows from the lengths alone.
#include "anderson_step.h"
#include "step_space.h"

namespace ak::cuda {
namespace {

constexpr int64_t kWarpsPerBlock = kBlockThreads / 32;
constexpr int64_t kMaxTeams = int64_t(1) << 20;
constexpr int64_t kSmallTeamBytes = 6 * 1024;  // eight of them leave room for a second block on a multiprocessor

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

bool aligned(const StepProblem& p) {
  const int64_t bytes = element_bytes(p.type);
  const auto misses = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16; };
  return p.entries * bytes % 16 == 0 && p.stride * bytes % 16 == 0 && !misses(p.z) && !misses(p.fz) && !misses(p.out) &&
         !misses(p.best) && !misses(p.history);
}

}  // namespace

StepPlan plan_step(const StepProblem& p, const DeviceFacts& device) {
  StepPlan plan{};
  const int64_t wide = p.type == StateType::kFloat64 ? 8 : 4;
  plan.chunks = chunks_of(p.entries);
  plan.chunk = plan.chunks > 1 ? chunk_entries(p.entries) : round_up(p.entries, 8);
  plan.small = p.groups * p.entries <= kSmallProblem;
  plan.wide_access = !plan.small && aligned(p);
  const int64_t pieces = p.groups * plan.chunks;
  plan.split = !plan.small && pieces > 1 && p.problems < 2 * int64_t(device.processors);
  plan.teams = plan.small   ? round_up(least(p.problems, kMaxTeams), kWarpsPerBlock)
               : plan.split ? least(p.problems * pieces, int64_t(kBlocksPerProcessor) * device.processors)
                            : least(p.problems, kMaxTeams);
  const int64_t fixed = plan.small ? sizeof(StepSpace<32>) : sizeof(StepSpace<kBlockThreads>);
  const int64_t budget =
      plan.small ? kSmallTeamBytes : int64_t(device.shared_per_block) / kBlocksPerProcessor - 1024 - fixed;
  if (p.slots > 1) {
    // Where a group is cut into chunks there are few groups; otherwise threads solve one each.
    const int64_t one = solver_doubles(p.slots - 1) * int64_t(sizeof(double));
    plan.solvers = int(least(least(p.groups, plan.small ? 4 : 32), 1 + budget / 4 / one));
  }
  const int64_t solving = solvers_doubles(plan.solvers, p.slots) * int64_t(sizeof(double));
  const int64_t turns = plan.split ? (p.problems * pieces + plan.teams - 1) / plan.teams : pieces;
  const int64_t keeping = turns * plan.chunk * wide;
  plan.kept_chunks = solving + keeping <= budget ? int(turns) : 0;
  plan.team_bytes = round_up(fixed + solving + plan.kept_chunks * plan.chunk * wide, 32);
  return plan;
}

}  // namespace ak::cuda
