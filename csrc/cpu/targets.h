// The instruction sets the kernels are compiled for; each is defined by one small file that includes the same sources.
#pragma once

#include "plan.h"

#if defined(__x86_64__)
#define GRU_EXT_X86
// GCC and clang keep the intrinsics in headers of different names.
#if defined(__linux__) && (__has_include(<amxbf16intrin.h>) || __has_include(<amxintrin.h>))
#define GRU_EXT_AMX
#endif
#if __has_include(<avxvnniintrin.h>)
#define GRU_EXT_AVX_VNNI
#endif
#elif defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16)
// Older versions of clang have the dot products only where the whole file is compiled for them.
#define GRU_EXT_NEON
#endif

namespace gru::cpu {

extern const Target kTargetPortable;
#ifdef GRU_EXT_X86
extern const Target kTargetAvx2, kTargetAvx512, kTargetAvx512Bf16;
extern const Target kTargetAvx512Vnni;  // for weights of bytes alone
#endif
#ifdef GRU_EXT_AVX_VNNI
extern const Target kTargetAvx2Vnni;  // the same
#endif
#ifdef GRU_EXT_AMX
extern const Target kTargetAvx512Amx;
#endif
#ifdef GRU_EXT_NEON
extern const Target kTargetNeon, kTargetNeonBf16;
extern const Target kTargetNeonDot;  // for weights of bytes alone
#endif

// The best first, where plan.cpp knows nothing better.
inline const Target* const kTargets[] = {
#ifdef GRU_EXT_AMX
    &kTargetAvx512Amx,
#endif
#ifdef GRU_EXT_X86
    &kTargetAvx512Bf16, &kTargetAvx512, &kTargetAvx2,
#endif
#ifdef GRU_EXT_NEON
    &kTargetNeonBf16,   &kTargetNeon,
#endif
    &kTargetPortable};

}  // namespace gru::cpu
