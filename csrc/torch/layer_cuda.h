// What the CUDA paths of csrc/torch/layer_cuda*.cpp share. Of an ensemble the parameters are those of the first member.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/mm.h>
#include <cuda_runtime_api.h>

#include "cuda/plan.h"
#include "cuda/step.h"
#include "layer.h"

namespace gru {

// Where the columns of direction d begin in a tensor [..., D*H]; null when it is undefined.
inline const void* columns(const at::Tensor& tensor, int64_t d, int64_t hidden_size) {
  return tensor.defined() ? tensor.narrow(-1, d * hidden_size, hidden_size).const_data_ptr() : nullptr;
}

// P of csrc/gru.h.
inline int64_t padded_size(const Layer& layer) { return padded(layer.hidden_size, layer.input.element_size()); }

// The tensors of all members as one, from the first's and the distance between them.
inline at::Tensor of_all(const Layer& layer, const at::Tensor& first, int64_t stride) {
  if (!layer.stacked || !first.defined()) return first;
  c10::SmallVector<int64_t, 5> strides{stride};
  strides.append(first.strides().begin(), first.strides().end());
  return first.as_strided(layer.sizes_of_all(first.sizes()), strides, first.storage_offset());
}

inline Weights weights_of_all(const Layer& layer, int64_t d) {
  const Weights& first = layer.weights[d];
  if (!layer.stacked) return first;
  const auto& stride = layer.strides.weights[d];
  return {of_all(layer, first[kWeightIh], stride[0]), of_all(layer, first[kWeightHh], stride[1]),
          of_all(layer, first[kBiasIh], stride[2]), of_all(layer, first[kBiasHh], stride[3])};
}

// How far the part of a member lies from the one before it.
inline int64_t apart(const Layer& layer, const at::Tensor& tensor) {
  return layer.stacked && tensor.defined() ? tensor.stride(0) : 0;
}

inline at::Tensor transposed(const at::Tensor& tensor) { return tensor.transpose(-2, -1); }

inline at::Tensor multiply(const at::Tensor& left, const at::Tensor& right) {
  return left.dim() == 3 ? at::bmm(left, right) : at::mm(left, right);
}

inline void multiply_into(at::Tensor& out, const at::Tensor& left, const at::Tensor& right) {
  left.dim() == 3 ? at::bmm_out(out, left, right) : at::mm_out(out, left, right);
}

// [rows, I] of the input or its gradient.
inline at::Tensor input_rows(const Layer& layer, const at::Tensor& tensor) {
  return tensor.view(layer.sizes_of_all({layer.rows, layer.input_size}));
}
inline at::Tensor input_rows(const Layer& layer) {
  return input_rows(layer, of_all(layer, layer.input, layer.strides.input));
}

inline at::ScalarType compute_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// What the kernels are told of lengths and resets, [rows] int32 of Mark (csrc/gru.h), of an ensemble [members, rows];
// undefined where there are neither.
at::Tensor marks_of(const Layer& layer, cudaStream_t stream);
inline const uint32_t* marks_pointer(const at::Tensor& marks) {
  return marks.defined() ? reinterpret_cast<const uint32_t*>(marks.const_data_ptr<int32_t>()) : nullptr;
}

// Zeros into the padding of a tensor with a row for each step and sequence, [..., rows, *], the same distance apart:
// where there are lengths.
void clear_padding(const Layer& layer, const at::Tensor& marks, const at::Tensor& tensor, cudaStream_t stream);

// hx as the kernels take it, [D, B, H], of an ensemble with the members: a reset before forward's first step is done.
at::Tensor first_states(const Layer& layer);
// And back, from the gradient of that: that of hx, where it is, and what of that of reset_state, if defined, is left.
void hand_on_first_gradient(const Layer& layer, at::Tensor& grad_hx, const at::Tensor& grad_reset_state);

// Where the members' parts lie of what one step of forward works on.
inline cuda::ForwardMembers forward_members_of(const Layer& layer, const Weights& weights,
                                               const at::Tensor& input_gates, const at::Tensor& hidden_gates,
                                               const at::Tensor& state, const at::Tensor& h_n, const at::Tensor& output,
                                               const at::Tensor& saved, const at::Tensor& marks) {
  if (!layer.stacked) return {};
  return {layer.members,
          apart(layer, input_gates),
          apart(layer, hidden_gates),
          apart(layer, weights[kBiasIh]),
          apart(layer, weights[kBiasHh]),
          apart(layer, state),
          apart(layer, h_n),
          apart(layer, output),
          apart(layer, saved),
          apart(layer, marks),
          layer.strides.reset_state};
}

// What forward takes of one direction, beside its state.
inline ForwardParams forward_params(const Layer& layer, int64_t d, at::Tensor& output, const at::Tensor& saved,
                                    const at::Tensor& marks) {
  ForwardParams params;
  layer.fill(params, 0, d);
  params.marks = marks_pointer(marks);
  params.output = output.narrow(-1, d * layer.hidden_size, layer.hidden_size).mutable_data_ptr();
  params.output_stride = layer.directions() * layer.hidden_size;
  if (saved.defined()) params.saved = saved.select(-3, d).mutable_data_ptr();
  return params;
}

// What the recurrence of backward takes of one direction, beside its state. grad_reset_state: [D, rows, H]
inline BackwardParams backward_params(const Layer& layer, int64_t d, const at::Tensor& grad_output,
                                      const at::Tensor& saved, const at::Tensor& marks,
                                      const at::Tensor& grad_reset_state) {
  BackwardParams params;
  layer.fill(params, 0, d);
  params.marks = marks_pointer(marks);
  if (grad_reset_state.defined()) params.grad_reset_state = grad_reset_state.select(-3, d).mutable_data_ptr();
  params.saved = saved.select(-3, d).const_data_ptr();
  params.grad_output = columns(grad_output, d, layer.hidden_size);
  params.grad_output_stride = layer.directions() * layer.hidden_size;
  return params;
}

// Kernels with stationary weights, all directions of a layer that is no ensemble. hx: what first_states gives. Backward
// fills the d_gates of each direction and, where defined, grad_hx and, at resets, grad_reset_state, [D, rows, H].
void forward_stationary(const Layer& layer, const cuda::Plan& plan, const at::Tensor& hx, const at::Tensor& marks,
                        at::Tensor& output, at::Tensor& h_n, const at::Tensor& saved, cudaStream_t stream);
void backward_stationary(const Layer& layer, const cuda::Plan& plan, const at::Tensor& marks,
                         const at::Tensor& grad_output, const at::Tensor& grad_h_n, const at::Tensor& saved,
                         c10::SmallVector<at::Tensor, 2>& d_gates, at::Tensor& grad_hx,
                         const at::Tensor& grad_reset_state, cudaStream_t stream);

// All that forward would have kept, [D, rows, *], from the states [D, rows, H] that it did keep. Gates of padding are
// what its input makes of them.
at::Tensor recompute(const Layer& layer, const at::Tensor& states, cudaStream_t stream);

// The gradients of direction d from the input, [rows, I], d_gates and what forward kept. Direction 1 adds to that of
// the input, which direction 0 wrote.
void add_gradients(const Layer& layer, int64_t d, const at::Tensor& input, const at::Tensor& d_gates,
                   const at::Tensor& saved, const Needs& needs, Gradients& gradients);

}  // namespace gru
