#include <cuda_runtime.h>

#include <memory>

#include "loop_graph.h"

#if CUDART_VERSION < 12040
#error "graphs with conditional nodes need CUDA 12.4 or later"
#endif

namespace ak::cuda {

struct LoopGraph {
  cudaGraph_t prologue = nullptr;
  cudaGraph_t whole = nullptr;
  cudaGraph_t body = nullptr;  // belongs to the loop's node
  cudaGraphConditionalHandle condition{};
  cudaGraphExec_t ready = nullptr;

  LoopGraph() = default;
  LoopGraph(const LoopGraph&) = delete;
  LoopGraph& operator=(const LoopGraph&) = delete;
  ~LoopGraph() {
    if (ready != nullptr) cudaGraphExecDestroy(ready);
    drop_sources();
  }

  // What the launches do not need.
  void drop_sources() {
    if (whole != nullptr) cudaGraphDestroy(whole);
    if (prologue != nullptr) cudaGraphDestroy(prologue);
    whole = prologue = body = nullptr;
  }
};

namespace {

// The runtime keeps an error for the next caller who asks, who may be somebody else.
const char* text_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

__global__ void set_condition(cudaGraphConditionalHandle condition, const int64_t* active) {
  cudaGraphSetConditional(condition, *active > 0 ? 1u : 0u);
}

cudaError_t add_node(cudaGraphNode_t& node, cudaGraph_t graph, const cudaGraphNode_t& after,
                     cudaGraphNodeParams& parameters) {
#if CUDART_VERSION >= 13000
  return cudaGraphAddNode(&node, graph, &after, nullptr, 1, &parameters);
#else
  return cudaGraphAddNode(&node, graph, &after, 1, &parameters);
#endif
}

// prologue -> while (condition) body
cudaError_t join(LoopGraph& loop) {
  cudaGraphNode_t before{}, node{};
  if (const auto error = cudaGraphAddChildGraphNode(&before, loop.whole, nullptr, 0, loop.prologue)) return error;
  cudaGraphNodeParams parameters{};
  parameters.type = cudaGraphNodeTypeConditional;
  parameters.conditional.handle = loop.condition;
  parameters.conditional.type = cudaGraphCondTypeWhile;
  parameters.conditional.size = 1;
  if (const auto error = add_node(node, loop.whole, before, parameters)) return error;
  loop.body = parameters.conditional.phGraph_out[0];
  return cudaSuccess;
}

}  // namespace

const char* open_loop(LoopGraph*& loop) {
  auto made = std::make_unique<LoopGraph>();
  cudaError_t error = cudaGraphCreate(&made->prologue, 0);
  if (error == cudaSuccess) error = cudaGraphCreate(&made->whole, 0);
  // Every launch starts with a condition that holds.
  if (error == cudaSuccess)
    error = cudaGraphConditionalHandleCreate(&made->condition, made->whole, 1, cudaGraphCondAssignDefault);
  // A kernel first met in a capture would have to be loaded there.
  cudaFuncAttributes attributes{};
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, set_condition);
  if (error == cudaSuccess) loop = made.release();
  return text_of(error);
}

const char* begin_capture(LoopGraph& loop, bool body, void* stream) {
  if (body)
    if (const auto error = join(loop)) return text_of(error);
  // Thread-local: what other threads do meanwhile (a data loader's pinned memory) is no part of this.
  return text_of(cudaStreamBeginCaptureToGraph(static_cast<cudaStream_t>(stream), body ? loop.body : loop.prologue,
                                               nullptr, nullptr, 0, cudaStreamCaptureModeThreadLocal));
}

const char* end_capture(LoopGraph& loop, bool body, void* stream) {
  cudaGraph_t captured = body ? loop.body : loop.prologue;
  return text_of(cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &captured));
}

void abandon_capture(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  cudaGraph_t captured = nullptr;
  if (status != cudaStreamCaptureStatusNone) cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &captured);
  cudaGetLastError();
}

const char* repeat_while(const LoopGraph& loop, const int64_t* active, void* stream) {
  set_condition<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(loop.condition, active);
  return text_of(cudaGetLastError());
}

const char* finish_loop(LoopGraph& loop) {
  const cudaError_t error = cudaGraphInstantiate(&loop.ready, loop.whole, 0);
  if (error == cudaSuccess) loop.drop_sources();
  return text_of(error);
}

const char* launch_loop(const LoopGraph& loop, void* stream) {
  return text_of(cudaGraphLaunch(loop.ready, static_cast<cudaStream_t>(stream)));
}

void close_loop(LoopGraph* loop) {
  delete loop;
  cudaGetLastError();
}

const char* own_stream(void*& stream) {
  cudaStream_t made = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
  stream = made;
  return text_of(error);
}

}  // namespace ak::cuda
