#include "processor.h"

#include "targets.h"

#ifdef GRU_EXT_X86
#include <cpuid.h>
#endif
#ifdef GRU_EXT_AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef GRU_EXT_NEON
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace gru::cpu {

namespace {

#ifdef GRU_EXT_AMX
// __builtin_cpu_supports does not know the names of tiles in every compiler that has the intrinsics.
void read_tiles(Processor& processor) {
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24, kBytes = 1u << 25, kReadsXcr0 = 1u << 27,
                     kFloat16 = 1u << 21;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & kReadsXcr0)) return;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & kBFloat16) || !(edx & kTiles) || !(edx & kBytes))
    return;
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

#ifdef GRU_EXT_NEON
void read_neon(Processor& processor) {
#if defined(__linux__)
  // By number, for older C libraries lack the names. Armv8.2 includes CRC32, atomics and ASIMDRDM.
  constexpr unsigned long kCrc32 = 1ul << 7, kAtomics = 1ul << 8, kRounding = 1ul << 12, kDot = 1ul << 20;
  constexpr unsigned long kAll = kCrc32 | kAtomics | kRounding | kDot, kBFloat16 = 1ul << 14;  // the last of HWCAP2
  processor.neon_dot = (getauxval(AT_HWCAP) & kAll) == kAll;
  processor.neon_bf16 = processor.neon_dot && (getauxval(AT_HWCAP2) & kBFloat16);
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  processor.neon_dot = has("hw.optional.arm.FEAT_DotProd");
  processor.neon_bf16 = processor.neon_dot && has("hw.optional.arm.FEAT_BF16");
#else
  (void)processor;
#endif
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
  here.avx512_byte_dot = here.avx512 && __builtin_cpu_supports("avx512vnni") != 0;
  here.bfloat16_dot = here.avx512_byte_dot && __builtin_cpu_supports("avx512bf16") != 0;
#endif
#ifdef GRU_EXT_AVX_VNNI
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kByteDot = 1u << 4;
  here.avx2_byte_dot = here.avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kByteDot);
#endif
#ifdef GRU_EXT_AMX
  if (here.bfloat16_dot) read_tiles(here);
  if (here.tiles && !(system_keeps_tiles() && permitted())) here.tiles = here.float16_tiles = false;
#endif
#ifdef GRU_EXT_NEON
  read_neon(here);
#endif
  return here;
}

}  // namespace

const Processor& processor() {
  static const Processor here = read();
  return here;
}

}  // namespace gru::cpu
