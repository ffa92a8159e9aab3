// The fused step as a torch operator of CUDA devices, through torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "../cuda/anderson_step.h"
#include "cuda_call.h"
#include "cuda_choices.h"
#include "step_arguments.h"

namespace {

using torch::stable::Tensor;

void anderson_step(const Tensor& z, const Tensor& fz, const Tensor& out, const Tensor& best, const Tensor& history,
                   const Tensor& control, const Tensor& active, const std::optional<Tensor>& trace, int64_t solver,
                   double damping, double ridge, double rtol, double atol, int64_t max_steps, int64_t min_steps,
                   bool keep_best) {
  const ak::ops::StepOptions options{solver, damping, ridge, rtol, atol, max_steps, min_steps, keep_best};
  const ak::ops::CudaCall call(z);
  for (const Tensor* t : {&fz, &out, &best, &history, &control, &active}) call.check(*t);
  if (trace.has_value()) call.check(*trace);
  const ak::StepProblem p = ak::ops::step_problem(z, fz, out, best, history, control, active, trace, options,
                                                  ak::cuda::device_control_columns);
  ak::cuda::DeviceFacts device{};
  call.done(ak::cuda::device_facts(device));
  const auto [plan, refused] = ak::cuda::plan_step(p, device, ak::ops::told(ak::cuda::kAndersonStep));
  ak::ops::check_granted(refused);
  call.done(ak::cuda::anderson_step(p, options.with_slots(p.slots), plan, call.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CUDA, m) { m.impl("anderson_step", TORCH_BOX(&anderson_step)); }
