// The whole solve of a cell: a block iterates a tile of rows, which a queue keeps full.
//
// A round of the block is one step of each of its rows: the cell evaluates f for all of them (tile_product.h,
// row_pass.h); then, a row to a warp, its last pass and one fused step (step_body.h). A row that ends is written out
// and the next waiting one takes its place. Its sums belong to one warp: with products whose entries do not depend on
// the tile, its bits do not depend on its neighbours.
//
// In mixed precision (mixed_product.h) some rows wait in a round, so a row of its own accord turns from one of its two
// buffers to the other; otherwise all turn together.
//
// A Cell has Scalar, Problem, size(), start(), kept(), matrix(), evaluate() and finish() (affine_cell.h says what they
// are), a Product has Shape, Iterates and apply() (tile_product.h).
#pragma once

#include "mixed_product.h"
#include "row_pass.h"
#include "step_body.h"

namespace ak::cuda {

// Shared memory of a block: this, then a StepSpace with one small system per warp, and the product's. That takes the
// same place, since barriers keep products and steps apart; in mixed precision, where it holds what outlives a round,
// the next. The description of the steps lies here too, because in registers it would crowd out the product's sums.
template <class Shape>
struct alignas(32) SolverSpace {
  StepProblem step[2];  // of even and odd rounds: the iterates change places
  StepPlan plan;
  StepRules rules;
  int64_t row[Shape::rows];  // that each slot solves; negative: none
};

constexpr int64_t warp_space_bytes(int slots) {
  return int64_t(sizeof(StepSpace<kWarp>)) + solvers_doubles(1, slots) * int64_t(sizeof(double));
}
template <class Shape>
constexpr int64_t solver_space_bytes(int slots) {
  return int64_t(sizeof(SolverSpace<Shape>)) + Shape::threads / kWarp * warp_space_bytes(slots);
}

// A team's part of scratch: of every row four states (two iterates, f, the best), the rings, what the cell keeps, what
// mixed products do, the control.
template <class T>
constexpr int64_t solver_team_bytes(int rows, const CellSize& size, int slots, int64_t mixed_kept, int64_t columns) {
  const int64_t entries = (4 + 2 * int64_t(slots)) * row_ld(size.dim) + row_ld(size.kept) + mixed_kept;
  return padded(rows * (int64_t(sizeof(T)) * entries + 8 * columns), 256);
}

template <class Cell, class Product, class Team, class Queue>
class RowSolver {
  using T = typename Cell::Scalar;
  using Problem = typename Cell::Problem;
  using Shape = typename Product::Shape;
  using Block = Tile<T, Product, Team>;
  using Warp = typename Block::Warp;
  using Row = TileRow<Warp>;
  using Step = StepBody<T, kSumPack, Warp>;  // for the order of its sums

 public:
  // shared, scratch: of this team. packed: the weights for mixed products. queue(): the next row to be solved, past the
  // last one where none is left.
  AK_DEVICE RowSolver(const Problem& problem, const SolveOptions& options, const SolveResult<T>& result,
                      const RowPlan& plan, const Team& team, void* shared, void* scratch, const void* packed,
                      const Queue& queue)
      : p_(problem),
        o_(options),
        result_(result),
        plan_(plan),
        team_(team),
        queue_(queue),
        ld_(int(row_ld(problem.dim))),
        slots_(options.solver == kPicard ? 0 : plan.history + 1),
        space_(static_cast<SolverSpace<Shape>*>(shared)),
        states_(static_cast<T*>(scratch)),
        packed_(packed) {
    team_.first([&] {
      describe();
      space_->rules = rules_for<T>(options, slots_, 1, problem.dim, plan.anderson_price);
    });
  }

  AK_DEVICE void solve() {
    const Cell cell(p_);
    const Product product = make_product();
    start(tile(product));
    while (any_row()) {
      if constexpr (Product::kMixed) product.begin_round();
      const Block at = tile(product);
      const Rows<const T> a = cell.evaluate(at);
      at.each_row([&](const Row& row) {
        cell.finish(at, row, a[row.slot]);
        advance(product, row);
      });
      odd_ = !odd_;
    }
  }

 private:
  AK_DEVICE Product make_product() const {
    if constexpr (Product::kMixed) {
      char* const after = reinterpret_cast<char*>(space_) + solver_space_bytes<Shape>(slots_);
      return Product(team_, after, space_->row, plan_.place, kept() + Shape::rows * row_ld(Cell::kept(p_)), packed_);
    } else {
      return Product(team_, space_ + 1, space_->row);
    }
  }

  AK_DEVICE int64_t state() const { return int64_t(Shape::rows) * ld_; }
  AK_DEVICE T* kept() const { return states_ + (4 + 2 * slots_) * state(); }

  AK_DEVICE void describe() const {
    const int64_t kept_entries = Shape::rows * (row_ld(Cell::kept(p_)) + plan_.mixed_kept);
    for (int turn = 0; turn < 2; ++turn) {
      StepProblem& step = space_->step[turn];
      step.type = sizeof(T) == 8 ? StateType::kFloat64 : StateType::kFloat32;
      step.problems = p_.rows;
      step.groups = 1;
      step.entries = ld_;
      step.z = states_ + turn * state();
      step.out = states_ + (1 - turn) * state();
      step.fz = states_ + 2 * state();
      step.best = states_ + 3 * state();
      step.history = states_ + 4 * state();
      step.slots = slots_;
      step.stride = ld_;
      step.control = reinterpret_cast<double*>(kept() + kept_entries);
      step.columns = plan_.columns;
      step.trace = result_.trace;
      step.active = nullptr;
    }
    space_->plan = StepPlan{};
    space_->plan.chunk = ld_;
    space_->plan.chunks = 1;
    space_->plan.solvers = slots_ > 1 ? 1 : 0;
  }

  // The step that a slot's row is at.
  AK_DEVICE const StepProblem& round(const Product& product, int slot) const {
    if constexpr (Product::kMixed)
      return space_->step[product.odd()[slot]];
    else
      return space_->step[odd_];
  }
  AK_DEVICE Block tile(const Product& product) const {
    char* const spaces = reinterpret_cast<char*>(space_ + 1);
    const Rows<T> f{states_ + 2 * state(), ld_}, kept{this->kept(), row_ld(Cell::kept(p_))};
    if constexpr (Product::kMixed)
      return {
          team_, product, product.at_work(), spaces, warp_space_bytes(slots_), {states_, ld_, state(), product.odd()},
          f,     kept};
    else
      return {team_, product, space_->row, spaces, warp_space_bytes(slots_), {states_ + odd_ * state(), ld_}, f, kept};
  }

  AK_DEVICE bool any_row() const {
    bool any = false;
    AK_ROLLED
    for (int slot = 0; slot < Shape::rows; ++slot) any = any || space_->row[slot] >= 0;
    team_.sync();
    return any;
  }

  AK_DEVICE void start(const Block& tile) const {
    tile.team.warps([&](int warp) {
      for (int slot = warp; slot < Shape::rows; slot += Block::kWarps) {
        const Row at(slot, 0, tile.space_of(warp));
        if constexpr (Product::kMixed) at.lanes.first([&] { tile.product.odd()[slot] = false; });
        // What pads f is never written again.
        at.each(ld_, [&](int i) { tile.f[slot][i] = 0; });
        refill(tile.product, at, states_ + slot * ld_);
      }
    });
  }

  // The next row's start goes to `to`; the slot is idle where none is left.
  AK_DEVICE void refill(const Product& product, const Row& at, T* to) const {
    at.lanes.first([&] {
      const int64_t row = queue_();
      space_->row[at.slot] = row < p_.rows ? row : -1;
      if constexpr (Product::kMixed) product.begin_row(at.slot);
    });
    const int64_t row = space_->row[at.slot];
    if (row < 0) return;
    const T* const from = Cell::start(p_) + row * p_.dim;
    at.each(ld_, [&](int i) { to[i] = i < p_.dim ? from[i] : T(0); });
    double* const control = space_->step[0].control + at.slot * plan_.columns;
    at.each(plan_.columns, [&](int i) { control[i] = 0; });
  }

  // One step of a slot's row; a row that has ended makes room.
  AK_DEVICE void advance(const Product& product, const Row& at) const {
    const int slot = at.slot;
    const StepProblem& round = this->round(product, slot);
    const Step step(round, o_, space_->plan, space_->rules, at.lanes, at.space);
    step.first_sweep(slot, 0, 0);
    if constexpr (Product::kMixed) {
      MixedStep* const mixed = product.step(slot);
      step.decide(slot, at.row, mixed);
      step.solve_groups(slot, 0, 1, mixed->apart);
    } else {
      step.decide(slot, at.row);
      step.solve_groups(slot, 0, 1);
    }
    step.second_sweep(slot, 0, 0);
    step.repair(slot);
    const ControlRow control = step.row(slot);
    if (control.state().phase >= kStepEnded) {
      hand_over(product, at, control.result(), static_cast<T*>(round.out) + slot * ld_);
    } else if constexpr (Product::kMixed) {
      const int steps = control.state().progress.steps;
      at.lanes.first([&] { product.end_step(slot, steps, o_.max_steps); });
    }
  }

  // A row that has ended is written out, and the slot has the next one.
  AK_DEVICE void hand_over(const Product& product, const Row& at, const StepResult& end, T* out) const {
    T* const z = result_.z + at.row * p_.dim;
    at.each(p_.dim, [&](int i) { z[i] = out[i]; });
    at.lanes.first([&] {
      result_.status[at.row] = uint8_t(end.status);
      result_.steps[at.row] = int32_t(end.steps);
      result_.residual[at.row] = float(end.residual);
    });
    refill(product, at, out);
    if constexpr (Product::kMixed) at.lanes.first([&] { product.turn(at.slot); });
  }

  const Problem& p_;
  const SolveOptions& o_;
  const SolveResult<T>& result_;
  const RowPlan& plan_;
  const Team& team_;
  const Queue& queue_;
  const int ld_, slots_;
  SolverSpace<Shape>* const space_;
  T* const states_;
  const void* const packed_;
  bool odd_ = false;
};

}  // namespace ak::cuda
