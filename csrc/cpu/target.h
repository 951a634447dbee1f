// Standard headers of the kernels, and the brackets that let a stretch of a file use one instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
// GCC 12 takes its own headers' "undefined" vectors for a mistake (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "half.h"
#include "phases.h"
#include "targets.h"
#include "threads.h"
#include "workspace.h"

namespace gru::cpu {
inline float scalar(float value) { return value; }
inline double scalar(double value) { return value; }
inline float scalar(BFloat16 value) { return to_float(value); }
inline float scalar(Float16 value) { return to_float(value); }
}  // namespace gru::cpu

#define GRU_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define GRU_TARGET_BEGIN(features) \
  GRU_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define GRU_TARGET_END _Pragma("clang attribute pop")
#else
#define GRU_TARGET_BEGIN(features) _Pragma("GCC push_options") GRU_PRAGMA(GCC target(features))
#define GRU_TARGET_END _Pragma("GCC pop_options")
#endif
