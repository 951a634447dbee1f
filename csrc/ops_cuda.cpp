// The operators on CUDA tensors: device, stream, buffers, the matrix products (ATen's, on the current stream) and the
// order of the steps. The kernels are behind csrc/cuda/step.h, the choice among them behind csrc/cuda/plan.h. Nothing
// here waits for the device or reads its memory, so every pass can be captured into a CUDA graph.
//
// An ensemble goes step by step as one layer does: its tensors have a first dimension more, which is why dimensions are
// counted from the last here, each product is one batched product, and the cell's kernel takes all members. Kernels
// with stationary weights take its members in turn.
#include "ops_cuda.h"

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/step.h"

namespace gru {

bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

bool library_tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::RNN) ==
         at::Float32Precision::TF32;
}

int64_t saved_row_cuda(const Layer& layer) { return kSavedValues * padded_size(layer); }

namespace {

cuda::Plan plan_for(const Layer& layer, cuda::Pass pass, bool training) {
  const auto directions = static_cast<int>(layer.directions.size());
  return cuda::plan({layer.dtype, layer.seq_len, layer.batch, layer.input_size, layer.hidden_size, directions,
                     layer.batch_sizes.defined(), training, tf32_allowed(), library_tf32_allowed()},
                    pass, cuda::device_at(layer.input.get_device()));
}

void name_range(at::RecordFunction& range, const char* pass, const Layer& layer, cuda::Kernel kernel) {
  if (!range.isActive()) return;
  range.before(layer.range_name(pass, cuda::name(kernel)));
}

// The tensors of all members as one, from the first's and the distance between them.
at::Tensor of_all(const Layer& layer, const at::Tensor& first, int64_t stride) {
  if (!layer.stacked || !first.defined()) return first;
  c10::SmallVector<int64_t, 5> strides{stride};
  strides.append(first.strides().begin(), first.strides().end());
  return first.as_strided(layer.sizes_of_all(first.sizes()), strides, first.storage_offset());
}

Layer::Direction weights_of_all(const Layer& layer, int64_t d) {
  const Layer::Direction& first = layer.directions[d];
  if (!layer.stacked) return first;
  const auto& stride = layer.strides.weights[d];
  return {of_all(layer, first.weight_ih, stride[0]), of_all(layer, first.weight_hh, stride[1]),
          of_all(layer, first.bias_ih, stride[2]), of_all(layer, first.bias_hh, stride[3])};
}

// How far the part of a member lies from the one before it.
int64_t apart(const Layer& layer, const at::Tensor& tensor) {
  return layer.stacked && tensor.defined() ? tensor.stride(0) : 0;
}

at::Tensor transposed(const at::Tensor& tensor) { return tensor.transpose(-2, -1); }

at::Tensor multiply(const at::Tensor& one, const at::Tensor& other) {
  return one.dim() == 3 ? at::bmm(one, other) : at::mm(one, other);
}

void multiply_into(at::Tensor& out, const at::Tensor& one, const at::Tensor& other) {
  one.dim() == 3 ? at::bmm_out(out, one, other) : at::mm_out(out, one, other);
}

// [rows, I] of the input or its gradient.
at::Tensor input_rows(const Layer& layer, const at::Tensor& tensor) {
  return tensor.view(layer.sizes_of_all({layer.rows, layer.input_size}));
}
at::Tensor input_rows(const Layer& layer) { return input_rows(layer, of_all(layer, layer.input, layer.strides.input)); }

at::ScalarType compute_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor first_rows(const at::Tensor& tensor, int64_t count) {
  return tensor.size(-2) == count ? tensor : tensor.narrow(-2, 0, count);
}

// Parts [H, 3H) and [0, H) of dimension `dim` of 3H in turn: from the order n, r, z to r, z, n. Always a new tensor.
at::Tensor move_first_gate_last(const at::Tensor& tensor, int64_t dim, int64_t hidden_size) {
  return at::cat({tensor.narrow(dim, hidden_size, 2 * hidden_size), tensor.narrow(dim, 0, hidden_size)}, dim);
}

// Parts [2H, 3H) and [0, 2H): from r, z, n to n, r, z, the order of the first columns of d_gates.
at::Tensor move_last_gate_first(const at::Tensor& tensor, int64_t dim, int64_t hidden_size) {
  return at::cat({tensor.narrow(dim, 2 * hidden_size, hidden_size), tensor.narrow(dim, 0, 2 * hidden_size)}, dim);
}

// Where the members' parts lie of what one step of forward works on.
cuda::ForwardMembers forward_members_of(const Layer& layer, const Layer::Direction& weights,
                                        const at::Tensor& input_gates, const at::Tensor& hidden_gates,
                                        const at::Tensor& state, const at::Tensor& h_n, const at::Tensor& output,
                                        const at::Tensor& saved) {
  if (!layer.stacked) return {};
  return {layer.members,
          apart(layer, input_gates),
          apart(layer, hidden_gates),
          apart(layer, weights.bias_ih),
          apart(layer, weights.bias_hh),
          apart(layer, state),
          apart(layer, h_n),
          apart(layer, output),
          saved.numel() == 0 ? 0 : apart(layer, saved)};
}

// ---------------------------------------------------------------------------------------------------------------------
// The step path, one direction
// ---------------------------------------------------------------------------------------------------------------------

void forward_step(const Layer& layer, int64_t d, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved,
                  cudaStream_t stream) {
  const Layer::Direction weights = weights_of_all(layer, d);
  const int64_t hidden_size = layer.hidden_size;
  const at::Tensor input_gates = multiply(input_rows(layer), transposed(weights.weight_ih));
  const at::Tensor weight_hh = transposed(weights.weight_hh);
  at::Tensor hidden_gates = at::empty(layer.sizes_of_all({layer.batch, 3 * hidden_size}), layer.input.options());
  at::Tensor operand = h_n.select(-3, d);  // h_(t-1) as the matrix product takes it
  operand.copy_(of_all(layer, layer.hx, layer.strides.hx).select(-3, d));
  at::Tensor state = operand.to(compute_type(operand));  // the same tensor unless the type is a 16-bit one

  ForwardParams params = forward_params(layer, d, output, saved);
  params.h_n = operand.mutable_data_ptr();

  cuda::ForwardStep step;
  step.input_gates = input_gates.const_data_ptr();
  step.hidden_gates = hidden_gates.const_data_ptr();
  step.state = state.mutable_data_ptr();
  step.members = forward_members_of(layer, weights, input_gates, hidden_gates, state, operand, output, saved);
  for (int64_t s = 0; s < layer.seq_len; ++s) {
    step.time = params.rows.time_of(s, params.reverse);
    const int64_t batch = params.rows.batch_at(step.time);
    at::Tensor product = first_rows(hidden_gates, batch);
    multiply_into(product, first_rows(operand, batch), weight_hh);
    cuda::forward_cell(params, step, stream);
  }
}

// Columns [0, 3H) of the rows of d_gates that belong to the first sequences at `time`, as cuBLAS takes a matrix.
at::Tensor hidden_gradients_at(const at::Tensor& d_gates, const Rows& rows, int64_t time, int64_t batch) {
  const int64_t row_size = d_gates.size(-1);
  const int64_t stride = batch == 1 ? row_size : rows.batch_stride * row_size;
  c10::SmallVector<int64_t, 3> sizes{batch, row_size / 4 * 3}, strides{stride, 1};
  if (d_gates.dim() == 3) {
    sizes.insert(sizes.begin(), d_gates.size(0));
    strides.insert(strides.begin(), d_gates.stride(0));
  }
  const at::Tensor view = d_gates.as_strided(sizes, strides, rows.row(time, 0) * row_size);
  // cuBLAS holds the distance between rows in 32 bits, which one batch-first sequence may exceed.
  return stride > std::numeric_limits<int32_t>::max() ? view.contiguous() : view;
}

// The recurrence: fills d_gates and, where defined, grad_h0.
void backward_steps(const Layer& layer, int64_t d, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                    const at::Tensor& saved, at::Tensor& d_gates, at::Tensor& grad_h0, cudaStream_t stream) {
  const int64_t hidden_size = layer.hidden_size;
  const at::Tensor weight_hh = move_last_gate_first(weights_of_all(layer, d).weight_hh, -2, hidden_size);
  const auto compute = layer.input.options().dtype(compute_type(layer.input));
  const auto sizes = layer.sizes_of_all({layer.batch, hidden_size});
  at::Tensor carry =
      grad_h_n.defined() ? at::empty(sizes, compute).copy_(grad_h_n.select(-3, d)) : at::zeros(sizes, compute);
  at::Tensor product = at::empty(sizes, layer.input.options());

  const BackwardParams params = backward_params(layer, d, grad_output, saved, d_gates);

  cuda::BackwardStep step;
  step.carry = carry.mutable_data_ptr();
  step.product = product.const_data_ptr();
  if (layer.stacked) {
    step.members = {layer.members,       apart(layer, saved),   apart(layer, grad_output),
                    apart(layer, carry), apart(layer, product), apart(layer, d_gates)};
  }
  for (int64_t s = layer.seq_len - 1; s >= 0; --s) {
    step.time = params.rows.time_of(s, params.reverse);
    cuda::backward_cell(params, step, stream);
    // Only rows that a later step or grad_h0 reads: in the reverse direction sequences leave the batch on the way back.
    int64_t wanted = params.rows.batch_at(step.time);
    if (!grad_h0.defined()) {
      if (s == 0) break;
      wanted = std::min(wanted, params.rows.batch_at(params.rows.time_of(s - 1, params.reverse)));
    }
    at::Tensor part = first_rows(product, wanted);
    multiply_into(part, hidden_gradients_at(d_gates, params.rows, step.time, wanted), weight_hh);
    step.product_batch = wanted;
  }
  if (grad_h0.defined()) at::add_out(grad_h0, carry, product);
}

// ---------------------------------------------------------------------------------------------------------------------
// Gates from the states
// ---------------------------------------------------------------------------------------------------------------------

// All that forward would have kept, [D, rows, *], from the states [D, rows, H] that it did keep. Since all are known,
// the rows are independent: two products and the cell's kernel, as if they were the batch of one step.
at::Tensor regenerate(const Layer& layer, const at::Tensor& states, cudaStream_t stream) {
  const int64_t hidden_size = layer.hidden_size, directions = num_directions(layer);
  const auto options = layer.input.options();
  at::Tensor saved = at::empty(layer.sizes_of_all({directions, layer.rows, saved_row_cuda(layer)}), options);
  // So many rows at once that what lies between takes some 100 MB at most, or one row of each member.
  const int64_t at_once = std::clamp<int64_t>((int64_t{1} << 22) / hidden_size / layer.members, 1, layer.rows);
  for (int64_t d = 0; d < directions; ++d) {
    const Layer::Direction weights = weights_of_all(layer, d);
    for (int64_t first = 0; first < layer.rows; first += at_once) {
      const int64_t count = std::min(at_once, layer.rows - first);
      const at::Tensor before = states.select(-3, d).narrow(-2, first, count);
      const at::Tensor input_gates =
          multiply(input_rows(layer).narrow(-2, first, count), transposed(weights.weight_ih));
      const at::Tensor hidden_gates = multiply(before, transposed(weights.weight_hh));
      at::Tensor state = at::empty(before.sizes(), options.dtype(compute_type(before))).copy_(before);
      at::Tensor output = at::empty(before.sizes(), options);  // of no use, like the state after the kernel

      ForwardParams params;
      params.dtype = layer.dtype;
      params.rows = Rows{1, count, count, 1};
      params.hidden_size = hidden_size;
      params.bias_ih = data_or_null(weights.bias_ih);
      params.bias_hh = data_or_null(weights.bias_hh);
      params.output = output.mutable_data_ptr();
      params.output_stride = hidden_size;
      params.h_n = state.scalar_type() == output.scalar_type() ? state.mutable_data_ptr() : output.mutable_data_ptr();
      params.saved = saved.select(-3, d).narrow(-2, first, count).mutable_data_ptr();
      cuda::ForwardStep step;
      step.input_gates = input_gates.const_data_ptr();
      step.hidden_gates = hidden_gates.const_data_ptr();
      step.state = state.mutable_data_ptr();
      step.members = forward_members_of(layer, weights, input_gates, hidden_gates, state, output, output, saved);
      cuda::forward_cell(params, step, stream);
    }
  }
  return saved;
}

// ---------------------------------------------------------------------------------------------------------------------
// After the recurrence
// ---------------------------------------------------------------------------------------------------------------------

// The large products over all steps. Direction 1 adds to the gradient of the input, which direction 0 wrote.
void backward_products(const Layer& layer, int64_t d, const at::Tensor& d_gates, const at::Tensor& saved,
                       const LayerNeeds& needs, LayerGradients& gradients) {
  const int64_t hidden_size = layer.hidden_size;
  const at::Tensor d_input = d_gates.narrow(-1, hidden_size, 3 * hidden_size);  // r, z, n
  const at::Tensor d_hidden = d_gates.narrow(-1, 0, 3 * hidden_size);           // n, r, z
  const auto& [need_weight_ih, need_weight_hh, need_bias_ih, need_bias_hh] = needs.directions[d];
  Layer::Direction& gradient = gradients.directions[d];
  if (needs.input) {
    at::Tensor grad_input = input_rows(layer, gradients.input);
    const at::Tensor weight_ih = weights_of_all(layer, d).weight_ih;
    if (d == 0) {
      multiply_into(grad_input, d_input, weight_ih);
    } else if (layer.stacked) {
      at::baddbmm_out(grad_input, grad_input, d_input, weight_ih);
    } else {
      at::addmm_out(grad_input, grad_input, d_input, weight_ih);
    }
  }
  if (need_weight_ih) gradient.weight_ih = multiply(transposed(d_input), input_rows(layer));
  if (need_weight_hh) {
    const at::Tensor h_previous = saved.select(-3, d).narrow(-1, kSavedGates * padded_size(layer), hidden_size);
    gradient.weight_hh = move_first_gate_last(multiply(transposed(d_hidden), h_previous), -2, hidden_size);
  }
  if (need_bias_ih || need_bias_hh) {
    const int64_t begin = need_bias_hh ? 0 : hidden_size, end = need_bias_ih ? 4 * hidden_size : 3 * hidden_size;
    const at::Tensor sums = at::sum(d_gates.narrow(-1, begin, end - begin), at::IntArrayRef{-2});
    if (need_bias_ih) {
      gradient.bias_ih = sums.narrow(-1, hidden_size - begin, 3 * hidden_size).clone(at::MemoryFormat::Contiguous);
    }
    if (need_bias_hh) gradient.bias_hh = move_first_gate_last(sums.narrow(-1, 0, 3 * hidden_size), -1, hidden_size);
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Both directions
// ---------------------------------------------------------------------------------------------------------------------

void forward_cuda(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved) {
  const c10::cuda::CUDAGuard guard(layer.input.device());
  const cuda::Plan plan = plan_for(layer, cuda::Pass::Forward, saved.numel() != 0);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  name_range(range, "forward", layer, plan.kernel);
  if (layer.batch == 0) return;
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (plan.kernel != cuda::Kernel::Step) {
    if (!layer.stacked) return forward_stationary(layer, plan, output, h_n, saved, stream);
    for (int64_t m = 0; m < layer.members; ++m) {
      at::Tensor own_output = output.select(0, m), own_h_n = h_n.select(0, m);
      forward_stationary(layer.member(m), plan, own_output, own_h_n, saved.numel() == 0 ? saved : saved.select(0, m),
                         stream);
    }
    return;
  }
  for (int64_t d = 0; d < num_directions(layer); ++d) forward_step(layer, d, output, h_n, saved, stream);
}

LayerGradients backward_cuda(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                             const at::Tensor& saved, const LayerNeeds& needs) {
  const c10::cuda::CUDAGuard guard(layer.input.device());
  const cuda::Plan plan = plan_for(layer, cuda::Pass::Backward, true);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  name_range(range, "backward", layer, plan.kernel);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor grad_rows = grad_output.defined() ? grad_output.contiguous() : grad_output;
  at::Tensor saved_rows = saved.contiguous();
  // A user's hooks may have put it anywhere.
  if (reinterpret_cast<uintptr_t>(saved_rows.const_data_ptr()) % 16 != 0) saved_rows = saved_rows.clone();
  if (layer.stacked && saved.dim() == 3) saved_rows = saved_rows.unsqueeze(0).expand({layer.members, -1, -1, -1});
  if (holds_states(layer, saved_rows)) saved_rows = regenerate(layer, saved_rows, stream);
  const auto options = layer.input.options();

  LayerGradients gradients;
  gradients.directions.resize(layer.directions.size());
  if (needs.input) gradients.input = at::empty(layer.sizes_of_all(layer.input.sizes()), options);
  if (needs.hx) gradients.hx = at::empty(layer.sizes_of_all(layer.hx.sizes()), options);
  // Without a gradient of the input or hx a direction may want nothing at all.
  const auto wanted = [&](int64_t d) {
    const auto& of = needs.directions[d];
    return needs.input || needs.hx || std::any_of(of.begin(), of.end(), [](bool need) { return need; });
  };
  const auto empty_gates = [&] {
    return at::empty(layer.sizes_of_all({layer.rows, kGateGradients * layer.hidden_size}), options);
  };
  c10::SmallVector<at::Tensor, 2> d_gates(layer.directions.size());
  const bool step_by_step = plan.kernel == cuda::Kernel::Step;
  if (layer.batch != 0 && !step_by_step) {
    for (at::Tensor& of : d_gates) of = empty_gates();
    if (!layer.stacked)
      backward_stationary(layer, plan, grad_rows, grad_h_n, saved_rows, d_gates, gradients.hx, stream);
    for (int64_t m = 0; layer.stacked && m < layer.members; ++m) {
      const auto own = [m](const at::Tensor& all) { return all.defined() ? all.select(0, m) : all; };
      c10::SmallVector<at::Tensor, 2> own_gates;
      for (const at::Tensor& of : d_gates) own_gates.push_back(own(of));
      at::Tensor own_grad_hx = own(gradients.hx);
      backward_stationary(layer.member(m), plan, own(grad_rows), own(grad_h_n), own(saved_rows), own_gates, own_grad_hx,
                          stream);
    }
  }
  for (int64_t d = 0; d < num_directions(layer); ++d) {
    if (!wanted(d)) continue;
    if (!d_gates[d].defined()) d_gates[d] = empty_gates();
    if (layer.batch != 0 && step_by_step) {
      at::Tensor grad_h0 = needs.hx ? gradients.hx.select(-3, d) : at::Tensor();
      backward_steps(layer, d, grad_rows, grad_h_n, saved_rows, d_gates[d], grad_h0, stream);
    }
    backward_products(layer, d, d_gates[d], saved_rows, needs, gradients);
    d_gates[d].reset();
  }
  return gradients;
}

}  // namespace gru
