// A warp's product on tensor cores: mma.sync m16n8k16, bfloat16 in, float32 out (PTX ISA, "Matrix Fragments for
// mma.m16n8k16"). Which entries of its operands a lane holds is written down once, for the device, for what packs
// weights and for the warp of csrc/tests/host_team.h.
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

#endif

}  // namespace ak::cuda
