#include "mlp_cell.h"
#include "solve_kernel.h"

namespace ak::cuda {

AK_DEFINE_CUDA_SOLVE(MlpCell, MlpProblem, float)
AK_DEFINE_CUDA_SOLVE(MlpCell, MlpProblem, double)
AK_DEFINE_CUDA_SOLVE(MlpLinearCell, MlpLinearProblem, float)
AK_DEFINE_CUDA_SOLVE(MlpLinearCell, MlpLinearProblem, double)

}  // namespace ak::cuda
