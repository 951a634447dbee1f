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
      {9, 0, DataType::BFloat16, false, false, 2, false, false, 64, 1024, 1, 64, INT64_MAX, "stationary", 11.96, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 2, false, true, 64, 1024, 1, 64, INT64_MAX, "stationary", 9.43, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, false, false, 64, 512, 1, 256, INT64_MAX, "stationary", 8.47, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 2, false, false, 256, 256, 1, 64, INT64_MAX, "stationary", 7.26, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, true, true, 64, 512, 1, 64, INT64_MAX, "stationary", 7.09, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, false, false, 64, 1024, 1, 64, INT64_MAX, "stationary", 6.91, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 2, false, true, 256, 256, 1, 64, INT64_MAX, "stationary", 6.56, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, true, false, 64, 1024, 1, 64, INT64_MAX, "stationary", 6.22, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, true, false, 64, 1024, 1, 64, INT64_MAX, "stationary", 5.97, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, false, true, 64, 512, 1, 256, INT64_MAX, "stationary", 5.75, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, true, true, 64, 1024, 1, 8, INT64_MAX, "stationary", 5.75, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, true, true, 64, 1024, 1, 64, INT64_MAX, "stationary", 5.43, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, true, true, 64, 256, 1, 64, INT64_MAX, "stationary", 4.92, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, true, false, 64, 256, 1, 64, INT64_MAX, "stationary", 4.83, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, false, true, 64, 1024, 1, 64, INT64_MAX, "stationary", 4.72, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 2, false, false, 256, 512, 1, 8, INT64_MAX, "stationary", 4.70, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 2, false, false, 64, 1024, 1, 64, INT64_MAX, "stationary", 4.12, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, false, 1, false, true, 256, 256, 1, 64, INT64_MAX, "stationary", 4.01, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, false, 192, 1024, 1, 64, INT64_MAX, "stationary", 3.94, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 2, false, true, 64, 1024, 1, 64, INT64_MAX, "stationary", 3.79, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 2, false, true, 256, 512, 1, 8, INT64_MAX, "stationary", 3.62, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, true, false, 64, 512, 1, 1, INT64_MAX, "stationary", 3.60, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, false, 1, false, false, 256, 256, 1, 64, INT64_MAX, "stationary", 3.51, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, false, 128, 512, 8, 256, INT64_MAX, "stationary", 3.18, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, false, 192, 384, 1, 64, INT64_MAX, "stationary", 3.08, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 2, false, false, 256, 1024, 8, 8, INT64_MAX, "stationary", 2.90, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, true, 64, 512, 1, 256, INT64_MAX, "stationary", 2.79, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, true, 192, 384, 1, 64, INT64_MAX, "stationary", 2.77, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, false, 192, 256, 1, 256, INT64_MAX, "stationary", 2.72, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, true, 64, 1024, 1, 64, INT64_MAX, "stationary", 2.62, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, false, 64, 1024, 1, 64, 8, "stationary", 2.44, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, false, 192, 512, 1, 8, INT64_MAX, "stationary", 2.34, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 2, false, true, 64, 512, 1, 1, INT64_MAX, "stationary", 2.31, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 2, false, true, 256, 1024, 8, 8, INT64_MAX, "stationary", 2.26, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, true, 192, 512, 8, 8, INT64_MAX, "stationary", 2.17, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, false, 64, 512, 256, 256, INT64_MAX, "stationary", 2.15, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, false, 64, 256, 1, 64, 8, "stationary", 2.07, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, false, 192, 1024, 8, 8, INT64_MAX, "stationary", 1.86, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, true, 64, 256, 256, 256, INT64_MAX, "stationary", 1.83, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, true, 64, 1024, 1, 64, 8, "stationary", 1.53, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, false, 1, false, false, 256, 1024, 8, 8, INT64_MAX, "stationary", 1.47, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, true, 64, 64, 1, 1, INT64_MAX, "stationary", 1.45, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, false, 1, false, false, 1024, 1024, 64, 64, INT64_MAX, "stationary", 1.34, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, true, false, 1024, 1024, 8, 8, INT64_MAX, "stationary", 1.33, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, false, 1, false, true, 1024, 1024, 8, 64, INT64_MAX, "stationary", 1.28, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, false, 1024, 1024, 1, 64, 8, "stationary", 1.26, "NVIDIA H200", "benchmarks/results/h200"},
  };
}
// clang-format on

}  // namespace gru::cuda
