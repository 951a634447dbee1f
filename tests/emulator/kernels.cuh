// Small kernels, each around one kind of operation of csrc/cuda/primitives.h, with results that are known exactly; and
// the faults that can be planted in them. Fault 0 is none. They run on the emulated GPU and, compiled by nvcc, on a
// real one, where they show that the emulator and the PTX behind the primitives mean the same.
#pragma once

#include "cuda/primitives.h"

namespace checks {

using namespace gru::cuda;

// ---------------------------------------------------------------------------------------------------------------------
// One block: a barrier between writing shared memory and reading it. The values of each block come out in reverse.
// ---------------------------------------------------------------------------------------------------------------------

enum ReverseFault { kNoBarrier = 1, kWriteBeyondShared, kReadBeyondShared, kReadBeyondGlobal, kWriteBeyondGlobal };

template <int kFault>
__global__ void reverse_kernel(const int* input, int* output) {
  int* const shared = reinterpret_cast<int*>(shared_memory());
  const unsigned threads = blockDim.x, first = blockIdx.x * threads, own = threadIdx.x;
  const bool last = blockIdx.x == gridDim.x - 1 && own == threads - 1;
  shared[own + (kFault == kWriteBeyondShared ? 1 : 0)] = input[first + own + (kFault == kReadBeyondGlobal && last)];
  if (kFault != kNoBarrier) block_sync();
  const int mirrored = shared[threads - 1 - own + (kFault == kReadBeyondShared ? 1 : 0)];
  output[first + own + (kFault == kWriteBeyondGlobal && last)] = mirrored;
}

// ---------------------------------------------------------------------------------------------------------------------
// One warp: exchange. output [3, 32].
// ---------------------------------------------------------------------------------------------------------------------

enum LanesFault { kLaneStaysAway = 1, kLanesPart };

template <int kFault>
__global__ void lanes_kernel(const float* input, float* output) {
  const int lane = static_cast<int>(threadIdx.x);
  const float value = input[lane];
  float sum = value;
  if (!(kFault == kLaneStaysAway && lane == 7)) {
    for (int bits = 1; bits < kWarpSize; bits *= 2) sum += shuffle_xor(sum, bits);
  }
  const float broadcast = kFault == kLanesPart && lane >= 16 ? shuffle_xor(value, 5) : shuffle(value, 5);
  output[lane] = sum;
  output[32 + lane] = broadcast;
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;  // two groups that do not meet
  output[64 + lane] = shuffle_xor(value, 1, half);
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensor cores fed through copies that run on their own: output [rows, 8] = left [rows, depth] right [depth, 8]. Each
// of a block's two warps has 16 rows of left to itself, and both read what the first one fetches of right; two stages
// of 16 columns each. right lies as [8, depth] or, transposed, as [depth, 8].
// ---------------------------------------------------------------------------------------------------------------------

enum ProductFault { kNoWait = 1, kNextRow, kSwappedFragment, kNoSecondBarrier, kUnalignedRows };

constexpr int kProductRow = 24;  // elements: 16, and padding that avoids bank conflicts
constexpr int kProductStage = (2 * 16 + 16) * kProductRow;

template <class Element, bool kTransposed, int kFault>
__global__ void product_kernel(const Element* left, const Element* right, float* output, int rows, int depth) {
  constexpr int kRow = kFault == kUnalignedRows ? kProductRow - 4 : kProductRow;
  Element* const stages = reinterpret_cast<Element*>(shared_memory());
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int first = (static_cast<int>(blockIdx.x) * 2 + warp) * 16;
  const int left_tile = warp * 16 * kRow, right_tile = 2 * 16 * kRow;
  const auto fetch = [&](int k) {
    Element* const stage = stages + k / 16 % 2 * kProductStage;
    // A lane takes half a row, 8 elements. Rows beyond the last are filled with 0.
    const int row = lane / 2, half = lane % 2 * 8, from = first + row + (kFault == kNextRow ? 1 : 0);
    copy_async<16>(stage + left_tile + row * kRow + half,
                   left + static_cast<int64_t>(from < rows ? from : 0) * depth + k + half, from < rows ? 16 : 0);
    Element* const to = stage + right_tile + row * kRow + half;
    if (warp == 0 && kTransposed && half == 0) copy_async<16>(to, right + (k + row) * 8);
    if (warp == 0 && !kTransposed && row < 8) copy_async<16>(to, right + row * depth + k + half);
    copy_async_commit();
  };
  float sums[4] = {};
  fetch(0);
  for (int k = 0; k < depth; k += 16) {
    const bool more = k + 16 < depth;
    if (more) fetch(k + 16);
    if (!more) copy_async_wait<0>();
    if (more && kFault != kNoWait) copy_async_wait<1>();
    block_sync();
    const Element* const stage = stages + k / 16 % 2 * kProductStage;
    uint32_t a[4], words[4];
    // Matrices: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15. Of right there are two, loaded twice.
    load_matrices(a, stage + left_tile + lane % 16 * kRow + lane / 16 * 8);
    if (kTransposed) {
      load_matrices_transposed(words, stage + right_tile + lane % 16 * kRow);
    } else {
      load_matrices(words, stage + right_tile + lane % 8 * kRow + lane / 8 % 2 * 8);
    }
    const uint32_t b[2] = {words[0], words[1]};
    if (kFault == kSwappedFragment) {
      const uint32_t kept = a[1];
      a[1] = a[2];
      a[2] = kept;
    }
    mma_m16n8k16<Element>(sums, a, b);
    if (kFault != kNoSecondBarrier) block_sync();  // both have read before the stage is filled again
  }
  for (int i = 0; i < 4; ++i) {
    const int row = first + lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    if (row < rows) output[row * 8 + column] = sums[i];
  }
}

// TF32, one warp: output [16, 8] = left [16, 8] right [8, 8], rounded to TF32 first.
template <int kFault>
__global__ void tf32_kernel(const float* left, const float* right, float* output) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const uint32_t a[4] = {to_tf32(left[g * 8 + t]), to_tf32(left[(g + 8) * 8 + t]), to_tf32(left[g * 8 + t + 4]),
                         to_tf32(left[(g + 8) * 8 + t + 4])};
  const uint32_t b[2] = {to_tf32(right[t * 8 + g]), to_tf32(right[(t + 4) * 8 + g])};
  const uint32_t swapped[2] = {b[1], b[0]};
  float sums[4] = {};
  mma_m16n8k8_tf32(sums, a, kFault == kSwappedFragment ? swapped : b);
  for (int i = 0; i < 4; ++i) output[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

// ---------------------------------------------------------------------------------------------------------------------
// Two groups of warps hand a buffer to and fro by two named barriers. output[round] is the sum of round + thread over
// the producers.
// ---------------------------------------------------------------------------------------------------------------------

enum HandoverFault { kWrongCount = 1, kNoEmptyBarrier };

template <int kFault>
__global__ void handover_kernel(int* output, int rounds) {
  constexpr int kFull = 1, kEmpty = 2, kProducers = 64, kThreads = 96;
  int* const shared = reinterpret_cast<int*>(shared_memory());
  const int own = static_cast<int>(threadIdx.x);
  for (int round = 0; round < rounds; ++round) {
    if (own < kProducers) {
      if (round > 0 && kFault != kNoEmptyBarrier) barrier_sync(kEmpty, kThreads);
      shared[own] = round + own;
      barrier_sync(kFull, kFault == kWrongCount ? kThreads + 32 : kThreads);
    } else {
      barrier_sync(kFull, kFault == kWrongCount ? kThreads + 32 : kThreads);
      int sum = 0;
      for (int i = own - kProducers; i < kProducers; i += kWarpSize) sum += shared[i];
      for (int bits = 1; bits < kWarpSize; bits *= 2) sum += shuffle_xor(sum, bits);
      if (own == kProducers) output[round] = sum;
      if (round + 1 < rounds && kFault != kNoEmptyBarrier) barrier_sync(kEmpty, kThreads);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Clusters: every block sends its value to all, round after round, by stores that a barrier counts. The value of block
// r in round t + 1 is r plus the sum of those of round t, modulo 1000. output [clusters * size].
// ---------------------------------------------------------------------------------------------------------------------

enum RingFault { kWrongArrivals = 1, kTooFewBytes, kOneBuffer, kNoFirstSync, kWrongRank };

template <int kFault>
__global__ void ring_kernel(uint32_t* output, unsigned size, int rounds) {
  struct Shared {
    uint4 values[2][16];
    uint64_t barriers[2];
  };
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
  const unsigned rank = blockIdx.x % size, own = threadIdx.x;
  if (own == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&shared.barriers[i], kFault == kWrongArrivals ? 2 : 1);
      mbarrier_arrive_expect(&shared.barriers[i], (size - (kFault == kTooFewBytes ? 1 : 0)) * sizeof(uint4));
    }
    mbarrier_init_fence();
  }
  if (kFault != kNoFirstSync) cluster_sync();
  uint32_t value = rank;
  for (int round = 0; round < rounds; ++round) {
    const int buffer = kFault == kOneBuffer ? 0 : round % 2;
    const unsigned parity = static_cast<unsigned>(kFault == kOneBuffer ? round % 2 : round / 2 % 2);
    if (own < size) {
      const ClusterPointer to = cluster_pointer(&shared.values[buffer][rank], (own + (kFault == kWrongRank)) % 16);
      store_async(to, make_uint4(value, value + 1, value + 2, value + 3),
                  cluster_pointer(&shared.barriers[buffer], own));
    }
    mbarrier_wait(&shared.barriers[buffer], parity);
    if (own == 0 && round + (kFault == kOneBuffer ? 1 : 2) < rounds) {
      mbarrier_arrive_expect(&shared.barriers[buffer], (size - (kFault == kTooFewBytes ? 1 : 0)) * sizeof(uint4));
    }
    value = rank;
    for (unsigned other = 0; other < size; ++other) {
      const uint4 sent = shared.values[buffer][other];
      value += sent.w - 3 == sent.x && sent.y + 1 == sent.z ? sent.x : 777;
    }
    value %= 1000;
    block_sync();
  }
  // A block may exit: whatever the others store into it has arrived, for it has waited for all of it.
  if (own == 0) output[blockIdx.x] = value;
}

// ---------------------------------------------------------------------------------------------------------------------
// The whole grid. A chain of blocks, from the last to the first: each waits for the word of the one before, in which
// the upper half says that it is there.
// ---------------------------------------------------------------------------------------------------------------------

enum ChainFault { kNoFlag = 1, kPlainLaunch, kBlockStaysAway };

template <int kFault>
__global__ void chain_kernel(uint64_t* words, uint32_t* data) {
  const unsigned own = gridDim.x - 1 - blockIdx.x;
  if (threadIdx.x != 0 || (kFault == kBlockStaysAway && own == 0)) return;
  uint32_t value = 1;
  if (own > 0) {
    uint64_t word = 0;
    spin_until("a word", [&] {
      word = load_relaxed(words + own - 1);
      return kFault == kNoFlag || (word >> 32) == own;
    });
    value = 2 * static_cast<uint32_t>(word);
  }
  data[own] = value;
  store_relaxed(words + own, static_cast<uint64_t>(own + 1) << 32 | value);
}

// The same by words of 16 bytes, of which the last 4 are the flag, beside two neighbouring words of 8.
enum WideChainFault { kWordInTwo = 2, kOneFlagOfTwo };

template <int kFault>
__global__ void wide_chain_kernel(uint4* words, uint64_t* pairs, uint32_t* data) {
  const unsigned own = blockIdx.x;
  if (threadIdx.x != 0) return;
  uint32_t value = 1;
  if (own > 0) {
    uint4 word = make_uint4(0, 0, 0, 0);
    uint64_t pair[2] = {0, 0};
    spin_until("a word of 16 bytes", [&] {
      word = load_relaxed(words + own - 1);
      return kFault == kNoFlag || word.w == own;
    });
    spin_until("two words", [&] {
      load_relaxed(pair, pairs + 2 * (own - 1));
      return pair[0] >> 32 == own && (kFault == kOneFlagOfTwo || pair[1] >> 32 == own);
    });
    const bool whole = word.y == word.x + 1 && word.z == word.x + 2;
    value = (whole ? word.x : 777) + static_cast<uint32_t>(pair[0]) + static_cast<uint32_t>(pair[1]);
  }
  data[own] = value;
  if (kFault == kWordInTwo) {
    uint64_t* const halves = reinterpret_cast<uint64_t*>(words + own);
    store_relaxed(halves + 1, static_cast<uint64_t>(own + 1) << 32 | (value + 2));
    store_relaxed(halves, static_cast<uint64_t>(value + 1) << 32 | value);
  } else {
    store_relaxed(words + own, make_uint4(value, value + 1, value + 2, own + 1));
  }
  for (unsigned i = 0; i < 2; ++i) store_relaxed(pairs + 2 * own + i, static_cast<uint64_t>(own + 1) << 32 | i);
}

// The quick functions: output [3, 32] of 2^value, 1 / value and tanh(value).
__global__ void functions_kernel(const float* input, float* output) {
  const unsigned lane = threadIdx.x;
  output[lane] = exp2_approximate(input[lane]);
  output[32 + lane] = reciprocal_approximate(input[lane]);
  output[64 + lane] = tanh_approximate(input[lane]);
}

// Waits for what never comes.
__global__ void hang_kernel(const uint64_t* flag) {
  spin_until("a flag that nobody sets", [&] { return load_relaxed(flag) == 1; });
}

}  // namespace checks
