// Weights of bytes alone, by the dot product of bytes (2018 and later): for a processor that has it, but not that of
// bfloat16.
#include "target.h"

#ifdef GRU_EXT_NEON

#define GRU_TARGET_SIMD "simd_neon.h"
#define GRU_BYTE_DOT

GRU_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#include "../cell.h"
namespace gru::cpu::neon_dot {
#include "kernels.h"
}
GRU_TARGET_END

namespace gru::cpu {
const Target kTargetNeonDot = {"neon_dot",
                               [](const Processor& processor) { return processor.neon_dot; },
                               neon_dot::forward_bytes,
                               nullptr,
                               nullptr,
                               nullptr,
                               neon_dot::Vec<float>::width};
}  // namespace gru::cpu

#endif
