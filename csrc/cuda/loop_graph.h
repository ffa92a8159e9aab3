// The loop of an unknown map as one CUDA graph: a prologue, then a body that repeats while problems run.
//
// Both are captured from a stream. The condition of the loop is set on the device by the body's last kernel, so a whole
// solve is one launch and no host read. Every function returns null, or why it could not do its work.
#pragma once

#include <cstdint>

namespace ak::cuda {

struct LoopGraph;

// A graph for the current device. Needs CUDA 12.4 or later, in the driver too.
const char* open_loop(LoopGraph*& loop);

// What this thread enqueues on the stream, a stream of its own, goes into the prologue (first) or the body (second),
// until end_capture or, after a failure, abandon_capture.
const char* begin_capture(LoopGraph& loop, bool body, void* stream);
const char* end_capture(LoopGraph& loop, bool body, void* stream);
void abandon_capture(void* stream);

// Into the body, at its end: whether it runs again. active: [1] on the device.
const char* repeat_while(const LoopGraph& loop, const int64_t* active, void* stream);

// After both captures: makes the graph ready for launches.
const char* finish_loop(LoopGraph& loop);
const char* launch_loop(const LoopGraph& loop, void* stream);

void close_loop(LoopGraph* loop);

// A stream of the current device that nobody else has; it lives as long as the process.
const char* own_stream(void*& stream);

}  // namespace ak::cuda
