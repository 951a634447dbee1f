// The kernels for x86 with AVX-512.
#include "target.h"

#ifdef GRU_EXT_X86

#define GRU_TARGET_SIMD "simd_avx512.h"

GRU_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "../cell.h"
namespace gru::cpu::avx512 {
#include "kernels.h"
}
GRU_TARGET_END

namespace gru::cpu {
const Target kTargetAvx512 = {"avx512",
                              [](const Processor& processor) { return processor.avx512; },
                              avx512::forward,
                              avx512::backward,
                              avx512::multiply_adds,
                              avx512::read_bytes,
                              avx512::Vec<float>::width};
}  // namespace gru::cpu

#endif
