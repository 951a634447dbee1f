// The Python module gru_ext._C.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/extension.h>

#include "cpu/peaks.h"
#include "cpu/plan.h"
#include "ops.h"
#ifdef GRU_EXT_WITH_CUDA
#include "cuda/plan.h"
#endif

namespace py = pybind11;

#ifndef GRU_EXT_CUDA_VERSION
#define GRU_EXT_CUDA_VERSION ""
#endif
#ifndef GRU_EXT_CUDA_ARCH_LIST
#define GRU_EXT_CUDA_ARCH_LIST ""
#endif

namespace {

py::dict build_info() {
  py::dict info;
  info["torch_version"] = TORCH_VERSION;
  info["python_version"] = PY_VERSION;
  info["cuda_version"] = GRU_EXT_CUDA_VERSION;
  info["cuda_arch_list"] = GRU_EXT_CUDA_ARCH_LIST;
#ifdef __clang__
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
#ifdef GRU_EXT_WITH_CUDA
  info["with_cuda"] = true;
#else
  info["with_cuda"] = false;
#endif
  return info;
}

std::string plan(const std::string& device_type, at::ScalarType dtype, int64_t seq_len, int64_t batch,
                 int64_t input_size, int64_t hidden_size, [[maybe_unused]] bool training) {
  TORCH_CHECK_VALUE(seq_len >= 1 && batch >= 0 && input_size >= 1 && hidden_size >= 1,
                    "expected seq_len, input_size and hidden_size of at least 1 and batch of at least 0, got ", seq_len,
                    ", ", input_size, ", ", hidden_size, ", ", batch);
  (void)gru::checked_dtype(dtype);
  if (device_type == "cpu")
    return gru::cpu::make_plan(seq_len, batch, input_size, hidden_size, false, at::get_num_threads()).words();
#ifdef GRU_EXT_WITH_CUDA
  if (device_type == "cuda") {
    const gru::cuda::Plan plan =
        gru::cuda::plan({gru::checked_dtype(dtype), seq_len, batch, input_size, hidden_size, training});
    return std::string("cuda ") + gru::cuda::name(plan.kernel) + ": " + plan.reason;
  }
#endif
  return device_type + ": no kernels in this build; the reference in plain PyTorch runs";
}

void check_peak(int64_t threads, int64_t milliseconds) {
  using namespace gru::cpu;
  TORCH_CHECK_VALUE(threads >= 1 && threads <= kMostPeakThreads, "threads is ", threads, "; expected 1 to ",
                    kMostPeakThreads);
  TORCH_CHECK_VALUE(milliseconds >= 1 && milliseconds <= kMostPeakMilliseconds, "milliseconds is ", milliseconds,
                    "; expected 1 to ", kMostPeakMilliseconds);
}

double cpu_operations_per_second(at::ScalarType dtype, int64_t threads, int64_t milliseconds) {
  check_peak(threads, milliseconds);
  return gru::cpu::operations_per_second(gru::checked_dtype(dtype), static_cast<int>(threads),
                                         static_cast<int>(milliseconds));
}

double cpu_bytes_per_second(int64_t bytes, int64_t threads, int64_t milliseconds) {
  using namespace gru::cpu;
  TORCH_CHECK_VALUE(bytes >= kLeastPeakBytes && bytes <= kMostPeakBytes, "bytes is ", bytes, "; expected ",
                    kLeastPeakBytes, " to ", kMostPeakBytes);
  check_peak(threads, milliseconds);
  return bytes_per_second(bytes, static_cast<int>(threads), static_cast<int>(milliseconds));
}

}  // namespace

// The operators (defined in gru_ext/ops.py) are differentiated by gru_ext/functional.py around them. Called bare on
// tensors that require grad they must raise in backward, not drop the gradient.
TORCH_LIBRARY_IMPL(gru_ext, Autograd, m) {
  m.impl("forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("backward", torch::autograd::autogradNotImplementedFallback());
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  gru::cpu::set_target_from_environment();
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("forward", &gru::forward, arg("input"), arg("hx"), arg("weights"), arg("batch_sizes"), arg("batch_first"),
        arg("save"), unlocked());
  m.def("backward", &gru::backward, arg("grad_output"), arg("grad_h_n"), arg("input"), arg("hx"), arg("weights"),
        arg("saved"), arg("batch_sizes"), arg("batch_first"), arg("needs"), unlocked());
  m.def("build_info", &build_info);
  m.def("plan", &plan, arg("device_type"), arg("dtype"), arg("seq_len"), arg("batch"), arg("input_size"),
        arg("hidden_size"), arg("training"));
  m.def("cpu_targets", &gru::cpu::target_names);
  m.def("cpu_target", [] { return std::string(gru::cpu::target().name); });
  m.def("set_cpu_target", &gru::cpu::set_target, arg("name"));
  m.def("cpu_operations_per_second", &cpu_operations_per_second, arg("dtype"), arg("threads"), arg("milliseconds") = 20,
        unlocked());
  m.def("cpu_bytes_per_second", &cpu_bytes_per_second, arg("bytes"), arg("threads"), arg("milliseconds") = 20,
        unlocked());
}
