// A team's shared memory during a step: this, then the small systems, then the h it keeps between the sweeps.
#pragma once

#include "../common/small_solve.h"
#include "team.h"

namespace ak::cuda {

constexpr int kBlocksPerProcessor = 3;  // registers for no more; enough loads in flight

template <int threads>
struct alignas(32) StepSpace {
  TeamSpace<threads> team;
  double total[3];
  double weight[kMaxHistory + 1];  // in the computing type
};

}  // namespace ak::cuda
