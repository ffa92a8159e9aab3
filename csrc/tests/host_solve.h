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

// W as mixed products of a plan take it.
template <class Cell>
void pack_on_host(const typename Cell::Problem& p, const cuda::RowPlan& plan, std::vector<Chunk>& packed) {
  if constexpr (Cell::kMixed) {
    const auto& weight = Cell::mixed_weight(p);
    const int64_t outputs = weight.outputs, inputs = weight.inputs;
    void* const to = packed.data();
    if (plan.products == cuda::kMma)
      for (int64_t i : any_order(cuda::tensor_weight_bytes(outputs, inputs) / int64_t(sizeof(cuda::MmaA))))
        cuda::pack_tensor_weights(weight, static_cast<cuda::MmaA*>(to), i);
    if (plan.products == cuda::kWgmma)
      for (int64_t i : any_order(cuda::group_weight_bytes(outputs, inputs) / int64_t(sizeof(BFloat16))))
        cuda::pack_group_weights(weight, static_cast<BFloat16*>(to), i);
  }
}

template <class Cell>
void solve_on_host(const typename Cell::Problem& p, const SolveOptions& o, const SolveResult<typename Cell::Scalar>& r,
                   bool again, const cuda::PlanChoices& choices = {}, int capability = 80) {
  using T = typename Cell::Scalar;
  const cuda::DeviceFacts device{again ? 132 : 1, 232448, capability};
  const cuda::RowPlan plan = cuda::plan_rows<T>(Cell::size(p), o, device, choices);
  CHECK(plan.shared_bytes <= device.shared_per_block, "%ld", long(plan.shared_bytes));
  auto packed = poisoned(plan.packed_bytes + 1);
  pack_on_host<Cell>(p, plan, packed);
  const int64_t resident = plan.products == cuda::kWgmma ? plan.packed_bytes : 0;  // of a block's shared memory
  CHECK(plan.shared_bytes == resident + plan.teams * plan.team_shared, "%ld", long(plan.shared_bytes));
  cuda::with_variant<Cell>(plan, [&](auto shape, auto products) {
    using Shape = decltype(shape);
    using Team = HostTeam<Shape::threads>;
    using Product = cuda::ProductOf<T, Shape, products, Team>;
    CHECK(plan.tile_rows == Shape::rows && plan.threads == Shape::threads, "%d", plan.tile_rows);
    int64_t next = 0;
    const int64_t teams = plan.blocks * plan.teams;
    for (int64_t turn = 0; next < p.rows; ++turn) {
      int64_t share = turn + 1 < teams ? 1 + int64_t(rank_order() % 20) : p.rows;
      auto shared = poisoned(resident + plan.team_shared), scratch = poisoned(plan.team_bytes);
      std::memcpy(shared.data(), packed.data(), size_t(resident));
      shared_memory = shared.data();
      const Team team(nullptr);
      const Queue queue{&next, &share, p.rows};
      cuda::RowSolver<Cell, Product, Team, Queue> solver(p, o, r, plan, team, shared.data() + resident / sizeof(Chunk),
                                                         scratch.data(), resident > 0 ? shared.data() : packed.data(),
                                                         queue);
      solver.solve();
    }
  });
}

}  // namespace ak::test
