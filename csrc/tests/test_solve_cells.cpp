// The CPU's fused MLP and gated solves, in both precisions, on one thread and on several.
#include "gated_case.h"
#include "mlp_case.h"

namespace ak::AK_ISA {
#define AK_DECLARE_SOLVE(name, Problem, T) \
  void name(const Problem<T>&, const SolveOptions&, const SolveResult<T>&, const Executor&);
#define AK_DECLARE_SOLVES(name, Problem) AK_DECLARE_SOLVE(name, Problem, float) AK_DECLARE_SOLVE(name, Problem, double)
AK_DECLARE_SOLVES(solve_mlp, MlpProblem)
AK_DECLARE_SOLVES(solve_mlp_linear, MlpLinearProblem)
AK_DECLARE_SOLVES(solve_gated, GatedProblem)
AK_DECLARE_SOLVES(solve_gated_linear, GatedLinearProblem)
}  // namespace ak::AK_ISA

namespace {

using namespace ak;
using namespace ak::test;

const Executor& executor(bool again) { return again ? kOneThread : kThreads; }

template <class T>
void all_cells(std::initializer_list<int64_t> sizes) {
  mlp_cells<T>(
      sizes,
      [](const auto& p, const auto& o, const auto& r, bool again) { AK_ISA::solve_mlp(p, o, r, executor(again)); },
      [](const auto& p, const auto& o, const auto& r, bool again) {
        AK_ISA::solve_mlp_linear(p, o, r, executor(again));
      });
  gated_cells<T>(
      sizes,
      [](const auto& p, const auto& o, const auto& r, bool again) { AK_ISA::solve_gated(p, o, r, executor(again)); },
      [](const auto& p, const auto& o, const auto& r, bool again) {
        AK_ISA::solve_gated_linear(p, o, r, executor(again));
      });
}

}  // namespace

int main() {
  all_cells<float>({1, 3, 16, 33});
  all_cells<double>({2, 17});
  return report();
}
