// What Python asks csrc/cuda/plan.h: which kernel was chosen, which would run and how its work is divided.
#pragma once

#include <torch/extension.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "cuda/plan.h"
#include "ops.h"

namespace gru {

inline cuda::Shape cuda_shape(at::ScalarType dtype, int64_t seq_len, int64_t batch, int64_t input_size,
                              int64_t hidden_size, int directions, bool packed, bool training) {
  TORCH_CHECK_VALUE(
      seq_len >= 1 && batch >= 0 && input_size >= 1 && hidden_size >= 1 && directions >= 1 && directions <= 2,
      "expected seq_len, input_size and hidden_size of at least 1, batch of at least 0 and directions 1 "
      "or 2, got ",
      seq_len, ", ", input_size, ", ", hidden_size, ", ", batch, ", ", directions);
  return {checked_dtype(dtype), seq_len, batch,    input_size,     hidden_size,
          directions,           packed,  training, tf32_allowed(), library_tf32_allowed()};
}

// One pass: kernel, reason and, of a kernel with stationary weights, its partition.
inline pybind11::dict cuda_pass(const cuda::Shape& shape, cuda::Pass pass, const cuda::Device& device) {
  const cuda::Plan plan = cuda::plan(shape, pass, device);
  pybind11::dict told;
  told["kernel"] = cuda::name(plan.kernel);
  told["reason"] = plan.reason;
  if (plan.kernel == cuda::Kernel::Step) return told;
  const cuda::Partition& partition = plan.partition;
  const size_t element = shape.dtype == DataType::Float32 ? 4 : 2;
  told["blocks"] = partition.blocks;
  told["groups"] = partition.groups;
  told["group_batch"] = partition.group_batch;
  told["tile"] = partition.tile;
  told["warps"] = partition.warps;
  told["units"] = partition.units();
  told["shared_bytes"] = pass == cuda::Pass::Forward ? cuda::forward_shared(partition, element)
                                                     : cuda::backward_shared(partition, element);
  told["directions_together"] = plan.together;
  return told;
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

// The number of a GPU, negative for the current one; or one that is not there: compute capability (major, minor),
// multiprocessors, bytes of shared memory a block.
using CudaDevice = std::variant<int, std::tuple<int, int, int, int64_t>>;
inline std::vector<pybind11::dict> cuda_passes(at::ScalarType dtype, int64_t seq_len, int64_t batch, int64_t input_size,
                                               int64_t hidden_size, int directions, bool packed, bool training,
                                               const CudaDevice& device) {
  const cuda::Shape shape = cuda_shape(dtype, seq_len, batch, input_size, hidden_size, directions, packed, training);
  const int* const number = std::get_if<int>(&device);
  const cuda::Device described =
      number != nullptr ? cuda::device_at(*number) : std::apply(cuda::described_device, std::get<1>(device));
  std::vector<pybind11::dict> passes = {cuda_pass(shape, cuda::Pass::Forward, described)};
  if (training) passes.push_back(cuda_pass(shape, cuda::Pass::Backward, described));
  return passes;
}

// The word, or in words who chose it.
template <auto answer>
auto cuda_choice(at::ScalarType dtype, int64_t batch, int64_t hidden_size, int directions, bool packed, bool training,
                 int device, int64_t seq_len) {
  cuda::Shape shape = cuda_shape(dtype, 1, batch, 1, hidden_size, directions, packed, training);
  shape.seq_len = seq_len;
  return answer(shape, cuda::device_at(device));
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
  m.def("cuda_passes", &cuda_passes, arg("dtype"), arg("seq_len"), arg("batch"), arg("input_size"), arg("hidden_size"),
        arg("directions"), arg("packed"), arg("training"), arg("device") = -1);
  m.def("cuda_chosen", &cuda_choice<cuda::chosen>, arg("dtype"), arg("batch"), arg("hidden_size"), arg("directions"),
        arg("packed"), arg("training"), arg("device") = -1, arg("seq_len") = 1);
  m.def("cuda_source", &cuda_choice<cuda::source>, arg("dtype"), arg("batch"), arg("hidden_size"), arg("directions"),
        arg("packed"), arg("training"), arg("device") = -1, arg("seq_len") = 1);
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
