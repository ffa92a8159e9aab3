// One product W x of a cell's map: its weights, packed once per solve and in few bits too where that pays, and what
// each row keeps of it.
#pragma once

#include <atomic>

#include "digit_product.h"
#include "narrow.h"
#include "scratch.h"
#include "split_product.h"

namespace ak::AK_ISA {

enum Narrow { kFull, kInt8, kBfloat16, kDigitwise };

// An error of 8-bit weights, relative to W, that is not worth a look at its reasons.
constexpr double kGoodError = 0.012;

// Whether a change in 8 bits is multiplied sooner than the whole of x, its making and the conversions counted, in
// cycles of a processor with one float32 vector a cycle (benchmarks/NOTES.md).
inline bool narrow_pays(int64_t outputs, int64_t inputs) {
  constexpr double lanes = kLanes<float>;
  const double saved = 0.65 * double(outputs) * double(inputs) / lanes;
  return saved > 1.2 * (7 * double(inputs) / lanes + 3 * double(outputs) / lanes + 20);
}

// Whether the matrix unit multiplies sooner than vectors do, by a margin: it gains nothing for rows by ones and twos,
// and two threads of one core share it. Terms or digits of the rows to be made and sums to be put together count, in
// cycles of a processor that has one: two vectors a cycle, of floats or, mixed, of 8-bit changes with the full products
// these need (benchmarks/NOTES.md). Where rows take Newton steps, most products are in 8 bits whichever way, and those
// in full decide.
inline bool unit_pays(int64_t outputs, int64_t inputs, bool mixed, bool newton = false) {
  if (!AK_HAS_MATRIX_UNIT) return false;
#if defined(AK_EMULATE_MATRIX_UNIT)
  return inputs > 1;  // wherever it can, for tests
#endif
  if (mixed && newton) return inputs <= (1 << 16);
  constexpr double lanes = kLanes<float>;
  const double products = double(outputs) * double(inputs);
  const double unit = products / 512 * (mixed ? 2.1 : 8.4) + (16 * double(inputs) + 10 * double(outputs)) / lanes + 40;
  const double vectors = products / lanes * (mixed ? 0.17 : 0.55);
  return 1.2 * unit < vectors && inputs <= (1 << 16);  // whose sums of digits hold 32 bits
}

template <class T>
struct Weights {
  PackedMatrix<T> full{};
#if AK_HAS_MATRIX_UNIT
  SplitMatrix split{};   // with data: products in full are the matrix unit's
  DigitMatrix digits{};  // kDigitwise only
#endif
  Narrow narrow = kFull;  // what the changes of x are multiplied by
  bool coarse = false;    // `units` are 8-bit weights for Newton steps alone (coarse_product.h)
  PackedMatrix<uint32_t> units{};
  float* scale = nullptr;    // [outputs], int8 only
  int32_t* start = nullptr;  // [slices, outputs], int8 only
  // int8 only, or null: where W's diagonal stands out (a leak, a symmetric W), it would be all that 8 bits hold.
  float* diagonal = nullptr;  // [outputs]
  double* norm2 = nullptr;    // [panels], while packing
  double* error2 = nullptr;   // [panels]

  int64_t padded_outputs() const { return round_up(full.outputs, kLanes<T>); }
  Int8Product int8(const float* x_scale) const { return {start, scale, x_scale, padded_outputs()}; }
  // What a step's product costs, in float32 products by vectors.
  double share() const {
#if AK_HAS_MATRIX_UNIT
    if (split.data != nullptr) return 0.45;
#endif
    return narrow == kInt8 ? 0.36 : narrow == kBfloat16 ? 0.58 : narrow == kDigitwise ? 0.2 : 1;
  }
  // Whether rows side by side can be multiplied (lane_sums.h): not by W for the matrix unit, or in few bits.
  bool for_lanes() const {
#if AK_HAS_MATRIX_UNIT
    if (split.data != nullptr) return false;
#endif
    return narrow == kFull;
  }
  // Rows that a tile had best have at most.
  int most_rows() const {
#if AK_HAS_MATRIX_UNIT
    if (narrow == kDigitwise) return 2 * kUnitRows;  // as 2 x 2 registers of sums: more per load than any other shape
#endif
    return kMaxTile;
  }
  // Squared fall of the residual after which a full product is due; 0: all are.
  double refresh2() const {
    switch (narrow) {
      case kInt8:
        return Int8Product::kRefresh2;
      case kBfloat16:
        return Bfloat16Product::kRefresh2;
      case kDigitwise:
        return kDigitRefresh2;
      default:
        return 0;
    }
  }
};

template <class T>
struct PackRequest {
  Matrix<T> from;
  Weights<T>* to;
  bool mixed = false;   // products of changes in few bits are welcome
  bool digits = false;  // ... of those that are as good as full ones alone: by digits of the matrix unit
  bool newton = false;  // rows take Newton steps where they can (newton.h), in 8 bits whether mixed or not
  bool coarse = false;  // ... by these weights: none else are wanted where the matrix unit's own do
  bool alone = false;   // they are for nothing else
};

// A row of constants as a one-column matrix: packed, it is the same row padded to whole vectors.
template <class T>
inline Matrix<T> vector_view(const T* data, int64_t n) {
  return {data, n, 1, 1, 1};
}

// A row of constants, or of zeros where there is none, to be packed.
template <class T>
inline Matrix<T> row_or_zeros(const T* data, int64_t n) {
  static constexpr T zero = T(0);
  return data != nullptr ? vector_view(data, n) : Matrix<T>{&zero, n, 1, 0, 1};
}

template <class Body>
inline void run_tasks(const Executor& executor, int tasks, Body& body) {
  if (tasks <= 1) {
    for (int i = 0; i < tasks; ++i) body(i);
    return;
  }
  executor.run(tasks, [](void* context, int task) { (*static_cast<Body*>(context))(task); }, &body);
}

// Hands out a block of memory piece by piece; of none, it only counts.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class E>
  E* take(int64_t count) {
    char* const piece = memory_ != nullptr ? memory_ + used_ : nullptr;
    used_ += round_up(count * int64_t(sizeof(E)), 64);
    return reinterpret_cast<E*>(piece);
  }
  size_t used() const { return size_t(used_); }

 private:
  char* memory_;
  int64_t used_ = 0;
};

template <class T>
inline Narrow first_narrow(const PackRequest<T>& request) {
  if (sizeof(T) != 4 || !request.mixed || !narrow_pays(request.from.outputs, request.from.inputs)) return kFull;
  return AK_HAS_INT8 ? kInt8 : AK_HAS_BFLOAT16 ? kBfloat16 : kFull;
}

template <class T>
inline bool wants_coarse(const PackRequest<T>& request) {
  return AK_HAS_INT8 && sizeof(T) == 4 && request.coarse;
}

template <class T>
inline void place(const PackRequest<T>& request, Pieces& pieces) {
  const int outputs = int(request.from.outputs), inputs = int(request.from.inputs);
  Weights<T>& w = *request.to;
  w.full = {pieces.take<T>(PackedMatrix<T>::size(outputs, inputs)), outputs, inputs};
#if AK_HAS_MATRIX_UNIT
  if (sizeof(T) == 4 && !request.alone) {
    if ((request.mixed || request.digits) && unit_pays(outputs, inputs, true, request.newton))
      w.digits = {pieces.take<int8_t>(DigitMatrix::size(outputs, inputs)), pieces.take<float>(w.padded_outputs()),
                  pieces.take<float>(w.padded_outputs()), outputs, inputs};
    if (!request.mixed && unit_pays(outputs, inputs, false))
      w.split = {pieces.take<uint32_t>(SplitMatrix::size(outputs, inputs)), outputs, inputs};
  }
#endif
  w.narrow = first_narrow(request);
  if (w.narrow == kFull && !wants_coarse(request)) return;
  const int units = (inputs + Bfloat16Product::kPerUnit - 1) / Bfloat16Product::kPerUnit;  // int8 needs half of it
  // The matrix unit reads whole registers of inputs (coarse_product.h).
  const int64_t beyond = AK_HAS_MATRIX_UNIT ? kPanelVectors * kUnitWords : 0;
  w.units = {pieces.take<uint32_t>(PackedMatrix<uint32_t>::size(outputs, units) + beyond), outputs, units};
  w.scale = pieces.take<float>(w.padded_outputs());
  w.start = pieces.take<int32_t>(w.padded_outputs() * ((units + kDepth - 1) / kDepth));
  w.diagonal = pieces.take<float>(w.padded_outputs());
  w.norm2 = pieces.take<double>(w.full.panels());
  w.error2 = pieces.take<double>(w.full.panels());
}

template <class Product>
inline void narrow_panel(const Weights<float>& w, int panel) {
  const int64_t first = int64_t(panel) * kPanelVectors * kLanes<float>;
  w.norm2[panel] = w.error2[panel] = 0;
  Product::pack_panel(w.full.panel(panel), w.full.inputs, w.full.panel_vectors(panel) * kLanes<float>,
                      w.units.panel(panel), w.scale + first, w.start + first, w.padded_outputs(), w.norm2[panel],
                      w.error2[panel]);
}

// The same without the diagonal of a square W, which goes to w.diagonal.
inline void narrow_panel_off_diagonal(const Weights<float>& w, int panel) {
  const int width = w.full.panel_vectors(panel) * kLanes<float>;
  const int first = panel * kPanelVectors * kLanes<float>;
  float* const data = w.full.panel(panel);
  float* const diagonal = w.diagonal + first;
  const int valid = w.full.outputs - first < width ? w.full.outputs - first : width;
  std::memset(diagonal, 0, size_t(width) * sizeof(float));
  for (int n = 0; n < valid; ++n) {
    float& entry = data[int64_t(first + n) * width + n];
    diagonal[n] = entry;
    entry = 0;
  }
  narrow_panel<Int8Product>(w, panel);
  for (int n = 0; n < valid; ++n) data[int64_t(first + n) * width + n] = diagonal[n];
}

// Whether the weights just packed in few bits are close enough to W; false where W is not finite.
inline bool close_enough(const Weights<float>& w, double most_error) {
  double norm2 = 0, error2 = 0;
  for (int p = 0; p < w.full.panels(); ++p) {
    norm2 += w.norm2[p];
    error2 += w.error2[p];
  }
  return error2 <= most_error * most_error * norm2;
}

template <class Product>
inline void set_units(Weights<float>& w) {
  w.units.inputs = (w.full.inputs + Product::kPerUnit - 1) / Product::kPerUnit;
}

// body(panel) for every panel, on several threads.
template <class Body>
inline void for_panels(int panels, int threads, const Executor& executor, const Body& body) {
  const int tasks = threads < panels ? threads : panels;
  auto share = [&](int task) {
    for (int p = panels * task / tasks; p < panels * (task + 1) / tasks; ++p) body(p);
  };
  run_tasks(executor, tasks, share);
}

// Whether W's panels, packed in 8 bits, bear that: as they are, or without the diagonal, for which `diagonal` has a
// place.
inline bool settle_int8(Weights<float>& w, float* diagonal, int threads, const Executor& executor) {
  if (close_enough(w, kGoodError)) return true;
  if (w.full.outputs == w.full.inputs) {
    w.diagonal = diagonal;
    for_panels(w.full.panels(), threads, executor, [&](int p) { narrow_panel_off_diagonal(w, p); });
  }
  if (close_enough(w, Int8Product::kMostError)) return true;
  w.diagonal = nullptr;
  return false;
}

// W in as few bits as it bears: what was packed first, bfloat16, or none.
inline void settle_narrow(Weights<float>& w, float* diagonal, int threads, const Executor& executor) {
  if (w.narrow == kInt8) {
    if (settle_int8(w, diagonal, threads, executor)) return;
    w.narrow = AK_HAS_BFLOAT16 ? kBfloat16 : kFull;
    if (w.narrow == kFull) return;
    set_units<Bfloat16Product>(w);
    for_panels(w.full.panels(), threads, executor, [&](int p) { narrow_panel<Bfloat16Product>(w, p); });
  }
  if (!close_enough(w, Bfloat16Product::kMostError)) w.narrow = kFull;
}

#if AK_HAS_MATRIX_UNIT
// The worst of the blocks.
inline Packed pack_all_digits(const PackRequest<float>& request, int threads, const Executor& executor) {
  std::atomic<bool> spread{false}, fit{true};
  const DigitMatrix& digits = request.to->digits;
  for_panels(digits.blocks(), threads, executor, [&](int block) {
    const Packed how = pack_digits(request.from, digits, block);
    if (how == Packed::kNotFit) fit.store(false, std::memory_order_relaxed);
    if (how == Packed::kSpread) spread.store(true, std::memory_order_relaxed);
  });
  return !fit ? Packed::kNotFit : spread ? Packed::kSpread : Packed::kWell;
}

// Packs W for the matrix unit; false where it is not for it: vectors multiply it, by what was placed for them.
inline bool pack_for_unit(const PackRequest<float>& request, int threads, const Executor& executor) {
  Weights<float>& w = *request.to;
  if (w.digits.data != nullptr) {
    float* const diagonal = w.digits.diagonal;
    w.digits.diagonal = nullptr;
    Packed how = pack_all_digits(request, threads, executor);
    if (how == Packed::kSpread && w.digits.outputs == w.digits.inputs) {
      w.digits.diagonal = diagonal;
      how = pack_all_digits(request, threads, executor);
    }
    if (how == Packed::kWell) {
      w.narrow = kDigitwise;
      w.split = {};
      return true;
    }
    w.digits = {};
  }
  if (w.split.data != nullptr) {
    std::atomic<bool> fit{true};
    for_panels(w.split.blocks(), threads, executor, [&](int block) {
      if (!split_block(request.from, w.split, block)) fit.store(false, std::memory_order_relaxed);
    });
    if (fit) return true;
    w.split = {};
  }
  return false;
}
#endif

template <class T>
inline void pack_one(const PackRequest<T>& request, int threads, const Executor& executor) {
  constexpr int64_t kWorthThreads = 1 << 16;  // entries; fewer are packed before a thread has started
  Weights<T>& w = *request.to;
  if (request.from.outputs * request.from.inputs < kWorthThreads) threads = 1;
  if constexpr (sizeof(T) == 4) {
    bool packed = false;
#if AK_HAS_MATRIX_UNIT
    packed = pack_for_unit(request, threads, executor);
#endif
    if (packed && (w.narrow == kDigitwise || !wants_coarse(request))) return;
    if (w.narrow != kFull || wants_coarse(request)) {
      // A panel is packed in few bits while it is in the cache.
      float* const diagonal = w.diagonal;
      w.diagonal = nullptr;
      const bool int8 = w.narrow != kBfloat16;
      int8 ? set_units<Int8Product>(w) : set_units<Bfloat16Product>(w);
      for_panels(w.full.panels(), threads, executor, [&](int p) {
        pack_panel(request.from, w.full, p);
        int8 ? narrow_panel<Int8Product>(w, p) : narrow_panel<Bfloat16Product>(w, p);
      });
      if (w.narrow == kFull)
        w.coarse = settle_int8(w, diagonal, threads, executor);
      else
        settle_narrow(w, diagonal, threads, executor);
      return;
    }
  }
  for_panels(w.full.panels(), threads, executor, [&](int p) { pack_panel(request.from, w.full, p); });
}

// Packs the matrices one after another into `scratch`.
template <class T>
inline void pack(const PackRequest<T>* requests, int count, int threads, const Executor& executor,
                 Scratch& scratch = packed_scratch()) {
  Pieces sizes(nullptr);
  for (int i = 0; i < count; ++i) place(requests[i], sizes);
  Pieces pieces(scratch.get(sizes.used()));
  for (int i = 0; i < count; ++i) {
    place(requests[i], pieces);
    pack_one(requests[i], threads, executor);
  }
}

// Of rows in digits whose x moves to what their products stand for: their x, and where it had moved to for the product
// before.
template <class T>
struct Moving {
  T* const* x;
  const T* const* last;
};

// A product of the rows of a tile. Where its weights are narrow a row keeps the product, the x it stands for and,
// without a matrix unit, the change of x, all in memory that the map gives it.
template <class T>
class RowProduct {
 public:
  explicit RowProduct(const Weights<T>& weights)
      : weights_(weights), outputs_(weights.padded_outputs()), inputs_(round_up(weights.full.inputs, kLanes<T>)) {}

  // What a row keeps, in T; moving: where digits are, without the x its product stands for.
  int64_t elements(bool moving = false) const {
    const int inputs = weights_.narrow != kDigitwise ? 2 : moving ? 0 : 1;
    return weights_.narrow == kFull ? 0 : outputs_ + inputs * inputs_;
  }

  // Of what a row keeps, the x its product stands for; null where it is not asked how far x is from it.
  const T* stands_for(const T* kept) const { return weights_.narrow == kInt8 ? kept + outputs_ : nullptr; }

  // products[i] = W x[i] for n rows: in out[i], in kept[i], or where it stays until the next product; x[i] null: zero.
  // exact[i]: in full; a row's first product has to be. travel: of each row, or null. moving, where digits are, or
  // null.
  void apply(int n, const T* const* x, const bool* exact, T* const* kept, T* const* out, const T** products,
             const Travel<T>* travel = nullptr, [[maybe_unused]] const Moving<T>* moving = nullptr) const {
    if (weights_.narrow == kFull) return apply_full(n, x, out, products);
    if constexpr (sizeof(T) == 4) {
      for (int i = 0; i < n; ++i) products[i] = kept[i];
#if AK_HAS_MATRIX_UNIT
      if (weights_.narrow == kDigitwise) return apply_digits(n, x, exact, kept, travel, moving);
#endif
      if (weights_.narrow == kInt8)
        apply_kept<Int8Product>(n, x, exact, kept, travel, [&](const float* scale) { return weights_.int8(scale); });
      else
        apply_kept<Bfloat16Product>(n, x, exact, kept, travel, [](const float*) { return Bfloat16Product{}; });
    }
  }

 private:
  void apply_full(int n, const T* const* x, T* const* out, const T** products) const {
    const T* in[kMaxTile];
    T* to[kMaxTile];
    int count = 0;
    for (int i = 0; i < n; ++i) {
      products[i] = out[i];
      if (x[i] == nullptr || inputs_ == 0) {
        std::memset(out[i], 0, size_t(outputs_) * sizeof(T));
      } else {
        in[count] = x[i];
        to[count++] = out[i];
      }
    }
    if (count == 0) return;
#if AK_HAS_MATRIX_UNIT
    if constexpr (sizeof(T) == 4) {
      if (weights_.split.data != nullptr) {
        const SplitRows rows(count, weights_.split);
        for (int i = 0; i < count; ++i) rows.split(i, in[i], weights_.full.inputs);
        ready_unit(count);
        multiply_split(weights_.split, rows);
        for (int i = 0, r = 0; i < n; ++i)
          if (x[i] != nullptr) products[i] = rows.products(r++);
        return;
      }
    }
#endif
    multiply<T>(weights_.full, count, in, to);
  }

  template <class Product, class MakeProduct>
  void apply_kept(int n, const float* const* x, const bool* exact, float* const* kept, const Travel<float>* travel,
                  const MakeProduct& make) const {
    const float *whole[kMaxTile], *products[kMaxTile];
    float* whole_out[kMaxTile];
    const uint32_t* units[kMaxTile];
    float* out[kMaxTile];
    float scale[kMaxTile];
    int wholes = 0, changes = 0;
    for (int i = 0; i < n; ++i) {
      float* const last = kept[i] + outputs_;
      if (exact[i]) {
        if (x[i] == nullptr)
          std::memset(last, 0, size_t(inputs_) * sizeof(float));
        else
          std::memcpy(last, x[i], size_t(inputs_) * sizeof(float));
        whole[wholes] = x[i];
        whole_out[wholes++] = kept[i];
      } else {
        Change change{reinterpret_cast<uint32_t*>(last + inputs_), weights_.diagonal, kept[i],
                      travel != nullptr ? travel[i].largest : -1.0f, 0.0f};
        Product::take_change(x[i], last, weights_.full.inputs, change);
        units[changes] = change.units;
        scale[changes] = change.scale;
        out[changes++] = kept[i];
      }
    }
    if (wholes > 0) apply_full(wholes, whole, whole_out, products);
    if (changes > 0) multiply_rows(make(scale), weights_.units, changes, units, out);
  }

#if AK_HAS_MATRIX_UNIT
  // A product in full is one of three digits, from zero.
  void apply_digits(int n, const float* const* x, const bool* exact, float* const* kept, const Travel<float>* travel,
                    const Moving<float>* moving) const {
    const int64_t inputs = weights_.full.inputs;
    for (int i = 0; i < n;) {
      DigitRows rows(weights_.digits);
      for (; i < n; ++i) {
        float* const copy = moving == nullptr ? kept[i] + outputs_ : nullptr;
        DigitChange change{x[i], nullptr, moving != nullptr ? moving->x[i] : copy, 0, kDigits, kept[i]};
        Travel<float> distance;
        if (exact[i]) {
          if (!rows.fits(kDigits)) break;
          std::memset(kept[i], 0, size_t(outputs_) * sizeof(float));
          if (x[i] == nullptr) {
            if (copy != nullptr) std::memset(copy, 0, size_t(inputs_) * sizeof(float));
            continue;
          }
        } else {
          change.before = moving != nullptr ? moving->last[i] : copy;
          if (travel != nullptr) distance = travel[i];
        }
        DigitRows::measure(x[i], change.before, inputs, distance);
        if (!exact[i]) change.digits = DigitRows::coarse(distance, inputs) ? 2 : 1;
        if (!rows.fits(change.digits)) break;
        change.largest = distance.largest;
        rows.take(change);
      }
      if (rows.count() == 0) return;
      ready_unit(rows.taken());
      multiply_digits(weights_.digits, rows);
    }
  }
#endif

  const Weights<T>& weights_;
  const int64_t outputs_, inputs_;
};

}  // namespace ak::AK_ISA
