// The fused solves as torch operators of the CPU, through torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "../cpu/dispatch.h"
#include "direct.h"
#include "executor.h"
#include "solve_operators.h"

namespace {

using namespace ak::ops;

class Cpu {
 public:
  explicit Cpu(const Tensor&) {}

  void check(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU, like z0");
  }

  Tensor empty(int64_t n, ScalarType type) const {
    const int64_t size[] = {n}, stride[] = {1};
    return empty(1, size, stride, type);
  }
  Tensor empty(int64_t rows, int64_t columns, ScalarType type) const {
    const int64_t size[] = {rows, columns}, stride[] = {columns > 1 ? columns : 1, 1};
    return empty(2, size, stride, type);
  }

  template <class T>
  void solve(const ak::AffineProblem<T>& p, const ak::SolveOptions& o, const ak::SolveResult<T>& r) const {
    ak::solve_kernels<T>().affine(p, o, r, torch_executor());
  }
  template <class T>
  void solve(const ak::MlpProblem<T>& p, const ak::SolveOptions& o, const ak::SolveResult<T>& r) const {
    ak::solve_kernels<T>().mlp(p, o, r, torch_executor());
  }
  template <class T>
  void solve(const ak::MlpLinearProblem<T>& p, const ak::SolveOptions& o, const ak::SolveResult<T>& r) const {
    ak::solve_kernels<T>().mlp_linear(p, o, r, torch_executor());
  }
  template <class T>
  void solve(const ak::GatedProblem<T>& p, const ak::SolveOptions& o, const ak::SolveResult<T>& r) const {
    ak::solve_kernels<T>().gated(p, o, r, torch_executor());
  }
  template <class T>
  void solve(const ak::GatedLinearProblem<T>& p, const ak::SolveOptions& o, const ak::SolveResult<T>& r) const {
    ak::solve_kernels<T>().gated_linear(p, o, r, torch_executor());
  }

 private:
  // Straight through the C interface: a solve of one small row is shorter than five calls of the dispatcher.
  static Tensor empty(int64_t dims, const int64_t* sizes, const int64_t* strides, ScalarType type) {
    AtenTensorHandle handle = nullptr;
    const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
  }
};

std::tuple<Tensor, Tensor> affine_slope(Tensor a, Tensor v, std::optional<Tensor> scale, int64_t activation,
                                        int64_t pieces) {
  check_start(a);
  const Cpu device(a);
  const int64_t rows = a.size(0), dim = a.size(1);
  check(device, a, "a", {rows, dim});
  check(device, v, "v", {rows, dim});
  check(device, scale, "scale", {rows, dim});
  check_pieces(activation, pieces, dim);
  const ScalarType given = a.scalar_type(), type = working_type(given);
  const Tensor a_rows = rows_of(a, type), v_rows = rows_of(v, type);
  const auto scale_rows = rows_of(scale, type);
  Tensor d = device.empty(rows, dim, type), dv = device.empty(rows, dim, type);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    ak::solve_kernels<T>().slopes(
        {rows, dim, data<T>(a_rows), data<T>(v_rows), data<T>(scale_rows), static_cast<T*>(d.mutable_data_ptr()),
         static_cast<T*>(dv.mutable_data_ptr()), int(activation), int(pieces)},
        torch_executor());
  });
  return {in_type(d, given), in_type(dv, given)};
}

}  // namespace

namespace ak {

void run_affine(const AffineProblem<float>& p, const SolveOptions& o, const SolveResult<float>& r) {
  solve_kernels<float>().affine(p, o, r, torch_executor());
}
void run_affine(const AffineProblem<double>& p, const SolveOptions& o, const SolveResult<double>& r) {
  solve_kernels<double>().affine(p, o, r, torch_executor());
}

}  // namespace ak

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels, CPU, m) {
  AK_IMPLEMENT_SOLVES(m, Cpu);
  m.impl("affine_slope", TORCH_BOX(&affine_slope));
}
