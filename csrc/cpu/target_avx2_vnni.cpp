// Weights of bytes alone, by the dot product of AVX_VNNI: for a processor that has it beside AVX2, but not AVX-512.
#include "target.h"

#ifdef GRU_EXT_AVX_VNNI

#define GRU_TARGET_SIMD "simd_avx2.h"
#define GRU_BYTE_DOT

GRU_TARGET_BEGIN("avxvnni,avx2,fma,f16c")
#include "../cell.h"
namespace gru::cpu::avx2_vnni {
#include "kernels.h"
}
GRU_TARGET_END

namespace gru::cpu {
const Target kTargetAvx2Vnni = {"avx2_vnni",
                                [](const Processor& processor) { return processor.avx2_byte_dot; },
                                avx2_vnni::forward_bytes,
                                nullptr,
                                nullptr,
                                nullptr,
                                avx2_vnni::Vec<float>::width};
}  // namespace gru::cpu

#endif
