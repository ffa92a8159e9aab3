// Newton steps of the cells whose Jacobian is had in 8 bits, and the weights of such a cell.
#pragma once

#include "newton_float64.h"

namespace ak::AK_ISA {

// Whether rows are to be corrected by Newton steps, by products of state and hidden rows.
inline bool newton_pays(const SolveOptions& options, int64_t dim, int64_t hidden) {
  constexpr int64_t kMost = 1 << 16;  // whose sums hold 32 bits
  return AK_HAS_INT8 && options.solver == kAuto && options.damping == 1 && dim >= 1 && hidden >= 1 && dim <= kMost &&
         hidden <= kMost;
}

// A cell's matrices in the order they are multiplied, packed.
template <class T, int count>
struct CellWeights {
  bool mixed = false;   // products of changes in few bits are welcome
  bool newton = false;  // rows take Newton steps
  Weights<T> of[count];
  Weights<float> narrow[count];  // of float64: what Newton steps are by

  const Weights<float>& coarse(int i) const {
    if constexpr (sizeof(T) == 8)
      return narrow[i];
    else
      return of[i];
  }
  // Multiply-adds of an evaluation, in those of float32 vectors.
  double products() const {
    double sum = 0;
    for (const Weights<T>& w : of) sum += double(w.full.outputs) * double(w.full.inputs) * w.share();
    return sum;
  }
  // With precision="full" every product is in full.
  double refresh2() const {
    double most = 0;
    for (const Weights<T>& w : of) most = mixed && w.refresh2() > most ? w.refresh2() : most;
    return most;
  }
};

#if AK_HAS_INT8
template <int count>
inline void pack_narrow(const Matrix<double> (&matrices)[count], Weights<float> (&to)[count], int threads,
                        const Executor& executor) {
  thread_local Scratch narrow, packed;
  int64_t elements = 0;
  for (const Matrix<double>& m : matrices) elements += m.outputs * m.inputs;
  float* w = static_cast<float*>(narrow.get(size_t(elements) * sizeof(float)));
  PackRequest<float> requests[count];
  for (int i = 0; i < count; ++i) {
    const Matrix<float> copy = matrix_to_float32(matrices[i], matrices[i].inputs, w);
    requests[i] = {copy, &to[i], false, false, true, true, true};
    w += copy.outputs * copy.inputs;
  }
  pack(requests, count, threads, executor, packed);
  narrow.release_if_large();
}
#endif

// Packs a cell's matrices and, after them, rows of constants. to.mixed and to.newton say what is wanted; whether Newton
// steps can be had, to.newton says after it. In full the matrix unit multiplies by what they are by too.
template <class T, int count, int row_count>
void pack_cell(const Matrix<T> (&matrices)[count], CellWeights<T, count>& to, const PackRequest<T> (&rows)[row_count],
               int threads, const Executor& executor) {
  const bool by_these = to.newton && sizeof(T) == 4;
  PackRequest<T> requests[count + row_count];
  for (int i = 0; i < count; ++i) requests[i] = {matrices[i], &to.of[i], to.mixed, by_these, by_these, by_these};
  for (int i = 0; i < row_count; ++i) requests[count + i] = rows[i];
  pack(requests, count + row_count, threads, executor);
#if AK_HAS_INT8
  if constexpr (sizeof(T) == 8)
    if (to.newton) pack_narrow(matrices, to.narrow, threads, executor);
  for (int i = 0; i < count; ++i) to.newton = to.newton && CoarseProduct::fits(to.coarse(i));
  // Residuals fall so far then that after changes in 8 bits each product would have to be in full.
  if (to.newton)
    for (Weights<T>& w : to.of)
      if (w.narrow == kInt8) {
        w.narrow = kFull;
        w.coarse = true;
      }
#endif
}

// Not where there are no products in few bits. Jacobian: an Operator (newton.h).
template <class T, class Jacobian, bool has = AK_HAS_INT8>
struct JacobianSteps {
  template <class... Args>
  explicit JacobianSteps(bool, const Args&...) {}
  static constexpr bool pay() { return false; }
  static double aim2(bool) { return 1; }
  template <class Narrow>
  void take(int, Correction<T>*, const Narrow&) {}
};

#if AK_HAS_INT8

template <class T, class Jacobian>
class JacobianSteps<T, Jacobian, true> {
  using Newton = NewtonSteps<T, Jacobian>;

 public:
  template <class... Args>
  explicit JacobianSteps(bool pay, const Args&... args) : newton_(Jacobian(args...)), pay_(pay) {}

  bool pay() const { return pay_; }
  double aim2(bool first) const { return newton_.aim2(first); }

  // narrow(constants, to): puts what J of a row is made of, in its constants, to floats; of float64.
  template <class Narrow>
  void take(int n, Correction<T>* rows, [[maybe_unused]] const Narrow& narrow) {
    if constexpr (sizeof(T) == 8)
      newton_.solve(n, rows, narrow, nullptr);
    else
      newton_.solve(
          n, rows,
          [&](const Correction<float>& c, const typename Newton::Start& start) {
            for_row<float>(newton_.dim(), [&](int64_t i, auto keep) { start.put(c, i, Vec<float>{}, keep); });
          },
          nullptr);
  }

 private:
  Newton newton_;
  const bool pay_;
};

#endif

}  // namespace ak::AK_ISA
