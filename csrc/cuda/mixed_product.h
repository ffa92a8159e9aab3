// The products of precision="mixed" (common/mixed_precision.h): of each a row keeps a = x W^T and the x that a stands
// for; most evaluations add W d to it for the change d of x, rounded to bfloat16, on tensor cores (tensor_product.h,
// group_product.h), some take the product in full (tile_product.h). What rounding leaves of d stays in the next d. All
// products of one evaluation of a row are of one kind.
//
// A product in full costs a block as much for one row as for all. So rows that are due for one wait until they are no
// fewer than those that go on without; what a row computes does not depend on when.
#pragma once

#include "../common/step_decision.h"
#include "group_product.h"
#include "tensor_product.h"
#include "tile_product.h"

namespace ak::cuda {

// Rows that lie in one of two places each, `apart` from each other; or all in the first.
template <class T>
struct TurningRows {
  AK_DEVICE TurningRows(T* data, int64_t ld, int64_t apart, const bool* odd)
      : data(data), ld(ld), apart(apart), odd(odd) {}
  AK_DEVICE TurningRows(const Rows<T>& rows) : TurningRows(rows.data, rows.ld, 0, nullptr) {}

  AK_DEVICE T* operator[](int slot) const { return data + slot * ld + (odd != nullptr && odd[slot] ? apart : 0); }

  T* data;
  int64_t ld, apart;
  const bool* odd;
};

template <class Shape>
struct alignas(32) MixedSpace {
  MixedStep step[Shape::rows];
  int64_t at_work[Shape::rows];  // the row whose step is taken in this round; negative: none
  int64_t full[Shape::rows];     // of them, those whose product is in full
  int64_t changed[Shape::rows];  // and those with a product of a change
  bool odd[Shape::rows];         // which of its two buffers holds the iterate
};

// Entries of scratch that a row keeps of a product.
constexpr int64_t mixed_kept(int64_t outputs, int64_t inputs) { return row_ld(outputs) + row_ld(inputs); }

template <class Shape, ProductKind kind>
using ChangesTile = std::conditional_t<kind == kWgmma, GroupTile<Shape::rows>, TensorTile<Shape::rows>>;

// Shared memory of a team: MixedSpace, then the tile of changes, whose place TileProduct's takes when it was
// multiplied. inputs: the most of a product.
template <class Shape, ProductKind kind>
constexpr int64_t mixed_product_bytes(int64_t inputs) {
  const int64_t tile = padded(ChangesTile<Shape, kind>::entries(inputs) * int64_t(sizeof(BFloat16)), 32);
  return int64_t(sizeof(MixedSpace<Shape>)) + (tile > kProductBytes<float, Shape> ? tile : kProductBytes<float, Shape>);
}

template <class Shape_, ProductKind kind, class Team>
class MixedProduct {
  using Warp = typename Team::template Of<kWarp>;
  using Full = TileProduct<float, Shape_, Team>;
  using Changes = std::conditional_t<kind == kWgmma, GroupProduct<Shape_::rows, Team>,
                                     TensorProduct<Shape_::rows, Shape_::threads, Team>>;
  using Layout = ChangesTile<Shape_, kind>;

 public:
  using Shape = Shape_;
  using Iterates = TurningRows<const float>;
  static constexpr bool kMixed = true;

  // row: what each slot solves, negative where it is idle; scratch: for every slot mixed_kept() entries of each
  // product; places: where they lie there, and the weights in `packed`, which are as Changes wants them.
  AK_DEVICE MixedProduct(const Team& team, void* shared, const int64_t* row, const ProductPlace* places, float* scratch,
                         const void* packed)
      : team_(team),
        row_(row),
        space_(static_cast<MixedSpace<Shape>*>(shared)),
        full_(team, space_ + 1, space_->full),
        tile_(reinterpret_cast<BFloat16*>(space_ + 1)),
        places_(places),
        scratch_(scratch),
        packed_(static_cast<const char*>(packed)) {}

  AK_DEVICE MixedStep* step(int slot) const { return &space_->step[slot]; }
  AK_DEVICE bool* odd() const { return space_->odd; }
  AK_DEVICE const int64_t* at_work() const { return space_->at_work; }

  // A slot takes up a new row. By one thread.
  AK_DEVICE void begin_row(int slot) const {
    space_->step[slot] = MixedStep{};
    space_->step[slot].full = true;
  }

  // A row has taken a step and goes on, from its next iterate unless this one is to be confirmed. By one thread.
  AK_DEVICE void end_step(int slot, int steps, int max_steps) const {
    MixedStep& step = space_->step[slot];
    if (!step.precision.confirm) turn(slot);
    step.full = step.precision.full_is_due(steps, max_steps);
  }
  AK_DEVICE void turn(int slot) const { space_->odd[slot] = !space_->odd[slot]; }

  // Decides who works.
  AK_DEVICE void begin_round() const {
    team_.each([&](int rank) {
      if (rank >= Shape::rows) return;
      int due = 0, others = 0;
      AK_ROLLED
      for (int slot = 0; slot < Shape::rows; ++slot)
        if (row_[slot] >= 0) ++(space_->step[slot].full ? due : others);
      const bool idle = row_[rank] < 0, full = space_->step[rank].full;
      space_->full[rank] = !idle && full && due >= others ? row_[rank] : -1;
      space_->changed[rank] = !idle && !full ? row_[rank] : -1;
      space_->at_work[rank] = idle || (full && due < others) ? -1 : row_[rank];
    });
  }

  // Product `index` of an evaluation, x W^T of every row at work. Returns where the products lie.
  AK_DEVICE Rows<const float> apply(int index, const Matrix<float>& w, const Iterates& x, Rows<float>) const {
    const ProductPlace& place = places_[index];
    const int64_t ld = row_ld(w.outputs);
    const Rows<float> a{scratch_ + Shape::rows * place.kept, ld}, last{a.data + Shape::rows * ld, row_ld(w.inputs)};
    const char* const packed = packed_ + place.packed;
    team_.warps([&](int warp) {
      const Warp lanes(nullptr);
      for (int slot = warp; slot < Shape::rows; slot += Shape::threads / kWarp)
        lanes.each([&](int lane) { take_change(lane, slot, w.inputs, x[slot], last[slot]); });
      if constexpr (kind == kWgmma) team_.publish();
    });
    if (any(space_->changed)) Changes(packed, tile_, w.outputs, w.inputs).add_to(team_, a.data, a.ld, space_->changed);
    if (any(space_->full)) full_.apply(index, w, last.to_read(), a);
    return a.to_read();
  }

 private:
  AK_DEVICE static bool any(const int64_t* rows) {
    bool found = false;
    AK_ROLLED
    for (int slot = 0; slot < Shape::rows; ++slot) found = found || rows[slot] >= 0;
    return found;
  }

  // A slot's row of the tile, and in `last` the x that a stands for after this product.
  AK_DEVICE void take_change(int lane, int slot, int64_t inputs, const float* x, float* last) const {
    const bool full = space_->full[slot] >= 0, changed = space_->changed[slot] >= 0;
    AK_ROLLED
    for (int i = lane * 4; i < int(Layout::filled(inputs)); i += kWarp * 4) {
      Pack<BFloat16, 4> rounded{};
      const bool inside = i < inputs;  // and what pads a row is zero
      if (inside && full) store_global<4>(last + i, load_global<4>(x + i));
      if (inside && changed) {
        const Pack<float, 4> to = load_global<4>(x + i);
        Pack<float, 4> from = load_global<4>(last + i);
        AK_UNROLLED
        for (int j = 0; j < 4; ++j) {
          // What pads x is whatever lay there.
          rounded.v[j] = narrow<BFloat16>(i + j < inputs ? to.v[j] - from.v[j] : 0.0f);
          from.v[j] += widen(rounded.v[j]);
        }
        store_global<4>(last + i, from);
      }
      store_pack<4>(tile_ + Layout::place(inputs, slot, i), rounded);
    }
  }

  const Team& team_;
  const int64_t* const row_;
  MixedSpace<Shape>* const space_;
  const Full full_;
  BFloat16* const tile_;
  const ProductPlace* const places_;
  float* const scratch_;
  const char* const packed_;
};

template <class T, class Shape, ProductKind kind, class Team>
using ProductOf = std::conditional_t<kind == kFull, TileProduct<T, Shape, Team>, MixedProduct<Shape, kind, Team>>;

}  // namespace ak::cuda
