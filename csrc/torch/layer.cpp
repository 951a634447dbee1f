// Checks with named messages. Nothing behind this file checks anything again.
#include "layer.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "checks.h"
#include "cpu/packed.h"

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
  layer.batch_sizes = batch_sizes.clone(at::MemoryFormat::Contiguous);  // which nobody changes before backward
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

// sizes: [B], or of an ensemble [members, B]. On the CPU a copy, which nobody changes before backward.
at::Tensor checked_lengths(const at::Tensor& lengths, const at::Tensor& input, at::IntArrayRef sizes, int64_t seq_len) {
  check_tensor(lengths, "lengths");
  TORCH_CHECK(at::isIntegralType(lengths.scalar_type(), /*includeBool=*/false), "lengths has dtype ",
              lengths.scalar_type(), "; expected an integer dtype");
  check_beside(lengths, "lengths", input, sizes);
  if (!lengths.is_cpu()) return plain(lengths);
  at::Tensor copy = empty(sizes, at::TensorOptions(at::kLong));
  if (lengths.scalar_type() == at::kLong && lengths.is_contiguous())
    std::copy_n(lengths.const_data_ptr<int64_t>(), copy.numel(), copy.mutable_data_ptr<int64_t>());
  else
    copy.copy_(lengths);
  const int64_t* const values = copy.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < copy.numel(); ++i)
    TORCH_CHECK(0 <= values[i] && values[i] <= seq_len, "lengths[", i, "] is ", lengths.reshape(-1)[i].item(),
                "; expected 0 to ", seq_len, ", the steps of input");
  return copy;
}

void check_resets(const Layer& layer, const at::Tensor& resets, const at::Tensor& reset_state,
                  const at::Tensor& input) {
  TORCH_CHECK(resets.defined() || !reset_state.defined(),
              "reset_state comes without resets, which say where it is to be");
  if (!resets.defined()) return;
  check_tensor(resets, "resets");
  TORCH_CHECK(resets.scalar_type() == at::kBool, "resets has dtype ", resets.scalar_type(), "; expected bool");
  check_beside(resets, "resets", input, input.sizes().slice(0, input.dim() - 1));
  if (reset_state.defined()) check_like(reset_state, "reset_state", input, layer.reset_sizes());
}

void check_input(const at::Tensor& input, bool packed, bool cell) {
#ifdef GRU_EXT_WITH_CUDA
  TORCH_CHECK(input.device().is_cpu() || input.device().is_cuda(), "input is on ", input.device(),
              "; expected cpu or cuda");
#else
  TORCH_CHECK(input.device().is_cpu(), "input is on ", input.device(),
              "; expected cpu, the only device this build of gru_ext has kernels for");
#endif
  TORCH_CHECK(input.dim() == (packed || cell ? 2 : 3), "input has ", input.dim(), " dimensions; expected ",
              cell     ? "2 (batch, input_size)"
              : packed ? "2 (rows, input_size) with batch_sizes"
                       : "3 (seq_len, batch, input_size)");
  TORCH_CHECK(input.size(-1) > 0, "input.size(-1) is 0; expected input_size >= 1");
}

// H, from what there is; the weights' and hx's other sizes are checked against it.
int64_t checked_hidden_size(const at::Tensor& hx, at::TensorList weights, bool cell) {
  if (hx.defined()) {
    check_tensor(hx, "hx");
    TORCH_CHECK(hx.dim() == (cell ? 2 : 3), "hx has ", hx.dim(), " dimensions; expected ",
                cell ? "2 (batch, hidden_size)" : "3 (directions, batch, hidden_size)");
    TORCH_CHECK(hx.size(-1) > 0, "hx.size(", hx.dim() - 1, ") is 0; expected hidden_size >= 1");
    return hx.size(-1);
  }
  const WeightName name{1, kWeightHh};
  check_tensor(weights[1], name);
  TORCH_CHECK(weights[1].dim() == 2 && weights[1].size(1) > 0, name, " has shape ", weights[1].sizes(),
              "; expected (3 * hidden_size, hidden_size) with hidden_size >= 1");
  return weights[1].size(1);
}

// Those of a direction that are no scales, and how many scales follow them.
std::pair<size_t, size_t> checked_roles(at::TensorList weights, int64_t directions, WeightFormat format) {
  const int64_t count = static_cast<int64_t>(weights.size()), scales = format == WeightFormat::Int8 ? 2 : 0;
  TORCH_CHECK(count == (2 + scales) * directions || count == (4 + scales) * directions, "weights has ", count,
              " tensors; expected ", (2 + scales) * directions, " (no biases) or ", (4 + scales) * directions, " for ",
              directions, directions == 1 ? " direction" : " directions");
  return {weights.size() / directions - scales, scales};
}

WeightFormat checked_format(const Arguments& arguments, const at::Tensor& input) {
  if (arguments.options.hidden_size == 0 || arguments.weights.empty()) return WeightFormat::Plain;
  TORCH_CHECK(!arguments.members, "packed weights are those of a single layer, not of an ensemble");
  TORCH_CHECK(input.device().is_cpu() && input.scalar_type() == at::kFloat, "input is ", input.scalar_type(), " on ",
              input.device(), "; expected float32 on the CPU, the only one that packed weights are for");
  check_tensor(arguments.weights[0], WeightName{0, kWeightIh});
  const at::ScalarType dtype = arguments.weights[0].scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kChar, "weights[0] (weight_ih) has dtype ",
              dtype, "; expected float32, bfloat16 or int8, packed");
  return dtype == at::kFloat      ? WeightFormat::Float32
         : dtype == at::kBFloat16 ? WeightFormat::BFloat16
                                  : WeightFormat::Int8;
}

// A weight [groups, words, 3, lanes, depth], or the scales of one [groups, 2, 3, lanes], as csrc/cpu/packed.h has them.
void check_packed_weight(const at::Tensor& weight, const WeightName& name, WeightFormat format, int64_t columns,
                         int64_t hidden_size, bool scales) {
  check_tensor(weight, name);
  const at::ScalarType dtype = scales || format == WeightFormat::Float32 ? at::kFloat
                               : format == WeightFormat::BFloat16        ? at::kBFloat16
                                                                         : at::kChar;
  TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == dtype, name, " is ", weight.scalar_type(), " on ",
              weight.device(), "; expected ", dtype, " on the CPU");
  TORCH_CHECK(format != WeightFormat::Int8 || columns <= cpu::kMostByteColumns, name, " is for ", columns,
              " columns; expected at most ", cpu::kMostByteColumns, " of bytes");
  const int64_t lanes = weight.dim() >= 4 ? weight.size(3) : 0, depth = cpu::word_depth(format);
  TORCH_CHECK(lanes == 4 || lanes == 8 || lanes == 16, name, " has shape ", weight.sizes(),
              "; expected packed weights of 4, 8 or 16 lanes");
  c10::SmallVector<int64_t, 5> sizes{cpu::groups_of(hidden_size, lanes), scales ? 2 : (columns + depth - 1) / depth, 3,
                                     lanes};
  if (!scales) sizes.push_back(depth);
  TORCH_CHECK(weight.sizes() == sizes, name, " has shape ", weight.sizes(), "; expected ", at::IntArrayRef(sizes));
}

// The first member's part of a tensor that has `dims` dimensions in each, and how far the next one's lies. A tensor
// with another number of dimensions is shared by all, or wrong: the checks of a single layer will say so.
template <class Name>
at::Tensor first_of(const at::Tensor& tensor, const Name& name, int64_t dims, int64_t members, int64_t& stride) {
  if (!tensor.defined()) return tensor;
  check_tensor(tensor, name);
  if (tensor.dim() != dims + 1) return tensor;
  TORCH_CHECK(tensor.size(0) == members, name, " has shape ", tensor.sizes(),
              "; expected its first dimension to be the ", members, " members");
  if (members == 0) return at::empty(tensor.sizes().slice(1), tensor.options());  // for its sizes; nothing reads it
  const at::Tensor all = plain(tensor);
  stride = all.numel() / members;
  return all.select(0, 0);
}

Layer checked_ensemble(const Arguments& arguments) {
  const int64_t members = *arguments.members;
  TORCH_CHECK(members >= 0, "members is ", members, "; expected at least 0");
  const at::TensorList all = arguments.weights;
  const size_t roles = checked_roles(all, arguments.options.directions, WeightFormat::Plain).first;
  Arguments first = arguments;
  first.members.reset();
  ByTensor<int64_t> strides;
  strides.weights.resize(arguments.options.directions);
  int64_t resets_stride = 0;
  check_tensor(arguments.input, "input");
  first.input = first_of(arguments.input, "input", arguments.batch_sizes.defined() ? 2 : 3, members, strides.input);
  first.hx = first_of(arguments.hx, "hx", 3, members, strides.hx);
  first.lengths = at::Tensor();
  first.resets = first_of(arguments.resets, "resets", 2, members, resets_stride);
  first.reset_state = first_of(arguments.reset_state, "reset_state", 4, members, strides.reset_state);
  c10::SmallVector<at::Tensor, 8> weights;
  for (size_t i = 0; i < all.size(); ++i) {
    const size_t role = i % roles;
    weights.push_back(
        first_of(all[i], WeightName{i, role}, role < kBiasIh ? 2 : 1, members, strides.weights[i / roles][role]));
  }
  first.weights = weights;
  Layer layer = checked_layer(first);
  layer.stacked = true;
  layer.members = members;
  layer.strides = strides;
  layer.resets_stride = resets_stride;
  if (arguments.lengths.defined()) {
    const bool apart = arguments.lengths.dim() == 2;
    const std::array<int64_t, 2> sizes{members, layer.batch};
    layer.lengths =
        checked_lengths(arguments.lengths, layer.input, at::IntArrayRef(sizes).slice(apart ? 0 : 1), layer.seq_len);
    layer.lengths_stride = apart ? layer.batch : 0;
  }
  return layer;
}

at::Tensor further(const at::Tensor& first, int64_t elements) {
  if (!first.defined() || elements == 0) return first;
  return first.as_strided(first.sizes(), first.strides(), first.storage_offset() + elements);
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

Options checked_options(at::IntArrayRef numbers) {
  constexpr size_t kCount = std::size(kOptions);
  TORCH_CHECK(numbers.size() == kCount, "options has ", numbers.size(), " numbers; expected ", kCount);
  Options options;
  for (size_t i = 0; i < kCount; ++i) {
    const OptionRange& range = kOptions[i];
    TORCH_CHECK(range.least <= numbers[i] && numbers[i] <= range.most, range.name, " is ", numbers[i], "; expected ",
                range.least, " to ", range.most);
    options.*range.field = numbers[i];
  }
  TORCH_CHECK((options.hidden_size > 0) == (options.input_size > 0), "hidden_size is ", options.hidden_size,
              " and input_size ", options.input_size, "; expected both, of packed weights, or neither");
  return options;
}

Layer checked_layer(const Arguments& arguments) {
  const PassGuard guard;
  TORCH_CHECK(!arguments.batch_sizes.defined() || !(arguments.lengths.defined() || arguments.resets.defined()),
              "lengths and resets are those of padded input; got batch_sizes too, which are those of packed input");
  check_tensor(arguments.input, "input");
  const WeightFormat format = checked_format(arguments, arguments.input);
  if (arguments.members) return checked_ensemble(arguments);
  const at::Tensor &input = arguments.input, &hx = arguments.hx;
  const at::TensorList weights = arguments.weights;
  const bool packed = arguments.batch_sizes.defined(), cell = arguments.cell;
  Layer layer;
  layer.format = format;
  layer.dtype = checked_dtype(input.scalar_type());
  check_input(input, packed, cell);
  layer.options = arguments.options;
  if (packed || cell) layer.options.batch_first = 0;
  layer.cell = cell;
  const auto [roles, scales] = checked_roles(weights, layer.directions(), format);
  const bool plain_weights = format == WeightFormat::Plain;
  layer.hidden_size = plain_weights ? checked_hidden_size(hx, weights, cell) : layer.options.hidden_size;
  layer.input_size = input.size(-1);
  TORCH_CHECK(plain_weights || layer.input_size == layer.options.input_size, "input.size(-1) is ", layer.input_size,
              "; expected ", layer.options.input_size, ", for which the weights are packed");
  if (packed) {
    layer.rows = input.size(0);
    check_packed(layer, arguments.batch_sizes);
  } else {
    layer.seq_len = cell ? 1 : input.size(layer.options.batch_first ? 1 : 0);
    layer.batch = input.size(layer.options.batch_first || cell ? 0 : 1);
    layer.rows = layer.seq_len * layer.batch;
    TORCH_CHECK(layer.seq_len > 0, "Expected sequence length to be larger than 0 in RNN; input has shape ",
                input.sizes());
  }
  const int64_t gates = 3 * layer.hidden_size;
  for (size_t i = 0; i < weights.size(); ++i) {
    const size_t role = i % (roles + scales);
    const std::array<int64_t, 2> sizes{gates, role % 2 == kWeightIh ? layer.input_size : layer.hidden_size};
    const bool is_scale = role >= roles;
    if (!plain_weights && (role < kBiasIh || is_scale)) {
      const WeightName name{i, is_scale ? role - roles + kRoles : role};
      check_packed_weight(weights[i], name, format, sizes[1], layer.hidden_size, is_scale);
      continue;
    }
    check_like(weights[i], WeightName{i, role}, input, at::IntArrayRef(sizes).slice(0, role < kBiasIh ? 2 : 1));
  }
  if (hx.defined()) check_like(hx, "hx", input, layer.state_sizes());
  if (arguments.lengths.defined())
    layer.lengths = checked_lengths(arguments.lengths, input, {layer.batch}, layer.seq_len);
  layer.input = input;  // whose sizes are asked for
  check_resets(layer, arguments.resets, arguments.reset_state, input);
  layer.take(arguments, Pass::Forward);
  return layer;
}

void Layer::release() {
  input.reset();
  hx.reset();
  resets.reset();
  reset_state.reset();
  weights.clear();
  scales.clear();
}

void Layer::take(const Arguments& arguments, Pass pass) {
  input = plain(arguments.input);
  if (arguments.hx.defined()) hx = plain(arguments.hx);
  if (!arguments.hx.defined() && pass == Pass::Forward) hx = zeros(state_sizes(), input.options());
  if (arguments.resets.defined()) resets = plain(arguments.resets);
  if (arguments.reset_state.defined()) reset_state = plain_rows(arguments.reset_state);
  weights.clear();
  scales.clear();
  const size_t each = arguments.weights.size() / options.directions;
  const size_t roles = each - (format == WeightFormat::Int8 ? 2 : 0);
  for (size_t i = 0; i < arguments.weights.size(); ++i) {
    const size_t role = i % each;
    if (role == 0) weights.emplace_back();
    if (role == roles) scales.emplace_back();
    at::Tensor& own = role < roles ? weights.back()[role] : scales.back()[role - roles];
    own = plain(arguments.weights[i]);
  }
}

Layer Layer::member(int64_t index) const {
  Layer member = *this;
  member.stacked = false;
  member.members = 1;
  member.input = further(input, index * strides.input);
  member.hx = further(hx, index * strides.hx);
  member.lengths = lengths_stride ? lengths.select(0, index) : lengths;
  member.resets = further(resets, index * resets_stride);
  member.reset_state = further(reset_state, index * strides.reset_state);
  for (size_t d = 0; d < weights.size(); ++d)
    for (size_t role = 0; role < kRoles; ++role)
      member.weights[d][role] = further(weights[d][role], index * strides.weights[d][role]);
  return member;
}

void Layer::fill(LayerParams& params, int64_t member, int64_t direction) const {
  params.dtype = dtype;
  params.rows.seq_len = seq_len;
  params.rows.batch = batch;
  params.rows.time_stride = options.batch_first ? 1 : batch;
  params.rows.batch_stride = options.batch_first ? seq_len : 1;
  if (batch_sizes.defined()) {
    params.rows.offsets = offsets.data();
    params.rows.batch_sizes = batch_sizes.const_data_ptr<int64_t>();
  }
  params.input_size = input_size;
  params.hidden_size = hidden_size;
  params.reverse = direction == 1;
  params.options = options;
  const Weights& own = weights[direction];
  const ByRole<int64_t> stride = stacked ? strides.weights[direction] : ByRole<int64_t>{};
  params.input = const_pointer_at(input, member * strides.input);
  params.weight_ih = const_pointer_at(own[kWeightIh], member * stride[kWeightIh]);
  params.weight_hh = const_pointer_at(own[kWeightHh], member * stride[kWeightHh]);
  params.bias_ih = const_pointer_or_null(own[kBiasIh], member * stride[kBiasIh]);
  params.bias_hh = const_pointer_or_null(own[kBiasHh], member * stride[kBiasHh]);
  params.weights = format;
  if (!resets.defined()) return;
  params.resets = resets.const_data_ptr<bool>() + member * resets_stride;
  if (!reset_state.defined()) return;
  const int64_t of_direction = direction * reset_state.stride(0);
  params.reset_state = const_pointer_at(reset_state, member * strides.reset_state + of_direction);
  params.reset_time_stride = reset_state.stride(options.batch_first ? 2 : 1);
  params.reset_batch_stride = reset_state.stride(options.batch_first ? 1 : 2);
}

c10::SmallVector<int64_t, 6> Layer::sizes_of_all(at::IntArrayRef sizes) const {
  c10::SmallVector<int64_t, 6> all;
  if (stacked) all.push_back(members);
  all.append(sizes.begin(), sizes.end());
  return all;
}

c10::SmallVector<int64_t, 3> Layer::state_sizes() const {
  if (cell) return {batch, hidden_size};
  return {directions(), batch, hidden_size};
}

c10::SmallVector<int64_t, 3> Layer::output_sizes() const {
  c10::SmallVector<int64_t, 3> sizes(input.sizes());
  sizes.back() = directions() * hidden_size;
  return sizes;
}

c10::SmallVector<int64_t, 4> Layer::reset_sizes() const {
  c10::SmallVector<int64_t, 4> sizes{directions()};
  sizes.append(input.sizes().begin(), input.sizes().end());
  sizes.back() = hidden_size;
  return sizes;
}

c10::SmallVector<int64_t, 5> Layer::saved_sizes(int64_t row) const {
  c10::SmallVector<int64_t, 5> sizes{directions()};
  sizes.append(input.sizes().begin(), input.sizes().end());
  sizes.back() = row;
  return sizes;
}

std::string Layer::range_name(const char* pass, const char* path) const {
  constexpr const char* kNames[] = {"fp32", "fp64", "bf16", "fp16"};    // in the order of DataType
  constexpr const char* kFormats[] = {"", "", " by bf16", " by int8"};  // in the order of WeightFormat
  std::string text = std::string("gru_") + pass + "_" + path + " " + kNames[static_cast<int>(dtype)];
  text += kFormats[static_cast<int>(format)];
  const auto add = [&text](const char* what, int64_t size) { text += what + std::to_string(size); };
  add(" T=", seq_len);
  add(" B=", batch);
  add(" I=", input_size);
  add(" H=", hidden_size);
  add(" D=", directions());
  if (batch_sizes.defined()) add(" rows=", rows);
  if (stacked) add(" M=", members);
  return text;
}

}  // namespace gru
