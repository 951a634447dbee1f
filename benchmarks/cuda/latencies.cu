// What it costs on this GPU when blocks exchange something in every step, as a recurrence over several blocks must:
//
//   nvcc -std=c++17 -O3 -arch=sm_90a -Icsrc benchmarks/cuda/latencies.cu -o build/latencies
//   build/latencies [STEPS [FEW_STEPS [REPEATS]]]
//
// prints a CSV: what, blocks in one exchange, microseconds a step, note. A step is timed as the difference of two
// launches, one with many more steps, over the difference in steps, so that the price of a launch cancels.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "flags.h"
#include "harness.h"

namespace {

using namespace gru::cuda;
using namespace benchmarks;

constexpr unsigned kThreads = 256;

// ---------------------------------------------------------------------------------------------------------------------
// Kernels: `steps` exchanges and nothing else. result keeps the compiler from leaving anything out.
// ---------------------------------------------------------------------------------------------------------------------

// The barrier of a cluster.
__global__ void __launch_bounds__(kThreads) cluster_barrier_kernel(int steps, uint32_t* result) {
  for (int step = 0; step < steps; ++step) cluster_sync();
  if (threadIdx.x == 0) result[blockIdx.x] = 1;
}

// Everyone gives 16 bytes a warp to everyone in the cluster: asynchronous stores that a barrier in shared memory
// counts, two buffers by turns.
__global__ void __launch_bounds__(kThreads) cluster_exchange_kernel(unsigned size, int steps, uint32_t* result) {
  constexpr unsigned kWarps = kThreads / kWarpSize, kMostBlocks = 16;
  struct Shared {
    uint4 values[2][kMostBlocks][kWarps];
    uint64_t barriers[2];
  };
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
  const unsigned rank = blockIdx.x % size, warp = threadIdx.x / kWarpSize;
  const unsigned lane = threadIdx.x % kWarpSize;
  const unsigned bytes = size * kWarps * static_cast<unsigned>(sizeof(uint4));
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : shared.barriers) {
      mbarrier_init(&barrier, 1);
      mbarrier_arrive_expect(&barrier, bytes);
    }
    mbarrier_init_fence();
  }
  cluster_sync();
  uint32_t value = rank;
  for (int step = 0; step < steps; ++step) {
    const int buffer = step % 2;
    if (lane < size) {
      store_async(cluster_pointer(&shared.values[buffer][rank][warp], lane), make_uint4(value, value, value, value),
                  cluster_pointer(&shared.barriers[buffer], lane));
    }
    mbarrier_wait(&shared.barriers[buffer], static_cast<unsigned>(step / 2 % 2));
    if (threadIdx.x == 0 && step + 2 < steps) mbarrier_arrive_expect(&shared.barriers[buffer], bytes);
    value = shared.values[buffer][lane % size][warp].x + 1;
    block_sync();  // all have read before anyone fills the next step's buffer of the others
  }
  if (threadIdx.x == 0) result[blockIdx.x] = value;
}

// The barrier of the grid.
__global__ void __launch_bounds__(kThreads) grid_barrier_kernel(int steps, uint32_t* flag, uint32_t* result) {
  for (int step = 0; step < steps; ++step) grid_sync(flag);
  if (threadIdx.x == 0) result[blockIdx.x] = 1;
}

// Everyone publishes a word, 4 bytes of data and the number of the step, and waits for the words of all: the data is
// its own flag. words [2, blocks], by turns.
__global__ void __launch_bounds__(kThreads) grid_exchange_kernel(int steps, uint64_t* words, uint32_t* result) {
  const unsigned blocks = gridDim.x;
  uint32_t value = blockIdx.x;
  for (int step = 0; step < steps; ++step) {
    uint64_t* const here = words + step % 2 * blocks;
    const auto tag = static_cast<uint32_t>(step + 1);
    if (threadIdx.x == 0) store_relaxed(here + blockIdx.x, static_cast<uint64_t>(tag) << 32 | value);
    if (threadIdx.x < blocks) {
      uint64_t word = 0;
      spin_until("a word of another block", [&] { return ((word = load_relaxed(here + threadIdx.x)) >> 32) == tag; });
      value = static_cast<uint32_t>(word) + 1;
    }
    block_sync();
  }
  if (threadIdx.x == 0) result[blockIdx.x] = value;
}

// Two blocks hand a flag to and fro; a step is one way.
__global__ void __launch_bounds__(kThreads) flag_kernel(int steps, uint32_t* flag, uint32_t* result) {
  if (threadIdx.x == 0) {
    const unsigned own = blockIdx.x;
    for (auto step = own; step < static_cast<unsigned>(steps); step += 2) {
      spin_until("the flag", [&] { return load_acquire(flag) == step; });
      store_release(flag, step + 1);
    }
    result[own] = 1;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Timing
// ---------------------------------------------------------------------------------------------------------------------

// Median microseconds of a step. Every launch finds the memory zeroed.
template <class Start>
void report(const char* what, unsigned blocks, const char* note, const Lengths& lengths, Buffer& memory,
            Start&& start) {
  try {
    const float median = step_microseconds(lengths, [&] { memory.zero(); }, start);
    std::printf("%s,%u,%.4f,%s\n", what, blocks, median, note);
  } catch (const std::exception& error) {
    std::printf("%s,%u,,%s: %s\n", what, blocks, note, error.what());
    cudaGetLastError();
  }
}

LaunchShape in_cluster(unsigned clusters, unsigned size, size_t shared) {
  LaunchShape shape{clusters * size, kThreads, shared};
  shape.cluster = size;
  return shape;
}

// How many clusters of `size` blocks with `shared` bytes each are on the GPU at the same time.
void report_residents(unsigned size, size_t shared) {
  const LaunchShape shape = in_cluster(1, size, shared);
  cudaFuncSetAttribute(cluster_barrier_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  cudaFuncSetAttribute(cluster_barrier_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = size;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, cluster_barrier_kernel, &config);
  std::printf("resident clusters,%u,,%d with %zu KiB of shared memory a block%s%s\n", size, clusters, shared >> 10,
              error == cudaSuccess ? "" : ": ", error == cudaSuccess ? "" : cudaGetErrorString(error));
  cudaGetLastError();
}

}  // namespace

int main(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  const auto number = [&](int index, int otherwise) { return index < count ? std::atoi(arguments[index]) : otherwise; };
  const Lengths lengths{number(2, 64), number(1, 4096), number(3, 9)};
  if (lengths.more < 1 || lengths.few < 1 || lengths.repeats < 1) {
    std::fprintf(stderr, "usage: latencies [STEPS [FEW_STEPS [REPEATS]]], each at least 1\n");
    return 2;
  }
  Buffer memory(1 << 20);
  auto* const result = memory.at<uint32_t>(0);
  auto* const flag = memory.at<uint32_t>(64 << 10);
  auto* const words = memory.at<uint64_t>(128 << 10);
  constexpr size_t kExchange = 2 * 16 * (kThreads / kWarpSize) * sizeof(uint4) + 16;
  std::printf("what,blocks,microseconds,note\n");
  for (const unsigned size : {2u, 4u, 8u, 16u}) {
    report("cluster barrier", size, "one cluster", lengths, memory,
           [&](int steps) { launch(cluster_barrier_kernel, in_cluster(1, size, 0), nullptr, steps, result); });
    report("cluster exchange", size, "one cluster; st.async and mbarrier", lengths, memory, [&](int steps) {
      launch(cluster_exchange_kernel, in_cluster(1, size, kExchange), nullptr, size, steps, result);
    });
  }
  for (const unsigned clusters : {4u, 8u}) {
    report("cluster exchange", 8, clusters == 4 ? "4 clusters at once" : "8 clusters at once", lengths, memory,
           [&](int steps) {
             launch(cluster_exchange_kernel, in_cluster(clusters, 8, kExchange), nullptr, 8u, steps, result);
           });
  }
  report("flag one way", 2, "st.release, ld.acquire through L2", lengths, memory, [&](int steps) {
    LaunchShape shape{2, kThreads};
    shape.cooperative = true;
    launch(flag_kernel, shape, nullptr, steps, flag, result);
  });
  for (const unsigned blocks : {8u, 32u, 64u, 128u}) {
    LaunchShape shape{blocks, kThreads};
    shape.cooperative = true;
    report("grid barrier", blocks, "", lengths, memory,
           [&](int steps) { launch(grid_barrier_kernel, shape, nullptr, steps, flag, result); });
    report("grid exchange", blocks, "8-byte words that are data and flag", lengths, memory,
           [&](int steps) { launch(grid_exchange_kernel, shape, nullptr, steps, words, result); });
  }
  for (const unsigned size : {2u, 3u, 4u, 5u, 6u, 7u, 8u, 16u}) {
    for (const size_t shared : {size_t{16} << 10, size_t{200} << 10}) report_residents(size, shared);
  }
  return 0;
}
