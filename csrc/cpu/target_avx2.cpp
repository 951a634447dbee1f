// The kernels for x86 with AVX2, FMA and F16C (2013 and later).
#include "target.h"

#ifdef GRU_EXT_X86

#define GRU_TARGET_SIMD "simd_avx2.h"

GRU_TARGET_BEGIN("avx2,fma,f16c")
#include "../cell.h"
namespace gru::cpu::avx2 {
#include "kernels.h"
}
GRU_TARGET_END

namespace gru::cpu {
const Target kTargetAvx2 = {"avx2",
                            [](const Processor& processor) { return processor.avx2; },
                            avx2::forward,
                            avx2::backward,
                            avx2::multiply_adds,
                            avx2::read_bytes,
                            avx2::Vec<float>::width};
}  // namespace gru::cpu

#endif
