// The operators of gru_ext with the CUDA path on the emulated GPU, for tensors on the CPU. csrc/torch/operators.cpp is
// linked with this file instead of csrc/torch/layer_cpu.cpp: what it takes for the CPU's passes are the CUDA ones.
#define GRU_EXT_WITH_CUDA
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "emulator/emulator.h"
#include "torch/bindings.h"
#include "torch/bindings_cuda.h"

namespace gru {

namespace cuda {
void copy_reversed(const int* from, int* to, int64_t elements);  // control.cu
}

at::Tensor empty_saved_cpu(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

int64_t saved_row_cpu(const Layer& layer) { return saved_row_cuda(layer); }

void forward_cpu(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved) {
  for (at::Tensor* const unwritten : {&output, &h_n, &saved}) {
    if (unwritten->defined()) unwritten->fill_(std::numeric_limits<double>::quiet_NaN());
  }
  forward_cuda(layer, output, h_n, saved);
}

Gradients backward_cpu(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                       const at::Tensor& saved, const Needs& needs) {
  return backward_cuda(layer, grad_output, grad_h_n, saved, needs);
}

namespace {

// A kernel that reads `elements` of both int32 tensors.
void copy_reversed(const at::Tensor& from, at::Tensor& to, int64_t elements) {
  cuda::copy_reversed(from.data_ptr<int>(), to.data_ptr<int>(), elements);
}

// Compute capability, dtype, tf32, library_tf32, directions, packed, training, least and most hidden size, the same of
// the batch, most seq_len, kernel, ratio, GPU, folder.
using Row = std::tuple<std::pair<int, int>, at::ScalarType, bool, bool, int, bool, bool, std::pair<int64_t, int64_t>,
                       std::pair<int64_t, int64_t>, int64_t, std::string, double, std::string, std::string>;
void use_measured(const std::vector<Row>& rows) {
  std::vector<cuda::Measured> table;
  for (const auto& [gpu, dtype, tf32, library_tf32, directions, packed, training, hidden_sizes, batches, seq_len,
                    kernel, ratio, name, folder] : rows) {
    table.push_back({gpu.first, gpu.second, checked_dtype(dtype), tf32, library_tf32, directions, packed, training,
                     hidden_sizes.first, hidden_sizes.second, batches.first, batches.second, seq_len, kernel, ratio,
                     name, folder});
  }
  cuda::use_measured(table);
}

}  // namespace
}  // namespace gru

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using py::arg;
  gru::define_operators(m);
  m.def("set_seed", &emulator::set_seed, arg("seed"));
  gru::define_cuda(m);
  m.def("use_measured", &gru::use_measured, arg("rows"));
  m.def("copy_reversed", &gru::copy_reversed, arg("from"), arg("to"), arg("elements"));
}
