// The kernels for 64-bit Arm with the dot products of bytes and of bfloat16.
#include "target.h"

#ifdef GRU_EXT_NEON

#define GRU_TARGET_SIMD "simd_neon.h"
#define GRU_BYTE_DOT
#define GRU_BFLOAT16_DOT

GRU_TARGET_BEGIN("arch=armv8.2-a+dotprod+bf16")
#include "../cell.h"
namespace gru::cpu::neon_bf16 {
#include "kernels.h"
}
GRU_TARGET_END

namespace gru::cpu {
const Target kTargetNeonBf16 = {"neon_bf16",
                                [](const Processor& processor) { return processor.neon_bf16; },
                                neon_bf16::forward,
                                neon_bf16::backward,
                                neon_bf16::multiply_adds,
                                neon_bf16::read_bytes,
                                neon_bf16::Vec<float>::width};
}  // namespace gru::cpu

#endif
