// The model of AVX-512 and AMX, to be included before a target's file: the kernels of csrc/cpu then run on any x86-64
// processor, and the compiler may use none of those instructions itself.
#pragma once

// clang-format off
#include "../../csrc/cpu/target.h"
#include "vectors.h"
#include "tiles.h"
// clang-format on

#undef GRU_TARGET_BEGIN
#undef GRU_TARGET_END
#define GRU_TARGET_BEGIN(features)
#define GRU_TARGET_END
