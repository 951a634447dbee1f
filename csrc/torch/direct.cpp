#include "direct.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/record_function.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <type_traits>

#include "checks.h"
#include "cpu/plan.h"
#include "operators.h"

namespace gru {

namespace {

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

std::atomic<SeesCalls> sees_calls{nullptr};

// The tensors that a pass keeps, in this order and then the weights.
enum Kept : size_t { kInput, kHx, kResetState, kBatchSizes, kLengths, kResets, kSaved, kWeights };
// Those with a gradient, in this order and then the weights.
enum Edges : size_t { kInputEdge, kHxEdge, kResetStateEdge, kWeightEdges };

// The same memory, also when the tensor itself is given other memory by an assignment to its .data. Changes in place
// are counted together.
at::Tensor same_memory(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  const at::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  return at::Tensor(impl.shallow_copy_and_detach(impl.version_counter(), /*allow_tensor_metadata_change=*/false));
}

std::vector<int64_t> numbers_of(const Options& options) {
  std::vector<int64_t> numbers;
  for (const OptionRange& range : kOptions) numbers.push_back(options.*range.field);
  return numbers;
}

// Every other backward pass: by the operator gru_ext::backward, which knows no cells.
std::vector<at::Tensor> by_operator(Arguments arguments, at::Tensor grad_output, const at::Tensor& grad_h_n,
                                    at::Tensor saved, const std::vector<bool>& needs) {
  if (arguments.cell) {
    arguments.input = arguments.input.unsqueeze(0);
    if (arguments.hx.defined()) arguments.hx = arguments.hx.unsqueeze(0);
    if (arguments.resets.defined()) arguments.resets = arguments.resets.unsqueeze(0);
    if (grad_output.defined()) grad_output = grad_output.unsqueeze(0);
    saved = saved.unsqueeze(1);
  }
  const auto optional = [](const at::Tensor& tensor) {
    return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
  };
  static const c10::OperatorHandle backward = c10::Dispatcher::singleton().findSchemaOrThrow("gru_ext::backward", "");
  torch::jit::Stack stack;
  torch::jit::push(stack, optional(grad_output), optional(grad_h_n), saved, list_of(needs), arguments.input,
                   optional(arguments.hx), arguments.weights, optional(arguments.batch_sizes),
                   optional(arguments.lengths), optional(arguments.resets), optional(arguments.reset_state),
                   numbers_of(arguments.options), arguments.members);
  backward.callBoxed(stack);
  std::vector<at::Tensor> gradients = stack[0].toTensorVector();
  for (size_t i = 0; arguments.cell && i < size_t{needs[kInputEdge]} + needs[kHxEdge]; ++i)
    gradients[i] = gradients[i].squeeze(0);
  return gradients;
}

// Whether this is many gradients to autograd's own vmap.
bool batched(const at::Tensor& gradient) {
  return gradient.defined() && gradient.key_set().has(c10::DispatchKey::Batched);
}

}  // namespace

// A layer in autograd's graph. Not in the namespace without a name, which would stand in grad_fn's.
struct LayerFunction : torch::autograd::Node {
  LayerFunction(const Arguments& arguments, Layer&& layer, const at::Tensor& saved)
      : layer_(std::move(layer)), roles_(arguments.weights.size() / arguments.options.directions) {
    torch::autograd::edge_list edges;
    edges.reserve(kWeightEdges + arguments.weights.size());
    const auto join = [&edges](const at::Tensor& tensor) {
      edges.push_back(tensor.defined() ? torch::autograd::impl::gradient_edge(tensor) : torch::autograd::Edge());
    };
    join(arguments.input);
    join(arguments.hx);
    join(arguments.reset_state);
    for (const at::Tensor& weight : arguments.weights) join(weight);
    set_next_edges(std::move(edges));

    kept_.reserve(kWeights + arguments.weights.size());
    // Not output, which the user may change in place. An absent hx is kept as absent.
    for (const at::Tensor* tensor : {&arguments.input, &arguments.hx, &arguments.reset_state, &arguments.batch_sizes,
                                     &arguments.lengths, &arguments.resets})
      kept_.emplace_back(same_memory(*tensor), false);
    kept_.emplace_back(saved, false);
    for (const at::Tensor& weight : arguments.weights) kept_.emplace_back(same_memory(weight), false);
    layer_.release();
  }

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const at::Tensor& grad_output = gradients[0];
    const at::Tensor grad_h_n = layer_.cell ? at::Tensor() : gradients[1];
    variable_list result(num_outputs());
    const at::Tensor saved = kept_[kSaved].unpack();
    if (!grad_output.defined() && !grad_h_n.defined()) return result;

    std::vector<bool> needs(num_outputs());
    for (size_t edge = 0; edge < needs.size(); ++edge) needs[edge] = task_should_compute_output(edge);
    // A gradient that must itself be differentiable, or comes many at a time, is that of another graph, which is to end
    // where this one does.
    const bool differentiated = at::GradMode::is_enabled() || batched(grad_output) || batched(grad_h_n);
    variable_list tensors{unpacked(kInput, differentiated || reads_input(needs)),
                          unpacked(kHx, differentiated || reads_hx(needs)),
                          unpacked(kResetState, differentiated || reads_hx(needs))};
    for (size_t i = 0; i < needs.size() - kWeightEdges; ++i)
      tensors.push_back(unpacked(kWeights + i, differentiated || reads_weight(i, needs)));
    for (size_t edge = 0; differentiated && edge < tensors.size(); ++edge) {
      if (!should_compute_output(edge)) continue;
      tensors[edge] = same_memory(tensors[edge]);
      torch::autograd::impl::set_gradient_edge(tensors[edge], next_edge(edge));
    }

    const Arguments arguments{tensors[kInputEdge],
                              tensors[kHxEdge],
                              at::TensorList(tensors).slice(kWeightEdges),
                              kept_[kBatchSizes].unpack(),
                              kept_[kLengths].unpack(),
                              kept_[kResets].unpack(),
                              tensors[kResetStateEdge],
                              layer_.options,
                              {},
                              layer_.cell};
    const auto fits = [](const at::Tensor& tensor) { return !tensor.defined() || direct(tensor); };
    const bool straight = !differentiated && direct_here() && fits(grad_output) && fits(grad_h_n) && fits(saved) &&
                          fits(arguments.batch_sizes) && fits(arguments.lengths) && fits(arguments.resets) &&
                          std::all_of(tensors.begin(), tensors.end(), fits);
    std::vector<at::Tensor> wanted = straight ? run(arguments, grad_output, grad_h_n, saved, needs)
                                              : by_operator(arguments, grad_output, grad_h_n, saved, needs);
    size_t next = 0;
    for (size_t edge = 0; edge < needs.size(); ++edge)
      if (needs[edge]) result[edge] = std::move(wanted.at(next++));
    return result;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (torch::autograd::SavedVariable& tensor : kept_) tensor.reset_data();
  }

 private:
  std::vector<at::Tensor> run(const Arguments& arguments, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                              const at::Tensor& saved, const std::vector<bool>& needs) {
    // What a user's hooks gave back may be anything; all else is what was checked before the forward pass.
    const bool hooks =
        std::any_of(kept_.begin(), kept_.end(), [](const auto& tensor) { return !tensor.get_raw_data(); });
    if (hooks) return run_backward(checked_layer(arguments), grad_output, grad_h_n, saved, needs);
    struct Release {
      Layer& layer;
      ~Release() { layer.release(); }
    } const release{layer_};
    layer_.take(arguments, Pass::Backward);
    return run_backward(layer_, grad_output, grad_h_n, saved, needs);
  }

  // Autograd refuses a backward pass that is to read what was changed in place. So it is here for what the graph of
  // nn.GRU reads and for what our backward reads; the rest is there for its shape.
  at::Tensor unpacked(size_t index, bool read) const {
    const torch::autograd::SavedVariable& tensor = kept_[index];
    if (read) return tensor.unpack();
    const std::optional<at::Tensor> unchecked = tensor.get_raw_data();
    return unchecked ? *unchecked : tensor.unpack();  // with hooks, which autograd does not check
  }

  // The graph of nn.GRU has a product for the input and, each step, one for the state. A product of which a gradient is
  // wanted reads each factor that the gradient of the other takes.
  bool reads_input(const std::vector<bool>& needs) const {
    return layer_.options.recompute ||
           (input_product(needs) && any_weight(0, [this](size_t edge) { return should_compute_output(edge); }));
  }
  bool reads_hx(const std::vector<bool>& needs) const {
    return first_state_product(needs) && any_weight(1, [this](size_t edge) { return should_compute_output(edge); });
  }
  bool reads_weight(size_t index, const std::vector<bool>& needs) const {
    if (layer_.options.recompute) return true;
    if (index % roles_ == 0) return input_product(needs) && should_compute_output(kInputEdge);
    if (index % roles_ == 1)
      return layer_.seq_len > 1 || (first_state_product(needs) && should_compute_output(kHxEdge));
    return false;
  }
  bool input_product(const std::vector<bool>& needs) const { return needs[kInputEdge] || wants(0, needs); }
  bool first_state_product(const std::vector<bool>& needs) const { return needs[kHxEdge] || wants(1, needs); }

  // A weight, or the bias that is added to its product.
  bool wants(size_t role, const std::vector<bool>& needs) const {
    const auto needed = [&needs](size_t edge) { return needs[edge]; };
    return any_weight(role, needed) || (roles_ == 4 && any_weight(role + 2, needed));
  }

  template <class Test>
  bool any_weight(size_t role, const Test& test) const {
    for (size_t edge = kWeightEdges + role; edge < num_outputs(); edge += roles_)
      if (test(edge)) return true;
    return false;
  }

  std::vector<torch::autograd::SavedVariable> kept_;
  Layer layer_;   // without its tensors
  size_t roles_;  // weights of a direction
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
  const auto asks = [](const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); };
  return arguments.input.requires_grad() || asks(arguments.hx) || asks(arguments.reset_state) ||
         std::any_of(arguments.weights.begin(), arguments.weights.end(),
                     [](const at::Tensor& weight) { return weight.requires_grad(); });
}

// How torch holds a node changed after 2.11.
using NodePointer = decltype(torch::autograd::get_current_node());

template <class Pointer>
Pointer held(LayerFunction* node) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>)
    return Pointer(node, [](auto* last) { deleteNode(last); });
  else
    return Pointer::unsafe_steal_from_new(node);
}

// Nothing where forward_direct gives nothing.
std::optional<Layer> layer_of(const Arguments& arguments) {
  const at::Tensor& input = arguments.input;
  if (!input.defined() || !data_type(input.scalar_type()) || at::autocast::is_autocast_enabled(input.device().type())) {
    return std::nullopt;
  }
  try {
    return checked_layer(arguments);
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

DirectResult run_layer(const Arguments& arguments, Layer layer) {
  const bool recorded = records(arguments);
  const auto [output, h_n, saved] = run_forward(layer, recorded);
  if (recorded) {
    const bool cell = layer.cell;
    const auto node = held<NodePointer>(new LayerFunction(arguments, std::move(layer), saved));
    torch::autograd::set_history(output, node);
    if (!cell) torch::autograd::set_history(h_n, node);
  }
  return {output, h_n};
}

// All layers of a stack, where they overlap. arguments_of: those of layer i, which is to read this input.
template <class ArgumentsOf>
std::optional<DirectResult> run_overlapping(const ArgumentsOf& arguments_of, const cpu::Plan& plan, Layer first,
                                            int64_t num_layers) {
  const auto options = first.input.options();
  const auto sizes = first.output_sizes();
  at::Tensor h_n = empty({num_layers, first.batch, first.hidden_size}, options);
  std::vector<Layer> layers{std::move(first)};
  layers.reserve(num_layers);
  for (int64_t i = 1; i < num_layers; ++i) {
    std::optional<Layer> layer = layer_of(arguments_of(i, empty(sizes, options)));
    if (!layer) return std::nullopt;
    layers.push_back(std::move(*layer));
  }
  at::Tensor output = empty(sizes, options);
  forward_stack_cpu(layers, plan, output, h_n);
  return DirectResult{output, h_n};
}

}  // namespace

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
  std::optional<Layer> layer = layer_of(arguments);
  if (!layer) return std::nullopt;
  return run_layer(arguments, std::move(*layer));
}

std::optional<DirectResult> forward_direct(const Arguments& arguments, int64_t num_layers) {
  if (num_layers == 1) return forward_direct(arguments);
  const at::Tensor &hx = arguments.hx, &reset_state = arguments.reset_state;
  const int64_t directions = arguments.options.directions, count = static_cast<int64_t>(arguments.weights.size());
  if (num_layers > count || count % num_layers != 0) return std::nullopt;
  if (hx.defined() && (hx.dim() != 3 || hx.size(0) != num_layers * directions)) return std::nullopt;
  if (reset_state.defined() && (reset_state.dim() != 4 || reset_state.size(0) != num_layers * directions))
    return std::nullopt;
  const auto arguments_of = [&](int64_t index, const at::Tensor& input) {
    Arguments own = arguments;
    own.input = input;
    if (hx.defined()) own.hx = hx.narrow(0, index * directions, directions);
    if (reset_state.defined()) own.reset_state = reset_state.narrow(0, index * directions, directions);
    own.weights = arguments.weights.slice(index * (count / num_layers), count / num_layers);
    if (index > 0) own.options.input_size = directions * own.options.hidden_size;
    return own;
  };
  std::vector<at::Tensor> finals;
  at::Tensor output = arguments.input;
  for (int64_t i = 0; i < num_layers; ++i) {
    const Arguments own = arguments_of(i, output);
    std::optional<Layer> layer = layer_of(own);
    if (!layer) return std::nullopt;
    if (i == 0 && output.is_cpu() && !records(arguments)) {
      const cpu::Plan plan = stack_plan_cpu(*layer, num_layers);
      if (plan.layers_at_once > 1) return run_overlapping(arguments_of, plan, std::move(*layer), num_layers);
    }
    DirectResult result = run_layer(own, std::move(*layer));
    output = std::move(result.output);
    finals.push_back(std::move(result.h_n));
  }
  return DirectResult{output, at::cat(finals)};
}

}  // namespace gru
