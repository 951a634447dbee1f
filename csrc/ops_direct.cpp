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

constexpr const char* kPass = "pass";

std::atomic<GeneralBackward> general_backward{nullptr};

// The tensors that a pass keeps, in this order and then the weights.
enum Kept : size_t { kInput, kHx, kBatchSizes, kSaved, kWeights };

// What a pass keeps beside its tensors.
struct Pass : torch::CustomClassHolder {
  bool batch_first = false;
  // Of the tensors that only second derivatives read: where their changes are counted, and the count so far.
  c10::SmallVector<std::pair<c10::VariableVersion, uint32_t>, 4> unread;

  void check_unread() const {
    for (const auto& [counter, version] : unread)
      TORCH_CHECK(counter.current_version() == version,
                  "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                  "backward pass that is itself to be differentiated reads all that the layer was called with");
  }
};

// The same memory, also when the tensor itself is given other memory by an assignment to its .data. Changes in place
// are counted by `counter`.
at::Tensor alias(const at::Tensor& tensor, const c10::VariableVersion& counter) {
  constexpr bool kMetadataMayChange = false;
  return at::Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(counter, kMetadataMayChange));
}

// After a change in place autograd refuses a backward pass that was to read the old values. So it is here for what
// nn.GRU's own graph reads and for what our backward reads, but not for the rest.
variable_list kept_tensors(const Arguments& arguments, const Layer& layer, const at::Tensor& saved, Pass& pass) {
  const at::TensorList weights = arguments.weights;
  const size_t each = layer.directions[0].bias_ih.defined() ? 4 : 2;  // weight_ih, weight_hh, bias_ih, bias_hh
  const auto wanted = [&](size_t role) {
    for (size_t i = role; i < weights.size(); i += each)
      if (weights[i].requires_grad()) return true;
    return false;
  };
  const auto keep = [&pass](const at::Tensor& tensor, bool read) {
    if (!tensor.defined()) return at::Tensor();
    const c10::VariableVersion& counter = tensor.unsafeGetTensorImpl()->version_counter();
    if (read || !counter.enabled()) return alias(tensor, counter);
    pass.unread.emplace_back(counter, counter.current_version());
    return alias(tensor, c10::VariableVersion(0));
  };
  const bool all = arguments.recompute;
  const bool weight_ih = all || arguments.input.requires_grad();
  const bool weight_hh = all || layer.seq_len > 1 || (arguments.hx.defined() && arguments.hx.requires_grad());
  // Not output, which the user may change in place. An absent hx is kept as absent.
  variable_list kept{keep(arguments.input, all || wanted(0)), keep(arguments.hx, wanted(1)),
                     keep(arguments.batch_sizes, true), saved};
  for (size_t i = 0; i < weights.size(); ++i)
    kept.push_back(keep(weights[i], i % each == 0 ? weight_ih : i % each == 1 ? weight_hh : all));
  return kept;
}

// Whether this is many gradients to autograd's own vmap.
bool batched(const at::Tensor& gradient) {
  return gradient.defined() && gradient.key_set().has(c10::DispatchKey::Batched);
}

}  // namespace

// A layer in autograd's graph. Not in the namespace without a name, which would stand in grad_fn's.
struct LayerFunction : torch::autograd::Function<LayerFunction> {
  // The tensors before `arguments` are those that autograd joins to the graph.
  static variable_list forward(AutogradContext* context, const at::Tensor& /*input*/,
                               const std::optional<at::Tensor>& /*hx*/, at::TensorList /*weights*/,
                               const Arguments& arguments, const Layer& layer) {
    const auto [output, h_n, saved] = run_forward(layer, kept_by(arguments));
    context->set_materialize_grads(false);
    auto pass = c10::make_intrusive<Pass>();
    pass->batch_first = layer.batch_first;
    context->save_for_backward(kept_tensors(arguments, layer, saved, *pass));
    context->saved_data.emplace(kPass, at::IValue::make_capsule(std::move(pass)));
    if (layer.cell) return {output};
    return {output, h_n};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    variable_list kept = context->get_saved_variables();
    const at::Tensor &grad_output = gradients[0], &saved = kept[kSaved];
    const bool cell = gradients.size() == 1;
    const at::Tensor grad_h_n = cell ? at::Tensor() : gradients[1];
    const auto weights = at::ArrayRef<at::Tensor>(kept).slice(kWeights);
    variable_list result(2 + weights.size() + 2);  // one for each argument of forward
    if (!grad_output.defined() && !grad_h_n.defined()) return result;

    const auto pass = c10::static_intrusive_pointer_cast<Pass>(context->saved_data.at(kPass).toCapsule());
    std::vector<bool> needs(2 + weights.size());
    c10::SmallVector<size_t, 10> edges(needs.size());
    size_t edge = 0;
    for (size_t i = 0; i < needs.size(); ++i) {
      if (i == kHx && !kept[kHx].defined()) continue;  // an absent hx has no edge
      edges[i] = edge++;
      needs[i] = context->needs_input_grad(edges[i]);
    }
    // Of a gradient that must itself be differentiable, or comes many at a time, the general pass makes a graph of its
    // own, which is to end where this one does.
    const bool differentiated = at::GradMode::is_enabled() || batched(grad_output) || batched(grad_h_n);
    if (differentiated) {
      pass->check_unread();
      const auto node = torch::autograd::get_current_node();
      for (size_t i = 0; i < needs.size(); ++i) {
        at::Tensor& tensor = kept[i < 2 ? i : kWeights + i - 2];
        if (!tensor.defined()) continue;
        const auto& origin = node->next_edge(edges[i]);
        tensor = alias(tensor, tensor.unsafeGetTensorImpl()->version_counter());
        if (origin.is_valid()) torch::autograd::impl::set_gradient_edge(tensor, origin);
      }
    }

    const Arguments arguments{kept[kInput],      kept[kHx], weights, kept[kBatchSizes],
                              pass->batch_first, false,     cell,    saved.dim() == 3 ? saved.size(0) : 0};
    const auto fits = [](const at::Tensor& tensor) { return !tensor.defined() || direct(tensor); };
    const bool straight = !differentiated && direct_here() && fits(grad_output) && fits(grad_h_n) &&
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

bool records(const Arguments& arguments) {
  if (!at::GradMode::is_enabled()) return false;
  return arguments.input.requires_grad() || (arguments.hx.defined() && arguments.hx.requires_grad()) ||
         std::any_of(arguments.weights.begin(), arguments.weights.end(),
                     [](const at::Tensor& weight) { return weight.requires_grad(); });
}

}  // namespace

void set_general_backward(GeneralBackward backward) { general_backward = backward; }

bool direct_here() {
  // A TorchDispatchMode, FakeTensorMode, functorch, tracing, functionalization: each includes a key of its own.
  return c10::default_included_set.isSupersetOf(c10::impl::tls_local_dispatch_key_set().included_) &&
         !at::hasCallbacks() && !at::impl::torch_function_mode_enabled();
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
