// What was chosen by hand, by operator, and what was measured: what attractor_kernels/backends/override.py and
// plan_table.py told. Read once a call.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "../cuda/plan_table.h"

namespace ak::ops {

// Of a solve on a device.
cuda::ToldPlan told(const cuda::PlanCall& call, int32_t device);
// Of a step or a residual; no table has anything of those.
cuda::StepChoices told(cuda::StepOperator op);

inline void check_granted(const char* refused) {
  STD_TORCH_CHECK(refused == nullptr, "the plan chosen by hand cannot be had: ", refused);
}

}  // namespace ak::ops
