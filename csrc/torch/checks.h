// A tensor as it must be, and as the kernels take it.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <ostream>

namespace gru {

// The name of one of the weights, put together only when a message needs it.
struct WeightName {
  size_t index, role;  // a Role, or behind them the scales of packed weights
};

inline std::ostream& operator<<(std::ostream& stream, const WeightName& name) {
  constexpr const char* kNames[] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "scale_ih", "scale_hh"};
  return stream << "weights[" << name.index << "] (" << kNames[name.role] << ")";
}

template <class Name>
void check_tensor(const at::Tensor& tensor, const Name& name) {
  TORCH_CHECK(tensor.defined(), name, " is undefined; expected a tensor");
  TORCH_CHECK(tensor.layout() == at::kStrided, name, " has layout ", tensor.layout(), "; expected a strided tensor");
}

// Layout, device and sizes.
template <class Name>
void check_beside(const at::Tensor& tensor, const Name& name, const at::Tensor& input, at::IntArrayRef sizes) {
  check_tensor(tensor, name);
  TORCH_CHECK(tensor.device() == input.device(), name, " is on ", tensor.device(), "; expected ", input.device(),
              ", where input is");
  TORCH_CHECK(tensor.sizes() == sizes, name, " has shape ", tensor.sizes(), "; expected ", sizes);
}

// And the dtype.
template <class Name>
void check_like(const at::Tensor& tensor, const Name& name, const at::Tensor& input, at::IntArrayRef sizes) {
  check_tensor(tensor, name);
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name, " has dtype ", tensor.scalar_type(), "; expected ",
              input.scalar_type(), " as input");
  check_beside(tensor, name, input, sizes);
}

// Asks before it calls an operator: for the usual tensor there is nothing to do, and an operator costs a microsecond.
inline at::Tensor plain(const at::Tensor& tensor) {
  if (!tensor.is_neg() && tensor.is_contiguous()) return tensor;
  return tensor.resolve_neg().contiguous();
}

// The same of a tensor whose rows alone need be contiguous.
inline at::Tensor plain_rows(const at::Tensor& tensor) {
  if (!tensor.is_neg() && (tensor.size(-1) == 1 || tensor.stride(-1) == 1)) return tensor;
  return plain(tensor);
}

// On the CPU past the dispatcher, whose part of it takes longer than the allocation.
inline at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (options.device().is_cpu()) return at::detail::empty_cpu(sizes, options);
  return at::empty(sizes, options);
}

inline at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!options.device().is_cpu()) return at::zeros(sizes, options);
  at::Tensor tensor = at::detail::empty_cpu(sizes, options);
  std::fill_n(static_cast<char*>(tensor.mutable_data_ptr()), tensor.nbytes(), 0);
  return tensor;
}

// What an operator computes inside is neither recorded by autograd nor recast by autocast.
struct PassGuard {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

}  // namespace gru
