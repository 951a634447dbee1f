// Flags and barriers between the blocks of a grid, for latencies.cu: no kernel of gru_ext uses them. See ld.acquire,
// st.release and atom in the PTX manual; scope .gpu.
#pragma once

#include "cuda/primitives.h"

namespace benchmarks {

#ifdef GRU_CUDA_EMULATOR
inline uint32_t load_acquire(const uint32_t* flag) { return gru::cuda::load_relaxed(flag); }
inline void store_release(uint32_t* flag, uint32_t value) { gru::cuda::store_relaxed(flag, value); }
inline uint32_t add_release(uint32_t* flag, uint32_t value) {
  emulator::maybe_yield();
  return (*flag += value) - value;
}
#else
__device__ inline uint32_t load_acquire(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline void store_release(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
// The value before.
__device__ inline uint32_t add_release(uint32_t* flag, uint32_t value) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(flag), "r"(value) : "memory");
  return before;
}
#endif

// Waits for every thread of every block of the launch, which must be a cooperative one: only then are all its blocks on
// the GPU. `flag` is 0 before its first use and is never reset: block 0 adds what turns the highest bit over when all
// other blocks have added 1.
__device__ inline void grid_sync(uint32_t* flag) {
  constexpr uint32_t kHighest = 0x80000000u;
  gru::cuda::block_sync();
  if (threadIdx.x == 0) {
    const uint32_t before = add_release(flag, blockIdx.x == 0 ? kHighest - (gridDim.x - 1) : 1u);
    gru::cuda::spin_until("the barrier of the grid", [&] { return ((load_acquire(flag) ^ before) & kHighest) != 0; });
  }
  gru::cuda::block_sync();
}

}  // namespace benchmarks
