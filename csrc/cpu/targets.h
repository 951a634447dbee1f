// The instruction sets the kernels are compiled for; each is defined by one small file that includes the same sources.
#pragma once

#include "plan.h"

#if defined(__x86_64__)
#define GRU_EXT_X86
// GCC and clang keep the intrinsics in headers of different names.
#if defined(__linux__) && (__has_include(<amxbf16intrin.h>) || __has_include(<amxintrin.h>))
#define GRU_EXT_AMX
#endif
#endif

namespace gru::cpu {

extern const Target kTargetPortable;
#ifdef GRU_EXT_X86
extern const Target kTargetAvx2, kTargetAvx512, kTargetAvx512Bf16;
#endif
#ifdef GRU_EXT_AMX
extern const Target kTargetAvx512Amx;
#endif

// The best first, where plan.cpp knows nothing better.
inline const Target* const kTargets[] = {
#ifdef GRU_EXT_AMX
    &kTargetAvx512Amx,
#endif
#ifdef GRU_EXT_X86
    &kTargetAvx512Bf16, &kTargetAvx512, &kTargetAvx2,
#endif
    &kTargetPortable};

}  // namespace gru::cpu
