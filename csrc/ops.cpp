// Checks with named messages, allocation, and the choice of the device. Nothing below this file checks anything again.
#include "ops.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <array>

namespace gru {

namespace {

void check_tensor(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.defined(), name, " is undefined; expected a tensor");
  TORCH_CHECK(tensor.layout() == at::kStrided, name, " has layout ", tensor.layout(), "; expected a strided tensor");
}

void check_like(const at::Tensor& tensor, const std::string& name, const at::Tensor& input, at::IntArrayRef sizes) {
  check_tensor(tensor, name.c_str());
  TORCH_CHECK(tensor.device() == input.device(), name, " is on ", tensor.device(), "; expected ", input.device(),
              ", where input is");
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name, " has dtype ", tensor.scalar_type(), "; expected ",
              input.scalar_type(), " as input");
  TORCH_CHECK(tensor.sizes() == sizes, name, " has shape ", tensor.sizes(), "; expected ", sizes);
}

at::Tensor plain(const at::Tensor& tensor) { return tensor.resolve_neg().contiguous(); }

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

Layer checked_layer(const at::Tensor& input, const at::Tensor& hx, const std::vector<at::Tensor>& weights,
                    const std::optional<at::Tensor>& batch_sizes, bool batch_first) {
  Layer layer;
  check_tensor(input, "input");
  check_tensor(hx, "hx");
  layer.dtype = checked_dtype(input.scalar_type());
#ifdef GRU_EXT_WITH_CUDA
  TORCH_CHECK(input.device().is_cpu() || input.device().is_cuda(), "input is on ", input.device(),
              "; expected cpu or cuda");
#else
  TORCH_CHECK(input.device().is_cpu(), "input is on ", input.device(),
              "; expected cpu, the only device this build of gru_ext has kernels for");
#endif
  const bool packed = batch_sizes.has_value() && batch_sizes->defined();
  TORCH_CHECK(input.dim() == (packed ? 2 : 3), "input has ", input.dim(), " dimensions; expected ",
              packed ? "2 (rows, input_size) with batch_sizes" : "3 (seq_len, batch, input_size)");
  TORCH_CHECK(hx.dim() == 3, "hx has ", hx.dim(), " dimensions; expected 3 (directions, batch, hidden_size)");
  const int64_t directions = hx.size(0);
  TORCH_CHECK(directions == 1 || directions == 2, "hx.size(0) is ", directions, "; expected 1 or 2 directions");
  TORCH_CHECK(
      weights.size() == static_cast<size_t>(2 * directions) || weights.size() == static_cast<size_t>(4 * directions),
      "weights has ", weights.size(), " tensors; expected ", 2 * directions, " (no biases) or ", 4 * directions,
      " for ", directions, directions == 1 ? " direction" : " directions");

  layer.input_size = input.size(-1);
  layer.hidden_size = hx.size(2);
  TORCH_CHECK(layer.input_size > 0, "input.size(-1) is 0; expected input_size >= 1");
  TORCH_CHECK(layer.hidden_size > 0, "hx.size(2) is 0; expected hidden_size >= 1");
  layer.batch_first = batch_first && !packed;
  if (packed) {
    layer.rows = input.size(0);
    check_packed(layer, *batch_sizes);
  } else {
    layer.seq_len = input.size(batch_first ? 1 : 0);
    layer.batch = input.size(batch_first ? 0 : 1);
    layer.rows = layer.seq_len * layer.batch;
    TORCH_CHECK(layer.seq_len > 0, "Expected sequence length to be larger than 0 in RNN; input has shape ",
                input.sizes());
  }
  const int64_t gates = 3 * layer.hidden_size;
  check_like(hx, "hx", input, {directions, layer.batch, layer.hidden_size});
  const size_t each = weights.size() / directions;
  for (int64_t d = 0; d < directions; ++d) {
    const auto name = [&](size_t i) { return "weights[" + std::to_string(d * each + i) + "]"; };
    const at::Tensor* tensors = weights.data() + d * each;
    check_like(tensors[0], name(0) + " (weight_ih)", input, {gates, layer.input_size});
    check_like(tensors[1], name(1) + " (weight_hh)", input, {gates, layer.hidden_size});
    Layer::Direction direction{plain(tensors[0]), plain(tensors[1]), {}, {}};
    if (each == 4) {
      check_like(tensors[2], name(2) + " (bias_ih)", input, {gates});
      check_like(tensors[3], name(3) + " (bias_hh)", input, {gates});
      direction.bias_ih = plain(tensors[2]);
      direction.bias_hh = plain(tensors[3]);
    }
    layer.directions.push_back(std::move(direction));
  }
  layer.input = plain(input);
  layer.hx = plain(hx);
  return layer;
}

std::vector<int64_t> output_sizes(const Layer& layer) {
  std::vector<int64_t> sizes = layer.input.sizes().vec();
  sizes.back() = static_cast<int64_t>(layer.directions.size()) * layer.hidden_size;
  return sizes;
}

std::array<int64_t, 3> saved_sizes(const Layer& layer) {
  return {static_cast<int64_t>(layer.directions.size()), layer.rows, kSavedValues * layer.hidden_size};
}

// Undefined stays undefined: "zero".
at::Tensor checked_gradient(const std::optional<at::Tensor>& gradient, const char* name, const at::Tensor& input,
                            at::IntArrayRef sizes) {
  if (!gradient.has_value() || !gradient->defined()) return {};
  check_like(*gradient, name, input, sizes);
  return plain(*gradient);
}

// What an operator computes inside is neither recorded by autograd nor recast by autocast.
struct PassGuard {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

}  // namespace

DataType checked_dtype(at::ScalarType dtype) {
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
      TORCH_CHECK_TYPE(false, "dtype is ", dtype, "; expected float32, float64, bfloat16 or float16");
  }
}

const char* name(DataType dtype) {
  switch (dtype) {
    case DataType::Float32:
      return "float32";
    case DataType::Float64:
      return "float64";
    case DataType::BFloat16:
      return "bfloat16";
    case DataType::Float16:
      return "float16";
  }
  return "unknown";
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

ForwardResult forward(const at::Tensor& input, const at::Tensor& hx, const std::vector<at::Tensor>& weights,
                      const std::optional<at::Tensor>& batch_sizes, bool batch_first, bool save) {
  const PassGuard guard;
  const Layer layer = checked_layer(input, hx, weights, batch_sizes, batch_first);
  const auto options = layer.input.options();
  at::Tensor output = at::empty(output_sizes(layer), options);
  at::Tensor h_n = at::empty(layer.hx.sizes(), options);
  at::Tensor saved = save ? at::empty(saved_sizes(layer), options) : at::empty({0}, options);
  if (layer.rows > 0) {
#ifdef GRU_EXT_WITH_CUDA
    if (layer.input.device().is_cuda())
      forward_cuda(layer, output, h_n, saved);
    else
#endif
      forward_cpu(layer, output, h_n, saved);
  }
  return {output, h_n, saved};
}

std::vector<at::Tensor> backward(const std::optional<at::Tensor>& grad_output,
                                 const std::optional<at::Tensor>& grad_h_n, const at::Tensor& input,
                                 const at::Tensor& hx, const std::vector<at::Tensor>& weights, const at::Tensor& saved,
                                 const std::optional<at::Tensor>& batch_sizes, bool batch_first,
                                 const std::vector<bool>& needs) {
  const PassGuard guard;
  const Layer layer = checked_layer(input, hx, weights, batch_sizes, batch_first);
  check_like(saved, "saved", input, saved_sizes(layer));
  TORCH_CHECK(needs.size() == 2 + weights.size(), "needs has ", needs.size(), " flags; expected ", 2 + weights.size(),
              " (input, hx and each of weights)");
  const at::Tensor d_output = checked_gradient(grad_output, "grad_output", input, output_sizes(layer));
  const at::Tensor d_h_n = checked_gradient(grad_h_n, "grad_h_n", input, hx.sizes());

  const size_t directions = layer.directions.size(), each = weights.size() / directions;
  LayerNeeds wanted{needs[0], needs[1], {}};
  bool any = needs[0] || needs[1];
  for (size_t d = 0; d < directions; ++d) {
    std::array<bool, 4> flags{};
    for (size_t i = 0; i < each; ++i) any |= flags[i] = needs[2 + d * each + i];
    wanted.directions.push_back(flags);
  }
  if (!any) return {};

  LayerGradients gradients;
  const bool zero = layer.rows == 0 || (!d_output.defined() && !d_h_n.defined());
  if (!zero) {
#ifdef GRU_EXT_WITH_CUDA
    if (layer.input.device().is_cuda())
      gradients = backward_cuda(layer, d_output, d_h_n, plain(saved), wanted);
    else
#endif
      gradients = backward_cpu(layer, d_output, d_h_n, plain(saved), wanted);
  }

  std::vector<at::Tensor> result;
  const auto give = [&](bool wanted_here, const at::Tensor& gradient, const at::Tensor& like) {
    if (wanted_here) result.push_back(zero ? at::zeros_like(like, at::MemoryFormat::Contiguous) : gradient);
  };
  give(wanted.input, gradients.input, input);
  give(wanted.hx, gradients.hx, hx);
  for (size_t d = 0; d < directions; ++d) {
    const Layer::Direction none;
    const Layer::Direction& of = zero ? none : gradients.directions[d];
    const at::Tensor* tensors[4] = {&of.weight_ih, &of.weight_hh, &of.bias_ih, &of.bias_hh};
    for (size_t i = 0; i < each; ++i) give(wanted.directions[d][i], *tensors[i], weights[d * each + i]);
  }
  return result;
}

}  // namespace gru
