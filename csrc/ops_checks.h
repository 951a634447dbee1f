// What the checks of every operator's arguments share: a tensor as it must be, and as the kernels take it.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <ostream>

namespace gru {

// The name of one of the weights, put together only when a message needs it.
struct WeightName {
  size_t index;
  const char* role;
};

inline std::ostream& operator<<(std::ostream& stream, const WeightName& name) {
  return stream << "weights[" << name.index << "] (" << name.role << ")";
}

template <class Name>
void check_tensor(const at::Tensor& tensor, const Name& name) {
  TORCH_CHECK(tensor.defined(), name, " is undefined; expected a tensor");
  TORCH_CHECK(tensor.layout() == at::kStrided, name, " has layout ", tensor.layout(), "; expected a strided tensor");
}

template <class Name>
void check_like(const at::Tensor& tensor, const Name& name, const at::Tensor& input, at::IntArrayRef sizes) {
  check_tensor(tensor, name);
  TORCH_CHECK(tensor.device() == input.device(), name, " is on ", tensor.device(), "; expected ", input.device(),
              ", where input is");
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name, " has dtype ", tensor.scalar_type(), "; expected ",
              input.scalar_type(), " as input");
  TORCH_CHECK(tensor.sizes() == sizes, name, " has shape ", tensor.sizes(), "; expected ", sizes);
}

// Asks before it calls an operator: for the usual tensor there is nothing to do, and an operator costs a microsecond.
inline at::Tensor plain(const at::Tensor& tensor) {
  if (!tensor.is_neg() && tensor.is_contiguous()) return tensor;
  return tensor.resolve_neg().contiguous();
}

// What an operator computes inside is neither recorded by autograd nor recast by autocast.
struct PassGuard {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

}  // namespace gru
