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

// The weights for mixed products, as a launch of their own packs them.
template <class Cell>
std::vector<cuda::MmaA> packed_weights(const typename Cell::Problem& p, const cuda::RowPlan& plan) {
  const auto places = [](int64_t bytes) { return bytes / int64_t(sizeof(cuda::MmaA)); };
  std::vector<cuda::MmaA> packed(size_t(places(plan.packed_bytes)));
  if constexpr (Cell::kMixed)
    for (int index = 0; plan.mixed && index < Cell::kProducts; ++index) {
      const Matrix<float> weight = Cell::matrix(p, index);
      const cuda::ProductSize size = Cell::size(p).product[index];
      CHECK(weight.outputs == size.outputs && weight.inputs == size.inputs, "product %d", index);
      for (int64_t i = 0; i < places(cuda::tensor_weight_bytes(weight.outputs, weight.inputs)); ++i)
        cuda::pack_tensor_weights(weight, &packed[size_t(places(plan.place[index].packed))], i);
    }
  return packed;
}

template <class Cell>
void solve_as_planned(const typename Cell::Problem& p, const SolveOptions& o,
                      const SolveResult<typename Cell::Scalar>& r, const cuda::DeviceFacts& device,
                      const cuda::PlanChoices& choices) {
  using T = typename Cell::Scalar;
  const cuda::RowPlan plan = cuda::plan_rows<T>(Cell::size(p), o, device, choices);
  CHECK(plan.shared_bytes <= device.shared_per_block, "%ld", long(plan.shared_bytes));
  CHECK(choices.mixed < 0 || plan.mixed == (choices.mixed > 0 && mixed_allowed(o)), "mixed is %d", plan.mixed);
  const std::vector<cuda::MmaA> packed = packed_weights<Cell>(p, plan);
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

template <class Cell>
void solve_on_host(const typename Cell::Problem& p, const SolveOptions& o, const SolveResult<typename Cell::Scalar>& r,
                   bool again) {
  solve_as_planned<Cell>(p, o, r, {again ? 132 : 1, 232448, 80}, {});
}

// In mixed precision whether that pays or not, in either tile.
template <class Cell>
void solve_mixed_on_host(const typename Cell::Problem& p, const SolveOptions& o,
                         const SolveResult<typename Cell::Scalar>& r, bool again) {
  SolveOptions mixed = o;
  mixed.mixed = true;
  solve_as_planned<Cell>(p, mixed, r, {1, 232448, 80}, {.rows = again ? 8 : 32, .mixed = 1});
}

}  // namespace ak::test
