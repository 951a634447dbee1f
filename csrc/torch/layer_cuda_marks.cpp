// Lengths and resets on CUDA: what the kernels are told of them, and what lies outside of the kernels, which is the
// padding and a reset before forward's first step. All of it runs on the device, and no value comes to the host.
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "cuda/marks.h"
#include "layer_cuda.h"

namespace gru {

namespace {

int64_t time_dim(const Layer& layer) { return layer.options.batch_first ? -1 : -2; }  // of [T, B] or [B, T]

// Whose state before forward's first step is reset, [B, 1], of an ensemble [members, B, 1].
at::Tensor reset_at_first(const Layer& layer) {
  at::Tensor first = of_all(layer, layer.resets, layer.resets_stride).select(time_dim(layer), 0);
  if (layer.lengths.defined()) first = first.logical_and(layer.lengths.gt(0));
  return first.unsqueeze(-1);
}

// Of reset_state or its gradient, [D, ...], the part of forward's first step, [B, H], of an ensemble with the members.
at::Tensor at_first(const Layer& layer, const at::Tensor& states) {
  return states.select(-4, 0).select(time_dim(layer) - 1, 0);
}

}  // namespace

at::Tensor marks_of(const Layer& layer, cudaStream_t stream) {
  if (!layer.lengths.defined() && !layer.resets.defined()) return {};
  const bool apart = layer.lengths_stride != 0 || layer.resets_stride != 0;
  cuda::MarkSources sources;
  sources.members = apart ? layer.members : 1;
  sources.lengths_stride = layer.lengths_stride;
  sources.resets_stride = layer.resets_stride;
  at::Tensor lengths;  // which lives until the kernel is launched; the allocator keeps its memory for this stream
  if (layer.lengths.defined()) {
    lengths = layer.lengths.to(at::kLong);
    sources.lengths = lengths.const_data_ptr<int64_t>();
  }
  if (layer.resets.defined()) sources.resets = layer.resets.const_data_ptr<bool>();
  LayerParams params;
  layer.fill(params, 0, 0);
  at::Tensor marks = at::empty({sources.members, layer.rows}, layer.input.options().dtype(at::kInt));
  cuda::write_marks(params.rows, sources, reinterpret_cast<uint32_t*>(marks.mutable_data_ptr<int32_t>()), stream);
  return layer.stacked ? marks.expand({layer.members, layer.rows}) : marks.select(0, 0);
}

void clear_padding(const Layer& layer, const at::Tensor& marks, const at::Tensor& tensor, cudaStream_t stream) {
  if (!layer.lengths.defined()) return;
  const int64_t element = tensor.element_size();
  cuda::MarkedRows rows;
  rows.first = tensor.mutable_data_ptr();
  rows.members = layer.members;
  rows.rows = layer.rows;
  rows.stride = tensor.stride(-2) * element;
  rows.bytes = tensor.size(-1) * element;
  rows.parts = tensor.numel() / tensor.size(-1) / layer.rows / layer.members;
  cuda::clear_padding(rows, marks_pointer(marks), apart(layer, marks), stream);
}

at::Tensor first_states(const Layer& layer) {
  const at::Tensor hx = of_all(layer, layer.hx, layer.strides.hx);
  if (!layer.resets.defined()) return hx;
  at::Tensor states = hx.clone(at::MemoryFormat::Contiguous), forward = states.select(-3, 0);
  const at::Tensor anew = layer.reset_state.defined()
                              ? at_first(layer, of_all(layer, layer.reset_state, layer.strides.reset_state))
                              : at::zeros_like(forward);
  forward.copy_(at::where(reset_at_first(layer), anew, forward));
  return states;
}

void hand_on_first_gradient(const Layer& layer, at::Tensor& grad_hx, const at::Tensor& grad_reset_state) {
  if (!layer.resets.defined()) return;
  const at::Tensor first = reset_at_first(layer);
  at::Tensor forward = grad_hx.select(-3, 0);
  if (grad_reset_state.defined()) {
    at::Tensor part = at_first(layer, grad_reset_state);
    part.copy_(at::where(first, forward, at::zeros_like(forward)));
  }
  forward.masked_fill_(first, 0);
}

}  // namespace gru
