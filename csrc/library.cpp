// The operators torch.ops.gru_ext.forward, .backward and those of ensembles, registered when the library is loaded: by
// Python's import, or by torch.ops.load_library, which suffices to run a graph that holds them. gru_ext/ops.py adds
// what torch asks of Python: their fake implementations.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "ops.h"

namespace gru {

namespace {

ForwardResult forward_operator(const at::Tensor& input, const std::optional<at::Tensor>& hx, at::TensorList weights,
                               const std::optional<at::Tensor>& batch_sizes, bool batch_first, bool save,
                               bool recompute) {
  return forward(input, hx, weights.vec(), batch_sizes, batch_first, save, recompute);
}

std::vector<at::Tensor> backward_operator(const std::optional<at::Tensor>& grad_output,
                                          const std::optional<at::Tensor>& grad_h_n, const at::Tensor& input,
                                          const std::optional<at::Tensor>& hx, at::TensorList weights,
                                          const at::Tensor& saved, const std::optional<at::Tensor>& batch_sizes,
                                          bool batch_first, const c10::List<bool>& needs) {
  return backward(grad_output, grad_h_n, input, hx, weights.vec(), saved, batch_sizes, batch_first, needs.vec());
}

ForwardResult forward_members_operator(const at::Tensor& input, const at::Tensor& hx, at::TensorList weights,
                                       const std::optional<at::Tensor>& batch_sizes, bool batch_first, int64_t members,
                                       bool save, bool recompute) {
  return forward_members(input, hx, weights.vec(), batch_sizes, batch_first, members, save, recompute);
}

std::vector<at::Tensor> backward_members_operator(const std::optional<at::Tensor>& grad_output,
                                                  const std::optional<at::Tensor>& grad_h_n, const at::Tensor& input,
                                                  const at::Tensor& hx, at::TensorList weights, const at::Tensor& saved,
                                                  const std::optional<at::Tensor>& batch_sizes, bool batch_first,
                                                  int64_t members, const c10::List<bool>& needs) {
  return backward_members(grad_output, grad_h_n, input, hx, weights.vec(), saved, batch_sizes, batch_first, members,
                          needs.vec());
}

void implement(torch::Library& library) {
  library.impl("forward", forward_operator);
  library.impl("backward", backward_operator);
  library.impl("forward_members", forward_members_operator);
  library.impl("backward_members", backward_members_operator);
}

}  // namespace

TORCH_LIBRARY(gru_ext, library) {
  library.set_python_module("gru_ext.ops");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  library.def(
      "forward(Tensor input, Tensor? hx, Tensor[] weights, Tensor? batch_sizes, bool batch_first, bool save,"
      " bool recompute=False) -> (Tensor output, Tensor h_n, Tensor saved)",
      tags);
  library.def(
      "backward(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor? hx, Tensor[] weights, Tensor saved,"
      " Tensor? batch_sizes, bool batch_first, bool[] needs) -> Tensor[]",
      tags);
  library.def(
      "forward_members(Tensor input, Tensor hx, Tensor[] weights, Tensor? batch_sizes, bool batch_first,"
      " SymInt members, bool save, bool recompute=False) -> (Tensor output, Tensor h_n, Tensor saved)",
      tags);
  library.def(
      "backward_members(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor hx, Tensor[] weights,"
      " Tensor saved, Tensor? batch_sizes, bool batch_first, SymInt members, bool[] needs) -> Tensor[]",
      tags);
}

TORCH_LIBRARY_IMPL(gru_ext, CPU, library) { implement(library); }
#ifdef GRU_EXT_WITH_CUDA
TORCH_LIBRARY_IMPL(gru_ext, CUDA, library) { implement(library); }
#endif

// Forward is given a gradient by gru_ext/autograd.py. Backward must raise when it is differentiated, not drop the
// gradient.
TORCH_LIBRARY_IMPL(gru_ext, Autograd, library) {
  library.impl("backward", torch::autograd::autogradNotImplementedFallback());
  library.impl("backward_members", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace gru
