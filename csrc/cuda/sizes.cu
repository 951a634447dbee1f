// The batch sizes of a packed sequence, from the host's memory into the GPU's.
#include <algorithm>

#include "launch.h"
#include "stationary.h"

namespace gru::cuda {
namespace {

// As many as fit into a launch's parameters, of which every GPU takes 4 KiB.
struct Sizes {
  static constexpr int kMost = 960;
  int32_t values[kMost];
};

__global__ void write_sizes_kernel(const Sizes sizes, int count, int32_t* to) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) to[i] = sizes.values[i];
}

}  // namespace

void write_sizes(const int64_t* sizes, int64_t count, int32_t* to, cudaStream_t stream) {
  for (int64_t first = 0; first < count; first += Sizes::kMost) {
    Sizes part{};
    const int64_t here = std::min<int64_t>(Sizes::kMost, count - first);
    for (int64_t i = 0; i < here; ++i) part.values[i] = static_cast<int32_t>(sizes[first + i]);
    launch(write_sizes_kernel, {1, 128}, stream, part, static_cast<int>(here), to + first);
  }
  check_launch("write_sizes");
}

}  // namespace gru::cuda
