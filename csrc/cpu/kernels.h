// What the bindings and the kernels agree on: plain arguments, no torch types, no instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/activations.h"
#include "../common/problems.h"

namespace ak {

// Runs body(context, task) for task in [0, tasks), on as many threads as it likes.
struct Executor {
  int threads;
  void (*run)(int tasks, void (*body)(void* context, int task), void* context);
};

// How a fused solve of one shape is cut up; also what `attractor-kernels info --plan` prints.
struct TilePlan {
  int tile_rows;          // rows a thread iterates together
  int block_rows;         // rows of the register block
  int block_columns;      // outputs of the register block
  int depth;              // inputs per cache slice
  int threads;            // threads that take part
  int history;            // Anderson's per row; Auto's at first
  double anderson_price;  // cost of an Anderson step over a Picard step, as Auto counts it
  int64_t packed_bytes;
  int64_t scratch_bytes;  // per thread
};

}  // namespace ak
