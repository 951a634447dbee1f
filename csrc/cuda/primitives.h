// The operations of a GPU for which C++ has no words: barriers, exchange within a warp, copies that run on their own,
// tensor cores, clusters, flags between blocks. Kernels reach them through this header alone, and inline PTX stands
// nowhere else, so that tests/emulator can put its own versions in their place and run the same kernels on a CPU.
//
// Names and meanings are those of the PTX manual (parallel thread execution ISA, NVIDIA), to which "see" refers. Every
// thread of a warp must call a function of a warp together, with the same mask. Pointers to shared memory are generic
// ones into the calling block's own; ClusterPointer leads to another block's.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace gru::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

}  // namespace gru::cuda

#ifdef GRU_CUDA_EMULATOR
#include <emulator/primitives.h>  // of tests/
#else

namespace gru::cuda {

// The architecture compiled for; in the host's pass, where device code is only parsed, one that has everything. A
// kernel that needs more than the architecture has still compiles for it, and traps: plan never picks it there.
#ifdef __CUDA_ARCH__
#define GRU_ARCHITECTURE __CUDA_ARCH__
#else
#define GRU_ARCHITECTURE 9999
#endif

// Asks again until the answer is yes. `awaited` says what for: with GRU_EXT_SPIN_LIMIT defined, a thread that has asked
// so often prints it and ends the launch by a trap.
template <class Predicate>
__device__ inline void spin_until([[maybe_unused]] const char* awaited, Predicate&& predicate) {
#ifdef GRU_EXT_SPIN_LIMIT
  for (long long polls = 0; !predicate(); ++polls) {
    if (polls < GRU_EXT_SPIN_LIMIT) continue;
    printf("gru_ext: block (%u, %u) thread %u has waited in vain for %s\n", blockIdx.x, blockIdx.y, threadIdx.x,
           awaited);
    __trap();
  }
#else
  while (!predicate()) {
  }
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory and barriers of a block
// ---------------------------------------------------------------------------------------------------------------------

// The dynamic shared memory of the launch, aligned to 128 bytes. There is no other shared memory.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char gru_shared_memory[];
  return gru_shared_memory;
}

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ inline void block_sync() { __syncthreads(); }

// Barriers 1 to 15 of the block: `threads`, a multiple of the warp size, come to it in all and wait for each other.
__device__ inline void barrier_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---------------------------------------------------------------------------------------------------------------------
// Within a warp
// ---------------------------------------------------------------------------------------------------------------------

__device__ inline void warp_sync(unsigned mask = kAllLanes) { __syncwarp(mask); }

// The value of another lane: number `lane`, number own ^ `bits`.
template <class Value>
__device__ inline Value shuffle(Value value, int lane, unsigned mask = kAllLanes) {
  return __shfl_sync(mask, value, lane);
}
template <class Value>
__device__ inline Value shuffle_xor(Value value, int bits, unsigned mask = kAllLanes) {
  return __shfl_xor_sync(mask, value, bits);
}

// ---------------------------------------------------------------------------------------------------------------------
// Copies from global to shared memory that run on their own (sm_80). See cp.async
// ---------------------------------------------------------------------------------------------------------------------

// kBytes is 4, 8 or 16, to which both addresses are aligned. Only the first `valid` bytes are read, the others are 0.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* global, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if GRU_ARCHITECTURE >= 800
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(valid)
                 : "memory");
  }
#else
  __trap();
#endif
}

// Ends a group of this thread's copies; waits until at most kPending of its groups, the newest, are under way. What
// has arrived is seen by this thread, and by others after a barrier.
__device__ inline void copy_async_commit() {
#if GRU_ARCHITECTURE >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  __trap();
#endif
}
template <int kPending>
__device__ inline void copy_async_wait() {
#if GRU_ARCHITECTURE >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  __trap();
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensor cores. With g = lane / 4 and t = lane % 4 a lane holds, of 16-bit matrices A [16, 16] and B [16, 8]:
//   a[0] A[g][2t, 2t+1]      a[2] A[g][2t+8, 2t+9]        b[0] B[2t, 2t+1][g]
//   a[1] A[g+8][2t, 2t+1]    a[3] A[g+8][2t+8, 2t+9]      b[1] B[2t+8, 2t+9][g]
// the lower index in the lower half; of TF32 matrices A [16, 8] and B [8, 8]:
//   a[0] A[g][t]  a[1] A[g+8][t]  a[2] A[g][t+4]  a[3] A[g+8][t+4]      b[0] B[t][g]  b[1] B[t+4][g]
// and of float32 sums D [16, 8], in either case:
//   d[0] D[g][2t]  d[1] D[g][2t+1]  d[2] D[g+8][2t]  d[3] D[g+8][2t+1]
// See mma.m16n8k16, mma.m16n8k8 and ldmatrix.
// ---------------------------------------------------------------------------------------------------------------------

// d += A B for 16-bit elements, __nv_bfloat16 or __half (sm_80).
template <class Element>
__device__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
#if GRU_ARCHITECTURE >= 800
#define GRU_MMA(shape, types, sums, left, right)                   \
  asm("mma.sync.aligned." shape ".row.col.f32." types              \
      ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "               \
      "{%0,%1,%2,%3};"                                             \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]))
#else
#define GRU_MMA(shape, types, sums, left, right) __trap()
#endif
template <>
__device__ inline void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  GRU_MMA("m16n8k16", "bf16.bf16", d, a, b);
}
template <>
__device__ inline void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  GRU_MMA("m16n8k16", "f16.f16", d, a, b);
}

// d += A B for TF32 elements (sm_80).
__device__ inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  GRU_MMA("m16n8k8", "tf32.tf32", d, a, b);
}
#undef GRU_MMA

// float32 rounded to TF32, to nearest and halves away from zero (sm_80).
__device__ inline uint32_t to_tf32(float value) {
  uint32_t rounded = 0;
#if GRU_ARCHITECTURE >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
#else
  __trap();
#endif
  return rounded;
}

// Loads four matrices of 8 rows of 8 16-bit elements. Lanes 8i to 8i + 7 give the addresses of the rows of matrix
// i, each aligned to 16 bytes; words[i] becomes elements 2t, 2t+1 of its row g. Transposed: elements [2t][g],
// [2t+1][g].
__device__ inline void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// The value, about which the compiler knows nothing any more: a load of whole words stays one.
__device__ inline uint32_t opaque(uint32_t value) {
  asm("" : "+r"(value));
  return value;
}

// The product, by one instruction: of factors that it has widened outside of a loop nvcc no longer knows that they have
// 32 bits. See mul.wide.
__device__ inline int64_t wide_product(int first, int second) {
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(first), "r"(second));
  return product;
}

// 2^value and 1 / value to some 1e-7, tanh to 2^-11 of its value, with the usual inf, 0 and NaN. Subnormal numbers are
// 0. See ex2.approx.ftz, rcp.approx.ftz and tanh.approx (sm_75; before it tanh is made of the two others).
__device__ inline float exp2_approximate(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}
__device__ inline float reciprocal_approximate(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}
__device__ inline float tanh_approximate(float value) {
#if GRU_ARCHITECTURE >= 750
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#else
  return 1.0f - 2.0f * reciprocal_approximate(1.0f + exp2_approximate(2.885390043258667f * value));
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Clusters: blocks of one launch that run together and reach each other's shared memory (sm_90). See barrier.cluster
// and mapa. A block may not exit while another may still reach into it.
// ---------------------------------------------------------------------------------------------------------------------

#if GRU_ARCHITECTURE >= 900
#define GRU_SM_90(...) __VA_ARGS__
#else
#define GRU_SM_90(...) __trap()
#endif

// Waits for every thread of every block of the cluster.
__device__ inline void cluster_sync() {
  GRU_SM_90(asm volatile("barrier.cluster.arrive.release;" :: : "memory"));
  GRU_SM_90(asm volatile("barrier.cluster.wait.acquire;" :: : "memory"));
}

// An address in the shared memory of a block of the cluster.
struct ClusterPointer {
  uint32_t address;
};

// Where `shared`, a place in the calling block's shared memory, is in that of block `rank`.
__device__ inline ClusterPointer cluster_pointer(const void* shared, unsigned rank) {
  ClusterPointer there{0};
  GRU_SM_90(asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there.address) : "r"(shared_address(shared)), "r"(rank)));
  return there;
}

// ---------------------------------------------------------------------------------------------------------------------
// Barriers in shared memory that count arrivals and bytes (sm_90). See mbarrier and st.async. The phases of a barrier
// are numbered from 0; one ends when all its arrivals have come and all the bytes that it expects.
// ---------------------------------------------------------------------------------------------------------------------

// By one thread, before a barrier of the block (within one block) or the fence and a barrier of the cluster.
__device__ inline void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
  GRU_SM_90(
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory"));
}
__device__ inline void mbarrier_init_fence() {
  GRU_SM_90(asm volatile("fence.mbarrier_init.release.cluster;" :: : "memory"));
}

// One arrival of the present phase, with `bytes` more to expect.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
  GRU_SM_90(
      asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                   "r"(bytes) : "memory"));
}

// Waits for the end of the present phase, or of the one before, whichever has this parity (phase % 2). What other
// threads have stored into the shared memory of the cluster before it ended is seen afterwards; with a compiler that
// knows the fence for just that (PTX 8.6), nothing else need be, and the L1 cache stays.
__device__ inline void mbarrier_wait(uint64_t* barrier, unsigned parity) {
#if GRU_ARCHITECTURE >= 900
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
#define GRU_WAIT_ORDER "relaxed"
#else
#define GRU_WAIT_ORDER "acquire"
#endif
  spin_until("an mbarrier: the step's results from the other blocks of the cluster", [&] {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred ended;\n"
        "mbarrier.try_wait.parity." GRU_WAIT_ORDER
        ".cluster.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return done != 0;
  });
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
#endif
#undef GRU_WAIT_ORDER
#else
  __trap();
#endif
}

// Stores 16 bytes, to which `to` is aligned, into a block of the cluster, and goes on; when they have arrived, so many
// bytes have come to `barrier`, which is in the same block.
__device__ inline void store_async(ClusterPointer to, uint4 value, ClusterPointer barrier) {
  GRU_SM_90(asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to.address),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier.address) : "memory"));
}
#undef GRU_SM_90

// ---------------------------------------------------------------------------------------------------------------------
// Words in global memory, between all blocks. See ld.relaxed and st.relaxed; scope .gpu
// ---------------------------------------------------------------------------------------------------------------------

// A word that is data and flag in one: read and written whole, and ordered with nothing else. Two neighbouring ones,
// aligned to 16 bytes, are each read whole by one instruction; one of 16 bytes is whole itself (PTX 8.3).
__device__ inline void load_relaxed(uint64_t (&words)[2], const uint64_t* first) {
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0,%1}, [%2];" : "=l"(words[0]), "=l"(words[1]) : "l"(first) : "memory");
}
__device__ inline uint64_t load_relaxed(const uint64_t* word) {
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
  return value;
}
__device__ inline void store_relaxed(uint64_t* word, uint64_t value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}
__device__ inline uint4 load_relaxed(const uint4* word) {
  uint64_t low, high;
  asm volatile("{\n.reg .b128 word;\nld.relaxed.gpu.global.b128 word, [%2];\nmov.b128 {%0,%1}, word;\n}"
               : "=l"(low), "=l"(high)
               : "l"(word)
               : "memory");
  return make_uint4(static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
                    static_cast<uint32_t>(high >> 32));
}
__device__ inline void store_relaxed(uint4* word, uint4 value) {
  const uint64_t low = static_cast<uint64_t>(value.y) << 32 | value.x;
  const uint64_t high = static_cast<uint64_t>(value.w) << 32 | value.z;
  asm volatile("{\n.reg .b128 word;\nmov.b128 word, {%1,%2};\nst.relaxed.gpu.global.b128 [%0], word;\n}" ::"l"(word),
               "l"(low), "l"(high)
               : "memory");
}

}  // namespace gru::cuda
#endif  // GRU_CUDA_EMULATOR
