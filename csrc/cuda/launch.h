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

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            Arguments&&... arguments) {
  kernel<<<grid, block, shared, stream>>>(std::forward<Arguments>(arguments)...);
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
