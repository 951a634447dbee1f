// The kernels for x86 with AVX-512, its dot products of bfloat16 and of bytes, and AMX tiles for the products of
// bfloat16, of bytes and, where compiler and processor have them, of float16.
#include "target.h"

#ifdef GRU_EXT_AMX

#include <atomic>

#define GRU_TARGET_SIMD "simd_avx512.h"
#define GRU_BFLOAT16_DOT
#define GRU_BYTE_DOT
#define GRU_TILES

#ifdef _tile_dpfp16ps  // not every compiler knows it
#define GRU_FLOAT16_TILES
GRU_TARGET_BEGIN(
    "amx-tile,amx-bf16,amx-fp16,amx-int8,avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#else
GRU_TARGET_BEGIN("amx-tile,amx-bf16,amx-int8,avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include "../cell.h"
namespace gru::cpu::avx512_amx {
#include "kernels.h"
}
GRU_TARGET_END

namespace gru::cpu {
const Target kTargetAvx512Amx = {"avx512_amx",
                                 [](const Processor& processor) { return processor.tiles; },
                                 avx512_amx::forward,
                                 avx512_amx::backward,
                                 avx512_amx::multiply_adds,
                                 avx512_amx::read_bytes,
                                 avx512_amx::Vec<float>::width};
}  // namespace gru::cpu

#endif
