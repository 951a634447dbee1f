#include "ops_direct.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>

namespace gru {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// All that a plain dense tensor may carry: any other key asks for something that only the dispatcher does.
constexpr c10::DispatchKeySet kPlainKeys =
    c10::autocast_dispatch_keyset |
    c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::AutogradFunctionality,
                         c10::DispatchKey::ADInplaceOrView});

#ifdef GRU_EXT_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

constexpr const char* kBatchFirst = "batch_first";

std::atomic<GeneralBackward> general_backward{nullptr};
std::atomic<SeesCalls> sees_calls{nullptr};

// The tensors that a pass keeps, in this order and then the weights.
enum Kept : size_t { kInput, kHx, kBatchSizes, kSaved, kWeights };

}  // namespace

// A layer in autograd's graph. Not in the namespace without a name, which would stand in grad_fn's.
struct LayerFunction : torch::autograd::Function<LayerFunction> {
  // The tensors before `arguments` are those that autograd joins to the graph.
  static variable_list forward(AutogradContext* context, const at::Tensor& input,
                               const std::optional<at::Tensor>& /*hx*/, at::TensorList weights,
                               const Arguments& arguments, const Layer& layer) {
    const auto [output, h_n, saved] = run_forward(layer, kept_by(arguments));
    context->set_materialize_grads(false);
    if (layer.batch_first) context->saved_data[kBatchFirst] = true;
    // Not output, which the user may change in place. An absent hx is saved as absent.
    variable_list kept{input, arguments.hx, arguments.batch_sizes, saved};
    kept.insert(kept.end(), weights.begin(), weights.end());
    context->save_for_backward(std::move(kept));
    if (layer.cell) return {output};
    return {output, h_n};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list kept = context->get_saved_variables();
    const at::Tensor &grad_output = gradients[0], &saved = kept[kSaved];
    const bool cell = gradients.size() == 1;
    const at::Tensor grad_h_n = cell ? at::Tensor() : gradients[1];
    const auto weights = at::ArrayRef<at::Tensor>(kept).slice(kWeights);
    variable_list result(2 + weights.size() + 2);  // one for each argument of forward
    if (!grad_output.defined() && !grad_h_n.defined()) return result;

    const Arguments arguments{kept[kInput],
                              kept[kHx],
                              weights,
                              kept[kBatchSizes],
                              context->saved_data.count(kBatchFirst) != 0,
                              false,
                              cell,
                              saved.dim() == 3 ? saved.size(0) : 0};
    std::vector<bool> needs(2 + weights.size());
    size_t edge = 0;
    for (size_t i = 0; i < needs.size(); ++i)
      if (i != kHx || arguments.hx.defined()) needs[i] = context->needs_input_grad(edge++);  // an absent hx has no edge

    const auto fits = [](const at::Tensor& tensor) { return !tensor.defined() || direct(tensor); };
    // With grad mode on the gradients must themselves be differentiable.
    const bool straight = !at::GradMode::is_enabled() && direct_here() && fits(grad_output) && fits(grad_h_n) &&
                          std::all_of(kept.begin(), kept.end(), fits);
    const GeneralBackward general = general_backward.load();
    TORCH_CHECK(straight || general, "set_general_backward has not been called");
    std::vector<at::Tensor> wanted =
        (straight ? run_backward : general)(arguments, grad_output, grad_h_n, saved, needs);
    size_t next = 0;
    for (size_t i = 0; i < needs.size(); ++i)
      if (needs[i]) result[i] = std::move(wanted.at(next++));
    return result;
  }
};

namespace {

bool a_mode_sees_calls() {
  using Modes = at::impl::PythonTorchFunctionTLS;
  const SeesCalls sees = sees_calls.load();
  for (int64_t i = 0; i < Modes::stack_len(); ++i)
    if (!sees || sees(*Modes::get_stack_at(i))) return true;
  return false;
}

bool records(const Arguments& arguments) {
  if (!at::GradMode::is_enabled()) return false;
  return arguments.input.requires_grad() || (arguments.hx.defined() && arguments.hx.requires_grad()) ||
         std::any_of(arguments.weights.begin(), arguments.weights.end(),
                     [](const at::Tensor& weight) { return weight.requires_grad(); });
}

}  // namespace

void set_general_backward(GeneralBackward backward) { general_backward = backward; }

void set_sees_calls(SeesCalls sees) { sees_calls = sees; }

bool direct_here() {
  // A TorchDispatchMode, FakeTensorMode, functorch, tracing, functionalization: each includes a key of its own.
  return c10::default_included_set.isSupersetOf(c10::impl::tls_local_dispatch_key_set().included_) &&
         !at::hasCallbacks() && !(at::impl::torch_function_mode_enabled() && a_mode_sees_calls());
}

bool direct(const at::Tensor& tensor) {
  return kPlainKeys.isSupersetOf(tensor.key_set()) && (tensor.is_cpu() || (kWithCuda && tensor.is_cuda()));
}

std::optional<DirectResult> forward_direct(const Arguments& arguments) {
  const at::Tensor& input = arguments.input;
  if (!input.defined() || !data_type(input.scalar_type()) || at::autocast::is_autocast_enabled(input.device().type())) {
    return std::nullopt;
  }
  std::optional<Layer> layer;
  try {
    layer = checked_layer(arguments);
  } catch (const c10::Error&) {
    return std::nullopt;
  }
  if (!records(arguments)) {
    const auto [output, h_n, saved] = run_forward(*layer, Keep::Nothing);
    return DirectResult{output, h_n};
  }
  const std::optional<at::Tensor> hx = arguments.hx.defined() ? std::optional(arguments.hx) : std::nullopt;
  const variable_list result = LayerFunction::apply(input, hx, arguments.weights, arguments, *layer);
  return DirectResult{result[0], layer->cell ? result[0] : result[1]};
}

}  // namespace gru
