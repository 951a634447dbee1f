// A layer on CUDA by the kernels that keep W_hh on the chip (csrc/cuda/stationary.h): the product with W_ih before
// them, what their blocks exchange through, and one launch for both directions or one for each.
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "cuda/stationary.h"
#include "layer_cuda.h"

namespace gru {

namespace {

// Batch sizes in the GPU's memory; undefined unless the input is packed.
at::Tensor batch_sizes_there(const Layer& layer, cudaStream_t stream) {
  if (!layer.batch_sizes.defined()) return {};
  at::Tensor sizes = at::empty({layer.seq_len}, layer.input.options().dtype(at::kInt));
  cuda::write_sizes(layer.batch_sizes.const_data_ptr<int64_t>(), layer.seq_len, sizes.mutable_data_ptr<int32_t>(),
                    stream);
  return sizes;
}

// W_ih with the units of each gate padded, [3P, I]. What is in the padding comes out in that of the product.
at::Tensor padded_weight_ih(const Layer& layer, const at::Tensor& weight_ih) {
  const int64_t units = padded_size(layer);
  if (units == layer.hidden_size) return weight_ih;
  at::Tensor weights = at::empty({3, units, layer.input_size}, weight_ih.options());
  weights.narrow(1, 0, layer.hidden_size).copy_(weight_ih.view({3, layer.hidden_size, layer.input_size}));
  return weights.view({3 * units, layer.input_size});
}

// grad_output of each direction where the kernels cannot read it as it lies, [D, rows, P]; else undefined.
at::Tensor padded_grad_output(const Layer& layer, const at::Tensor& grad_output) {
  if (!grad_output.defined()) return {};
  const auto address = reinterpret_cast<uintptr_t>(grad_output.const_data_ptr());
  if (layer.hidden_size % 2 == 0 && address % (2 * grad_output.element_size()) == 0) return {};
  const int64_t directions = layer.directions();
  at::Tensor rows = at::empty({directions, layer.rows, padded_size(layer)}, grad_output.options());
  rows.narrow(2, 0, layer.hidden_size)
      .copy_(grad_output.view({layer.rows, directions, layer.hidden_size}).transpose(0, 1));
  return rows;
}

// Calls run(first direction, how many, what they take besides) once for both directions or once for each.
template <class Run>
void run_stationary(const Layer& layer, const cuda::Plan& plan, int64_t exchange_words, cudaStream_t stream,
                    Run&& run) {
  const at::Tensor sizes = batch_sizes_there(layer, stream);
  const int64_t at_once = plan.together ? layer.directions() : 1;
  for (int64_t d = 0; d < layer.directions(); d += at_once) {
    at::Tensor exchange;
    if (exchange_words != 0) exchange = at::zeros({at_once * exchange_words}, layer.input.options().dtype(at::kLong));
    cuda::StationarySequence sequence;
    if (sizes.defined()) sequence.batch_sizes = sizes.const_data_ptr<int32_t>();
    sequence.rows = layer.rows;
    if (exchange.defined()) sequence.exchange = reinterpret_cast<uint64_t*>(exchange.mutable_data_ptr<int64_t>());
    run(d, static_cast<int>(at_once), sequence);
  }
}

}  // namespace

void forward_stationary(const Layer& layer, const cuda::Plan& plan, const at::Tensor& hx, const at::Tensor& marks,
                        at::Tensor& output, at::Tensor& h_n, const at::Tensor& saved, cudaStream_t stream) {
  c10::SmallVector<at::Tensor, 2> input_gates;
  c10::SmallVector<const void*, 2> gates;
  c10::SmallVector<ForwardParams, 2> params;
  for (int64_t d = 0; d < layer.directions(); ++d) {
    input_gates.push_back(at::mm(layer.input.view({layer.rows, layer.input_size}),
                                 padded_weight_ih(layer, layer.weights[d][kWeightIh]).t()));
    gates.push_back(input_gates.back().const_data_ptr());
    params.push_back(forward_params(layer, d, output, saved, marks));
    params.back().h0 = hx.select(0, d).const_data_ptr();
    params.back().h_n = h_n.select(0, d).mutable_data_ptr();
  }
  run_stationary(layer, plan, cuda::forward_exchange_words(plan.partition, layer.input.element_size()), stream,
                 [&](int64_t d, int count, const cuda::StationarySequence& sequence) {
                   cuda::forward_stationary(plan.partition, &params[d], count, &gates[d], sequence, stream);
                 });
}

void backward_stationary(const Layer& layer, const cuda::Plan& plan, const at::Tensor& marks,
                         const at::Tensor& grad_output, const at::Tensor& grad_h_n, const at::Tensor& saved,
                         c10::SmallVector<at::Tensor, 2>& d_gates, at::Tensor& grad_hx,
                         const at::Tensor& grad_reset_state, cudaStream_t stream) {
  c10::SmallVector<BackwardParams, 2> params;
  c10::SmallVector<void*, 2> gates;
  const at::Tensor grad_rows = padded_grad_output(layer, grad_output);
  for (int64_t d = 0; d < layer.directions(); ++d) {
    params.push_back(backward_params(layer, d, grad_output, saved, marks, grad_reset_state));
    gates.push_back(d_gates[d].mutable_data_ptr());
    if (grad_rows.defined()) {
      params.back().grad_output = grad_rows.select(0, d).const_data_ptr();
      params.back().grad_output_stride = grad_rows.size(2);
    }
    if (grad_h_n.defined()) params.back().grad_h_n = grad_h_n.select(0, d).const_data_ptr();
    if (grad_hx.defined()) params.back().grad_h0 = grad_hx.select(0, d).mutable_data_ptr();
  }
  run_stationary(layer, plan, cuda::backward_exchange_words(plan.partition, layer.input.element_size()), stream,
                 [&](int64_t d, int count, const cuda::StationarySequence& sequence) {
                   cuda::backward_stationary(plan.partition, &params[d], count, &gates[d], sequence, stream);
                 });
}

}  // namespace gru
