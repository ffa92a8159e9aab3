// The relative residual, in the pieces that csrc/cuda/residual_norm.cu strings together on a device and
// csrc/tests/test_cuda_residual.cpp on a host. The sums are those of a step's first sweep, in the same order.
#pragma once

#include "../common/step_decision.h"
#include "residual_norm.h"
#include "step_sweeps.h"

namespace ak::cuda {

static_assert(kResidualSums >= int(kBaseSums));

template <int threads>
struct ResidualSpace {
  TeamSpace<threads> team;
  double sums[kResidualSums];  // of the only chunk
  double total[2];
};

template <class T, int vector, class Team>
class ResidualBody {
 public:
  AK_DEVICE ResidualBody(const ResidualProblem& problem, const Team& team, ResidualSpace<Team::kThreads>* space)
      : p_(problem), chunks_(chunks_of(problem.entries)), team_(team), space_(space) {}

  AK_DEVICE void sum_chunk(int64_t problem, int64_t chunk) const {
    const int64_t length = chunk_entries(p_.entries), start = chunk * length;
    const int64_t left = p_.entries - start;
    SumsInput<T> in{};
    in.z = static_cast<const T*>(p_.z) + problem * p_.entries + start;
    in.fz = static_cast<const T*>(p_.fz) + problem * p_.entries + start;
    in.entries = left < length ? left : length;
    in.damping = Wide<T>(1);
    in.sums = sums(problem, chunk);
    in.scale = Wide<T>(1);
    if constexpr (sizeof(Wide<T>) == 4)
      in.scale = power_near_inverse(double(chunk_largest<T, vector>(team_, in.z, in.fz, in.entries)));
    chunk_sums<T, vector>(team_, in, Before::kNone);
  }

  // After all of its chunks.
  AK_DEVICE void finish(int64_t problem) const {
    team_.warp_totals(
        2, chunks_, [&](int k, int64_t chunk) { return sums(problem, chunk)[k]; },
        [&](int k, double sum) { space_->total[k] = sum; });
    team_.first([&] {
      const double relative = relative_residual(space_->total[kR2], space_->total[kF2]);
      if constexpr (sizeof(Wide<T>) == 8)
        static_cast<double*>(p_.out)[problem] = relative;
      else
        static_cast<float*>(p_.out)[problem] = float(relative);
    });
  }

  AK_DEVICE int64_t chunks() const { return chunks_; }

 private:
  AK_DEVICE double* sums(int64_t problem, int64_t chunk) const {
    return p_.sums == nullptr ? space_->sums : p_.sums + (problem * chunks_ + chunk) * kResidualSums;
  }

  const ResidualProblem& p_;
  const int64_t chunks_;
  const Team& team_;
  ResidualSpace<Team::kThreads>* const space_;
};

}  // namespace ak::cuda
