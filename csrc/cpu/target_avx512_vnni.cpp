// Weights of bytes alone, by the dot product of AVX512_VNNI: for a processor that has it beside AVX-512, but not its
// bfloat16.
#include "target.h"

#ifdef GRU_EXT_X86

#define GRU_TARGET_SIMD "simd_avx512.h"
#define GRU_BYTE_DOT

GRU_TARGET_BEGIN("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "../cell.h"
namespace gru::cpu::avx512_vnni {
#include "kernels.h"
}
GRU_TARGET_END

namespace gru::cpu {
const Target kTargetAvx512Vnni = {"avx512_vnni",
                                  [](const Processor& processor) { return processor.avx512_byte_dot; },
                                  avx512_vnni::forward_bytes,
                                  nullptr,
                                  nullptr,
                                  nullptr,
                                  avx512_vnni::Vec<float>::width};
}  // namespace gru::cpu

#endif
