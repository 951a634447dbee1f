// The instruction sets the kernels are compiled for; each is defined by one small file that includes the same sources.
#pragma once

#include "plan.h"

#if defined(__x86_64__)
#define GRU_EXT_X86
#endif

namespace gru::cpu {

extern const Target kTargetPortable;
#ifdef GRU_EXT_X86
extern const Target kTargetAvx2, kTargetAvx512, kTargetAvx512Bf16;
#endif

}  // namespace gru::cpu
