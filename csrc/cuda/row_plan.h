// How the whole solve of a cell is cut up on a device: a batch into tiles of rows, a product into slices.
#pragma once

#include <type_traits>

#include "../common/problems.h"
#include "anderson_step.h"
#include "plan_choices.h"
#include "storage.h"

namespace ak::cuda {

constexpr int kProductRows = 8;       // of a thread
constexpr int kProductColumns = 128;  // of a warp
constexpr int64_t kQueueBytes = 256;  // of scratch, before the blocks' parts
constexpr int kMaxProducts = 2;       // of an evaluation

// A row's entries in scratch: whole accesses.
constexpr int64_t row_ld(int64_t entries) { return padded(entries, 4); }

// A block iterates `rows` rows together; its warps form row_groups x column_groups, each with 8 rows and 128 columns of
// a product.
template <int row_groups_, int column_groups_, int slice_>
struct TileShape {
  static constexpr int row_groups = row_groups_, column_groups = column_groups_;
  static constexpr int slice = slice_;  // inputs of the product at a time
  static constexpr int rows = row_groups * kProductRows;
  static constexpr int threads = row_groups * column_groups * 32;
  static constexpr int pass = column_groups * kProductColumns;  // outputs of the product at a time
};

// Wide tiles read W a fourth as often, narrow ones give every multiprocessor some of few rows. In float64 one shape
// between them has to do.
template <class T>
struct Tiles {
  using Wide = TileShape<4, 2, 16>;
  using Narrow = TileShape<1, 4, 8>;
};
// How an evaluation multiplies: in full only, or mostly changes (mixed_product.h), by which instructions.
enum ProductKind { kFull, kMma, kWgmma };
constexpr int kGroupTeams = 2;  // of a block that multiplies by wgmma, at most

// With products of changes a product in full is the rarer: half a slice leaves registers to the others. And two wide
// tiles share a multiprocessor, so that the passes over one overlap the products of the other.
struct MixedTiles {
  using Wide = TileShape<4, 1, 8>;
  using Narrow = TileShape<1, 4, 4>;
};
template <>
struct Tiles<double> {
  using Wide = TileShape<2, 2, 4>;
  using Narrow = Wide;
};

// Where the part of one product begins in what mixed products need.
struct ProductPlace {
  int64_t kept;    // entries of a row's scratch
  int64_t packed;  // bytes of the weights
};

struct RowPlan {
  int tile_rows;
  int threads;  // of a team, which has a tile to itself
  int teams;    // of a block
  ProductKind products;
  int history;            // kept per row; Auto chooses its own
  double anderson_price;  // cost of an Anderson step over a Picard step, as Auto counts it
  int64_t blocks;
  int64_t shared_bytes;  // of a block: the weights where it multiplies by wgmma, and its teams
  int64_t team_shared;   // of them, a team's
  ProductPlace place[kMaxProducts];
  int64_t mixed_kept;     // entries of scratch of a row, for its mixed products
  int64_t packed_bytes;   // of scratch: the weights for mixed products
  int64_t scratch_bytes;  // the queue, the weights, and all teams
  int64_t team_bytes;     // of them, a team's
  int64_t columns;        // doubles of a row's control
  const char* refused;    // why it cannot be as chosen by hand; or null

  bool mixed() const { return products != kFull; }
};

// f(shape, products) for the shape of tile and the kind of products that a plan chose.
template <class Cell, class F>
auto with_variant(const RowPlan& plan, const F& f) {
  const auto chosen = [&](auto shapes, auto products) {
    using Shapes = decltype(shapes);
    if (plan.tile_rows == Shapes::Wide::rows) return f(typename Shapes::Wide{}, products);
    return f(typename Shapes::Narrow{}, products);
  };
  if constexpr (Cell::kMixed) {
    if (plan.products == kMma) return chosen(MixedTiles{}, std::integral_constant<ProductKind, kMma>{});
    if (plan.products == kWgmma) return chosen(MixedTiles{}, std::integral_constant<ProductKind, kWgmma>{});
  }
  return chosen(Tiles<typename Cell::Scalar>{}, std::integral_constant<ProductKind, kFull>{});
}

struct ProductSize {
  int64_t outputs = 0, inputs = 0;
};

// What a plan must know of a cell: of one row.
struct CellSize {
  int64_t rows, dim;
  double moved;  // entries that its passes over a row read or write
  int64_t kept;  // entries of scratch
  ProductSize product[kMaxProducts];

  double multiply_adds() const {
    double sum = 0;
    for (const ProductSize& p : product) sum += double(p.outputs) * double(p.inputs);
    return sum;
  }
};

template <class T>
RowPlan plan_rows(const CellSize& size, const SolveOptions& options, const DeviceFacts& device,
                  const PlanChoices& choices = {});

}  // namespace ak::cuda
