// The kernels for 64-bit Arm, all of which has NEON.
#include "target.h"

#ifdef GRU_EXT_NEON

#define GRU_TARGET_SIMD "simd_neon.h"

#include "../cell.h"
namespace gru::cpu::neon {
#include "kernels.h"
}

namespace gru::cpu {
const Target kTargetNeon = {"neon",
                            [](const Processor&) { return true; },
                            neon::forward,
                            neon::backward,
                            neon::multiply_adds,
                            neon::read_bytes,
                            neon::Vec<float>::width};
}  // namespace gru::cpu

#endif
