// What follows from the recurrence's gradients: large products over all steps.
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/sum.h>

#include "layer_cuda.h"

namespace gru {

namespace {

// Parts [H, 3H) and [0, H) of dimension `dim` of 3H in turn: from the order n, r, z to r, z, n. Always a new tensor.
at::Tensor move_first_gate_last(const at::Tensor& tensor, int64_t dim, int64_t hidden_size) {
  return at::cat({tensor.narrow(dim, hidden_size, 2 * hidden_size), tensor.narrow(dim, 0, hidden_size)}, dim);
}

}  // namespace

void add_gradients(const Layer& layer, int64_t d, const at::Tensor& input, const at::Tensor& d_gates,
                   const at::Tensor& saved, const Needs& needs, Gradients& gradients) {
  const int64_t hidden_size = layer.hidden_size;
  const at::Tensor d_input = d_gates.narrow(-1, hidden_size, 3 * hidden_size);  // r, z, n
  const at::Tensor d_hidden = d_gates.narrow(-1, 0, 3 * hidden_size);           // n, r, z
  const auto& [need_weight_ih, need_weight_hh, need_bias_ih, need_bias_hh] = needs.weights[d];
  Weights& gradient = gradients.weights[d];
  if (needs.input) {
    at::Tensor grad_input = input_rows(layer, gradients.input);
    const at::Tensor weight_ih = weights_of_all(layer, d)[kWeightIh];
    if (d == 0) {
      multiply_into(grad_input, d_input, weight_ih);
    } else if (layer.stacked) {
      at::baddbmm_out(grad_input, grad_input, d_input, weight_ih);
    } else {
      at::addmm_out(grad_input, grad_input, d_input, weight_ih);
    }
  }
  if (need_weight_ih) gradient[kWeightIh] = multiply(transposed(d_input), input);
  if (need_weight_hh) {
    const at::Tensor h_previous = saved.select(-3, d).narrow(-1, kSavedGates * padded_size(layer), hidden_size);
    gradient[kWeightHh] = move_first_gate_last(multiply(transposed(d_hidden), h_previous), -2, hidden_size);
  }
  if (need_bias_ih || need_bias_hh) {
    const int64_t begin = need_bias_hh ? 0 : hidden_size, end = need_bias_ih ? 4 * hidden_size : 3 * hidden_size;
    const at::Tensor sums = at::sum(d_gates.narrow(-1, begin, end - begin), at::IntArrayRef{-2});
    if (need_bias_ih) {
      gradient[kBiasIh] = sums.narrow(-1, hidden_size - begin, 3 * hidden_size).clone(at::MemoryFormat::Contiguous);
    }
    if (need_bias_hh) gradient[kBiasHh] = move_first_gate_last(sums.narrow(-1, 0, 3 * hidden_size), -1, hidden_size);
  }
}

}  // namespace gru
