// The operators torch.ops.gru_ext.forward and .backward, which are also _C.forward and _C.backward: one function each.
#pragma once

#include <ATen/core/List.h>

#include "layer.h"

namespace gru {

// What a layer is called with, in order, as both operators take it; gru::Arguments says what it is.
struct OperatorArgument {
  const char *type, *name;  // the type in torch's schemas
};
constexpr std::array<OperatorArgument, 9> kLayerArguments{{
    {"Tensor", "input"},
    {"Tensor?", "hx"},
    {"Tensor[]", "weights"},
    {"Tensor?", "batch_sizes"},
    {"Tensor?", "lengths"},
    {"Tensor?", "resets"},
    {"Tensor?", "reset_state"},
    {"int[]", "options"},
    {"SymInt?", "members"},
}};

// Results as run_forward and run_backward.
ForwardResult forward(const at::Tensor& input, const std::optional<at::Tensor>& hx,
                      const std::vector<at::Tensor>& weights, const std::optional<at::Tensor>& batch_sizes,
                      const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& resets,
                      const std::optional<at::Tensor>& reset_state, const std::vector<int64_t>& options,
                      std::optional<int64_t> members, bool save);
std::vector<at::Tensor> backward(const std::optional<at::Tensor>& grad_output,
                                 const std::optional<at::Tensor>& grad_h_n, const at::Tensor& saved,
                                 const c10::List<bool>& needs, const at::Tensor& input,
                                 const std::optional<at::Tensor>& hx, const std::vector<at::Tensor>& weights,
                                 const std::optional<at::Tensor>& batch_sizes, const std::optional<at::Tensor>& lengths,
                                 const std::optional<at::Tensor>& resets, const std::optional<at::Tensor>& reset_state,
                                 const std::vector<int64_t>& options, std::optional<int64_t> members);

inline c10::List<bool> list_of(const std::vector<bool>& flags) {
  c10::List<bool> list;
  for (const bool flag : flags) list.push_back(flag);
  return list;
}

}  // namespace gru
