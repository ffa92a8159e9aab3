// How the relative residual is cut up. Whether a warp or a block takes a problem decides the order of its sums, and
// follows from its length unless it was chosen by hand; nothing else changes a bit of the result.
#include "residual_norm.h"

namespace ak::cuda {
namespace {

constexpr int64_t kMostBlocks = int64_t(1) << 20;

bool aligned(const ResidualProblem& p) {
  const auto misses = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16; };
  return p.entries * element_bytes(p.type) % 16 == 0 && !misses(p.z) && !misses(p.fz);
}

}  // namespace

ResidualPlan plan_residual(const ResidualProblem& p, const StepChoices& choices) {
  ResidualPlan plan{};
  plan.chunks = chunks_of(p.entries);
  plan.small = choices.warp < 0 ? p.entries <= kSmallProblem : choices.warp > 0;
  plan.wide_access = !plan.small && aligned(p);
  if (plan.small && plan.chunks > 1 && p.problems > 0) plan.refused = "a warp takes problems of one chunk only";
  const int64_t teams = plan.small ? kBlockThreads / 32 : 1, wanted = (p.problems * plan.chunks + teams - 1) / teams;
  const int64_t most = choices.blocks > 0 ? choices.blocks : kMostBlocks;
  plan.blocks = wanted < most ? wanted : most;
  return plan;
}

}  // namespace ak::cuda
