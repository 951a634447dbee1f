// A kernel that reads beyond its memory when it is asked to, for the test that this is noticed. binding.cpp calls it,
// which has no sanitizers itself.
#include "cuda/launch.h"
#include "emulator/kernels.cuh"

namespace gru::cuda {

void copy_reversed(const int* from, int* to, int64_t elements) {
  const LaunchShape shape{1, static_cast<unsigned>(elements), static_cast<size_t>(elements) * sizeof(int)};
  launch(checks::reverse_kernel<0>, shape, nullptr, from, to);
  check_launch("reverse");
}

}  // namespace gru::cuda
