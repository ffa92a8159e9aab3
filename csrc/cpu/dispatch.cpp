#include "dispatch.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// What each instruction set's objects define (csrc/cpu/solve_*.cpp).
#define AK_DECLARE_SOLVE(name, Problem)                                                              \
  void name(const Problem<float>&, const SolveOptions&, const SolveResult<float>&, const Executor&); \
  void name(const Problem<double>&, const SolveOptions&, const SolveResult<double>&, const Executor&);

#define AK_DECLARE(isa)                                                                           \
  namespace ak::isa {                                                                             \
  AK_DECLARE_SOLVE(solve_affine, AffineProblem)                                                   \
  AK_DECLARE_SOLVE(solve_mlp, MlpProblem)                                                         \
  AK_DECLARE_SOLVE(solve_mlp_linear, MlpLinearProblem)                                            \
  AK_DECLARE_SOLVE(solve_gated, GatedProblem)                                                     \
  AK_DECLARE_SOLVE(solve_gated_linear, GatedLinearProblem)                                        \
  void slopes(const SlopeProblem<float>&, const Executor&);                                       \
  void slopes(const SlopeProblem<double>&, const Executor&);                                      \
  TilePlan plan_affine(int64_t, int64_t, int, int, int, int);                                     \
  extern const StepKernels step_kernels;                                                          \
  static const SolveKernels<float> solve_f32{solve_affine, solve_mlp,          solve_mlp_linear,  \
                                             solve_gated,  solve_gated_linear, slopes};           \
  static const SolveKernels<double> solve_f64{solve_affine, solve_mlp,          solve_mlp_linear, \
                                              solve_gated,  solve_gated_linear, slopes};          \
  }

#define AK_ENTRY(isa, check) \
  {#isa, [] { return bool(check); }, &isa::solve_f32, &isa::solve_f64, isa::plan_affine, &isa::step_kernels}

#if defined(__x86_64__)
AK_DECLARE(avx512amx)
AK_DECLARE(avx512bf16)
AK_DECLARE(avx512vnni)
AK_DECLARE(avx512)
AK_DECLARE(avx2)
#endif
AK_DECLARE(portable)

namespace ak {
namespace {

#if defined(__x86_64__)
// A process asks Linux for the matrix unit's registers, once and for all its threads. It refuses where a thread's
// signal stack is too small for them.
bool has_matrix_unit() {
#if defined(__linux__)
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kWanted = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, 8-bit integers
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kWanted) != kWanted) return false;
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return has;
#else
  return false;
#endif
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const InstructionSet kSets[] = {
#if defined(__x86_64__)
    AK_ENTRY(avx512amx, has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
                            has_matrix_unit()),
    AK_ENTRY(avx512bf16, has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16")),
    AK_ENTRY(avx512vnni, has_avx512() && __builtin_cpu_supports("avx512vnni")),
    AK_ENTRY(avx512, has_avx512()),
    AK_ENTRY(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                       __builtin_cpu_supports("f16c")),
#endif
    AK_ENTRY(portable, true),
};

const InstructionSet* best() {
  for (const InstructionSet& set : kSets)
    if (set.supported()) return &set;
  return nullptr;  // not reached: portable is always supported
}

std::atomic<const InstructionSet*> chosen{nullptr};

}  // namespace

const InstructionSet* instruction_sets(int* count) {
  *count = int(sizeof kSets / sizeof kSets[0]);
  return kSets;
}

const InstructionSet& instruction_set() {
  const InstructionSet* set = chosen.load(std::memory_order_acquire);
  if (set == nullptr) {
    set = best();
    chosen.store(set, std::memory_order_release);
  }
  return *set;
}

bool set_instruction_set(const char* name) {
  for (const InstructionSet& set : kSets) {
    if (std::strcmp(set.name, name) != 0 || !set.supported()) continue;
    chosen.store(&set, std::memory_order_release);
    return true;
  }
  return false;
}

template <>
const SolveKernels<float>& solve_kernels<float>() {
  return *instruction_set().f32;
}
template <>
const SolveKernels<double>& solve_kernels<double>() {
  return *instruction_set().f64;
}

}  // namespace ak
