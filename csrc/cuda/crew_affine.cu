// Crews of blocks on a device: a cooperative grid that meets in global memory, and thread-block clusters that put into
// each other's shared memory.
#include <cuda_runtime.h>

#include "crew_body.h"
#include "shared_limit.h"

namespace ak::cuda {
namespace {

template <class T>
struct Arguments {
  AffineProblem<T> problem;
  SolveOptions options;
  SolveResult<T> result;
  CrewPlan plan;
  char* scratch;
};

// The whole grid. The barrier is a count of arrivals that only grows: a block that arrives for the n-th time waits for
// n times the number of blocks. The arrival releases what the block has put, the wait acquires what all have.
template <class T>
class GridCrew {
 public:
  static constexpr bool kLocal = false, kSharedQueue = false;

  AK_DEVICE explicit GridCrew(char* scratch)
      : arrived_(reinterpret_cast<unsigned*>(scratch)), exchange_(reinterpret_cast<T*>(scratch + kQueueBytes)) {}

  AK_DEVICE int member() const { return int(blockIdx.x); }
  AK_DEVICE int64_t index() const { return 0; }

  AK_DEVICE void sync() {
    expected_ += gridDim.x;
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived_) : "memory");
      unsigned arrived;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(arrived_) : "memory");
      } while (int(arrived - expected_) < 0);
    }
    __syncthreads();
  }

  template <int n>
  AK_DEVICE void put(int64_t at, const Pack<T, n>& pack) const {
    store_global<n>(exchange_ + at, pack);
  }
  template <int n>
  AK_DEVICE Pack<T, n> get(int64_t at) const {
    return load_global<n>(exchange_ + at);
  }
  AK_DEVICE T* local(int64_t) const { return nullptr; }
  AK_DEVICE void offer(int) const {}
  AK_DEVICE int64_t taken() const { return 0; }

 private:
  unsigned* const arrived_;
  unsigned expected_ = 0;
  T* const exchange_;
};

#if __CUDA_ARCH__ >= 900

// A thread-block cluster. Every member has the whole exchange; what is put goes to all of them.
template <class T>
class ClusterCrew {
 public:
  static constexpr bool kLocal = true, kSharedQueue = true;

  // shared: of every member, at the same place.
  AK_DEVICE ClusterCrew(char* scratch, char* shared, int64_t entries, int members)
      : queue_(reinterpret_cast<unsigned long long*>(scratch)),
        exchange_(reinterpret_cast<T*>(shared)),
        taken_(reinterpret_cast<int64_t*>(shared + padded(entries * int64_t(sizeof(T)), 8))),
        members_(members) {}

  AK_DEVICE int member() const {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return int(rank);
  }
  AK_DEVICE int64_t index() const { return int64_t(blockIdx.x) / members_; }

  AK_DEVICE void sync() const {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }

  template <int n>
  AK_DEVICE void put(int64_t at, const Pack<T, n>& pack) const {
    AK_ROLLED
    for (int member = 0; member < members_; ++member) store_pack<n>(of(exchange_ + at, member), pack);
  }
  template <int n>
  AK_DEVICE Pack<T, n> get(int64_t at) const {
    return load_pack<n>(exchange_ + at);
  }
  AK_DEVICE T* local(int64_t at) const { return exchange_ + at; }
  AK_DEVICE void offer(int rows) const {
    const auto first = int64_t(atomicAdd(queue_, static_cast<unsigned long long>(rows)));
    for (int member = 0; member < members_; ++member) *of(taken_, member) = first;
  }
  AK_DEVICE int64_t taken() const { return *taken_; }

 private:
  // What lies at p of this member, of another one.
  template <class V>
  AK_DEVICE static V* of(V* p, int member) {
    uint64_t mapped;
    asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(p), "r"(member));
    return reinterpret_cast<V*>(mapped);
  }

  unsigned long long* const queue_;
  T* const exchange_;
  int64_t* const taken_;
  const int members_;
};

#endif

template <class T, int rows_at_once>
__global__ void __launch_bounds__(kCrewThreads, 1) crew_grid_kernel(const __grid_constant__ Arguments<T> a) {
  extern __shared__ __align__(32) unsigned char shared[];
  using Team = DeviceTeam<kCrewThreads>;
  const Team team(nullptr);
  GridCrew<T> crew(a.scratch);
  CrewBody<T, rows_at_once, Team, GridCrew<T>> body(a.problem, a.options, a.result, a.plan, team, crew, shared);
  body.solve();
}

template <class T, int rows_at_once>
__global__ void __launch_bounds__(kCrewThreads, 1) crew_cluster_kernel(const __grid_constant__ Arguments<T> a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(32) unsigned char shared[];
  using Team = DeviceTeam<kCrewThreads>;
  const Team team(nullptr);
  ClusterCrew<T> crew(a.scratch, reinterpret_cast<char*>(shared) + a.plan.at.shared_exchange,
                      a.plan.at.exchange_entries, a.plan.members);
  CrewBody<T, rows_at_once, Team, ClusterCrew<T>> body(a.problem, a.options, a.result, a.plan, team, crew, shared);
  body.solve();
#endif
}

template <class T>
cudaError_t launch(const Arguments<T>& a, cudaStream_t stream) {
  const CrewPlan& plan = a.plan;
  const bool one = plan.rows_at_once == 1;
  const auto kernel = plan.cluster ? one ? crew_cluster_kernel<T, 1> : crew_cluster_kernel<T, 4>
                      : one        ? crew_grid_kernel<T, 1>
                                   : crew_grid_kernel<T, 4>;
  if (const auto error = allow_all_shared(kernel)) return error;
  if (const auto error = cudaMemsetAsync(a.scratch, 0, sizeof(unsigned long long), stream)) return error;
  cudaLaunchAttribute together{};
  if (plan.cluster) {
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim = {unsigned(plan.members), 1, 1};
  } else {
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(plan.members * plan.crews));
  config.blockDim = dim3(kCrewThreads);
  config.dynamicSmemBytes = size_t(plan.at.shared_bytes);
  config.stream = stream;
  config.attrs = &together;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, a);
}

}  // namespace

template <class T>
const char* solve_with_crew(const AffineProblem<T>& problem, const SolveOptions& options, const SolveResult<T>& result,
                            const CrewPlan& plan, void* scratch, void* stream) {
  if (problem.rows == 0) return nullptr;
  const cudaError_t error =
      launch<T>({problem, options, result, plan, static_cast<char*>(scratch)}, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template const char* solve_with_crew(const AffineProblem<float>&, const SolveOptions&, const SolveResult<float>&,
                                     const CrewPlan&, void*, void*);
template const char* solve_with_crew(const AffineProblem<double>&, const SolveOptions&, const SolveResult<double>&,
                                     const CrewPlan&, void*, void*);

}  // namespace ak::cuda
