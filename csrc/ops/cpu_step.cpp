// The fused step for unknown maps as torch operators of the CPU, through torch's stable ABI. Schemas are
// attractor_kernels/ops/{anderson_step,residual_norm}.py. A step trusts its caller with shapes only as far as no
// memory outside its arguments is touched.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../common/small_solve.h"
#include "../cpu/dispatch.h"
#include "executor.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

ak::StateType state_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return ak::StateType::kFloat32;
    case ScalarType::Double:
      return ak::StateType::kFloat64;
    case ScalarType::BFloat16:
      return ak::StateType::kBFloat16;
    default:
      STD_TORCH_CHECK(type == ScalarType::Half, "z must be float32, float64, bfloat16 or float16");
      return ak::StateType::kFloat16;
  }
}

void check_state(const Tensor& t, const char* name, ScalarType type, int64_t elements) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, " must have the dtype of z");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.numel() == elements, name, " must have ", elements, " elements, got ", t.numel());
}

void check_buffer(const Tensor& t, const char* name, ScalarType type, int64_t elements) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.numel() >= elements, name, " must have at least ", elements, " elements, got ", t.numel());
}

void anderson_step(const Tensor& z, const Tensor& fz, const Tensor& out, const Tensor& best, const Tensor& history,
                   const Tensor& control, const Tensor& active, const std::optional<Tensor>& trace, int64_t solver,
                   double damping, double ridge, double rtol, double atol, int64_t max_steps, int64_t min_steps,
                   bool keep_best) {
  const ScalarType type = z.scalar_type();
  const int64_t elements = z.numel();
  STD_TORCH_CHECK(history.dim() == 5 && history.size(2) == 2,
                  "history must be [problems, groups, 2, history + 1, stride]");
  ak::StepProblem p{};
  p.type = state_type(type);
  p.problems = history.size(0);
  p.groups = history.size(1);
  p.slots = int(history.size(3));
  p.stride = history.size(4);
  const int64_t groups = p.problems * p.groups;
  p.entries = groups > 0 ? elements / groups : 0;
  STD_TORCH_CHECK(groups * p.entries == elements, "z does not divide into the problems and groups of history");
  STD_TORCH_CHECK(solver == ak::kPicard || (p.slots >= 2 && p.slots <= ak::kMaxHistory + 1 && p.stride >= p.entries),
                  "history is too small for Anderson steps");
  p.columns = ak::control_columns(p.groups, p.entries, p.slots);
  check_state(z, "z", type, elements);
  check_state(fz, "fz", type, elements);
  check_state(out, "out", type, elements);
  check_state(best, "best", type, elements);
  check_buffer(history, "history", type, 0);
  check_buffer(control, "control", ScalarType::Double, p.problems * p.columns);
  check_buffer(active, "active", ScalarType::Long, 1);
  p.z = z.const_data_ptr();
  p.fz = fz.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.best = best.mutable_data_ptr();
  p.history = history.mutable_data_ptr();
  p.control = static_cast<double*>(control.mutable_data_ptr());
  p.active = static_cast<int64_t*>(active.mutable_data_ptr());
  STD_TORCH_CHECK(elements == 0 || p.z != p.out, "z and out must be different buffers");
  if (trace.has_value()) {
    check_buffer(*trace, "trace", ScalarType::Float, max_steps * p.problems);
    p.trace = static_cast<float*>(trace->mutable_data_ptr());
  }
  ak::SolveOptions options;
  options.solver = int(solver);
  options.history = p.slots > 0 ? p.slots - 1 : 0;
  options.damping = damping;
  options.ridge = ridge;
  options.rtol = rtol;
  options.atol = atol;
  options.max_steps = int(max_steps);
  options.min_steps = int(min_steps);
  options.keep_best = keep_best;
  ak::instruction_set().step->anderson_step(p, options, torch_executor());
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
  check_state(fz_rows, "fz", type, z.numel());
  const Tensor squares = torch::stable::new_empty(z, {problems * chunks, 2}, ScalarType::Double);
  double* const sums = static_cast<double*>(squares.mutable_data_ptr());
  const ak::ResidualProblem p{state_type(type),         problems, entries, z_rows.const_data_ptr(),
                              fz_rows.const_data_ptr(), sums};
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
