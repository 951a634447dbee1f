// Casts of weights under autocast, made once and kept by torch until the outermost autocast block ends, as those of its
// own layers are.
#pragma once

#include <ATen/core/Tensor.h>

namespace gru {

// The weight in the dtype of autocast for its device: differentiable, and the same tensor for every call within the
// outermost block while the weight is unchanged. Undefined for a weight that is not one to keep: not a plain float32
// leaf that requires grad, under a mode or transform, or with the cache switched off. The caller then casts it itself.
at::Tensor kept_cast(const at::Tensor& weight);

}  // namespace gru
