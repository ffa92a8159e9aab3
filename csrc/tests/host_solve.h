// The whole solve of a cell as CUDA devices make it, run on the host: the kernels' own text (csrc/cuda/row_solver.h)
// with a host team in the place of a block.
#pragma once

#include "../cuda/row_solver.h"
#include "check.h"
#include "host_team.h"

namespace ak::test {

// Rows for one block at a time, at most `share` each, as if the blocks after it took the rest.
struct Queue {
  int64_t* next;
  int64_t* share;
  int64_t rows;
  int64_t operator()() const { return (*share)-- > 0 ? (*next)++ : rows; }
};

struct alignas(32) Chunk {
  char bytes[32];
};
inline std::vector<Chunk> poisoned(int64_t bytes) {
  std::vector<Chunk> memory(size_t((bytes + 31) / 32));
  std::memset(memory.data(), 0xff, memory.size() * sizeof(Chunk));
  return memory;
}

template <class Cell>
void solve_on_host(const typename Cell::Problem& p, const SolveOptions& o, const SolveResult<typename Cell::Scalar>& r,
                   bool again) {
  using T = typename Cell::Scalar;
  const cuda::DeviceFacts device{again ? 132 : 1, 232448, 80};
  const cuda::RowPlan plan = cuda::plan_rows<T>(Cell::size(p), o, device);
  CHECK(plan.shared_bytes <= device.shared_per_block, "%ld", long(plan.shared_bytes));
  std::vector<cuda::MmaA> packed(size_t(plan.packed_bytes) / sizeof(cuda::MmaA));
  if constexpr (Cell::kMixed)
    for (size_t i = 0; i < packed.size(); ++i)
      cuda::pack_tensor_weights(Cell::mixed_weight(p), packed.data(), int64_t(i));
  cuda::with_variant<Cell>(plan, [&](auto shape, auto mixed) {
    using Shape = decltype(shape);
    using Team = HostTeam<Shape::threads>;
    using Product = cuda::ProductOf<T, Shape, mixed, Team>;
    CHECK(plan.tile_rows == Shape::rows && plan.threads == Shape::threads, "%d", plan.tile_rows);
    int64_t next = 0;
    for (int64_t block = 0; next < p.rows; ++block) {
      int64_t share = block + 1 < plan.blocks ? 1 + int64_t(rank_order() % 20) : p.rows;
      auto shared = poisoned(plan.shared_bytes), scratch = poisoned(plan.block_bytes);
      const Team team(nullptr);
      const Queue queue{&next, &share, p.rows};
      cuda::RowSolver<Cell, Product, Team, Queue> solver(p, o, r, plan, team, shared.data(), scratch.data(),
                                                         packed.data(), queue);
      solver.solve();
    }
  });
}

}  // namespace ak::test
