// The kernels for x86 with AVX-512, its bfloat16 dot product, and AMX tiles for the bfloat16 products.
#include "target.h"

#ifdef GRU_EXT_AMX

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#define GRU_TARGET_SIMD "simd_avx512.h"
#define GRU_BFLOAT16_DOT
#define GRU_BFLOAT16_TILES

GRU_TARGET_BEGIN("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "../cell.h"
namespace gru::cpu::avx512_amx {
#include "kernels.h"
}
GRU_TARGET_END

namespace gru::cpu {

namespace {

// __builtin_cpu_supports does not know these names in every compiler that has the intrinsics.
bool processor_has_tiles() {
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24, kReadsXcr0 = 1u << 27;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & kReadsXcr0)) return false;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kBFloat16) && (edx & kTiles);
}

__attribute__((target("xsave"))) bool system_keeps_tiles() {
  constexpr unsigned long long kTileState = 3ull << 17;  // configuration and data
  return (_xgetbv(0) & kTileState) == kTileState;
}

// Linux gives tile data only to a process that asks. It keeps the permission with the process, not with the thread that
// asked: OpenMP's threads have it whether they were made before or after, and so has a forked child.
bool permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

const Target kTargetAvx512Amx = {
    "avx512_amx",
    [] { return kTargetAvx512Bf16.available() && processor_has_tiles() && system_keeps_tiles() && permitted(); },
    avx512_amx::forward,
    avx512_amx::backward,
    avx512_amx::multiply_adds,
    avx512_amx::read_bytes};

}  // namespace gru::cpu

#endif
