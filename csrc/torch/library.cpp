// The operators torch.ops.gru_ext.forward and .backward, registered when the library is loaded: by Python's import, or
// by torch.ops.load_library, which suffices to run a graph that holds them. gru_ext adds what torch asks of Python:
// their fake implementations (ops.py), gradients (autograd.py) and rules for vmap (transforms.py).
#include <torch/library.h>

#include <string>

#include "operators.h"

namespace {

// The schema of an operator that takes `before`, a layer's arguments and `after`.
c10::FunctionSchema schema(const std::string& before, const std::string& after) {
  std::string layer;
  for (const auto& [type, name] : gru::kLayerArguments)
    layer += std::string(layer.empty() ? "" : ", ") + type + " " + name;
  return torch::schema((before + layer + after).c_str());
}

}  // namespace

TORCH_LIBRARY(gru_ext, library) {
  library.set_python_module("gru_ext.ops");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  library.def(schema("forward(", ", bool save) -> (Tensor output, Tensor h_n, Tensor saved)"), tags);
  library.def(schema("backward(Tensor? grad_output, Tensor? grad_h_n, Tensor saved, bool[] needs, ", ") -> Tensor[]"),
              tags);
}

TORCH_LIBRARY_IMPL(gru_ext, CPU, library) {
  library.impl("forward", gru::forward);
  library.impl("backward", gru::backward);
}

#ifdef GRU_EXT_WITH_CUDA
TORCH_LIBRARY_IMPL(gru_ext, CUDA, library) {
  library.impl("forward", gru::forward);
  library.impl("backward", gru::backward);
}
#endif
