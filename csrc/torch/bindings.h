// The operators as functions of a Python module: gru_ext._C's, and the emulated GPU's of tests/emulator.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <utility>

#include "operators.h"

namespace gru {

// The same function for a caller whose flags are a list of Python's; torch takes them as a c10::List alone.
template <class... Rest>
auto with_flags(std::vector<at::Tensor> (*backward)(const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                                                    const at::Tensor&, const c10::List<bool>&, Rest...)) {
  return [backward](const std::optional<at::Tensor>& grad_output, const std::optional<at::Tensor>& grad_h_n,
                    const at::Tensor& saved, const std::vector<bool>& needs,
                    Rest... rest) { return backward(grad_output, grad_h_n, saved, list_of(needs), rest...); };
}

inline void define_operators(pybind11::module_& m) {
  using pybind11::arg;
  using unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  const auto define = [&m]<size_t... i>(std::index_sequence<i...>) {
    m.def("forward", &forward, arg(kLayerArguments[i].name)..., arg("save"), unlocked());
    m.def("backward", with_flags(&backward), arg("grad_output"), arg("grad_h_n"), arg("saved"), arg("needs"),
          arg(kLayerArguments[i].name)..., unlocked());
  };
  define(std::make_index_sequence<kLayerArguments.size()>());
}

}  // namespace gru
