#include "processor.h"

#include "targets.h"

#ifdef GRU_EXT_AMX
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gru::cpu {

namespace {

#ifdef GRU_EXT_AMX
// __builtin_cpu_supports does not know the names of tiles in every compiler that has the intrinsics.
void read_tiles(Processor& processor) {
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24, kReadsXcr0 = 1u << 27, kFloat16 = 1u << 21;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & kReadsXcr0)) return;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & kBFloat16) || !(edx & kTiles)) return;
  processor.tiles = true;
  processor.float16_tiles = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kFloat16);
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
#endif

Processor read() {
  Processor here;
#ifdef GRU_EXT_X86
  const auto all = [](auto... supported) { return (... && (supported != 0)); };
  here.intel = __builtin_cpu_is("intel") != 0;
  here.avx2 = all(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("f16c"));
  here.avx512 = here.avx2 && all(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                                 __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl"));
  here.bfloat16_dot = here.avx512 && __builtin_cpu_supports("avx512bf16") != 0;
#endif
#ifdef GRU_EXT_AMX
  if (here.bfloat16_dot) read_tiles(here);
  if (here.tiles && !(system_keeps_tiles() && permitted())) here.tiles = here.float16_tiles = false;
#endif
  return here;
}

}  // namespace

const Processor& processor() {
  static const Processor here = read();
  return here;
}

}  // namespace gru::cpu
