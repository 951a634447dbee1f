#include "autocast.h"

#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "direct.h"

namespace gru {

namespace {

using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

// What a weight was when it was cast. torch keeps the cast by the weight's address alone and would give it again after
// an optimizer's step within the block.
struct State {
  Weak cast;
  int64_t version;
  const void* data;
};

// Whether torch's kept cast is still that of the weight as it is now.
class Casts {
 public:
  bool current(const at::Tensor& weight, const at::Tensor& cast) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t version = weight._version();
    const void* data = weight.const_data_ptr();
    const auto state = states_.find(weight.unsafeGetTensorImpl());
    // The weak pointer keeps the address from being used again: the same address is the same cast.
    if (state != states_.end() && state->second.cast._unsafe_get_target() == cast.unsafeGetTensorImpl())
      return state->second.version == version && state->second.data == data;
    if (state != states_.end()) states_.erase(state);
    if (states_.size() >= most_) forget_ended();
    states_.emplace(weight.unsafeGetTensorImpl(), State{Weak(cast.getIntrusivePtr()), version, data});
    return true;
  }

 private:
  void forget_ended() {
    for (auto it = states_.begin(); it != states_.end();)
      it = it->second.cast.expired() ? states_.erase(it) : std::next(it);
    most_ = std::max<size_t>(kFewest, 2 * states_.size());
  }

  static constexpr size_t kFewest = 64;
  std::mutex mutex_;
  std::unordered_map<const c10::TensorImpl*, State> states_;
  size_t most_ = kFewest;
};

Casts& casts() {
  static Casts* const all = new Casts;  // never freed: a thread may still call while the process ends
  return *all;
}

bool keepable(const at::Tensor& weight) {
  // The keys of autocast itself are there; any other is a mode's or a transform's, which must see the cast.
  const auto usual = c10::default_included_set | c10::autocast_dispatch_keyset;
  return at::autocast::is_autocast_cache_enabled() && weight.scalar_type() == at::kFloat && weight.requires_grad() &&
         weight.is_leaf() && !weight.is_view() && !weight.is_inference() && direct(weight) &&
         usual.isSupersetOf(c10::impl::tls_local_dispatch_key_set().included_);
}

}  // namespace

at::Tensor kept_cast(const at::Tensor& weight) {
  if (!weight.defined() || !keepable(weight)) return {};
  const auto device_type = weight.device().type();
  at::Tensor cast;
  {
    // A cast kept without its graph would take the gradient from a later call that wants one.
    std::optional<c10::InferenceMode> normal;
    if (c10::InferenceMode::is_enabled()) normal.emplace(false);
    const at::AutoGradMode recorded(true);
    cast = at::autocast::cached_cast(at::autocast::get_autocast_dtype(device_type), weight, device_type);
  }
  // Made by one of torch's own layers that shares the weight and ran without grad.
  if (!cast.requires_grad() || cast.is_inference()) return {};
  return casts().current(weight, cast) ? cast : at::Tensor();
}

}  // namespace gru
