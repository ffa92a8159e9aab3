#include "affine_cell.h"
#include "solve_kernel.h"

namespace ak::cuda {

AK_DEFINE_CUDA_SOLVE(AffineCell, AffineProblem, float)
AK_DEFINE_CUDA_SOLVE(AffineCell, AffineProblem, double)

}  // namespace ak::cuda
