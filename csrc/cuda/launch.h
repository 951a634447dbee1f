// How every kernel is started: the profiling range around a launcher, the launch itself and the check after it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define GRU_CUDA_NVTX 1
#endif

namespace gru::cuda {

// A range on the timeline of NVIDIA's profilers, for as long as the object lives.
class ProfilerRange {
 public:
#ifdef GRU_CUDA_NVTX
  explicit ProfilerRange(const char* name) { nvtxRangePushA(name); }
  ~ProfilerRange() { nvtxRangePop(); }
#else
  explicit ProfilerRange(const char*) {}
  ~ProfilerRange() {}
#endif
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

// How many threads, and how they belong together.
struct LaunchShape {
  dim3 grid, block;
  size_t shared = 0;         // bytes of shared memory a block
  unsigned cluster = 1;      // blocks a cluster, neighbours along x
  bool cooperative = false;  // all blocks are on the GPU at the same time, or the launch is refused
};

// Starts the kernel on `stream` and does not wait; check_launch says whether that went well.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream, Arguments&&... arguments) {
  constexpr size_t kSharedUnasked = 48 << 10;
  constexpr unsigned kPortableCluster = 8;
  if (shape.shared > kSharedUnasked) {
    // Always the most there is: with another value each, two threads that launch the kernel would undo each other's.
    int device = 0, most = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  }
  if (shape.cluster > kPortableCluster) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream;
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = shape.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (shape.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// Throws when the launch before it was refused. An error inside a kernel shows up later, as with every CUDA library.
inline void check_launch(const char* kernel) {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("gru_ext: the launch of CUDA kernel ") + kernel +
                             " failed: " + cudaGetErrorString(status));
  }
}

}  // namespace gru::cuda
