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
                              [] {
                                return __builtin_cpu_supports("avx512f") != 0 &&
                                       __builtin_cpu_supports("avx512bw") != 0 &&
                                       __builtin_cpu_supports("avx512dq") != 0 &&
                                       __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx2") != 0 &&
                                       __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("f16c") != 0;
                              },
                              avx512::forward,
                              avx512::backward,
                              avx512::multiply_adds,
                              avx512::read_bytes};
}  // namespace gru::cpu

#endif
