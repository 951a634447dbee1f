// What the processor and the system offer; which targets that makes, and which of them is the best, plan.cpp says.
#pragma once

namespace gru::cpu {

// Each of these only with all that the kernels for it use beside it.
struct Processor {
  bool intel = false;            // made by Intel
  bool avx2 = false;             // AVX2, FMA, F16C
  bool avx512 = false;           // AVX-512 F, BW, DQ, VL
  bool avx2_byte_dot = false;    // AVX_VNNI
  bool avx512_byte_dot = false;  // AVX512_VNNI
  bool bfloat16_dot = false;     // AVX512_BF16 and AVX512_VNNI
  bool tiles = false;            // AMX with bfloat16 and bytes; the system keeps tiles and has permitted their use
  bool float16_tiles = false;    // AMX with float16
  bool neon_dot = false;         // Armv8.2 with FEAT_DotProd
  bool neon_bf16 = false;        // the same with FEAT_BF16
};

const Processor& processor();  // of this machine

}  // namespace gru::cpu
