// The kernels' threads: torch's own pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../cpu/kernels.h"

inline ak::Executor torch_executor() {
  return {int(torch::stable::get_num_threads()), [](int tasks, void (*body)(void*, int), void* context) {
            torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
              for (int64_t task = begin; task < end; ++task) body(context, int(task));
            });
          }};
}
