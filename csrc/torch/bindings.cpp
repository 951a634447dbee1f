// The Python module gru_ext._C.
#include "bindings.h"

#include <ATen/Parallel.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/version.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "autocast.h"
#include "cpu/peaks.h"
#include "cpu/phases.h"
#include "cpu/plan.h"
#include "direct.h"
#ifdef GRU_EXT_WITH_CUDA
#include "bindings_cuda.h"
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
#ifdef GRU_EXT_SPIN_LIMIT
  info["spin_limit"] = static_cast<int64_t>(GRU_EXT_SPIN_LIMIT);
#else
  info["spin_limit"] = 0;
#endif
  return info;
}

py::dict cpu_plan(at::ScalarType dtype, int64_t seq_len, int64_t rows, int64_t input_size, int64_t hidden_size,
                  int directions, std::optional<int64_t> members, int64_t layers, std::optional<int64_t> longest_piece,
                  const std::string& weights) {
  const gru::DataType type = gru::checked_dtype(dtype);
  constexpr const char* kFormats[] = {"", "float32", "bfloat16", "int8"};  // in the order of WeightFormat
  const auto* const known = std::find(std::begin(kFormats), std::end(kFormats), weights);
  TORCH_CHECK_VALUE(known != std::end(kFormats) && (weights.empty() || !members), "weights is '", weights,
                    "'; expected float32, bfloat16 or int8, or none with members");
  const auto format = static_cast<gru::WeightFormat>(known - std::begin(kFormats));
  TORCH_CHECK_VALUE(
      seq_len >= 1 && rows >= 0 && input_size >= 1 && hidden_size >= 1 && directions >= 1 && directions <= 2,
      "expected seq_len, input_size and hidden_size of at least 1, rows of at least 0 and directions 1 or "
      "2, got ",
      seq_len, ", ", input_size, ", ", hidden_size, ", ", rows, ", ", directions);
  TORCH_CHECK_VALUE(!members || *members >= 1, "expected members of at least 1, got ", members.value_or(1));
  TORCH_CHECK_VALUE(layers >= 1 && (layers == 1 || !members), "expected layers of at least 1, and 1 with members, got ",
                    layers);
  TORCH_CHECK_VALUE(!longest_piece || (*longest_piece >= 1 && *longest_piece <= seq_len),
                    "expected longest_piece from 1 to seq_len, ", seq_len, ", got ", longest_piece.value_or(1));
  const int64_t batch = gru::cpu::mean_batch(rows, seq_len);
  const int threads = at::get_num_threads();
  const gru::cpu::Plan plan =
      members
          ? gru::cpu::make_members_plan(type, *members, seq_len, batch, input_size, hidden_size, directions, threads)
          : gru::cpu::make_stack_plan(type, layers, seq_len, batch, input_size, hidden_size, directions, threads,
                                      longest_piece.value_or(seq_len), format);
  py::dict entries;
  entries["simd"] = plan.target->name;
  entries["threads"] =
      plan.directions_at_once ? 2 : std::max({plan.threads, plan.members_at_once, plan.layers_at_once});
  entries["split"] = plan.directions_at_once                ? "directions"
                     : plan.members_at_once > 1             ? "members"
                     : plan.layers_at_once > 1              ? "layers"
                     : plan.threads == 1                    ? "none"
                     : plan.split == gru::cpu::Split::Batch ? "batch"
                                                            : "hidden units";
  entries["few_rows"] = plan.few_rows;
  entries["narrow_weights"] = plan.narrow_weights;
  return entries;
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

py::dict phase_times() {
  using namespace gru::cpu;
  const auto times = gru::cpu::phase_times();
  py::dict entries;
  for (size_t pass = 0; pass < kPasses; ++pass) {
    py::list threads;
    for (const auto& of_thread : times[pass].phases) {
      py::dict phases;
      for (size_t phase = 0; phase < kPhases; ++phase) phases[name(static_cast<Phase>(phase))] = of_thread[phase];
      threads.append(std::move(phases));
    }
    py::dict of_pass;
    of_pass["calls"] = times[pass].calls;
    of_pass["seconds"] = times[pass].seconds;
    of_pass["thread_seconds"] = times[pass].thread_seconds;
    of_pass["threads"] = std::move(threads);
    entries[pass == static_cast<size_t>(Pass::Forward) ? "forward" : "backward"] = std::move(of_pass);
  }
  return entries;
}

// The functions below are called by CPython itself: pybind11's reading of arguments takes as long as everything else
// that they do before the kernel.

// A plain tensor, or None as an undefined one. False for anything else: a subclass, another device, no tensor at all.
bool read(PyObject* object, at::Tensor& tensor) {
  if (object == Py_None) return true;
  if (!THPVariable_CheckExact(object)) return false;
  tensor = THPVariable_Unpack(object);
  return gru::direct(tensor);
}

PyObject* layer_direct(PyObject* /*module*/, PyObject* const* values, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 8 || count == 9, "layer_direct takes 8 or 9 arguments, got ", count);
  if (!gru::direct_here()) Py_RETURN_NONE;
  gru::Arguments arguments;
  if (!read(values[0], arguments.input) || !read(values[1], arguments.hx) || !read(values[3], arguments.batch_sizes) ||
      !read(values[4], arguments.lengths) || !read(values[5], arguments.resets) ||
      !read(values[6], arguments.reset_state))
    Py_RETURN_NONE;
  PyObject* const listed = values[2];
  if (!PyList_Check(listed) && !PyTuple_Check(listed)) Py_RETURN_NONE;
  c10::SmallVector<at::Tensor, 8> weights(PySequence_Fast_GET_SIZE(listed));
  for (size_t i = 0; i < weights.size(); ++i)
    if (!read(PySequence_Fast_GET_ITEM(listed, i), weights[i])) Py_RETURN_NONE;
  arguments.weights = weights;
  TORCH_CHECK_TYPE(PyTuple_Check(values[7]), "options must be a tuple of ", std::size(gru::kOptions), " numbers");
  c10::SmallVector<int64_t, 8> options(PyTuple_GET_SIZE(values[7]));
  for (size_t i = 0; i < options.size(); ++i) {
    options[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(values[7], i));
    if (options[i] == -1 && PyErr_Occurred()) throw python_error();
  }
  arguments.options = gru::checked_options(options);
  const int64_t num_layers = count == 9 ? PyLong_AsLongLong(values[8]) : 1;
  if (num_layers < 1) {
    if (PyErr_Occurred()) throw python_error();
    TORCH_CHECK_VALUE(false, "num_layers is ", num_layers, "; expected at least 1");
  }
  std::optional<gru::DirectResult> result;
  {
    const py::gil_scoped_release unlocked;
    result = gru::forward_direct(arguments, num_layers);
  }
  if (!result) Py_RETURN_NONE;
  return py::make_tuple(std::move(result->output), std::move(result->h_n)).release().ptr();
  END_HANDLE_TH_ERRORS
}

PyObject* cell_direct(PyObject* /*module*/, PyObject* const* values, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 7 || count == 11, "cell_direct takes 7 or 11 arguments, got ", count);
  if (!gru::direct_here()) Py_RETURN_NONE;
  gru::Arguments arguments;
  arguments.cell = true;
  if (!read(values[0], arguments.input) || !read(values[1], arguments.hx) || !read(values[6], arguments.resets))
    Py_RETURN_NONE;
  // On CUDA the operators: its kernels take hx with a dimension of directions.
  if (!arguments.input.defined() || !arguments.input.is_cpu()) Py_RETURN_NONE;
  if ((values[4] == Py_None) != (values[5] == Py_None)) Py_RETURN_NONE;
  c10::SmallVector<at::Tensor, 6> weights;
  for (const Py_ssize_t i : {2, 3, 4, 5, 7, 8}) {
    if (i >= count || values[i] == Py_None) continue;
    if (!read(values[i], weights.emplace_back())) Py_RETURN_NONE;
  }
  arguments.weights = weights;
  if (count == 11) {
    c10::SmallVector<int64_t, 8> options{1, 0, 0, gru::Options::kAny};
    for (const Py_ssize_t i : {9, 10}) {
      options.push_back(PyLong_AsLongLong(values[i]));
      if (options.back() == -1 && PyErr_Occurred()) throw python_error();
    }
    arguments.options = gru::checked_options(options);
  }
  std::optional<gru::DirectResult> result;
  {
    const py::gil_scoped_release unlocked;
    result = gru::forward_direct(arguments);
  }
  if (!result) Py_RETURN_NONE;
  return THPVariable_Wrap(std::move(result->output));
  END_HANDLE_TH_ERRORS
}

PyMethodDef direct_functions[] = {
    {"layer_direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(layer_direct)), METH_FASTCALL,
     "layer_direct(input, hx, weights, batch_sizes, lengths, resets, reset_state, options, num_layers=1)"},
    {"cell_direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(cell_direct)), METH_FASTCALL,
     "cell_direct(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, reset, scale_ih=None, scale_hh=None, "
     "hidden_size=0, input_size=0)"},
    {nullptr, nullptr, 0, nullptr}};

std::vector<std::optional<at::Tensor>> kept_casts(const std::vector<at::Tensor>& weights) {
  std::vector<std::optional<at::Tensor>> kept;
  for (const at::Tensor& weight : weights) {
    const at::Tensor cast = gru::kept_cast(weight);
    kept.push_back(cast.defined() ? std::optional(cast) : std::nullopt);
  }
  return kept;
}

PyTypeObject* unseeing_mode = nullptr;

void set_unseeing_mode(const py::type& mode) {
  unseeing_mode = reinterpret_cast<PyTypeObject*>(py::object(mode).release().ptr());
  // Asked in backward passes too, which do not hold the lock of the interpreter: it only reads a pointer.
  gru::set_sees_calls(
      [](const c10::SafePyObject& active) { return Py_TYPE(active.ptr(getPyInterpreter())) != unseeing_mode; });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  gru::cpu::set_target_from_environment();
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  gru::define_operators(m);
  if (PyModule_AddFunctions(m.ptr(), direct_functions) < 0) throw py::error_already_set();
  m.def("set_unseeing_mode", &set_unseeing_mode, arg("mode"));
  m.def("kept_casts", &kept_casts, arg("weights"), unlocked());
  m.def("build_info", &build_info);
#ifdef GRU_EXT_WITH_CUDA
  gru::define_cuda(m);
#endif
  m.def("cpu_plan", &cpu_plan, arg("dtype"), arg("seq_len"), arg("rows"), arg("input_size"), arg("hidden_size"),
        arg("directions"), arg("members") = py::none(), arg("layers") = 1, arg("longest_piece") = py::none(),
        arg("weights") = "");
  m.def("cpu_worth_cutting", &gru::cpu::worth_cutting, arg("seq_len"), arg("batch"), arg("hidden_size"), arg("pieces"),
        arg("longest"));
  m.def("cpu_targets", &gru::cpu::target_names);
  m.def("cpu_lanes", [] { return gru::cpu::target().lanes; });
  m.def("cpu_target", [] { return std::string(gru::cpu::target().name); });
  m.def("set_cpu_target", &gru::cpu::set_target, arg("name"));
  m.def("cpu_operations_per_second", &cpu_operations_per_second, arg("dtype"), arg("threads"), arg("milliseconds") = 20,
        unlocked());
  m.def("cpu_bytes_per_second", &cpu_bytes_per_second, arg("bytes"), arg("threads"), arg("milliseconds") = 20,
        unlocked());
  m.def("set_phase_clock", &gru::cpu::set_phase_clock, arg("on"));
  m.def("phase_times", &phase_times);
}
