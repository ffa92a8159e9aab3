// The MLP and gated solves of CUDA devices, run on the host.
#include "../cuda/gated_cell.h"
#include "../cuda/mlp_cell.h"
#include "gated_case.h"
#include "host_solve.h"
#include "mlp_case.h"

namespace {

using namespace ak;
using namespace ak::test;

template <class T>
void all_cells(std::initializer_list<int64_t> sizes) {
  mlp_cells<T>(sizes, solve_on_host<cuda::MlpCell<T>>, solve_on_host<cuda::MlpLinearCell<T>>);
  gated_cells<T>(sizes, solve_on_host<cuda::GatedCell<T>>, solve_on_host<cuda::GatedLinearCell<T>>);
}

// On the devices with the least and the most shared memory, no state, hidden size or history is too large.
template <class T>
void every_size_fits() {
  for (int shared : {101376, 232448})
    for (int64_t dim : {1, 2048, 20000})
      for (int64_t rows : {1, 100000})
        for (int history : {1, kMaxHistory}) {
          MlpProblem<T> problem{};
          problem.rows = rows;
          problem.dim = dim;
          problem.hidden = problem.w1.outputs = 4 * dim;
          const cuda::DeviceFacts device{132, shared};
          const cuda::RowPlan plan =
              cuda::plan_rows<T>(cuda::MlpCell<T>::size(problem), options_for(kAnderson, history, 1e-5), device);
          CHECK(plan.shared_bytes <= shared && plan.blocks >= 1, "%d entries, history %d: %d", int(dim), history,
                int(plan.shared_bytes));
        }
}

}  // namespace

int main() {
  every_size_fits<float>();
  every_size_fits<double>();
  all_cells<float>({1, 3, 16, 33});
  all_cells<double>({2, 17});
  // Several passes over the outputs, in either tile.
  for (int64_t rows : {3, 18}) {
    const SolveOptions options = options_for(kAnderson, 3, 1e-5);
    check(MlpCase<float>(rows, 20, {530, kGelu, kLayerNorm, false, 1, true}), solve_on_host<cuda::MlpCell<float>>,
          options);
    check(MlpLinearCase<float>(rows, 20, {530, true, true, kRmsNorm, false, 1}),
          solve_on_host<cuda::MlpLinearCell<float>>, options);
    check(GatedCase<float>(rows, 270), solve_on_host<cuda::GatedCell<float>>, options);
  }
  return report();
}
