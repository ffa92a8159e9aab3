#include "gated_cell.h"
#include "solve_kernel.h"

namespace ak::cuda {

AK_DEFINE_CUDA_SOLVE(GatedCell, GatedProblem, float)
AK_DEFINE_CUDA_SOLVE(GatedCell, GatedProblem, double)
AK_DEFINE_CUDA_SOLVE(GatedLinearCell, GatedLinearProblem, float)
AK_DEFINE_CUDA_SOLVE(GatedLinearCell, GatedLinearProblem, double)

}  // namespace ak::cuda
