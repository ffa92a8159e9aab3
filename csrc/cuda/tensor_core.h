// Products on tensor cores, bfloat16 in, float32 out: a warp's, mma.sync m16n8k16 (PTX ISA, "Matrix Fragments for
// mma.m16n8k16"), and a warpgroup's, wgmma m64nNk16 ("Asynchronous Warpgroup Level Matrix Instructions"). Which entries
// of its operands a lane holds, and where in shared memory they lie, is written down once, for the device, for what
// packs weights and for the teams of csrc/tests/host_team.h.
#pragma once

#include "storage.h"

namespace ak::cuda {

constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaDepth = 16;

// What a lane holds of A [16, 16], B [16, 8] and C [16, 8]; two neighbours along the sum to a word of A and B, the
// first in the low half.
struct MmaA {
  uint32_t word[4];
};
struct MmaB {
  uint32_t word[2];
};
struct MmaC {
  float sum[4];
};

AK_DEVICE int mma_a_row(int lane, int word) { return lane / 4 + word % 2 * 8; }
AK_DEVICE int mma_a_depth(int lane, int word) { return lane % 4 * 2 + word / 2 * 8; }
AK_DEVICE int mma_b_depth(int lane, int word) { return lane % 4 * 2 + word * 8; }
AK_DEVICE int mma_b_column(int lane) { return lane / 4; }
AK_DEVICE int mma_c_row(int lane, int sum) { return lane / 4 + sum / 2 * 8; }
AK_DEVICE int mma_c_column(int lane, int sum) { return lane % 4 * 2 + sum % 2; }

// A warpgroup is four warps that multiply together, A [64, 16] by B [16, n]. Both lie in shared memory as core
// matrices: 8 rows of A, or columns of B, by 8 neighbours along the sum, 16 bytes each, one after another.
constexpr int kWarpgroup = 128, kGroupRows = 64, kCoreRows = 8, kCoreDepth = 8;
constexpr int kCoreEntries = kCoreRows * kCoreDepth;

// What a thread of a warpgroup holds of C [64, n].
template <int n>
struct GroupC {
  float sum[n / 2];
};

AK_DEVICE int group_c_row(int rank, int sum) { return rank / 32 * 16 + mma_c_row(rank % 32, sum % 4); }
AK_DEVICE int group_c_column(int rank, int sum) { return sum / 4 * 8 + mma_c_column(rank % 32, sum % 4); }

// Describes an operand from an address in shared memory on: its core matrices lie `along` bytes apart along the sum and
// `across` bytes apart the other way, both multiples of 16; no swizzling. Next ones start `bytes` further.
AK_DEVICE uint64_t group_operand(uint32_t address, uint32_t along, uint32_t across) {
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(along >> 4) << 16 | uint64_t(across >> 4) << 32;
}
AK_DEVICE uint64_t group_operand_apart(uint32_t bytes) { return bytes >> 4; }

#if defined(__CUDACC__)

// C += A B, by all lanes of a warp together.
AK_DEVICE void mma_sync(MmaC& c, const MmaA& a, const MmaB& b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();  // no plan takes these products there
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.sum[0]), "+f"(c.sum[1]), "+f"(c.sum[2]), "+f"(c.sum[3])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
#endif
}

// wgmma's, by all threads of a warpgroup together: what was written to shared memory by them and made known to it is
// read, C is complete after group_wait.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define AK_WGMMA(...) __trap()  // no plan takes these products there
#else
#define AK_WGMMA(...) asm volatile(__VA_ARGS__)
#endif

AK_DEVICE void publish_to_group() { AK_WGMMA("fence.proxy.async.shared::cta;" :: : "memory"); }
template <int n>
AK_DEVICE void settle(GroupC<n>& c) {  // neither sinks below here nor rises above
  AK_UNROLLED
  for (int i = 0; i < n / 2; ++i) asm volatile("" : "+f"(c.sum[i])::"memory");
}
template <int n>
AK_DEVICE void group_begin(GroupC<n>& c) {
  settle(c);
  AK_WGMMA("wgmma.fence.sync.aligned;" :: : "memory");
}
AK_DEVICE void group_multiply(GroupC<8>& c, uint64_t a, uint64_t b) {
  AK_WGMMA(
      "{.reg .pred add; setp.eq.u32 add, 1, 1;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, add, 1, 1, 0, 0;}" : "+f"(
          c.sum[0]),
      "+f"(c.sum[1]), "+f"(c.sum[2]), "+f"(c.sum[3]) : "l"(a), "l"(b));
}
AK_DEVICE void group_multiply(GroupC<32>& c, uint64_t a, uint64_t b) {
  AK_WGMMA(
      "{.reg .pred add; setp.eq.u32 add, 1, 1;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15}, %16, %17, add, 1, 1, 0, 0;}" : "+f"(c.sum[0]),
      "+f"(c.sum[1]), "+f"(c.sum[2]), "+f"(c.sum[3]), "+f"(c.sum[4]), "+f"(c.sum[5]), "+f"(c.sum[6]), "+f"(c.sum[7]),
      "+f"(c.sum[8]), "+f"(c.sum[9]), "+f"(c.sum[10]), "+f"(c.sum[11]), "+f"(c.sum[12]), "+f"(c.sum[13]),
      "+f"(c.sum[14]), "+f"(c.sum[15]) : "l"(a), "l"(b));
}
// After the last product; C may not be touched from group_begin to group_wait.
AK_DEVICE void group_commit() { AK_WGMMA("wgmma.commit_group.sync.aligned;" :: : "memory"); }
template <int n>
AK_DEVICE void group_wait(GroupC<n>& c) {
  AK_WGMMA("wgmma.wait_group.sync.aligned 0;" :: : "memory");
  settle(c);
}

#endif

}  // namespace ak::cuda
