// What the CUDA paths of csrc/ops_cuda*.cpp share. Of an ensemble the parameters are those of the first member.
#pragma once

#include <ATen/core/Tensor.h>
#include <cuda_runtime_api.h>

#include "cuda/plan.h"
#include "ops.h"

namespace gru {

inline int64_t num_directions(const Layer& layer) { return static_cast<int64_t>(layer.directions.size()); }

// Where the columns of direction d begin in a tensor [..., D*H]; null when it is undefined.
inline const void* columns(const at::Tensor& tensor, int64_t d, int64_t hidden_size) {
  return tensor.defined() ? tensor.narrow(-1, d * hidden_size, hidden_size).const_data_ptr() : nullptr;
}

inline const void* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// P of csrc/gru.h.
inline int64_t padded_size(const Layer& layer) { return padded(layer.hidden_size, layer.input.element_size()); }

// Whether forward keeps, or has kept, the states alone.
inline bool holds_states(const Layer& layer, const at::Tensor& saved) { return saved.size(-1) == layer.hidden_size; }

// What forward takes of one direction, beside its state.
inline ForwardParams forward_params(const Layer& layer, int64_t d, at::Tensor& output, const at::Tensor& saved) {
  const Layer::Direction& weights = layer.directions[d];
  ForwardParams params;
  params.dtype = layer.dtype;
  params.rows = layer.row_map();
  params.input_size = layer.input_size;
  params.hidden_size = layer.hidden_size;
  params.reverse = d == 1;
  params.weight_hh = weights.weight_hh.const_data_ptr();
  params.bias_ih = data_or_null(weights.bias_ih);
  params.bias_hh = data_or_null(weights.bias_hh);
  params.output = output.narrow(-1, d * layer.hidden_size, layer.hidden_size).mutable_data_ptr();
  params.output_stride = num_directions(layer) * layer.hidden_size;
  if (saved.numel() != 0) {
    params.saved = saved.select(-3, d).mutable_data_ptr();
    params.states_only = holds_states(layer, saved);
  }
  return params;
}

// What the recurrence of backward takes of one direction, beside its state.
inline BackwardParams backward_params(const Layer& layer, int64_t d, const at::Tensor& grad_output,
                                      const at::Tensor& saved, at::Tensor& d_gates) {
  BackwardParams params;
  params.dtype = layer.dtype;
  params.rows = layer.row_map();
  params.hidden_size = layer.hidden_size;
  params.reverse = d == 1;
  params.weight_hh = layer.directions[d].weight_hh.const_data_ptr();
  params.saved = saved.select(-3, d).const_data_ptr();
  params.grad_output = columns(grad_output, d, layer.hidden_size);
  params.grad_output_stride = num_directions(layer) * layer.hidden_size;
  params.d_gates = d_gates.mutable_data_ptr();
  return params;
}

// Kernels with stationary weights, all directions of a layer that is no ensemble. Backward fills the d_gates of each
// direction and, where defined, grad_hx.
void forward_stationary(const Layer& layer, const cuda::Plan& plan, at::Tensor& output, at::Tensor& h_n,
                        const at::Tensor& saved, cudaStream_t stream);
void backward_stationary(const Layer& layer, const cuda::Plan& plan, const at::Tensor& grad_output,
                         const at::Tensor& grad_h_n, const at::Tensor& saved, c10::SmallVector<at::Tensor, 2>& d_gates,
                         at::Tensor& grad_hx, cudaStream_t stream);

}  // namespace gru
