// The operators on an ensemble: the arguments of all its members become one Layer, which says where each lies.
#include <ATen/ops/empty.h>

#include "ops.h"
#include "ops_checks.h"

namespace gru {

namespace {

constexpr const char* kRoles[] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"};

// The first member's part of a tensor that has `dims` dimensions in each, and how far the next one's lies. A tensor
// with another number of dimensions is shared by all, or wrong: the checks of a single layer will say so.
template <class Name>
at::Tensor first_of(const at::Tensor& tensor, const Name& name, int64_t dims, int64_t members, int64_t& stride) {
  check_tensor(tensor, name);
  if (tensor.dim() != dims + 1) return tensor;
  TORCH_CHECK(tensor.size(0) == members, name, " has shape ", tensor.sizes(),
              "; expected its first dimension to be the ", members, " members");
  if (members == 0) return at::empty(tensor.sizes().slice(1), tensor.options());  // for its sizes; nothing reads it
  const at::Tensor all = plain(tensor);
  stride = all.numel() / members;
  return all.select(0, 0);
}

at::Tensor further(const at::Tensor& first, int64_t elements) {
  if (!first.defined() || elements == 0) return first;
  return first.as_strided(first.sizes(), first.strides(), first.storage_offset() + elements);
}

}  // namespace

c10::SmallVector<int64_t, 4> Layer::sizes_of_all(at::IntArrayRef sizes) const {
  c10::SmallVector<int64_t, 4> all;
  if (stacked) all.push_back(members);
  all.append(sizes.begin(), sizes.end());
  return all;
}

Layer Layer::member(int64_t index) const {
  Layer one = *this;
  one.stacked = false;
  one.members = 1;
  one.input = further(input, index * strides.input);
  one.hx = further(hx, index * strides.hx);
  for (size_t d = 0; d < directions.size(); ++d) {
    const std::array<int64_t, 4>& stride = strides.weights[d];
    one.directions[d].weight_ih = further(directions[d].weight_ih, index * stride[0]);
    one.directions[d].weight_hh = further(directions[d].weight_hh, index * stride[1]);
    one.directions[d].bias_ih = further(directions[d].bias_ih, index * stride[2]);
    one.directions[d].bias_hh = further(directions[d].bias_hh, index * stride[3]);
  }
  return one;
}

Layer checked_members(const Arguments& given, int64_t members) {
  const PassGuard guard;
  TORCH_CHECK(members >= 0, "members is ", members, "; expected at least 0");
  Arguments first = given;
  MemberStrides strides;
  first.input = first_of(given.input, "input", given.batch_sizes.defined() ? 2 : 3, members, strides.input);
  first.hx = first_of(given.hx, "hx", 3, members, strides.hx);
  // How many weights a direction has is for the checks below to say, and so is what is wrong with any other number.
  const size_t directions = first.hx.dim() == 3 && first.hx.size(0) == 2 ? 2 : 1;
  const size_t each = given.weights.size() == 4 * directions ? 4 : 2;
  c10::SmallVector<at::Tensor, 8> weights;
  strides.weights.resize(directions);
  for (size_t i = 0; i < given.weights.size(); ++i) {
    const size_t role = i % each;
    int64_t stride = 0;
    weights.push_back(first_of(given.weights[i], WeightName{i, kRoles[role]}, role < 2 ? 2 : 1, members, stride));
    if (i / each < directions) strides.weights[i / each][role] = stride;
  }
  first.weights = weights;
  Layer layer = checked_layer(first);
  layer.stacked = true;
  layer.members = members;
  layer.strides = strides;
  return layer;
}

ForwardResult forward_members(const at::Tensor& input, const at::Tensor& hx, const std::vector<at::Tensor>& weights,
                              const std::optional<at::Tensor>& batch_sizes, bool batch_first, int64_t members,
                              bool save, bool recompute) {
  const Arguments arguments{input, hx, weights, batch_sizes.value_or(at::Tensor()), batch_first, recompute};
  return run_forward(checked_members(arguments, members), save ? kept_by(arguments) : Keep::Nothing);
}

std::vector<at::Tensor> backward_members(const std::optional<at::Tensor>& grad_output,
                                         const std::optional<at::Tensor>& grad_h_n, const at::Tensor& input,
                                         const at::Tensor& hx, const std::vector<at::Tensor>& weights,
                                         const at::Tensor& saved, const std::optional<at::Tensor>& batch_sizes,
                                         bool batch_first, int64_t members, const std::vector<bool>& needs) {
  const Arguments arguments{input, hx, weights, batch_sizes.value_or(at::Tensor()), batch_first};
  return run_checked_backward(checked_members(arguments, members), grad_output.value_or(at::Tensor()),
                              grad_h_n.value_or(at::Tensor()), saved, needs);
}

}  // namespace gru
