// Where our kernels were measured to be faster than torch's. Generated, never edited:
// benchmarks/measured_table.py has the rule.
#pragma once

#include <vector>

#include "choice.h"

namespace gru::cuda {

// clang-format off
// NVIDIA H200, CUDA 13.0, cuDNN 91900: benchmarks/results/h200, 2026-11-27, commit 03e038338301
// NVIDIA H200, CUDA 13.0, cuDNN 91900: benchmarks/results/h200, 2026-11-27, commit 861eb13a06f6
inline std::vector<Measured> measured_table() {
  return {
  };
}
// clang-format on

}  // namespace gru::cuda
