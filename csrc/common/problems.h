// What a binding hands to a solving kernel: plain arguments, no torch types, for any device.
#pragma once

#include "stopping.h"

namespace ak {

enum Solver { kPicard = 0, kAnderson = 1, kAuto = 2 };

struct SolveOptions {
  int solver = 0;
  int history = 0;
  double damping = 0;
  double ridge = 0;
  double rtol = 0;
  double atol = 0;
  int max_steps = 0;
  int min_steps = 0;
  bool keep_best = false;
  bool mixed = false;  // products of differences in few bits are allowed
};

template <class T>
struct Matrix {  // [outputs, inputs], any strides
  const T* data = nullptr;
  int64_t outputs = 0, inputs = 0;
  int64_t output_stride = 0, input_stride = 0;
};

template <class T>
AK_HD Matrix<T> transposed(const Matrix<T>& m) {
  return {m.data, m.inputs, m.outputs, m.input_stride, m.output_stride};
}

enum Norm { kNoNorm = 0, kLayerNorm = 1, kRmsNorm = 2 };

template <class T>
struct SolveResult {
  T* z = nullptr;             // [rows, dim]
  int32_t* steps = nullptr;   // [rows]
  float* residual = nullptr;  // [rows]
  uint8_t* status = nullptr;  // [rows]
  float* trace = nullptr;     // [max_steps, rows], filled with NaN, or null
};

// f = leak * z + scale * phi(z W^T + u)
template <class T>
struct AffineProblem {
  int64_t rows = 0, dim = 0;
  const T* z0 = nullptr;  // [rows, dim]
  const T* u = nullptr;   // [rows, dim]
  Matrix<T> weight{};
  const T* leak = nullptr;   // [dim] or null
  const T* scale = nullptr;  // [rows, dim] or null; with identity only
  int activation = 0;
  int pieces = 0;  // partial_relu: how many of the last units are relu
};

// What the adjoint of an affine solve begins with: d = scale * phi'(a) and d * v.
template <class T>
struct SlopeProblem {
  int64_t rows = 0, dim = 0;
  const T* a = nullptr;  // [rows, dim], as are all others
  const T* v = nullptr;
  const T* scale = nullptr;  // or null
  T* d = nullptr;
  T* dv = nullptr;
  int activation = 0;
  int pieces = 0;
};

// y = z + u; f = leak * z + norm(skip * y + W2 h + b2), h = phi(W1 y + b1)
template <class T>
struct MlpProblem {
  int64_t rows = 0, dim = 0, hidden = 0;  // hidden: inputs of W2
  const T* z0 = nullptr;
  const T* u = nullptr;
  Matrix<T> w1{};         // [hidden, dim], or [2 hidden, dim] for swiglu
  const T* b1 = nullptr;  // or null
  Matrix<T> w2{};         // [dim, hidden]
  const T* b2 = nullptr;
  const T* leak = nullptr;
  T skip{};
  int norm = 0;
  T norm_eps{};
  int activation = 0;
};

// The derivative of an MLP cell: w = leak * w + skip * t + (q * [W2^T t, once or twice]) W1 + v, t = N w (adjoint), or
// w = leak * w + N (skip * w + W2 (q * W1 w)) + v (tangent)
template <class T>
struct MlpLinearProblem {
  int64_t rows = 0, dim = 0, hidden = 0;
  const T* w0 = nullptr;
  const T* v = nullptr;
  const T* q = nullptr;     // [rows, hidden] or [rows, 2 hidden]
  const T* n = nullptr;     // [rows, dim] normalised output
  const T* rinv = nullptr;  // [rows]
  Matrix<T> w1{};
  Matrix<T> w2{};
  const T* leak = nullptr;
  T skip{};
  int norm = 0;
  bool adjoint = true;
};

// (a_s, a_c) = W z + u; s = sigmoid(a_s); f = (1 - s) * z + s * tanh(a_c)
template <class T>
struct GatedProblem {
  int64_t rows = 0, dim = 0;
  const T* z0 = nullptr;
  const T* u = nullptr;  // [rows, 2 dim]
  Matrix<T> weight{};    // [2 dim, dim]
};

// The derivative of a gated cell: w = c * w + [q1 * w, q2 * w] W + v (adjoint), or
// w = c * w + q1 * (W_s w) + q2 * (W_c w) + v (tangent)
template <class T>
struct GatedLinearProblem {
  int64_t rows = 0, dim = 0;
  const T* w0 = nullptr;
  const T* v = nullptr;
  const T* q = nullptr;  // [rows, 2 dim]
  const T* c = nullptr;  // [rows, dim]
  Matrix<T> weight{};
  bool adjoint = true;
};

}  // namespace ak
