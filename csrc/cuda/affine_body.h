// f = leak * z + scale * phi(z W^T + u): the whole solve of a tile of rows by one block. Its adjoint is the same with
// phi the identity and scale = phi'(a).
//
// A round of the block is one step of each of its rows: the product of the tile with W, which comes in slices through
// shared memory; then, a row to a warp, phi and one fused step (step_body.h). A row that ends is written out and the
// next waiting one takes its place. An entry of the product is one chain of fma over the inputs in order, and a row's
// sums belong to one warp: its bits depend on neither its neighbours nor the shape of the tile.
#pragma once

#include "../common/activations.h"
#include "solve_affine.h"
#include "step_body.h"

namespace ak::cuda {

// The operations of activations.h for one float of a thread.
struct ScalarOps {
  using Scalar = float;
  using V = float;

  AK_DEVICE static float constant(float x) { return x; }
  AK_DEVICE static float fma(float a, float b, float c) { return multiply_add(a, b, c); }
  // The second argument where either is NaN.
  AK_DEVICE static float max(float a, float b) { return a > b ? a : b; }
  AK_DEVICE static float min(float a, float b) { return a < b ? a : b; }
  AK_DEVICE static float select(bool mask, float a, float b) { return mask ? a : b; }
  AK_DEVICE static bool negative(float x) { return x < 0; }
  AK_DEVICE static float abs(float x) { return float_of_bits(bits_of_float(x) & 0x7fffffffu); }
  AK_DEVICE static float copy_sign(float size, float sign) {
    return float_of_bits((bits_of_float(size) & 0x7fffffffu) | (bits_of_float(sign) & 0x80000000u));
  }
  // 2^k and k for the integer k nearest to x, |x| < 2^21.
  AK_DEVICE static float nearest(float x, float& power) {
    const float shifted = x + 12582912.0f;
    power = float_of_bits((bits_of_float(shifted) - bits_of_float(12582912.0f) + 127) << 23);
    return shifted - 12582912.0f;
  }
};

// Shared memory of a block: this, then a StepSpace with one small system per warp, then the tile of z and W's slice.
// The description of the steps lies here too, because in registers it would crowd out the product's sums.
template <class Shape>
struct alignas(32) AffineSpace {
  StepProblem step[2];  // of even and odd rounds: the iterates change places
  StepPlan plan;
  StepRules rules;
  int64_t row[Shape::rows];  // that each slot solves; negative: none
};

constexpr int64_t warp_space_bytes(int slots) {
  return int64_t(sizeof(StepSpace<kWarp>)) + solvers_doubles(1, slots) * int64_t(sizeof(double));
}
template <class Shape>
constexpr int64_t affine_shared_bytes(int64_t dim, int slots) {
  return int64_t(sizeof(AffineSpace<Shape>)) + Shape::threads / kWarp * warp_space_bytes(slots) +
         4 * (Shape::rows * padded(dim, Shape::slice) + padded(Shape::slice * Shape::slice_ld, 8));
}

// A block's part of scratch: of every row four states (two iterates, f, the best), the rings, the control.
constexpr int64_t affine_block_bytes(int rows, int64_t dim, int slots, int64_t columns) {
  return padded(rows * (4 * (4 + 2 * int64_t(slots)) * padded(dim, 4) + 8 * columns), 256);
}

template <class Shape, class Team, class Queue>
class AffineBody {
  using Warp = typename Team::template Of<kWarp>;
  using Step = StepBody<float, 4, Warp>;
  using Math = Activations<ScalarOps>;
  static constexpr int kWarps = Shape::threads / kWarp;

 public:
  // scratch: of this block. queue(): the next row to be solved, past the last one where none is left.
  AK_DEVICE AffineBody(const AffineProblem<float>& problem, const SolveOptions& options,
                       const SolveResult<float>& result, const AffinePlan& plan, const Team& team, void* shared,
                       void* scratch, const Queue& queue)
      : p_(problem),
        o_(options),
        result_(result),
        team_(team),
        queue_(queue),
        ld_(int(padded(problem.dim, 4))),
        tile_ld_(int(padded(problem.dim, Shape::slice))),
        slots_(options.solver == kPicard ? 0 : plan.history + 1),
        space_(static_cast<AffineSpace<Shape>*>(shared)),
        tile_(reinterpret_cast<float*>(warp_space(kWarps))) {
    team_.first([&] {
      describe(static_cast<float*>(scratch), plan);
      space_->rules = rules_for<float>(options, slots_, 1, problem.dim, plan.anderson_price);
    });
  }

  AK_DEVICE void solve() {
    team_.warps([&](int warp) {
      for (int slot = warp; slot < Shape::rows; slot += kWarps) refill(warp, slot, z());
    });
    while (any_row()) {
      load_tile();
      const bool by_inputs = p_.weight.input_stride <= p_.weight.output_stride;
      for (int first = 0; first < p_.dim; first += Shape::pass)
        by_inputs ? product<true>(first) : product<false>(first);
      team_.warps([&](int warp) {
        for (int slot = warp; slot < Shape::rows; slot += kWarps)
          if (space_->row[slot] >= 0) advance(warp, slot);
      });
      odd_ = !odd_;
    }
  }

 private:
  AK_DEVICE void describe(float* states, const AffinePlan& plan) const {
    const int64_t state = int64_t(Shape::rows) * ld_;
    for (int turn = 0; turn < 2; ++turn) {
      StepProblem& step = space_->step[turn];
      step.type = StateType::kFloat32;
      step.problems = p_.rows;
      step.groups = 1;
      step.entries = ld_;
      step.z = states + turn * state;
      step.out = states + (1 - turn) * state;
      step.fz = states + 2 * state;
      step.best = states + 3 * state;
      step.history = states + 4 * state;
      step.slots = slots_;
      step.stride = ld_;
      step.control = reinterpret_cast<double*>(states + (4 + 2 * slots_) * state);
      step.columns = plan.columns;
      step.trace = result_.trace;
      step.active = nullptr;
    }
    space_->plan = StepPlan{};
    space_->plan.chunk = ld_;
    space_->plan.chunks = 1;
    space_->plan.solvers = slots_ > 1 ? 1 : 0;
  }

  AK_DEVICE const StepProblem& round() const { return space_->step[odd_]; }
  AK_DEVICE float* z() const { return static_cast<float*>(const_cast<void*>(round().z)); }
  AK_DEVICE float* f() const { return static_cast<float*>(const_cast<void*>(round().fz)); }
  AK_DEVICE float* out() const { return static_cast<float*>(round().out); }
  AK_DEVICE float* slice() const { return tile_ + Shape::rows * tile_ld_; }
  AK_DEVICE char* warp_space(int warp) const {
    return reinterpret_cast<char*>(space_ + 1) + warp * warp_space_bytes(slots_);
  }

  AK_DEVICE bool any_row() const {
    bool any = false;
    AK_ROLLED
    for (int slot = 0; slot < Shape::rows; ++slot) any = any || space_->row[slot] >= 0;
    team_.sync();
    return any;
  }

  // The next row's start goes to `to`; the slot is idle where none is left.
  AK_DEVICE void refill(int warp, int slot, float* to) const {
    auto* const space = reinterpret_cast<StepSpace<kWarp>*>(warp_space(warp));
    const Warp lanes(&space->team);
    lanes.first([&] {
      const int64_t row = queue_();
      space_->row[slot] = row < p_.rows ? row : -1;
    });
    const int64_t row = space_->row[slot];
    if (row < 0) return;
    lanes.each([&](int lane) {
      for (int64_t i = lane; i < ld_; i += kWarp) to[slot * ld_ + i] = i < p_.dim ? p_.z0[row * p_.dim + i] : 0.0f;
      double* const control = round().control + slot * round().columns;
      for (int64_t i = lane; i < round().columns; i += kWarp) control[i] = 0;
    });
  }

  AK_DEVICE void load_tile() const {
    team_.each([&](int rank) {
      for (int i = rank; i < Shape::rows * tile_ld_; i += Shape::threads) {
        const int slot = i / tile_ld_, k = i - slot * tile_ld_;
        tile_[i] = k < p_.dim && space_->row[slot] >= 0 ? z()[slot * ld_ + k] : 0.0f;
      }
    });
  }

  struct Accumulators {
    float v[kProductRows][4];
  };
  struct Fetched {
    float v[Shape::fetches];
  };

  // Outputs [first, first + pass) of the tile's product with W, to f. While one slice is multiplied, the next one is
  // on its way. by_inputs: W's inputs, not its outputs, are neighbours in memory.
  template <bool by_inputs>
  AK_DEVICE void product(int first) const {
    typename Team::template Private<Accumulators> sums;
    typename Team::template Private<Fetched> fetched;
    team_.each([&](int rank) {
      AK_UNROLLED
      for (int r = 0; r < kProductRows; ++r) {
        AK_UNROLLED
        for (int c = 0; c < 4; ++c) sums[rank].v[r][c] = 0;
      }
      fetch<by_inputs>(rank, first, 0, fetched[rank]);
    });
    AK_ROLLED
    for (int k0 = 0; k0 < p_.dim; k0 += Shape::slice) {
      team_.each([&](int rank) {
        AK_UNROLLED
        for (int i = 0; i < Shape::fetches; ++i) {
          const Place at = place<by_inputs>(rank, i);
          slice()[at.k * Shape::slice_ld + at.n] = fetched[rank].v[i];
        }
      });
      team_.each([&](int rank) {
        if (k0 + Shape::slice < p_.dim) fetch<by_inputs>(rank, first, k0 + Shape::slice, fetched[rank]);
        multiply(rank, k0, sums[rank]);
      });
    }
    team_.each([&](int rank) {
      const int row = rows_of(rank), column = columns_of(rank);
      AK_UNROLLED
      for (int r = 0; r < kProductRows; ++r) {
        AK_UNROLLED
        for (int c = 0; c < 4; ++c) {
          const int n = first + column + (c & 1) + (c & 2) * (kProductColumns / 4);
          if (n < p_.dim) f()[(row + r) * ld_ + n] = sums[rank].v[r][c];
        }
      }
    });
  }

  // Where a thread's i-th entry of a slice lies: neighbouring threads take what is contiguous in memory.
  struct Place {
    int k, n;
  };
  template <bool by_inputs>
  AK_DEVICE static Place place(int rank, int i) {
    constexpr int kShare = Shape::pass / Shape::threads;
    static_assert(Shape::threads % Shape::slice == 0 && kShare >= 1);
    if (by_inputs) return {rank % Shape::slice, rank / Shape::slice + i * (Shape::threads / Shape::slice)};
    return {i / kShare, rank + i % kShare * Shape::threads};
  }
  template <bool by_inputs>
  AK_DEVICE void fetch(int rank, int first, int k0, Fetched& fetched) const {
    AK_UNROLLED
    for (int i = 0; i < Shape::fetches; ++i) {
      const Place at = place<by_inputs>(rank, i);
      const int k = k0 + at.k, n = first + at.n;
      const int64_t offset = n * p_.weight.output_stride + k * p_.weight.input_stride;
      fetched.v[i] = k < p_.dim && n < p_.dim ? p_.weight.data[offset] : 0.0f;
    }
  }

  AK_DEVICE static int rows_of(int rank) { return rank / kWarp % Shape::row_groups * kProductRows; }
  // The first of a thread's columns: two neighbours there, two more half a warp's width further.
  AK_DEVICE static int columns_of(int rank) {
    return rank / kWarp / Shape::row_groups * kProductColumns + rank % kWarp * 2;
  }

  AK_DEVICE void multiply(int rank, int k0, Accumulators& sums) const {
    const float* const x = tile_ + rows_of(rank) * tile_ld_ + k0;
    const float* const w = slice() + columns_of(rank);
    AK_UNROLLED
    for (int k = 0; k < Shape::slice; k += 4) {
      Pack<float, 4> in[kProductRows];
      AK_UNROLLED
      for (int r = 0; r < kProductRows; ++r) in[r] = load_pack<4>(x + r * tile_ld_ + k);
      AK_UNROLLED
      for (int j = 0; j < 4; ++j) {
        const auto low = load_pack<2>(w + (k + j) * Shape::slice_ld);
        const auto high = load_pack<2>(w + (k + j) * Shape::slice_ld + kProductColumns / 2);
        AK_UNROLLED
        for (int r = 0; r < kProductRows; ++r) {
          sums.v[r][0] = multiply_add(in[r].v[j], low.v[0], sums.v[r][0]);
          sums.v[r][1] = multiply_add(in[r].v[j], low.v[1], sums.v[r][1]);
          sums.v[r][2] = multiply_add(in[r].v[j], high.v[0], sums.v[r][2]);
          sums.v[r][3] = multiply_add(in[r].v[j], high.v[1], sums.v[r][3]);
        }
      }
    }
  }

  // phi and one step of a slot's row; a row that has ended makes room.
  AK_DEVICE void advance(int warp, int slot) const {
    auto* const space = reinterpret_cast<StepSpace<kWarp>*>(warp_space(warp));
    const Warp lanes(&space->team);
    const int64_t row = space_->row[slot];
    lanes.each([&](int lane) { activate(lane, slot, row); });
    const Step step(round(), o_, space_->plan, space_->rules, lanes, space);
    step.first_sweep(slot, 0, 0);
    step.decide(slot, row);
    step.solve_groups(slot, 0, 1);
    step.second_sweep(slot, 0, 0);
    step.repair(slot);
    const ControlRow control = step.row(slot);
    if (control.state().phase < kStepEnded) return;
    lanes.each([&](int lane) {
      for (int64_t i = lane; i < p_.dim; i += kWarp) result_.z[row * p_.dim + i] = out()[slot * ld_ + i];
    });
    lanes.first([&] {
      const StepResult& end = control.result();
      result_.status[row] = uint8_t(end.status);
      result_.steps[row] = int32_t(end.steps);
      result_.residual[row] = float(end.residual);
    });
    refill(warp, slot, out());
  }

  // f = leak * z + scale * phi(f + u) of one row, in place; what pads it is zero.
  AK_DEVICE void activate(int lane, int slot, int64_t row) const {
    switch (p_.scale != nullptr ? int(kIdentity) : p_.activation) {
      case kTanh:
        return apply(lane, slot, row, [](float a, int64_t) { return Math::tanh(a); });
      case kRelu:
        return apply(lane, slot, row, [](float a, int64_t) { return Math::relu(a); });
      case kSigmoid:
        return apply(lane, slot, row, [](float a, int64_t) { return Math::sigmoid(a); });
      case kSoftplus:
        return apply(lane, slot, row, [](float a, int64_t) { return Math::softplus(a); });
      case kGelu:
        return apply(lane, slot, row, [](float a, int64_t) { return Math::gelu(a); });
      case kSilu:
        return apply(lane, slot, row, [](float a, int64_t) { return Math::silu(a); });
      case kRelu2:
        return apply(lane, slot, row, [](float a, int64_t) { return Math::relu2(a); });
      case kPartialRelu: {
        const int64_t first = p_.dim - p_.pieces;
        return apply(lane, slot, row, [first](float a, int64_t i) { return i >= first ? Math::relu(a) : a; });
      }
      default:
        return apply(lane, slot, row, [](float a, int64_t) { return a; });
    }
  }

  template <class Phi>
  AK_DEVICE void apply(int lane, int slot, int64_t row, const Phi& phi) const {
    float* const f = this->f() + slot * ld_;
    const float* const x = z() + slot * ld_;
    AK_ROLLED
    for (int64_t i = lane; i < ld_; i += kWarp) {
      if (i >= p_.dim) {
        f[i] = 0;
        continue;
      }
      float value = phi(f[i] + p_.u[row * p_.dim + i], i);
      if (p_.scale != nullptr) value *= p_.scale[row * p_.dim + i];
      f[i] = p_.leak != nullptr ? multiply_add(p_.leak[i], x[i], value) : value;
    }
  }

  const AffineProblem<float>& p_;
  const SolveOptions& o_;
  const SolveResult<float>& result_;
  const Team& team_;
  const Queue& queue_;
  const int ld_, tile_ld_, slots_;
  AffineSpace<Shape>* const space_;
  float* const tile_;
  bool odd_ = false;
};

}  // namespace ak::cuda
