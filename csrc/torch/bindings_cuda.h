// Python's functions of csrc/cuda/decision.h and plan.h: what runs, who decided it, and how the work is divided.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "cuda/plan.h"
#include "layer.h"

namespace gru {

inline cuda::Shape cuda_shape(at::ScalarType dtype, int64_t seq_len, int64_t batch, int64_t input_size,
                              int64_t hidden_size, int directions, bool packed, bool training) {
  TORCH_CHECK_VALUE(
      seq_len >= 0 && batch >= 0 && input_size >= 1 && hidden_size >= 1 && directions >= 1 && directions <= 2,
      "expected seq_len and batch of at least 0, input_size and hidden_size of at least 1 and directions 1 or 2, got ",
      seq_len, ", ", batch, ", ", input_size, ", ", hidden_size, ", ", directions);
  return {checked_dtype(dtype), seq_len, batch,    input_size,     hidden_size,
          directions,           packed,  training, tf32_allowed(), library_tf32_allowed()};
}

// One pass: kernel, reason and, of a stationary kernel, how the work is divided.
inline pybind11::dict cuda_pass(const cuda::Shape& shape, Pass pass, const cuda::Device& device,
                                std::optional<cuda::Kernel> kernel) {
  const cuda::Plan plan = cuda::plan(shape, pass, device, kernel);
  pybind11::dict fields;
  fields["kernel"] = cuda::name(plan.kernel);
  fields["reason"] = plan.reason;
  if (plan.kernel == cuda::Kernel::Step) return fields;
  const cuda::Partition& partition = plan.partition;
  const size_t element = shape.dtype == DataType::Float32 ? 4 : 2;
  fields["exchange"] = cuda::name(cuda::exchange(partition));
  fields["blocks"] = partition.blocks;
  fields["groups"] = partition.groups;
  fields["group_batch"] = partition.group_batch;
  fields["tile"] = partition.tile;
  fields["warps"] = partition.warps;
  fields["units"] = partition.units();
  fields["shared_bytes"] =
      pass == Pass::Forward ? cuda::forward_shared(partition, element) : cuda::backward_shared(partition, element);
  fields["directions_together"] = plan.together;
  return fields;
}

// Of each number of tiles that a warp of a stationary kernel may hold: that number, the most warps of a block, and
// whether these are all two splits.
inline std::vector<std::tuple<int, int, bool>> cuda_tiles(at::ScalarType dtype) {
  const size_t element = checked_dtype(dtype) == DataType::Float32 ? 4 : 2;
  std::vector<std::tuple<int, int, bool>> all;
  for (int index = 0; cuda::tiles_of_warp(element, index) != 0; ++index) {
    const int tiles = cuda::tiles_of_warp(element, index);
    all.emplace_back(tiles, cuda::most_warps(tiles, element), cuda::all_do_cells(tiles, element));
  }
  return all;
}

// The number of a GPU, negative for the current one; or a described one: compute capability (major, minor),
// multiprocessors, bytes of shared memory a block.
using CudaDevice = std::variant<int, std::tuple<int, int, int, int64_t>>;
inline std::vector<pybind11::dict> cuda_passes(at::ScalarType dtype, int64_t seq_len, int64_t batch, int64_t input_size,
                                               int64_t hidden_size, int directions, bool packed, bool training,
                                               const CudaDevice& device, const std::optional<std::string>& kernel) {
  const cuda::Shape shape = cuda_shape(dtype, seq_len, batch, input_size, hidden_size, directions, packed, training);
  const int* const number = std::get_if<int>(&device);
  const cuda::Device described =
      number != nullptr ? cuda::device_at(*number) : std::apply(cuda::described_device, std::get<1>(device));
  TORCH_CHECK_VALUE(!kernel || *kernel == "step" || *kernel == "stationary", "kernel is ", kernel.value_or(""),
                    "; expected step or stationary");
  std::optional<cuda::Kernel> ours;
  if (kernel) ours = *kernel == "step" ? cuda::Kernel::Step : cuda::Kernel::Stationary;
  std::vector<pybind11::dict> passes = {cuda_pass(shape, Pass::Forward, described, ours)};
  if (training) passes.push_back(cuda_pass(shape, Pass::Backward, described, ours));
  return passes;
}

// Strategy, kernel and source.
inline std::tuple<std::string, std::string, std::string> cuda_decide(at::ScalarType dtype, int64_t seq_len,
                                                                     int64_t batch, int64_t hidden_size, int directions,
                                                                     bool packed, bool training, int device) {
  const cuda::Shape shape = cuda_shape(dtype, seq_len, batch, 1, hidden_size, directions, packed, training);
  const cuda::Decision decision = cuda::decide(shape, cuda::device_at(device));
  return {cuda::name(decision.strategy), cuda::name(decision.kernel), decision.source};
}

using CudaGpu = std::tuple<std::string, int, int>;  // its name and compute capability
inline CudaGpu cuda_gpu(int device) {
  const cuda::Device& known = cuda::device_at(device);
  return {known.name, known.major, known.minor};
}

inline void choose_cuda_kernel(const std::string& kernel, at::ScalarType dtype, int64_t batch, int64_t hidden_size,
                               int directions, bool packed, bool training, std::optional<bool> tf32,
                               const std::optional<CudaGpu>& gpu, std::optional<double> ratio,
                               const std::string& date) {
  cuda::Shape shape = cuda_shape(dtype, 1, batch, 1, hidden_size, directions, packed, training);
  if (tf32) shape.tf32 = *tf32;
  const auto [name, major, minor] = gpu ? *gpu : cuda_gpu(-1);
  cuda::choose({shape, name, major, minor, kernel, ratio.value_or(0), date});
}

inline void begin_cuda_trial(const std::string& kernel, at::ScalarType dtype, int64_t batch, int64_t hidden_size,
                             int directions, bool packed, bool training) {
  cuda::begin_trial(cuda_shape(dtype, 1, batch, 1, hidden_size, directions, packed, training), kernel);
}

inline void define_cuda(pybind11::module_& m) {
  using pybind11::arg;
  const auto none = pybind11::none();
  m.def("cuda_decide", &cuda_decide, arg("dtype"), arg("seq_len"), arg("batch"), arg("hidden_size"), arg("directions"),
        arg("packed"), arg("training"), arg("device") = -1);
  m.def("cuda_passes", &cuda_passes, arg("dtype"), arg("seq_len"), arg("batch"), arg("input_size"), arg("hidden_size"),
        arg("directions"), arg("packed"), arg("training"), arg("device") = -1, arg("kernel") = none);
  m.def("cuda_tiles", &cuda_tiles, arg("dtype"));
  m.def("cuda_gpu", &cuda_gpu, arg("device") = -1);
  m.def("cuda_tf32", &tf32_allowed);
  m.def("choose_cuda_kernel", &choose_cuda_kernel, arg("kernel"), arg("dtype"), arg("batch"), arg("hidden_size"),
        arg("directions"), arg("packed"), arg("training"), arg("tf32") = none, arg("gpu") = none, arg("ratio") = none,
        arg("date") = "");
  m.def("forget_cuda_choices", &cuda::forget_choices);
  m.def("begin_cuda_trial", &begin_cuda_trial, arg("kernel"), arg("dtype"), arg("batch"), arg("hidden_size"),
        arg("directions"), arg("packed"), arg("training"));
  m.def("end_cuda_trial", &cuda::end_trial);
}

}  // namespace gru
