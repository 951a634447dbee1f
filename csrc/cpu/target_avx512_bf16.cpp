// The kernels for x86 with AVX-512 and its dot products of bfloat16 and of bytes.
#include "target.h"

#ifdef GRU_EXT_X86

#define GRU_TARGET_SIMD "simd_avx512.h"
#define GRU_BFLOAT16_DOT
#define GRU_BYTE_DOT

GRU_TARGET_BEGIN("avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "../cell.h"
namespace gru::cpu::avx512_bf16 {
#include "kernels.h"
}
GRU_TARGET_END

namespace gru::cpu {
const Target kTargetAvx512Bf16 = {"avx512_bf16",
                                  [](const Processor& processor) { return processor.bfloat16_dot; },
                                  avx512_bf16::forward,
                                  avx512_bf16::backward,
                                  avx512_bf16::multiply_adds,
                                  avx512_bf16::read_bytes,
                                  avx512_bf16::Vec<float>::width};
}  // namespace gru::cpu

#endif
