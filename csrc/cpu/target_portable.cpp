// The kernels for any processor, in vectors of 16 bytes (SSE2, NEON, ...).
#include "target.h"

#define GRU_TARGET_SIMD "simd_portable.h"

#include "../cell.h"
namespace gru::cpu::portable {
#include "kernels.h"
}

namespace gru::cpu {
const Target kTargetPortable = {"portable",
                                [](const Processor&) { return true; },
                                portable::forward,
                                portable::backward,
                                portable::multiply_adds,
                                portable::read_bytes,
                                portable::Vec<float>::width};
}  // namespace gru::cpu
