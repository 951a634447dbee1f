// The gates again, from the states, where forward kept those alone. Since all states are known the rows are
// independent: two products and the cell's kernel, as if they were the batch of one step.
#include <ATen/ops/empty.h>

#include <algorithm>

#include "layer_cuda.h"

namespace gru {

at::Tensor recompute(const Layer& layer, const at::Tensor& states, cudaStream_t stream) {
  const int64_t hidden_size = layer.hidden_size, directions = layer.directions();
  const auto options = layer.input.options();
  at::Tensor saved = at::empty(layer.sizes_of_all({directions, layer.rows, saved_row_cuda(layer)}), options);
  // So many rows at once that what lies between takes some 100 MB at most, or one row of each member.
  const int64_t at_once = std::clamp<int64_t>((int64_t{1} << 22) / hidden_size / layer.members, 1, layer.rows);
  for (int64_t d = 0; d < directions; ++d) {
    const Weights weights = weights_of_all(layer, d);
    for (int64_t first = 0; first < layer.rows; first += at_once) {
      const int64_t count = std::min(at_once, layer.rows - first);
      const at::Tensor before = states.select(-3, d).narrow(-2, first, count);
      const at::Tensor input_gates =
          multiply(input_rows(layer).narrow(-2, first, count), transposed(weights[kWeightIh]));
      const at::Tensor hidden_gates = multiply(before, transposed(weights[kWeightHh]));
      at::Tensor state = at::empty(before.sizes(), options.dtype(compute_type(before))).copy_(before);
      at::Tensor output = at::empty(before.sizes(), options);  // of no use, like the state after the kernel

      ForwardParams params;
      layer.fill(params, 0, d);
      params.options.recompute = 0;
      params.rows = Rows{1, count, count, 1};
      params.output = output.mutable_data_ptr();
      params.output_stride = hidden_size;
      params.h_n = state.scalar_type() == output.scalar_type() ? state.mutable_data_ptr() : output.mutable_data_ptr();
      params.saved = saved.select(-3, d).narrow(-2, first, count).mutable_data_ptr();
      cuda::ForwardStep step;
      step.input_gates = input_gates.const_data_ptr();
      step.hidden_gates = hidden_gates.const_data_ptr();
      step.state = state.mutable_data_ptr();
      step.members =
          forward_members_of(layer, weights, input_gates, hidden_gates, state, output, output, saved, at::Tensor());
      cuda::forward_cell(params, step, stream);
    }
  }
  return saved;
}

}  // namespace gru
