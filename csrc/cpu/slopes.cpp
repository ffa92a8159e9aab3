// d = scale * phi'(a) and d * v, entry by entry.
#include "row_product.h"
#include "storage.h"

namespace ak::AK_ISA {
namespace {

// Entries [first, last) of a row.
template <class T, int kind>
void slope_range(const SlopeProblem<T>& p, int64_t row, int64_t first, int64_t last) {
  using Math = Activations<VecOps<T>>;
  const int64_t start = row * p.dim;
  const T *const a = p.a + start, *const v = p.v + start, *const scale = p.scale + start;
  T *const d = p.d + start, *const dv = p.dv + start;
  const Vec<T> ones = broadcast<T>(T(1));
  for_vectors<T>(last - first, [&](int64_t offset, auto access) {
    const int64_t i = first + offset;
    const Vec<T> factor = p.scale != nullptr ? access.load_wide(scale + i) : ones;
    const Vec<T> slope = Math::template derivative<kind>(access.load_wide(a + i)) * factor;
    access.store_wide(d + i, slope);
    access.store_wide(dv + i, slope * access.load_wide(v + i));
  });
}

template <class T>
void slope_row(const SlopeProblem<T>& p, int64_t row) {
  switch (p.activation) {
    case kTanh:
      return slope_range<T, kTanh>(p, row, 0, p.dim);
    case kRelu:
      return slope_range<T, kRelu>(p, row, 0, p.dim);
    case kSigmoid:
      return slope_range<T, kSigmoid>(p, row, 0, p.dim);
    case kSoftplus:
      return slope_range<T, kSoftplus>(p, row, 0, p.dim);
    case kGelu:
      return slope_range<T, kGelu>(p, row, 0, p.dim);
    case kSilu:
      return slope_range<T, kSilu>(p, row, 0, p.dim);
    case kRelu2:
      return slope_range<T, kRelu2>(p, row, 0, p.dim);
    case kPartialRelu:
      slope_range<T, kIdentity>(p, row, 0, p.dim - p.pieces);
      return slope_range<T, kRelu>(p, row, p.dim - p.pieces, p.dim);
    default:
      return slope_range<T, kIdentity>(p, row, 0, p.dim);
  }
}

template <class T>
void run(const SlopeProblem<T>& problem, const Executor& executor) {
  constexpr int64_t kWorthAThread = 1 << 15;  // entries; below, starting a thread costs more
  const int64_t worth = problem.rows * problem.dim / kWorthAThread + 1;
  int64_t tasks = worth < executor.threads ? worth : executor.threads;
  tasks = tasks < problem.rows ? tasks : problem.rows;
  auto share = [&](int task) {
    const int64_t last = problem.rows * (task + 1) / tasks;
    for (int64_t row = problem.rows * task / tasks; row < last; ++row) slope_row(problem, row);
  };
  run_tasks(executor, int(tasks), share);
}

}  // namespace

void slopes(const SlopeProblem<float>& problem, const Executor& executor) { run(problem, executor); }
void slopes(const SlopeProblem<double>& problem, const Executor& executor) { run(problem, executor); }

}  // namespace ak::AK_ISA
