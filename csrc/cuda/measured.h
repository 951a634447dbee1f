// Where our kernels were measured to be faster than torch's. Generated, never edited:
// benchmarks/measured_table.py has the rule.
#pragma once

#include <vector>

#include "decision.h"

namespace gru::cuda {

// clang-format off
// NVIDIA H200, CUDA 13.0, cuDNN 91900: benchmarks/results/h200, 2026-11-27, commit 03e038338301
// NVIDIA H200, CUDA 13.0, cuDNN 91900: benchmarks/results/h200, 2026-11-27, commit 861eb13a06f6
// NVIDIA H200, CUDA 13.0, cuDNN 91900: benchmarks/results/h200, 2026-11-28, commit 1b24fc4cfddf
inline std::vector<Measured> measured_table() {
  return {
      {9, 0, DataType::BFloat16, false, false, 2, false, false, 64, 512, 1, 64, INT64_MAX, "stationary", 7.40, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 2, false, true, 64, 512, 1, 64, INT64_MAX, "stationary", 5.76, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 2, false, true, 256, 512, 1, 64, INT64_MAX, "stationary", 4.95, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, true, false, 64, 512, 1, 64, INT64_MAX, "stationary", 4.87, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, true, false, 64, 512, 1, 64, INT64_MAX, "stationary", 4.82, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, false, false, 64, 512, 1, 256, INT64_MAX, "stationary", 4.79, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, true, true, 64, 512, 1, 64, INT64_MAX, "stationary", 4.14, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, true, true, 64, 512, 1, 64, INT64_MAX, "stationary", 4.08, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 2, false, false, 128, 512, 1, 64, INT64_MAX, "stationary", 3.94, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::BFloat16, false, false, 1, false, true, 64, 512, 1, 256, INT64_MAX, "stationary", 3.61, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 2, false, false, 256, 256, 1, 64, INT64_MAX, "stationary", 3.43, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 2, false, true, 256, 256, 1, 64, INT64_MAX, "stationary", 3.41, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, false, 192, 512, 1, 1, INT64_MAX, "stationary", 3.32, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, true, true, 64, 256, 1, 64, INT64_MAX, "stationary", 3.28, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 2, false, false, 64, 512, 8, 64, INT64_MAX, "stationary", 3.24, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, true, false, 64, 256, 1, 64, INT64_MAX, "stationary", 3.09, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, false, 192, 384, 1, 256, INT64_MAX, "stationary", 3.08, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, true, 192, 384, 1, 256, INT64_MAX, "stationary", 2.99, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, true, 192, 512, 1, 1, INT64_MAX, "stationary", 2.94, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 2, false, true, 64, 512, 8, 64, INT64_MAX, "stationary", 2.79, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, false, 192, 512, 64, 256, INT64_MAX, "stationary", 2.70, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, false, 384, 384, 1, 8, INT64_MAX, "stationary", 2.52, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, true, 64, 512, 256, 256, INT64_MAX, "stationary", 2.46, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, true, 192, 192, 1, 256, INT64_MAX, "stationary", 2.28, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, true, 384, 384, 1, 64, INT64_MAX, "stationary", 2.11, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, false, 192, 256, 8, 64, INT64_MAX, "stationary", 2.06, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, true, 192, 384, 8, 64, INT64_MAX, "stationary", 2.01, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, true, 192, 256, 8, 256, INT64_MAX, "stationary", 1.99, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float32, false, true, 1, false, false, 192, 192, 1, 256, INT64_MAX, "stationary", 1.96, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, false, 128, 512, 1, 1, 8, "stationary", 1.92, "NVIDIA H200", "benchmarks/results/h200"},
      {9, 0, DataType::Float16, false, false, 1, false, true, 128, 512, 1, 1, 8, "stationary", 1.46, "NVIDIA H200", "benchmarks/results/h200"},
  };
}
// clang-format on

}  // namespace gru::cuda
