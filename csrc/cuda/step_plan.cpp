// How a step is cut up, from its shape, the device and what was chosen by hand. Whether a warp or a block takes a
// problem decides the order of its sums, and follows from its length unless it was chosen; nothing else changes a bit
// of the result.
#include "anderson_step.h"
#include "step_space.h"

namespace ak::cuda {
namespace {

constexpr int64_t kWarpsPerBlock = kBlockThreads / 32;
constexpr int64_t kMaxTeams = int64_t(1) << 20;
constexpr int64_t kSmallTeamBytes = 6 * 1024;  // eight of them leave room for a second block on a multiprocessor
// Of a block's shared memory, for the system; a multiprocessor has that much more than a block may have.
constexpr int64_t kReservedBytes = 1024;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

bool aligned(const StepProblem& p) {
  const int64_t bytes = element_bytes(p.type);
  const auto misses = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16; };
  return p.entries * bytes % 16 == 0 && p.stride * bytes % 16 == 0 && !misses(p.z) && !misses(p.fz) && !misses(p.out) &&
         !misses(p.best) && !misses(p.history);
}

}  // namespace

PlannedStep plan_step(const StepProblem& p, const DeviceFacts& device, StepChoices choices) {
  if (p.problems == 0) choices = {};
  StepPlan plan{};
  const int64_t wide = p.type == StateType::kFloat64 ? 8 : 4, processors = device.processors;
  plan.chunks = chunks_of(p.entries);
  plan.chunk = plan.chunks > 1 ? chunk_entries(p.entries) : round_up(p.entries, 8);
  plan.small = choices.warp < 0 ? p.groups * p.entries <= kSmallProblem : choices.warp > 0;
  plan.wide_access = !plan.small && aligned(p);
  const int64_t pieces = p.groups * plan.chunks, all = p.problems * pieces;
  const int64_t teams_per_block = plan.small ? kWarpsPerBlock : 1;
  const bool few = 0 < p.problems && p.problems < 2 * processors;
  plan.split = choices.split < 0 ? !plan.small && pieces > 1 && few : choices.split > 0;
  if (plan.split && plan.small) return {plan, "blocks cannot share a problem that a warp takes"};
  if (plan.split && pieces == 1) return {plan, "blocks cannot share a problem of one chunk"};

  const int64_t fixed = plan.small ? sizeof(StepSpace<32>) : sizeof(StepSpace<kBlockThreads>);
  const int64_t budget =
      plan.small ? kSmallTeamBytes : int64_t(device.shared_per_block) / kBlocksPerProcessor - kReservedBytes - fixed;
  if (p.slots > 1) {
    // Where a group is cut into chunks there are few groups; otherwise threads solve one each.
    const int64_t one = solver_doubles(p.slots - 1) * int64_t(sizeof(double));
    const int64_t most = choices.solvers > 0 ? choices.solvers : least(plan.small ? 4 : 32, 1 + budget / 4 / one);
    plan.solvers = int(least(p.groups, most));
    if (plan.solvers > (plan.small ? 32 : kBlockThreads))
      return {plan, "a team solves no more systems at once than it has threads"};
  }
  const int64_t solving = solvers_doubles(plan.solvers, p.slots) * int64_t(sizeof(double));

  // With so many blocks on a multiprocessor, at most; whether they fit, which those of a split step must.
  const auto lay_out = [&](int64_t residents) {
    const int64_t blocks = choices.blocks > 0 ? choices.blocks : plan.split ? residents * processors : kMaxTeams;
    plan.teams = least(plan.split ? all : least(p.problems, kMaxTeams), blocks * teams_per_block);
    plan.teams = round_up(plan.teams, teams_per_block);
    const int64_t turns = plan.split ? (all + plan.teams - 1) / plan.teams : pieces;
    const bool keeps = solving + turns * plan.chunk * wide <= budget;
    plan.kept_chunks = int(choices.kept >= 0 ? least(choices.kept, turns) : keeps ? turns : 0);
    plan.team_bytes = round_up(fixed + solving + plan.kept_chunks * plan.chunk * wide, 32);
    const int64_t shared = int64_t(device.shared_per_block) + kReservedBytes;
    return teams_per_block * plan.team_bytes + kReservedBytes <= (plan.split ? shared / residents : shared);
  };
  int64_t residents = kBlocksPerProcessor;
  const bool counted = plan.split && choices.blocks > 0;
  if (counted) residents = (least(all, choices.blocks) + processors - 1) / processors;
  if (residents > kBlocksPerProcessor)
    return {plan, "blocks that share problems must be on the device together, three on a multiprocessor"};
  while (!lay_out(residents)) {
    if (!plan.split || counted || residents == 1)
      return {plan, "it needs more shared memory than the device has for its blocks"};
    --residents;
  }
  return {plan, nullptr};
}

}  // namespace ak::cuda
