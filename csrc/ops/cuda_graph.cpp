// Recording and launching loops of unknown maps, for attractor_kernels/backends/cuda_graph.py, which is all that calls
// these. A loop is an int, its address; `active` [1], int64, is the count of running problems, and says on which device
// and on which of torch's streams.
#include <torch/csrc/stable/library.h>

#include "../cuda/loop_graph.h"
#include "cuda_call.h"

namespace {

using ak::cuda::LoopGraph;
using torch::stable::Tensor;

LoopGraph& loop_of(int64_t handle) {
  STD_TORCH_CHECK(handle != 0, "no such loop");
  return *reinterpret_cast<LoopGraph*>(handle);
}

void done(const char* error) { STD_TORCH_CHECK(error == nullptr, "CUDA graph: ", error); }

int64_t own_stream(Tensor active) {
  const ak::ops::CudaCall call(active);
  void* stream = nullptr;
  done(ak::cuda::own_stream(stream));
  return reinterpret_cast<int64_t>(stream);
}

int64_t make(Tensor active) {
  const ak::ops::CudaCall call(active);
  STD_TORCH_CHECK(active.numel() == 1 && active.scalar_type() == torch::headeronly::ScalarType::Long,
                  "active must be one int64");
  LoopGraph* loop = nullptr;
  done(ak::cuda::open_loop(loop));
  return reinterpret_cast<int64_t>(loop);
}

void begin(int64_t loop, Tensor active, bool body) {
  const ak::ops::CudaCall call(active);
  done(ak::cuda::begin_capture(loop_of(loop), body, call.stream()));
}

void end(int64_t loop, Tensor active, bool body) {
  const ak::ops::CudaCall call(active);
  if (body) done(ak::cuda::repeat_while(loop_of(loop), active.const_data_ptr<int64_t>(), call.stream()));
  done(ak::cuda::end_capture(loop_of(loop), body, call.stream()));
}

void abandon(Tensor active) {
  const ak::ops::CudaCall call(active);
  ak::cuda::abandon_capture(call.stream());
}

void finish(int64_t loop, Tensor active) {
  const ak::ops::CudaCall call(active);
  done(ak::cuda::finish_loop(loop_of(loop)));
}

void launch(int64_t loop, Tensor active) {
  const ak::ops::CudaCall call(active);
  done(ak::cuda::launch_loop(loop_of(loop), call.stream()));
}

void destroy(int64_t loop) { ak::cuda::close_loop(&loop_of(loop)); }

}  // namespace

STABLE_TORCH_LIBRARY(attractor_kernels_loop, m) {
  m.def("own_stream(Tensor active) -> int");
  m.def("make(Tensor active) -> int");
  m.def("begin(int loop, Tensor active, bool body) -> ()");
  m.def("end(int loop, Tensor active, bool body) -> ()");
  m.def("abandon(Tensor active) -> ()");
  m.def("finish(int loop, Tensor active) -> ()");
  m.def("launch(int loop, Tensor(a!) active) -> ()");
  m.def("destroy(int loop) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(attractor_kernels_loop, CompositeExplicitAutograd, m) {
  m.impl("own_stream", TORCH_BOX(&own_stream));
  m.impl("make", TORCH_BOX(&make));
  m.impl("begin", TORCH_BOX(&begin));
  m.impl("end", TORCH_BOX(&end));
  m.impl("abandon", TORCH_BOX(&abandon));
  m.impl("finish", TORCH_BOX(&finish));
  m.impl("launch", TORCH_BOX(&launch));
  m.impl("destroy", TORCH_BOX(&destroy));
}
