// The fused step for unknown maps as torch operators of the CPU, through torch's stable ABI. Schemas are
// attractor_kernels/ops/{anderson_step,residual_norm}.py.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../cpu/dispatch.h"
#include "executor.h"
#include "step_arguments.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void anderson_step(const Tensor& z, const Tensor& fz, const Tensor& out, const Tensor& best, const Tensor& history,
                   const Tensor& control, const Tensor& active, const std::optional<Tensor>& trace, int64_t solver,
                   double damping, double ridge, double rtol, double atol, int64_t max_steps, int64_t min_steps,
                   bool keep_best) {
  const ak::ops::StepOptions options{solver, damping, ridge, rtol, atol, max_steps, min_steps, keep_best};
  const ak::StepProblem p =
      ak::ops::step_problem(z, fz, out, best, history, control, active, trace, options, ak::control_columns);
  ak::instruction_set().step->anderson_step(p, options.with_slots(p.slots), torch_executor());
}

template <class S>
void write_relative(const double* squares, int64_t problems, int64_t chunks, S* out) {
  for (int64_t i = 0; i < problems; ++i) {
    double r2 = 0, f2 = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      r2 += squares[(i * chunks + c) * 2];
      f2 += squares[(i * chunks + c) * 2 + 1];
    }
    out[i] = S(ak::relative_residual(r2, f2));
  }
}

Tensor residual_norm(const Tensor& z, const Tensor& fz, int64_t batch_ndim) {
  STD_TORCH_CHECK(batch_ndim >= 0 && batch_ndim <= z.dim(), "batch_ndim must be between 0 and ", z.dim());
  std::vector<int64_t> batch;
  int64_t problems = 1;
  for (int64_t d = 0; d < batch_ndim; ++d) {
    batch.push_back(z.size(d));
    problems *= z.size(d);
  }
  const ScalarType type = z.scalar_type();
  const bool wide = type == ScalarType::Double;
  const Tensor out = torch::stable::new_empty(z, batch, wide ? ScalarType::Double : ScalarType::Float);
  if (problems == 0) return out;
  const Tensor z_rows = torch::stable::contiguous(z), fz_rows = torch::stable::contiguous(fz);
  const int64_t entries = z.numel() / problems, chunks = ak::step_chunks(entries);
  ak::ops::check_state(fz_rows, "fz", type, z.numel());
  const Tensor squares = torch::stable::new_empty(z, {problems * chunks, 2}, ScalarType::Double);
  double* const sums = static_cast<double*>(squares.mutable_data_ptr());
  const ak::ResidualProblem p{ak::ops::state_type(type), problems, entries, z_rows.const_data_ptr(),
                              fz_rows.const_data_ptr(),  sums};
  ak::instruction_set().step->residual_norm(p, torch_executor());
  if (wide)
    write_relative(sums, problems, chunks, static_cast<double*>(out.mutable_data_ptr()));
  else
    write_relative(sums, problems, chunks, static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CPU, m) {
  m.impl("anderson_step", TORCH_BOX(&anderson_step));
  m.impl("residual_norm", TORCH_BOX(&residual_norm));
}
