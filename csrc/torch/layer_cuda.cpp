// The operators on CUDA tensors: device, stream, buffers, the matrix products (ATen's, on the current stream) and the
// order of the steps. The kernels are behind csrc/cuda/step.h, the choice among them behind csrc/cuda/plan.h. Nothing
// here waits for the device or reads its memory, so every pass can be captured into a CUDA graph.
//
// An ensemble goes step by step as one layer does: its tensors have a first dimension more, which is why dimensions are
// counted from the last here, each product is one batched product, and the cell's kernel takes all members. Kernels
// with stationary weights take its members in turn.
#include "layer_cuda.h"

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <limits>
#include <string>

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

cuda::Plan plan_for(const Layer& layer, Pass pass, bool training) {
  std::optional<cuda::Kernel> kernel;
  if (layer.options.stationary != Options::kAny)
    kernel = layer.options.stationary == 1 ? cuda::Kernel::Stationary : cuda::Kernel::Step;
  const auto directions = static_cast<int>(layer.directions());
  return cuda::plan({layer.dtype, layer.seq_len, layer.batch, layer.input_size, layer.hidden_size, directions,
                     layer.batch_sizes.defined(), training, tf32_allowed(), library_tf32_allowed()},
                    pass, cuda::device_at(layer.input.get_device()), kernel);
}

void name_range(at::RecordFunction& range, const char* pass, const Layer& layer, const cuda::Plan& plan) {
  if (!range.isActive()) return;
  range.before(layer.range_name(pass, plan.path()));
}

at::Tensor first_rows(const at::Tensor& tensor, int64_t count) {
  return tensor.size(-2) == count ? tensor : tensor.narrow(-2, 0, count);
}

// Parts [2H, 3H) and [0, 2H): from r, z, n to n, r, z, the order of the first columns of d_gates.
at::Tensor move_last_gate_first(const at::Tensor& tensor, int64_t dim, int64_t hidden_size) {
  return at::cat({tensor.narrow(dim, 2 * hidden_size, hidden_size), tensor.narrow(dim, 0, 2 * hidden_size)}, dim);
}

// What is saved with its rows in one dimension, [D, rows, *], and before it the members.
at::Tensor saved_rows_of(const Layer& layer, const at::Tensor& saved) {
  const at::IntArrayRef input = layer.input.sizes();
  c10::SmallVector<int64_t, 4> sizes(saved.sizes().begin(), saved.sizes().end() - static_cast<int64_t>(input.size()));
  sizes.append({layer.rows, saved.size(-1)});
  return saved.view(sizes);
}

// ---------------------------------------------------------------------------------------------------------------------
// The step path, one direction
// ---------------------------------------------------------------------------------------------------------------------

void forward_step(const Layer& layer, int64_t d, const at::Tensor& hx, const at::Tensor& marks, at::Tensor& output,
                  at::Tensor& h_n, const at::Tensor& saved, cudaStream_t stream) {
  const Weights weights = weights_of_all(layer, d);
  const int64_t hidden_size = layer.hidden_size;
  const at::Tensor input_gates = multiply(input_rows(layer), transposed(weights[kWeightIh]));
  const at::Tensor weight_hh = transposed(weights[kWeightHh]);
  at::Tensor hidden_gates = at::empty(layer.sizes_of_all({layer.batch, 3 * hidden_size}), layer.input.options());
  at::Tensor operand = h_n.select(-3, d);  // h_(t-1) as the matrix product takes it
  operand.copy_(hx.select(-3, d));
  at::Tensor state = operand.to(compute_type(operand));  // the same tensor unless the type is a 16-bit one

  ForwardParams params = forward_params(layer, d, output, saved, marks);
  params.h_n = operand.mutable_data_ptr();

  cuda::ForwardStep step;
  step.input_gates = input_gates.const_data_ptr();
  step.hidden_gates = hidden_gates.const_data_ptr();
  step.state = state.mutable_data_ptr();
  step.members = forward_members_of(layer, weights, input_gates, hidden_gates, state, operand, output, saved, marks);
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

// The recurrence: fills d_gates and, where defined, grad_h0 and, at resets, grad_reset_state.
void backward_steps(const Layer& layer, int64_t d, const at::Tensor& marks, const at::Tensor& grad_output,
                    const at::Tensor& grad_h_n, const at::Tensor& saved, at::Tensor& d_gates, at::Tensor& grad_h0,
                    const at::Tensor& grad_reset_state, cudaStream_t stream) {
  const int64_t hidden_size = layer.hidden_size;
  const at::Tensor weight_hh = move_last_gate_first(weights_of_all(layer, d)[kWeightHh], -2, hidden_size);
  const auto compute = layer.input.options().dtype(compute_type(layer.input));
  const auto sizes = layer.sizes_of_all({layer.batch, hidden_size});
  at::Tensor carry =
      grad_h_n.defined() ? at::empty(sizes, compute).copy_(grad_h_n.select(-3, d)) : at::zeros(sizes, compute);
  at::Tensor product = at::empty(sizes, layer.input.options());

  const BackwardParams params = backward_params(layer, d, grad_output, saved, marks, grad_reset_state);

  cuda::BackwardStep step;
  step.carry = carry.mutable_data_ptr();
  step.product = product.const_data_ptr();
  step.d_gates = d_gates.mutable_data_ptr();
  if (layer.stacked) {
    step.members = {layer.members,       apart(layer, saved),           apart(layer, grad_output),
                    apart(layer, carry), apart(layer, product),         apart(layer, d_gates),
                    apart(layer, marks), apart(layer, grad_reset_state)};
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

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Both directions
// ---------------------------------------------------------------------------------------------------------------------

void forward_cuda(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved) {
  const c10::cuda::CUDAGuard guard(layer.input.device());
  const cuda::Plan plan = plan_for(layer, Pass::Forward, saved.defined());
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  name_range(range, "forward", layer, plan);
  if (layer.batch == 0) return;
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor saved_rows = saved.defined() ? saved_rows_of(layer, saved) : saved;
  const at::Tensor hx = first_states(layer), marks = marks_of(layer, stream);
  clear_padding(layer, marks, output.view(layer.sizes_of_all({layer.rows, output.size(-1)})), stream);
  if (saved.defined()) {  // of padding the states alone are read, for the gradient of W_hh
    const int64_t states = layer.options.recompute ? 0 : kSavedGates * padded_size(layer);
    clear_padding(layer, marks, saved_rows.narrow(-1, states, saved_rows.size(-1) - states), stream);
  }
  if (plan.kernel == cuda::Kernel::Step) {
    for (int64_t d = 0; d < layer.directions(); ++d) forward_step(layer, d, hx, marks, output, h_n, saved_rows, stream);
    return;
  }
  if (!layer.stacked) return forward_stationary(layer, plan, hx, marks, output, h_n, saved_rows, stream);
  for (int64_t m = 0; m < layer.members; ++m) {
    const auto own = [m](const at::Tensor& all) { return all.defined() ? all.select(0, m) : all; };
    at::Tensor own_output = own(output), own_h_n = own(h_n);
    forward_stationary(layer.member(m), plan, own(hx), own(marks), own_output, own_h_n, own(saved_rows), stream);
  }
}

Gradients backward_cuda(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                        const at::Tensor& saved, const Needs& needs) {
  const c10::cuda::CUDAGuard guard(layer.input.device());
  const cuda::Plan plan = plan_for(layer, Pass::Backward, true);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  name_range(range, "backward", layer, plan);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor grad_rows = grad_output.defined() ? grad_output.contiguous() : grad_output;
  at::Tensor saved_rows = saved_rows_of(layer, saved.contiguous());
  // A user's hooks may have put it anywhere.
  if (reinterpret_cast<uintptr_t>(saved_rows.const_data_ptr()) % 16 != 0) saved_rows = saved_rows.clone();
  if (layer.stacked && saved_rows.dim() == 3) saved_rows = saved_rows.unsqueeze(0).expand({layer.members, -1, -1, -1});
  if (layer.options.recompute) saved_rows = recompute(layer, saved_rows, stream);
  const at::Tensor marks = marks_of(layer, stream);
  const auto options = layer.input.options();

  Gradients gradients;
  gradients.weights.resize(layer.weights.size());
  if (needs.input) gradients.input = at::empty(layer.sizes_of_all(layer.input.sizes()), options);
  at::Tensor grad_hx, grad_resets;  // a reset before forward's first step finds its gradient in grad_hx
  if (needs.hx || needs.reset_state) grad_hx = at::empty(layer.sizes_of_all(layer.state_sizes()), options);
  if (needs.reset_state) {
    gradients.reset_state = at::zeros(layer.sizes_of_all(layer.reset_sizes()), options);
    grad_resets = gradients.reset_state.view(layer.sizes_of_all({layer.directions(), layer.rows, layer.hidden_size}));
  }
  // Without a gradient of the input or a state a direction may want nothing at all.
  const auto wanted = [&](int64_t d) {
    const auto& of = needs.weights[d];
    return needs.input || grad_hx.defined() || std::any_of(of.begin(), of.end(), [](bool need) { return need; });
  };
  const auto new_gates = [&] {
    const int64_t columns = kGateGradients * layer.hidden_size;
    const at::Tensor gates = at::empty(layer.sizes_of_all({layer.rows, columns}), options);
    clear_padding(layer, marks, gates, stream);
    return gates;
  };
  // The gradients of padding's gates are zero, but zero times a NaN in the padding of the input would not be. Where it
  // begins the host does not know: of an input with lengths the product with it takes a copy.
  at::Tensor input = input_rows(layer);
  const bool need_weight_ih =
      std::any_of(needs.weights.begin(), needs.weights.end(), [](const ByRole<bool>& need) { return need[kWeightIh]; });
  if (layer.lengths.defined() && need_weight_ih) {
    input = input.clone(at::MemoryFormat::Contiguous);
    clear_padding(layer, marks, input, stream);
  }
  c10::SmallVector<at::Tensor, 2> d_gates(layer.weights.size());
  const bool step_by_step = plan.kernel == cuda::Kernel::Step;
  if (layer.batch != 0 && !step_by_step) {
    for (at::Tensor& of : d_gates) of = new_gates();
    if (!layer.stacked)
      backward_stationary(layer, plan, marks, grad_rows, grad_h_n, saved_rows, d_gates, grad_hx, grad_resets, stream);
    for (int64_t m = 0; layer.stacked && m < layer.members; ++m) {
      const auto own = [m](const at::Tensor& all) { return all.defined() ? all.select(0, m) : all; };
      c10::SmallVector<at::Tensor, 2> own_gates;
      for (const at::Tensor& of : d_gates) own_gates.push_back(own(of));
      at::Tensor own_grad_hx = own(grad_hx);
      backward_stationary(layer.member(m), plan, own(marks), own(grad_rows), own(grad_h_n), own(saved_rows), own_gates,
                          own_grad_hx, own(grad_resets), stream);
    }
  }
  for (int64_t d = 0; d < layer.directions(); ++d) {
    if (!wanted(d)) continue;
    if (!d_gates[d].defined()) d_gates[d] = new_gates();
    if (layer.batch != 0 && step_by_step) {
      at::Tensor grad_h0 = grad_hx.defined() ? grad_hx.select(-3, d) : at::Tensor();
      backward_steps(layer, d, marks, grad_rows, grad_h_n, saved_rows, d_gates[d], grad_h0, grad_resets, stream);
    }
    add_gradients(layer, d, input, d_gates[d], saved_rows, needs, gradients);
    d_gates[d].reset();
  }
  if (needs.input) clear_padding(layer, marks, input_rows(layer, gradients.input), stream);
  if (grad_hx.defined()) hand_on_first_gradient(layer, grad_hx, gradients.reset_state);
  if (needs.hx) gradients.hx = grad_hx;
  return gradients;
}

}  // namespace gru
