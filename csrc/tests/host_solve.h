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
std::vector<Chunk> packed_weights(const typename Cell::Problem& p, const cuda::RowPlan& plan) {
  std::vector<Chunk> packed = poisoned(plan.packed_bytes + 1);
  if constexpr (Cell::kMixed)
    for (int index = 0; plan.mixed() && index < Cell::kProducts; ++index) {
      const Matrix<float> weight = Cell::matrix(p, index);
      const int64_t outputs = weight.outputs, inputs = weight.inputs;
      const cuda::ProductSize size = Cell::size(p).product[index];
      CHECK(outputs == size.outputs && inputs == size.inputs, "product %d", index);
      void* const to = packed[size_t(plan.place[index].packed) / sizeof(Chunk)].bytes;
      if (plan.products == cuda::kMma)
        for (int64_t i : any_order(cuda::tensor_weight_bytes(outputs, inputs) / int64_t(sizeof(cuda::MmaA))))
          cuda::pack_tensor_weights(weight, static_cast<cuda::MmaA*>(to), i);
      else
        for (int64_t i : any_order(cuda::group_weight_bytes(outputs, inputs) / int64_t(sizeof(BFloat16))))
          cuda::pack_group_weights(weight, static_cast<BFloat16*>(to), i);
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
  const cuda::ProductKind chosen = device.wgmma ? cuda::kWgmma : cuda::kMma;
  CHECK(choices.mixed <= 0 || !mixed_allowed(o) || plan.products == chosen, "products: %d", plan.products);
  const std::vector<Chunk> packed = packed_weights<Cell>(p, plan);
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

inline int capability = 80;  // of the device: which products of changes there are

inline cuda::DeviceFacts some_device(int shared, int capability, int processors = 132) {
  return {processors, shared, capability, capability == 90};
}

template <class Cell>
void solve_on_host(const typename Cell::Problem& p, const SolveOptions& o, const SolveResult<typename Cell::Scalar>& r,
                   bool again) {
  solve_as_planned<Cell>(p, o, r, some_device(232448, capability, again ? 132 : 1), {});
}

// In mixed precision whether that pays or not, in either tile.
template <class Cell>
void solve_mixed_on_host(const typename Cell::Problem& p, const SolveOptions& o,
                         const SolveResult<typename Cell::Scalar>& r, bool again) {
  SolveOptions mixed = o;
  mixed.mixed = true;
  solve_as_planned<Cell>(p, mixed, r, some_device(232448, capability, 1), {.rows = again ? 8 : 32, .mixed = 1});
}

}  // namespace ak::test
