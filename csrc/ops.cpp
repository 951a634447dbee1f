// Checks with named messages, allocation, and the choice of the device. Nothing below this file checks anything again.
#include "ops.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <array>

#include "ops_checks.h"

namespace gru {

namespace {

// Fills in seq_len, batch, offsets from the batch sizes of a PackedSequence.
void check_packed(Layer& layer, const at::Tensor& batch_sizes) {
  check_tensor(batch_sizes, "batch_sizes");
  TORCH_CHECK(batch_sizes.device().is_cpu(), "batch_sizes is on ", batch_sizes.device(), "; expected the CPU");
  TORCH_CHECK(batch_sizes.scalar_type() == at::kLong, "batch_sizes has dtype ", batch_sizes.scalar_type(),
              "; expected int64");
  TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.numel() > 0, "batch_sizes has shape ", batch_sizes.sizes(),
              "; expected one dimension with at least one step");
  layer.batch_sizes = batch_sizes.contiguous();
  layer.seq_len = batch_sizes.numel();
  const int64_t* sizes = layer.batch_sizes.const_data_ptr<int64_t>();
  layer.batch = sizes[0];
  layer.offsets.resize(layer.seq_len);
  int64_t sum = 0, previous = sizes[0];
  for (int64_t t = 0; t < layer.seq_len; ++t) {
    TORCH_CHECK(sizes[t] > 0 && sizes[t] <= previous, "batch_sizes[", t, "] is ", sizes[t],
                "; expected positive sizes that never increase (before it: ", previous, ")");
    layer.offsets[t] = sum;
    previous = sizes[t];
    // Checked as it grows, so that no sum of absurd sizes can overflow.
    TORCH_CHECK(sizes[t] <= layer.rows - sum, "batch_sizes sum to more than the ", layer.rows, " rows of input");
    sum += sizes[t];
  }
  TORCH_CHECK(sum == layer.rows, "batch_sizes sum to ", sum, "; expected the ", layer.rows, " rows of input");
}

c10::SmallVector<int64_t, 4> output_sizes(const Layer& layer) {
  c10::SmallVector<int64_t, 3> sizes(layer.input.sizes());
  sizes.back() = static_cast<int64_t>(layer.directions.size()) * layer.hidden_size;
  return layer.sizes_of_all(sizes);
}

c10::SmallVector<int64_t, 4> saved_sizes(const Layer& layer, Keep keep) {
  int64_t row = layer.hidden_size;
  if (keep == Keep::All) {
#ifdef GRU_EXT_WITH_CUDA
    if (layer.input.device().is_cuda())
      row = saved_row_cuda(layer);
    else
#endif
      row = saved_row_cpu(layer);
  }
  return layer.sizes_of_all({static_cast<int64_t>(layer.directions.size()), layer.rows, row});
}

// Of h_n, and of hx, in one member.
c10::SmallVector<int64_t, 3> state_sizes(const Layer& layer) {
  if (layer.cell) return {layer.batch, layer.hidden_size};
  return {static_cast<int64_t>(layer.directions.size()), layer.batch, layer.hidden_size};
}

// Undefined stays undefined: "zero".
at::Tensor checked_gradient(const at::Tensor& gradient, const char* name, const at::Tensor& input,
                            at::IntArrayRef sizes) {
  if (!gradient.defined()) return {};
  check_like(gradient, name, input, sizes);
  return plain(gradient);
}

// On the CPU past the dispatcher, whose part of it takes longer than the allocation.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (options.device().is_cpu()) return at::detail::empty_cpu(sizes, options);
  return at::empty(sizes, options);
}

at::Tensor empty_saved(const Layer& layer, Keep keep) {
  const auto options = layer.input.options();
  if (keep == Keep::Nothing) return empty({0}, options);
  const auto sizes = saved_sizes(layer, keep);
  return layer.input.is_cpu() ? empty_saved_cpu(sizes, options) : at::empty(sizes, options);
}

// 0 for a list that is no layer's: the checks say what is wrong with it.
int64_t directions_of(at::ArrayRef<at::Tensor> weights) {
  if (weights.size() == 4) return weights[2].defined() && weights[2].dim() == 2 ? 2 : 1;  // [3H, I], or a bias [3H]
  return weights.size() == 2 ? 1 : weights.size() == 8 ? 2 : 0;
}

Arguments operator_arguments(const at::Tensor& input, const std::optional<at::Tensor>& hx,
                             at::ArrayRef<at::Tensor> weights, const std::optional<at::Tensor>& batch_sizes,
                             bool batch_first, bool recompute) {
  Arguments arguments{input,    hx.value_or(at::Tensor()), weights, batch_sizes.value_or(at::Tensor()), batch_first,
                      recompute};
  if (!arguments.hx.defined()) {
    arguments.directions = directions_of(weights);
    TORCH_CHECK(arguments.directions != 0, "weights has ", weights.size(),
                " tensors; expected 2 or 4 for one direction, 4 or 8 for two");
  }
  return arguments;
}

}  // namespace

std::optional<DataType> data_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return DataType::Float32;
    case at::kDouble:
      return DataType::Float64;
    case at::kBFloat16:
      return DataType::BFloat16;
    case at::kHalf:
      return DataType::Float16;
    default:
      return std::nullopt;
  }
}

DataType checked_dtype(at::ScalarType dtype) {
  const std::optional<DataType> known = data_type(dtype);
  TORCH_CHECK_TYPE(known.has_value(), "dtype is ", dtype, "; expected float32, float64, bfloat16 or float16");
  return *known;
}

std::string Layer::range_name(const char* pass, const char* path) const {
  constexpr const char* kNames[] = {"fp32", "fp64", "bf16", "fp16"};  // in the order of DataType
  std::string text = std::string("gru_") + pass + "_" + path + " " + kNames[static_cast<int>(dtype)];
  const auto add = [&text](const char* what, int64_t size) { text += what + std::to_string(size); };
  add(" T=", seq_len);
  add(" B=", batch);
  add(" I=", input_size);
  add(" H=", hidden_size);
  add(" D=", static_cast<int64_t>(directions.size()));
  if (batch_sizes.defined()) add(" rows=", rows);
  if (stacked) add(" M=", members);
  return text;
}

Rows Layer::row_map() const {
  Rows map;
  map.seq_len = seq_len;
  map.batch = batch;
  map.time_stride = batch_first ? 1 : batch;
  map.batch_stride = batch_first ? seq_len : 1;
  if (batch_sizes.defined()) {
    map.offsets = offsets.data();
    map.batch_sizes = batch_sizes.const_data_ptr<int64_t>();
  }
  return map;
}

ForwardResult forward(const at::Tensor& input, const std::optional<at::Tensor>& hx,
                      const std::vector<at::Tensor>& weights, const std::optional<at::Tensor>& batch_sizes,
                      bool batch_first, bool save, bool recompute) {
  const Arguments arguments = operator_arguments(input, hx, weights, batch_sizes, batch_first, recompute);
  return run_forward(checked_layer(arguments), save ? kept_by(arguments) : Keep::Nothing);
}

std::vector<at::Tensor> backward(const std::optional<at::Tensor>& grad_output,
                                 const std::optional<at::Tensor>& grad_h_n, const at::Tensor& input,
                                 const std::optional<at::Tensor>& hx, const std::vector<at::Tensor>& weights,
                                 const at::Tensor& saved, const std::optional<at::Tensor>& batch_sizes,
                                 bool batch_first, const std::vector<bool>& needs) {
  const Arguments arguments = operator_arguments(input, hx, weights, batch_sizes, batch_first, false);
  TORCH_CHECK(arguments.hx.defined() || needs.size() < 2 || !needs[1],
              "needs[1] asks for the gradient of hx, which is absent");
  return run_backward(arguments, grad_output.value_or(at::Tensor()), grad_h_n.value_or(at::Tensor()), saved, needs);
}

Layer checked_layer(const Arguments& arguments) {
  const at::Tensor &input = arguments.input, &hx = arguments.hx, &batch_sizes = arguments.batch_sizes;
  const at::ArrayRef<at::Tensor> weights = arguments.weights;
  const bool batch_first = arguments.batch_first, cell = arguments.cell, packed = batch_sizes.defined();
  const PassGuard guard;
  Layer layer;
  check_tensor(input, "input");
  layer.dtype = checked_dtype(input.scalar_type());
#ifdef GRU_EXT_WITH_CUDA
  TORCH_CHECK(input.device().is_cpu() || input.device().is_cuda(), "input is on ", input.device(),
              "; expected cpu or cuda");
#else
  TORCH_CHECK(input.device().is_cpu(), "input is on ", input.device(),
              "; expected cpu, the only device this build of gru_ext has kernels for");
#endif
  layer.cell = cell;
  layer.batch_first = batch_first && !packed && !cell;
  TORCH_CHECK(input.dim() == (packed || cell ? 2 : 3), "input has ", input.dim(), " dimensions; expected ",
              cell     ? "2 (batch, input_size)"
              : packed ? "2 (rows, input_size) with batch_sizes"
                       : "3 (seq_len, batch, input_size)");
  int64_t directions = cell ? 1 : arguments.directions;
  if (hx.defined()) {
    check_tensor(hx, "hx");
    TORCH_CHECK(hx.dim() == (cell ? 2 : 3), "hx has ", hx.dim(), " dimensions; expected ",
                cell ? "2 (batch, hidden_size)" : "3 (directions, batch, hidden_size)");
    if (directions == 0) directions = hx.size(0);
    layer.hidden_size = hx.size(-1);
    TORCH_CHECK(layer.hidden_size > 0, "hx.size(", hx.dim() - 1, ") is 0; expected hidden_size >= 1");
  }
  TORCH_CHECK(directions == 1 || directions == 2, "hx.size(0) is ", directions, "; expected 1 or 2 directions");
  TORCH_CHECK(
      weights.size() == static_cast<size_t>(2 * directions) || weights.size() == static_cast<size_t>(4 * directions),
      "weights has ", weights.size(), " tensors; expected ", 2 * directions, " (no biases) or ", 4 * directions,
      " for ", directions, directions == 1 ? " direction" : " directions");
  if (!hx.defined()) {
    check_tensor(weights[1], WeightName{1, "weight_hh"});
    TORCH_CHECK(weights[1].dim() == 2 && weights[1].size(1) > 0, WeightName{1, "weight_hh"}, " has shape ",
                weights[1].sizes(), "; expected (3 * hidden_size, hidden_size) with hidden_size >= 1");
    layer.hidden_size = weights[1].size(1);
  }

  layer.input_size = input.size(-1);
  TORCH_CHECK(layer.input_size > 0, "input.size(-1) is 0; expected input_size >= 1");
  if (packed) {
    layer.rows = input.size(0);
    check_packed(layer, batch_sizes);
  } else {
    layer.seq_len = cell ? 1 : input.size(batch_first ? 1 : 0);
    layer.batch = input.size(batch_first || cell ? 0 : 1);
    layer.rows = layer.seq_len * layer.batch;
    TORCH_CHECK(layer.seq_len > 0, "Expected sequence length to be larger than 0 in RNN; input has shape ",
                input.sizes());
  }
  const int64_t gates = 3 * layer.hidden_size;
  const size_t each = weights.size() / directions;
  for (int64_t d = 0; d < directions; ++d) {
    const size_t first = d * each;
    const auto checked = [&](size_t i, const char* role, at::IntArrayRef sizes) {
      check_like(weights[first + i], WeightName{first + i, role}, input, sizes);
      return plain(weights[first + i]);
    };
    Layer::Direction& direction = layer.directions.emplace_back();
    direction.weight_ih = checked(0, "weight_ih", {gates, layer.input_size});
    direction.weight_hh = checked(1, "weight_hh", {gates, layer.hidden_size});
    if (each == 2) continue;
    direction.bias_ih = checked(2, "bias_ih", {gates});
    direction.bias_hh = checked(3, "bias_hh", {gates});
  }
  layer.input = plain(input);
  const auto states = state_sizes(layer);
  if (hx.defined()) {
    check_like(hx, "hx", input, states);
    layer.hx = plain(hx);
  } else {
    layer.hx = empty(states, input.options()).zero_();
  }
  return layer;
}

Keep kept_by(const Arguments& arguments) { return arguments.recompute ? Keep::States : Keep::All; }

ForwardResult run_forward(const Layer& layer, Keep keep) {
  const PassGuard guard;
  const auto options = layer.input.options();
  at::Tensor output = empty(output_sizes(layer), options);
  // A cell's only state is its output: one tensor, to which the kernel writes the same values twice.
  at::Tensor h_n = layer.cell ? output : empty(layer.sizes_of_all(state_sizes(layer)), options);
  at::Tensor saved = empty_saved(layer, keep);
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

std::vector<at::Tensor> run_backward(const Arguments& arguments, const at::Tensor& grad_output,
                                     const at::Tensor& grad_h_n, const at::Tensor& saved,
                                     const std::vector<bool>& needs) {
  return run_checked_backward(checked_layer(arguments), grad_output, grad_h_n, saved, needs);
}

std::vector<at::Tensor> run_checked_backward(const Layer& layer, const at::Tensor& grad_output,
                                             const at::Tensor& grad_h_n, const at::Tensor& saved,
                                             const std::vector<bool>& needs) {
  const PassGuard guard;
  const size_t directions = layer.directions.size();
  check_tensor(saved, "saved");
  const bool states = saved.dim() >= 3 && saved.size(-1) == layer.hidden_size;
  // Biases have gradients without being here, except where the gates are computed again from them.
  const bool biases = layer.directions[0].bias_ih.defined() || (!states && needs.size() == 2 + 4 * directions);
  const size_t each = biases ? 4 : 2;
  const auto sizes = saved_sizes(layer, states ? Keep::States : Keep::All);
  const bool shared = layer.stacked && saved.dim() == 3;
  check_like(saved, "saved", layer.input, shared ? at::IntArrayRef(sizes).slice(1) : at::IntArrayRef(sizes));
  TORCH_CHECK(needs.size() == 2 + directions * each, "needs has ", needs.size(), " flags; expected ",
              2 + directions * each, " (input, hx and each of weights)");
  const at::Tensor d_output = checked_gradient(grad_output, "grad_output", layer.input, output_sizes(layer));
  const at::Tensor d_h_n = checked_gradient(grad_h_n, "grad_h_n", layer.input, layer.sizes_of_all(state_sizes(layer)));

  LayerNeeds wanted{needs[0], needs[1], {}};
  bool any = needs[0] || needs[1];
  for (size_t d = 0; d < directions; ++d) {
    std::array<bool, 4> flags{};
    for (size_t i = 0; i < each; ++i) any |= flags[i] = needs[2 + d * each + i];
    wanted.directions.push_back(flags);
  }
  if (!any) return {};

  LayerGradients gradients;
  const bool zero = layer.rows == 0 || layer.members == 0 || (!d_output.defined() && !d_h_n.defined());
  if (!zero) {
#ifdef GRU_EXT_WITH_CUDA
    if (layer.input.device().is_cuda())
      gradients = backward_cuda(layer, d_output, d_h_n, plain(saved), wanted);
    else
#endif
      gradients = backward_cpu(layer, d_output, d_h_n, plain(saved), wanted);
  }

  std::vector<at::Tensor> result;
  result.reserve(needs.size());
  const auto give = [&](bool wanted_here, const at::Tensor& gradient, at::IntArrayRef sizes) {
    if (wanted_here) result.push_back(zero ? at::zeros(layer.sizes_of_all(sizes), layer.input.options()) : gradient);
  };
  give(wanted.input, gradients.input, layer.input.sizes());
  give(wanted.hx, gradients.hx, layer.hx.sizes());
  const at::IntArrayRef bias_sizes = layer.directions[0].weight_hh.sizes().slice(0, 1);
  for (size_t d = 0; d < directions; ++d) {
    const Layer::Direction none;
    const Layer::Direction& of = zero ? none : gradients.directions[d];
    const at::Tensor* tensors[4] = {&of.weight_ih, &of.weight_hh, &of.bias_ih, &of.bias_hh};
    const Layer::Direction& weights = layer.directions[d];
    const at::IntArrayRef sizes[4] = {weights.weight_ih.sizes(), weights.weight_hh.sizes(), bias_sizes, bias_sizes};
    for (size_t i = 0; i < each; ++i) give(wanted.directions[d][i], *tensors[i], sizes[i]);
  }
  return result;
}

}  // namespace gru
