// The passes of a layer: memory for the results, and the choice of the device.
#include "operators.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "checks.h"

namespace gru {

namespace {

int64_t saved_row(const Layer& layer) {
  if (layer.options.recompute) return layer.hidden_size;
#ifdef GRU_EXT_WITH_CUDA
  if (layer.input.device().is_cuda()) return saved_row_cuda(layer);
#endif
  return saved_row_cpu(layer);
}

at::Tensor empty_saved(const Layer& layer) {
  const auto sizes = layer.sizes_of_all(layer.saved_sizes(saved_row(layer)));
  const auto options = layer.input.options();
  return layer.input.is_cpu() ? empty_saved_cpu(sizes, options) : at::empty(sizes, options);
}

// Undefined stays undefined: "zero".
at::Tensor checked_gradient(const at::Tensor& gradient, const char* name, const Layer& layer, at::IntArrayRef sizes) {
  if (!gradient.defined()) return {};
  check_like(gradient, name, layer.input, layer.sizes_of_all(sizes));
  return plain(gradient);
}

// Calls visit(index of the flag, value of `values`, sizes of the tensor) for input, hx, reset_state and each weight of
// so many roles.
template <class Values, class Visit>
void for_each(const Layer& layer, size_t roles, Values& values, const Visit& visit) {
  size_t index = 0;
  visit(index++, values.input, layer.input.sizes());
  visit(index++, values.hx, layer.state_sizes());
  visit(index++, values.reset_state, layer.reset_sizes());
  for (size_t d = 0; d < layer.weights.size(); ++d) {
    for (size_t role = 0; role < roles; ++role) {
      const at::IntArrayRef sizes = layer.weights[d][role < kBiasIh ? role : kWeightHh].sizes();
      visit(index++, values.weights[d][role], role < kBiasIh ? sizes : sizes.slice(0, 1));
    }
  }
}

Arguments arguments_of(const at::Tensor& input, const std::optional<at::Tensor>& hx, at::TensorList weights,
                       const std::optional<at::Tensor>& batch_sizes, const std::optional<at::Tensor>& lengths,
                       const std::optional<at::Tensor>& resets, const std::optional<at::Tensor>& reset_state,
                       at::IntArrayRef options, std::optional<int64_t> members) {
  const auto tensor = [](const std::optional<at::Tensor>& argument) { return argument.value_or(at::Tensor()); };
  return {input,
          tensor(hx),
          weights,
          tensor(batch_sizes),
          tensor(lengths),
          tensor(resets),
          tensor(reset_state),
          checked_options(options),
          members};
}

}  // namespace

ForwardResult run_forward(const Layer& layer, bool save) {
  const PassGuard guard;
  TORCH_CHECK(!save || layer.format == WeightFormat::Plain, "packed weights have no backward pass");
  const auto options = layer.input.options();
  at::Tensor output = empty(layer.sizes_of_all(layer.output_sizes()), options);
  // A cell's only state is its output: one tensor, to which the kernel writes the same values twice.
  at::Tensor h_n = layer.cell ? output : empty(layer.sizes_of_all(layer.state_sizes()), options);
  at::Tensor saved;
  if (save) saved = empty_saved(layer);
  if (layer.rows > 0 && layer.members > 0) {
#ifdef GRU_EXT_WITH_CUDA
    if (layer.input.device().is_cuda())
      forward_cuda(layer, output, h_n, saved);
    else
#endif
      forward_cpu(layer, output, h_n, saved);
  }
  return {output, h_n, saved};
}

std::vector<at::Tensor> run_backward(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                                     const at::Tensor& saved, const std::vector<bool>& needs) {
  const PassGuard guard;
  TORCH_CHECK(layer.format == WeightFormat::Plain, "packed weights have no backward pass");
  check_tensor(saved, "saved");
  const auto saved_sizes = layer.saved_sizes(saved_row(layer));
  const bool shared = layer.stacked && saved.dim() == static_cast<int64_t>(saved_sizes.size());
  check_like(saved, "saved", layer.input, shared ? at::IntArrayRef(saved_sizes) : layer.sizes_of_all(saved_sizes));
  const size_t directions = layer.weights.size();
  const bool biases =
      layer.weights[0][kBiasIh].defined() || (!layer.options.recompute && needs.size() == 3 + kRoles * directions);
  const size_t roles = biases ? kRoles : kBiasIh;
  TORCH_CHECK(needs.size() == 3 + directions * roles, "needs has ", needs.size(), " flags; expected ",
              3 + directions * roles, " (input, hx, reset_state and each of weights)");
  const at::Tensor d_output = checked_gradient(grad_output, "grad_output", layer, layer.output_sizes());
  const at::Tensor d_h_n = checked_gradient(grad_h_n, "grad_h_n", layer, layer.state_sizes());
  if (std::find(needs.begin(), needs.end(), true) == needs.end()) return {};

  Gradients gradients;
  gradients.weights.resize(directions);
  const bool zero = layer.rows == 0 || layer.members == 0 || (!d_output.defined() && !d_h_n.defined());
  if (!zero) {
    Needs wanted;
    wanted.weights.resize(directions);
    for_each(layer, roles, wanted, [&](size_t index, bool& flag, at::IntArrayRef) { flag = needs[index]; });
#ifdef GRU_EXT_WITH_CUDA
    if (layer.input.device().is_cuda())
      gradients = backward_cuda(layer, d_output, d_h_n, plain(saved), wanted);
    else
#endif
      gradients = backward_cpu(layer, d_output, d_h_n, plain(saved), wanted);
  }
  std::vector<at::Tensor> result;
  result.reserve(needs.size());
  for_each(layer, roles, gradients, [&](size_t index, at::Tensor& gradient, at::IntArrayRef sizes) {
    if (!needs[index]) return;
    result.push_back(zero ? zeros(layer.sizes_of_all(sizes), layer.input.options()) : std::move(gradient));
  });
  return result;
}

ForwardResult forward(const at::Tensor& input, const std::optional<at::Tensor>& hx,
                      const std::vector<at::Tensor>& weights, const std::optional<at::Tensor>& batch_sizes,
                      const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& resets,
                      const std::optional<at::Tensor>& reset_state, const std::vector<int64_t>& options,
                      std::optional<int64_t> members, bool save) {
  ForwardResult result = run_forward(
      checked_layer(arguments_of(input, hx, weights, batch_sizes, lengths, resets, reset_state, options, members)),
      save);
  if (!save) std::get<2>(result) = empty({0}, input.options());
  return result;
}

std::vector<at::Tensor> backward(const std::optional<at::Tensor>& grad_output,
                                 const std::optional<at::Tensor>& grad_h_n, const at::Tensor& saved,
                                 const c10::List<bool>& needs, const at::Tensor& input,
                                 const std::optional<at::Tensor>& hx, const std::vector<at::Tensor>& weights,
                                 const std::optional<at::Tensor>& batch_sizes, const std::optional<at::Tensor>& lengths,
                                 const std::optional<at::Tensor>& resets, const std::optional<at::Tensor>& reset_state,
                                 const std::vector<int64_t>& options, std::optional<int64_t> members) {
  const Arguments arguments =
      arguments_of(input, hx, weights, batch_sizes, lengths, resets, reset_state, options, members);
  const auto check_present = [&needs](size_t index, const at::Tensor& tensor, const char* name) {
    TORCH_CHECK(tensor.defined() || needs.size() <= index || !needs[index], "needs[", index,
                "] asks for the gradient of ", name, ", which is absent");
  };
  check_present(1, arguments.hx, "hx");
  check_present(2, arguments.reset_state, "reset_state");
  return run_backward(checked_layer(arguments), grad_output.value_or(at::Tensor()), grad_h_n.value_or(at::Tensor()),
                      saved, needs.vec());
}

}  // namespace gru
