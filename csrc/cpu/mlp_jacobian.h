// The derivative of an MLP cell: its passes over rows, and J r or J^T r with W1 and W2 in 8 bits, which Newton steps
// take (newton.h). The mathematics stands in attractor_kernels/backends/reference/mlp.py:
//
//   adjoint  J^T w = leak w + skip t + (q [W2^T t, once or twice]) W1,  t = N w
//   tangent  J y = leak y + N (skip y + W2 s),  s = q (W1 y), its halves added when gated
#pragma once

#include "jacobian_steps.h"
#include "mlp_row.h"

namespace ak::AK_ISA {

// N x = rinv (x - [mean x, layer only] - n mean(n x)), the derivative of a norm: what it takes from x, broadcast.
template <class T>
struct NormDerivative {
  Vec<T> rinv, along, mean;

  template <int norm>
  Vec<T> apply(Vec<T> x, Vec<T> n) const {
    if constexpr (norm == kNoNorm) return x;
    if constexpr (norm == kLayerNorm) x = x - mean;
    return (x - n * along) * rinv;
  }
};

template <class T, int norm>
inline NormDerivative<T> norm_derivative(const T* x_row, const T* n_row, T rinv, int64_t dim) {
  Vec<T> along{}, sum{};
  for_row<T>(dim, [&](int64_t i, auto keep) {
    const Vec<T> x = keep(load(x_row + i));
    along = fma<T>(load(n_row + i), x, along);
    if constexpr (norm == kLayerNorm) sum = sum + x;
  });
  return {broadcast<T>(rinv), broadcast<T>(sum_lanes<T>(along) / T(dim)), broadcast<T>(sum_lanes<T>(sum) / T(dim))};
}

// What J of a row is made of: the halves of q in whole vectors, and n [dim] and rinv of a norm.
template <class T>
struct MlpDerivative {
  const T *q, *n, *rinv;
};

// t = N x
template <class T, int norm>
void norm_row(const T* x, const MlpDerivative<T>& of, int64_t dim, T* t) {
  const NormDerivative<T> derivative = norm_derivative<T, norm>(x, of.n, of.rinv[0], dim);
  for_row<T>(dim, [&](int64_t i, auto keep) {
    store(t + i, keep(derivative.template apply<norm>(load(x + i), load(of.n + i))));
  });
}

template <class T>
using NormPass = void (*)(const T* x, const MlpDerivative<T>& of, int64_t dim, T* t);

// null: no norm, N x is x.
template <class T>
inline NormPass<T> norm_pass(int norm) {
  return norm == kLayerNorm ? norm_row<T, kLayerNorm> : norm == kRmsNorm ? norm_row<T, kRmsNorm> : nullptr;
}

// Where a row's constants, from `at` on, have what J is made of.
struct MlpPlaces {
  int64_t dim, hidden, halves;
  bool norm;
  int64_t at;

  template <class T>
  int64_t q_ld() const {
    return round_up(hidden, kLanes<T>);
  }
  template <class T>
  int64_t elements() const {
    return halves * q_ld<T>() + (norm ? round_up(dim, kLanes<T>) + kLanes<T> : 0);
  }
  template <class T>
  T* q(T* constants) const {
    return constants + at;
  }
  template <class T>
  T* n(T* constants) const {
    return q(constants) + halves * q_ld<T>();
  }
  template <class T>
  T* rinv(T* constants) const {
    return n(constants) + round_up(dim, kLanes<T>);
  }
  template <class T>
  MlpDerivative<T> of(const T* c) const {
    T* const constants = const_cast<T*>(c);
    return {q(constants), n(constants), rinv(constants)};
  }
};

// The same in float32, from 0 on.
inline MlpPlaces narrow_places(const MlpPlaces& places) {
  return {places.dim, places.hidden, places.halves, places.norm, 0};
}
template <class T>
void narrow_derivative(const MlpPlaces& places, const T* from, float* to) {
  if constexpr (sizeof(T) == 8) {
    const MlpDerivative<T> of = places.of(from);
    const MlpPlaces at = narrow_places(places);
    for (int64_t half = 0; half < places.halves; ++half)
      row_to_float32(of.q + half * places.q_ld<T>(), places.hidden, at.q(to) + half * at.q_ld<float>());
    if (!places.norm) return;
    row_to_float32(of.n, places.dim, at.n(to));
    at.rinv(to)[0] = float(of.rinv[0]);
  }
}

// A packed leak as MlpJacobian takes it; of float64 in the calling thread's memory, until the next.
template <class T>
const float* jacobian_leak(const Weights<T>& leak) {
  if constexpr (sizeof(T) == 4) {
    return leak.full.data;
  } else {
    thread_local Scratch narrow;
    const int64_t dim = leak.full.outputs;
    float* const to = static_cast<float*>(narrow.get(size_t(round_up(dim, kLanes<float>)) * sizeof(float)));
    row_to_float32(leak.full.data, dim, to);
    return to;
  }
}

template <bool adjoint>
class MlpJacobian;

#if AK_HAS_INT8

template <bool adjoint>
class MlpJacobian {
 public:
  // first, second: W1 and W2, or W2^T and W1^T for the adjoint. leak: [dim], in whole vectors.
  MlpJacobian(const Weights<float>& first, const Weights<float>& second, const MlpPlaces& places, const float* leak,
              float skip, int norm)
      : first_(first),
        second_(second),
        places_(places),
        leak_(leak),
        skip_(skip),
        norm_(norm_pass<float>(norm)),
        middle_ld_(hidden_elements<float>(second.full.inputs)),
        state_ld_(round_up(places.dim, kLanes<float>) + kLanes<float>) {}

  static constexpr bool kSlopes = false;
  int64_t dim() const { return places_.dim; }
  int64_t constants() const { return places_.at + places_.elements<float>(); }
  int64_t row_bytes() const { return first_.row_bytes(); }
  int64_t row_sums() const { return second_.row_sums(); }
  bool takes_signed(int n) const { return first_.takes_signed(n); }
  void lay(Pieces& pieces, int n) {
    const int64_t rows = round_up(n, 16);
    sums_ = pieces.take<int32_t>(rows * first_.row_sums());
    bytes_ = pieces.take<uint8_t>(rows * second_.row_bytes());
    middle_ = pieces.take<float>(n * middle_ld_);
    if (!normed_first()) return;
    projected_ = pieces.take<float>(n * state_ld_);
    projected_bytes_ = pieces.take<uint8_t>(rows * first_.row_bytes());
  }

  PlainNumbers numbers(float) const { return {}; }

  void apply(int n, const uint8_t* bytes, int32_t* sums, const CoarseRow* rows) const {
    float unit[kMaxTile];
    const float* from[kMaxTile];
    for (int k = 0; k < n; ++k) {
      from[k] = rows[k].r;
      unit[k] = rows[k].unit;
    }
    if (normed_first()) {
      for (int k = 0; k < n; ++k) {
        float* const t = projected_ + k * state_ld_;
        norm_(rows[k].r, places_.of(rows[k].constants), places_.dim, t);
        from[k] = t;
        unit[k] = take_row(t, places_.dim, first_.takes_signed(n), projected_bytes_ + k * first_.row_bytes());
      }
      bytes = projected_bytes_;
    }
    first_.apply(n, bytes, sums_);
    for (int k = 0; k < n; ++k) {
      float* const h = middle_ + k * middle_ld_;
      const auto numbers = first_.numbers(unit[k]);
      const float* const a = reinterpret_cast<const float*>(sums_ + k * first_.row_sums());
      const float* const q = places_.of(rows[k].constants).q;
      const auto value = [&](int64_t i) { return numbers(a, from[k], i); };
      const Vec<float> most = places_.halves == 2 ? middle<true>(h, q, value) : middle<false>(h, q, value);
      const CoarseUnit counted(largest_lane<float>(most));
      take_bytes(h, second_.inputs(), counted, second_.takes_signed(n), bytes_ + k * second_.row_bytes());
      unit[k] = counted.unit;
    }
    second_.apply(n, bytes_, sums);
    for (int k = 0; k < n; ++k) {
      float* const out = reinterpret_cast<float*>(sums + k * row_sums());
      const float *const h = middle_ + k * middle_ld_, *const r = rows[k].r;
      const auto numbers = second_.numbers(unit[k]);
      const Vec<float> skip = broadcast<float>(skip_);
      const auto output = [&](const float* skipped, int64_t i) {
        return fma<float>(skip, load(skipped + i), numbers(out, h, i));
      };
      if (adjoint || norm_ == nullptr) {
        for_row<float>(places_.dim, [&](int64_t i, auto keep) {
          store(out + i, keep(fma<float>(load(leak_ + i), load(r + i), output(from[k], i))));
        });
      } else {
        for_row<float>(places_.dim, [&](int64_t i, auto keep) { store(out + i, keep(output(r, i))); });
        norm_(out, places_.of(rows[k].constants), places_.dim, out);
        for_row<float>(places_.dim, [&](int64_t i, auto keep) {
          store(out + i, keep(fma<float>(load(leak_ + i), load(r + i), load(out + i))));
        });
      }
    }
  }

 private:
  // Whether the first product is of N r.
  bool normed_first() const { return adjoint && norm_ != nullptr; }

  static float take_row(const float* x, int64_t n, bool is_signed, uint8_t* to) {
    Vec<float> most{};
    for (int64_t i = 0; i < n; i += kLanes<float>) most = VecOps<float>::max(most, VecOps<float>::abs(load(x + i)));
    const CoarseUnit unit(largest_lane<float>(most));
    take_bytes(x, n, unit, is_signed, to);
    return unit.unit;
  }

  // h = q value, its halves added up or, of the adjoint, of both; and its largest entries in size.
  template <bool gated, class Value>
  Vec<float> middle(float* h, const float* q, const Value& value) const {
    const int64_t hidden = places_.hidden, ld = places_.q_ld<float>();
    Vec<float> most{};
    for_row<float>(hidden, [&](int64_t i, auto keep) {
      Vec<float> v = load(q + i) * value(i);
      if constexpr (gated && !adjoint) v = fma<float>(load(q + ld + i), value(hidden + i), v);
      v = keep(v);
      store(h + i, v);
      most = VecOps<float>::max(most, VecOps<float>::abs(v));
    });
    if constexpr (gated && adjoint)
      for_row<float>(hidden, [&](int64_t i, auto keep) {
        const Vec<float> v = keep(load(q + ld + i) * value(i));
        store(h + hidden + i, v);
        most = VecOps<float>::max(most, VecOps<float>::abs(v));
      });
    return most;
  }

  const CoarseProduct first_, second_;
  const MlpPlaces places_;
  const float* const leak_;
  const float skip_;
  const NormPass<float> norm_;
  const int64_t middle_ld_, state_ld_;
  int32_t* sums_ = nullptr;
  uint8_t *bytes_ = nullptr, *projected_bytes_ = nullptr;
  float *middle_ = nullptr, *projected_ = nullptr;
};

#endif

}  // namespace ak::AK_ISA
