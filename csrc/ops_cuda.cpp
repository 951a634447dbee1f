// The operators on CUDA tensors: device, stream, buffers, the matrix products (ATen's, on the current stream) and the
// order of the steps. The kernels are behind csrc/cuda/step.h, the choice among them behind csrc/cuda/plan.h. Nothing
// here waits for the device or reads its memory, so every pass can be captured into a CUDA graph.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
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

#include "cuda/plan.h"
#include "cuda/step.h"
#include "ops.h"

namespace gru {

bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

namespace {

cuda::Plan plan_for(const Layer& layer, cuda::Pass pass, bool training) {
  const auto directions = static_cast<int>(layer.directions.size());
  return cuda::plan({layer.dtype, layer.seq_len, layer.batch, layer.input_size, layer.hidden_size, directions,
                     layer.batch_sizes.defined(), training, tf32_allowed()},
                    pass, cuda::current_device());
}

void name_range(at::RecordFunction& range, const char* pass, const Layer& layer, cuda::Kernel kernel) {
  if (!range.isActive()) return;
  range.before(layer.range_name(pass, cuda::name(kernel)));
}

int64_t num_directions(const Layer& layer) { return static_cast<int64_t>(layer.directions.size()); }

at::Tensor input_rows(const Layer& layer, const at::Tensor& tensor) {
  return tensor.view({layer.rows, layer.input_size});
}

at::ScalarType compute_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor first_rows(const at::Tensor& tensor, int64_t count) {
  return tensor.size(0) == count ? tensor : tensor.narrow(0, 0, count);
}

// Where the columns of direction d begin in a tensor [..., D*H]; null when it is undefined.
const void* columns(const at::Tensor& tensor, int64_t d, int64_t hidden_size) {
  return tensor.defined() ? tensor.narrow(-1, d * hidden_size, hidden_size).const_data_ptr() : nullptr;
}

const void* data_or_null(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

// Rows [H, 3H) and [0, H) of a [3H, ...] tensor in turn: from the order n, r, z to r, z, n. Always a new tensor.
at::Tensor move_first_gate_last(const at::Tensor& tensor, int64_t hidden_size) {
  return at::cat({tensor.narrow(0, hidden_size, 2 * hidden_size), tensor.narrow(0, 0, hidden_size)});
}

// Rows [2H, 3H) and [0, 2H): from r, z, n to n, r, z, the order of the first columns of d_gates.
at::Tensor move_last_gate_first(const at::Tensor& tensor, int64_t hidden_size) {
  return at::cat({tensor.narrow(0, 2 * hidden_size, hidden_size), tensor.narrow(0, 0, 2 * hidden_size)});
}

// Whether forward keeps, or has kept, the states alone.
bool holds_states(const Layer& layer, const at::Tensor& saved) { return saved.size(2) == layer.hidden_size; }

// What forward takes of one direction, beside its state.
ForwardParams forward_params(const Layer& layer, int64_t d, at::Tensor& output, const at::Tensor& saved) {
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
    params.saved = saved.select(0, d).mutable_data_ptr();
    params.states_only = holds_states(layer, saved);
  }
  return params;
}

// What the recurrence of backward takes of one direction, beside its state.
BackwardParams backward_params(const Layer& layer, int64_t d, const at::Tensor& grad_output, const at::Tensor& saved,
                               at::Tensor& d_gates) {
  BackwardParams params;
  params.dtype = layer.dtype;
  params.rows = layer.row_map();
  params.hidden_size = layer.hidden_size;
  params.reverse = d == 1;
  params.weight_hh = layer.directions[d].weight_hh.const_data_ptr();
  params.saved = saved.select(0, d).const_data_ptr();
  params.grad_output = columns(grad_output, d, layer.hidden_size);
  params.grad_output_stride = num_directions(layer) * layer.hidden_size;
  params.d_gates = d_gates.mutable_data_ptr();
  return params;
}

// ---------------------------------------------------------------------------------------------------------------------
// The step path, one direction
// ---------------------------------------------------------------------------------------------------------------------

void forward_step(const Layer& layer, int64_t d, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved,
                  cudaStream_t stream) {
  const Layer::Direction& weights = layer.directions[d];
  const int64_t hidden_size = layer.hidden_size;
  const at::Tensor input_gates = at::mm(input_rows(layer, layer.input), weights.weight_ih.t());
  const at::Tensor weight_hh = weights.weight_hh.t();
  at::Tensor hidden_gates = at::empty({layer.batch, 3 * hidden_size}, layer.input.options());
  at::Tensor operand = h_n.select(0, d);  // h_(t-1) as the matrix product takes it
  operand.copy_(layer.hx.select(0, d));
  at::Tensor state = operand.to(compute_type(operand));  // the same tensor unless the type is a 16-bit one

  ForwardParams params = forward_params(layer, d, output, saved);
  params.h_n = operand.mutable_data_ptr();

  cuda::ForwardStep step;
  step.input_gates = input_gates.const_data_ptr();
  step.hidden_gates = hidden_gates.const_data_ptr();
  step.state = state.mutable_data_ptr();
  for (int64_t s = 0; s < layer.seq_len; ++s) {
    step.time = params.rows.time_of(s, params.reverse);
    const int64_t batch = params.rows.batch_at(step.time);
    at::Tensor product = first_rows(hidden_gates, batch);
    at::mm_out(product, first_rows(operand, batch), weight_hh);
    cuda::forward_cell(params, step, stream);
  }
}

// Columns [0, 3H) of the rows of d_gates that belong to the first sequences at `time`, as cuBLAS takes a matrix.
at::Tensor hidden_gradients_at(const at::Tensor& d_gates, const Rows& rows, int64_t time, int64_t batch) {
  const int64_t row_size = d_gates.size(1);
  const int64_t stride = batch == 1 ? row_size : rows.batch_stride * row_size;
  const at::Tensor view = d_gates.as_strided({batch, row_size / 4 * 3}, {stride, 1}, rows.row(time, 0) * row_size);
  // cuBLAS holds the distance between rows in 32 bits, which one batch-first sequence may exceed.
  return stride > std::numeric_limits<int32_t>::max() ? view.contiguous() : view;
}

// The recurrence: fills d_gates and, where defined, grad_h0.
void backward_steps(const Layer& layer, int64_t d, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                    const at::Tensor& saved, at::Tensor& d_gates, at::Tensor& grad_h0, cudaStream_t stream) {
  const int64_t hidden_size = layer.hidden_size;
  const at::Tensor weight_hh = move_last_gate_first(layer.directions[d].weight_hh, hidden_size);
  const auto compute = layer.input.options().dtype(compute_type(layer.input));
  at::Tensor carry = grad_h_n.defined() ? at::empty({layer.batch, hidden_size}, compute).copy_(grad_h_n.select(0, d))
                                        : at::zeros({layer.batch, hidden_size}, compute);
  at::Tensor product = at::empty({layer.batch, hidden_size}, layer.input.options());

  const BackwardParams params = backward_params(layer, d, grad_output, saved, d_gates);

  cuda::BackwardStep step;
  step.carry = carry.mutable_data_ptr();
  step.product = product.const_data_ptr();
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
    at::mm_out(part, hidden_gradients_at(d_gates, params.rows, step.time, wanted), weight_hh);
    step.product_batch = wanted;
  }
  if (grad_h0.defined()) at::add_out(grad_h0, carry, product);
}

// ---------------------------------------------------------------------------------------------------------------------
// Stationary weights, all directions
// ---------------------------------------------------------------------------------------------------------------------

// Batch sizes in the GPU's memory; undefined unless the input is packed.
at::Tensor batch_sizes_there(const Layer& layer, cudaStream_t stream) {
  if (!layer.batch_sizes.defined()) return {};
  at::Tensor sizes = at::empty({layer.seq_len}, layer.input.options().dtype(at::kInt));
  cuda::write_sizes(layer.batch_sizes.const_data_ptr<int64_t>(), layer.seq_len, sizes.mutable_data_ptr<int32_t>(),
                    stream);
  return sizes;
}

// Calls run(first direction, how many, what they take besides) once for both directions or once for each.
template <class Run>
void run_stationary(const Layer& layer, const cuda::Plan& plan, int64_t exchange_words, cudaStream_t stream,
                    Run&& run) {
  const at::Tensor sizes = batch_sizes_there(layer, stream);
  const int64_t at_once = plan.together ? num_directions(layer) : 1;
  for (int64_t d = 0; d < num_directions(layer); d += at_once) {
    at::Tensor exchange;
    if (exchange_words != 0) exchange = at::zeros({at_once * exchange_words}, layer.input.options().dtype(at::kLong));
    cuda::StationarySequence sequence;
    if (sizes.defined()) sequence.batch_sizes = sizes.const_data_ptr<int32_t>();
    sequence.rows = layer.rows;
    if (exchange.defined()) sequence.exchange = reinterpret_cast<uint64_t*>(exchange.mutable_data_ptr<int64_t>());
    run(d, static_cast<int>(at_once), sequence);
  }
}

void forward_stationary(const Layer& layer, const cuda::Plan& plan, at::Tensor& output, at::Tensor& h_n,
                        const at::Tensor& saved, cudaStream_t stream) {
  c10::SmallVector<at::Tensor, 2> input_gates;
  c10::SmallVector<const void*, 2> gates;
  c10::SmallVector<ForwardParams, 2> params;
  for (int64_t d = 0; d < num_directions(layer); ++d) {
    input_gates.push_back(at::mm(input_rows(layer, layer.input), layer.directions[d].weight_ih.t()));
    gates.push_back(input_gates.back().const_data_ptr());
    params.push_back(forward_params(layer, d, output, saved));
    params.back().h0 = layer.hx.select(0, d).const_data_ptr();
    params.back().h_n = h_n.select(0, d).mutable_data_ptr();
  }
  run_stationary(layer, plan, cuda::forward_exchange_words(plan.partition, layer.input.element_size()), stream,
                 [&](int64_t d, int count, const cuda::StationarySequence& sequence) {
                   cuda::forward_stationary(plan.partition, &params[d], count, &gates[d], sequence, stream);
                 });
}

// Fills the d_gates of each direction and, where defined, grad_hx.
void backward_stationary(const Layer& layer, const cuda::Plan& plan, const at::Tensor& grad_output,
                         const at::Tensor& grad_h_n, const at::Tensor& saved, c10::SmallVector<at::Tensor, 2>& d_gates,
                         at::Tensor& grad_hx, cudaStream_t stream) {
  c10::SmallVector<BackwardParams, 2> params;
  for (int64_t d = 0; d < num_directions(layer); ++d) {
    params.push_back(backward_params(layer, d, grad_output, saved, d_gates[d]));
    if (grad_h_n.defined()) params.back().grad_h_n = grad_h_n.select(0, d).const_data_ptr();
    if (grad_hx.defined()) params.back().grad_h0 = grad_hx.select(0, d).mutable_data_ptr();
  }
  run_stationary(layer, plan, cuda::backward_exchange_words(plan.partition, layer.input.element_size()), stream,
                 [&](int64_t d, int count, const cuda::StationarySequence& sequence) {
                   cuda::backward_stationary(plan.partition, &params[d], count, sequence, stream);
                 });
}

// ---------------------------------------------------------------------------------------------------------------------
// Gates from the states
// ---------------------------------------------------------------------------------------------------------------------

// All that forward would have kept, [D, rows, 5H], from the states [D, rows, H] that it did keep. Since all are known,
// the rows are independent: two products and the cell's kernel, as if they were the batch of one step.
at::Tensor regenerate(const Layer& layer, const at::Tensor& states, cudaStream_t stream) {
  const int64_t hidden_size = layer.hidden_size, directions = num_directions(layer);
  const auto options = layer.input.options();
  at::Tensor saved = at::empty({directions, layer.rows, kSavedValues * hidden_size}, options);
  // So many rows at once that what lies between takes some 100 MB at most, or one row.
  const int64_t at_once = std::clamp<int64_t>((int64_t{1} << 22) / hidden_size, 1, layer.rows);
  for (int64_t d = 0; d < directions; ++d) {
    const Layer::Direction& weights = layer.directions[d];
    for (int64_t first = 0; first < layer.rows; first += at_once) {
      const int64_t count = std::min(at_once, layer.rows - first);
      const at::Tensor before = states.select(0, d).narrow(0, first, count);
      const at::Tensor input_gates =
          at::mm(input_rows(layer, layer.input).narrow(0, first, count), weights.weight_ih.t());
      const at::Tensor hidden_gates = at::mm(before, weights.weight_hh.t());
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
      params.saved = saved.select(0, d).narrow(0, first, count).mutable_data_ptr();
      cuda::ForwardStep step;
      step.input_gates = input_gates.const_data_ptr();
      step.hidden_gates = hidden_gates.const_data_ptr();
      step.state = state.mutable_data_ptr();
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
  const at::Tensor d_input = d_gates.narrow(1, hidden_size, 3 * hidden_size);  // r, z, n
  const at::Tensor d_hidden = d_gates.narrow(1, 0, 3 * hidden_size);           // n, r, z
  const auto& [need_weight_ih, need_weight_hh, need_bias_ih, need_bias_hh] = needs.directions[d];
  Layer::Direction& gradient = gradients.directions[d];
  if (needs.input) {
    at::Tensor grad_input = input_rows(layer, gradients.input);
    if (d == 0) {
      at::mm_out(grad_input, d_input, layer.directions[d].weight_ih);
    } else {
      at::addmm_out(grad_input, grad_input, d_input, layer.directions[d].weight_ih);
    }
  }
  if (need_weight_ih) gradient.weight_ih = at::mm(d_input.t(), input_rows(layer, layer.input));
  if (need_weight_hh) {
    const at::Tensor h_previous = saved.select(0, d).narrow(1, 4 * hidden_size, hidden_size);
    gradient.weight_hh = move_first_gate_last(at::mm(d_hidden.t(), h_previous), hidden_size);
  }
  if (need_bias_ih || need_bias_hh) {
    const int64_t begin = need_bias_hh ? 0 : hidden_size, end = need_bias_ih ? 4 * hidden_size : 3 * hidden_size;
    const at::Tensor sums = at::sum(d_gates.narrow(1, begin, end - begin), at::IntArrayRef{0});
    if (need_bias_ih) gradient.bias_ih = sums.narrow(0, hidden_size - begin, 3 * hidden_size).clone();
    if (need_bias_hh) gradient.bias_hh = move_first_gate_last(sums.narrow(0, 0, 3 * hidden_size), hidden_size);
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
  if (plan.kernel != cuda::Kernel::Step) return forward_stationary(layer, plan, output, h_n, saved, stream);
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
  const at::Tensor saved_rows =
      holds_states(layer, saved) ? regenerate(layer, saved.contiguous(), stream) : saved.contiguous();
  const auto options = layer.input.options();

  LayerGradients gradients;
  gradients.directions.resize(layer.directions.size());
  if (needs.input) gradients.input = at::empty(layer.input.sizes(), options);
  if (needs.hx) gradients.hx = at::empty(layer.hx.sizes(), options);
  // Without a gradient of the input or hx a direction may want nothing at all.
  const auto wanted = [&](int64_t d) {
    const auto& of = needs.directions[d];
    return needs.input || needs.hx || std::any_of(of.begin(), of.end(), [](bool need) { return need; });
  };
  const auto empty_gates = [&] { return at::empty({layer.rows, kGateGradients * layer.hidden_size}, options); };
  c10::SmallVector<at::Tensor, 2> d_gates(layer.directions.size());
  const bool step_by_step = plan.kernel == cuda::Kernel::Step;
  if (layer.batch != 0 && !step_by_step) {
    for (at::Tensor& of : d_gates) of = empty_gates();
    backward_stationary(layer, plan, grad_rows, grad_h_n, saved_rows, d_gates, gradients.hx, stream);
  }
  for (int64_t d = 0; d < num_directions(layer); ++d) {
    if (!wanted(d)) continue;
    if (!d_gates[d].defined()) d_gates[d] = empty_gates();
    if (layer.batch != 0 && step_by_step) {
      at::Tensor grad_h0 = needs.hx ? gradients.hx.select(0, d) : at::Tensor();
      backward_steps(layer, d, grad_rows, grad_h_n, saved_rows, d_gates[d], grad_h0, stream);
    }
    backward_products(layer, d, d_gates[d], saved_rows, needs, gradients);
    d_gates[d].reset();
  }
  return gradients;
}

}  // namespace gru
