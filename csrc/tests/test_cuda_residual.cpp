// The relative residual of CUDA devices, run on the host (csrc/cuda/residual_body.h with a host team), chunks in any
// order, against sums in long double; a problem alone and in a batch bit by bit.
#include "../cuda/residual_body.h"
#include "check.h"
#include "host_team.h"

namespace {

using namespace ak;
using namespace ak::test;

template <class T>
double value_of(T x) {
  return double(cuda::widen(x));
}

// What residual_kernel of csrc/cuda/residual_norm.cu does.
template <class T, int vector, int threads>
void launch(const cuda::ResidualProblem& p) {
  using Team = HostTeam<threads>;
  const int64_t chunks = cuda::chunks_of(p.entries);
  std::vector<int64_t> arrived(size_t(p.problems), 0);
  for (const int64_t i : any_order(p.problems * chunks)) {
    cuda::ResidualSpace<threads> space;
    std::memset(&space, 0xff, sizeof space);
    const Team team(&space.team);
    const cuda::ResidualBody<T, vector, Team> body(p, team, &space);
    body.sum_chunk(i / chunks, i % chunks);
    if (++arrived[size_t(i / chunks)] == chunks) body.finish(i / chunks);
  }
}

template <class T, class Out>
std::vector<Out> residuals(StateType type, const T* z, const T* fz, int64_t problems, int64_t entries, int warp = -1) {
  const int64_t chunks = cuda::chunks_of(entries);
  const Block<double> sums(chunks > 1 ? problems * chunks * cuda::kResidualSums : 0);
  std::vector<Out> out(static_cast<size_t>(problems), Out(-1));
  const cuda::ResidualProblem p{type, problems, entries, z, fz, chunks > 1 ? sums.get() : nullptr, nullptr, out.data()};
  const cuda::ResidualPlan plan = cuda::plan_residual(p, {.warp = warp});
  CHECK(plan.refused == nullptr && plan.chunks == chunks, "%ld entries", long(entries));
  if (plan.small)
    launch<T, 1, cuda::kWarp>(p);
  else if (plan.wide_access)
    launch<T, cuda::kPerAccess<T>, cuda::kBlockThreads>(p);
  else
    launch<T, 1, cuda::kBlockThreads>(p);
  return out;
}

template <class T, class Out>
void test_type(StateType type, double scale, double tolerance) {
  for (const int64_t entries : {0, 1, 31, 512, 513, 640, 4096, 4097, 8200, 12289})
    for (const int64_t problems : {1, 3}) {
      const auto draw = [&](int64_t) { return cuda::narrow<T>(Wide<T>(scale * normal())); };
      const Block<T> z(problems * entries, draw), fz(problems * entries, draw);
      // One problem has arrived.
      if (problems > 1)
        for (int64_t i = 0; i < entries; ++i) fz[i] = z[i];
      const int64_t chunks = cuda::chunks_of(entries);
      const std::vector<Out> found = residuals<T, Out>(type, z.get(), fz.get(), problems, entries);
      for (int64_t problem = 0; problem < problems; ++problem) {
        const int64_t at = problem * entries;
        long double r2 = 0, f2 = 0;
        for (int64_t i = at; i < at + entries; ++i) {
          const long double f = value_of(fz[i]), g = f - static_cast<long double>(value_of(z[i]));
          r2 += g * g;
          f2 += f * f;
        }
        const double expected = r2 == 0 ? 0 : double(std::sqrt(r2) / std::sqrt(f2));
        const double got = double(found[size_t(problem)]);
        CHECK(std::abs(got - expected) <= tolerance * expected, "%g, not %g: problem %ld of %ld x %ld, scale %g", got,
              expected, long(problem), long(problems), long(entries), scale);
        for (int warp = 0; warp < (chunks > 1 ? 1 : 2); ++warp) {
          const auto chosen = residuals<T, Out>(type, z.get(), fz.get(), problems, entries, warp);
          const double told = double(chosen[size_t(problem)]);
          CHECK(std::abs(told - expected) <= tolerance * expected, "%g, not %g: %ld entries, warp %d", told, expected,
                long(entries), warp);
          if ((warp == 1) == (entries <= cuda::kSmallProblem)) CHECK(told == got, "%ld entries", long(entries));
        }
        const Block<T> alone_z(entries, [&](int64_t i) { return z[at + i]; });
        const Block<T> alone_f(entries, [&](int64_t i) { return fz[at + i]; });
        const Out alone = residuals<T, Out>(type, alone_z.get(), alone_f.get(), 1, entries)[0];
        CHECK(std::memcmp(&alone, &found[size_t(problem)], sizeof alone) == 0, "problem %ld of %ld x %ld alone",
              long(problem), long(problems), long(entries));
      }
    }
}

void test_not_finite() {
  for (const double bad : {double(NAN), double(INFINITY)}) {
    Block<float> z(700, [](int64_t) { return 1.0; }), fz(700, [](int64_t) { return 2.0; });
    fz[650] = float(bad);
    const float got = residuals<float, float>(StateType::kFloat32, z.get(), fz.get(), 1, 700)[0];
    CHECK(std::isnan(got), "%g", double(got));
  }
}

}  // namespace

int main() {
  for (const double scale : {1.0, 1e-30, 1e30}) {
    test_type<float, float>(StateType::kFloat32, scale, 1e-5);
    test_type<double, double>(StateType::kFloat64, scale, 1e-13);
    test_type<BFloat16, float>(StateType::kBFloat16, scale, 1e-5);
  }
  test_type<Float16, float>(StateType::kFloat16, 1.0, 1e-5);
  test_not_finite();
  return report();
}
