// A layer on the CPU: parameters for the kernels, and after the backward recurrence the large products, which are ATen's.
#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/record_function.h>

#include "cpu/plan.h"
#include "ops.h"

namespace gru {

namespace {

// Opens a profiling range that names the path taken; costs next to nothing while no profiler listens.
void open_range(at::RecordFunction& range, const char* pass, const Layer& layer, const cpu::Plan& plan) {
  if (!range.isActive()) return;
  range.before(std::string("gru_ext::") + pass + " " + plan.words() + ", " + c10::toString(layer.input.scalar_type()) +
               " H=" + std::to_string(layer.hidden_size));
}

cpu::Plan plan_for(const Layer& layer) {
  return cpu::make_plan(layer.seq_len, (layer.rows + layer.seq_len - 1) / layer.seq_len, layer.input_size,
                        layer.hidden_size, at::get_num_threads());
}

const void* pointer(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

// Element offset into a tensor written by a kernel.
void* moved(const at::Tensor& tensor, int64_t elements) {
  return static_cast<char*>(tensor.data_ptr()) + elements * tensor.element_size();
}
const void* moved_const(const at::Tensor& tensor, int64_t elements) {
  return static_cast<const char*>(tensor.const_data_ptr()) + elements * tensor.element_size();
}

// d_gates and the rows they meet in dW_hh = d_gates^T h_(t-1): the state before each step, in up to two pieces.
struct HiddenPieces {
  std::vector<std::pair<at::Tensor, at::Tensor>> pieces;  // (rows of d_gates, rows of h)
};

HiddenPieces hidden_pieces(const Layer& layer, bool reverse, const at::Tensor& d_gates, const at::Tensor& output_rows,
                           const at::Tensor& h0, const at::Tensor& h_previous) {
  if (h_previous.defined()) return {{{d_gates, h_previous}}};
  // Time-major: h_(t-1) is the output one step away, and h0 at the first step.
  const int64_t batch = layer.batch, rest = layer.rows - batch;
  HiddenPieces result{{{d_gates.narrow(0, reverse ? rest : 0, batch), h0}}};
  if (rest > 0)
    result.pieces.emplace_back(d_gates.narrow(0, reverse ? 0 : batch, rest),
                               output_rows.narrow(0, reverse ? batch : 0, rest));
  return result;
}

}  // namespace

void forward_cpu(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved) {
  const cpu::Plan plan = plan_for(layer);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  open_range(range, "forward", layer, plan);
  const int64_t directions = static_cast<int64_t>(layer.directions.size()), hidden = layer.hidden_size;
  for (int64_t d = 0; d < directions; ++d) {
    const Layer::Direction& weights = layer.directions[d];
    ForwardParams params;
    params.dtype = layer.dtype;
    params.rows = layer.row_map();
    params.input_size = layer.input_size;
    params.hidden_size = hidden;
    params.reverse = d == 1;
    params.input = pointer(layer.input);
    params.h0 = moved_const(layer.hx, d * layer.batch * hidden);
    params.weight_ih = pointer(weights.weight_ih);
    params.weight_hh = pointer(weights.weight_hh);
    params.bias_ih = pointer(weights.bias_ih);
    params.bias_hh = pointer(weights.bias_hh);
    params.output = moved(output, d * hidden);
    params.output_stride = directions * hidden;
    params.h_n = moved(h_n, d * layer.batch * hidden);
    if (saved.dim() == 3) params.saved = moved(saved, d * layer.rows * kSavedGates * hidden);
    plan.target->forward(params, plan);
  }
}

LayerGradients backward_cpu(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                            const at::Tensor& output, const at::Tensor& saved, const LayerNeeds& needs) {
  const cpu::Plan plan = plan_for(layer);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  open_range(range, "backward", layer, plan);
  const int64_t directions = static_cast<int64_t>(layer.directions.size()), hidden = layer.hidden_size;
  // ATen has no fast float16 product on most CPUs: these go through float32, whose products are also more exact.
  const at::ScalarType wide = layer.dtype == DataType::Float16 ? at::kFloat : layer.input.scalar_type();
  const at::ScalarType narrow = layer.input.scalar_type();
  const auto options = layer.input.options();
  const at::Tensor input_rows = layer.input.view({layer.rows, layer.input_size});
  const at::Tensor output_rows = output.view({layer.rows, directions * hidden});

  LayerGradients gradients;
  if (needs.hx) gradients.hx = at::empty(layer.hx.sizes(), options);
  at::Tensor grad_input;
  for (int64_t d = 0; d < directions; ++d) {
    const Layer::Direction& weights = layer.directions[d];
    const auto& [needs_weight_ih, needs_weight_hh, needs_bias_ih, needs_bias_hh] = needs.directions[d];
    Layer::Direction& gradient = gradients.directions.emplace_back();
    const bool needs_gates =
        needs.input || needs_weight_ih || needs_weight_hh || needs_bias_ih || needs_bias_hh || needs.hx;
    if (!needs_gates) continue;

    const at::Tensor d_gates = at::empty({layer.rows, kSavedGates * hidden}, options.dtype(wide));
    const bool time_major = !layer.batch_first && !layer.batch_sizes.defined();
    at::Tensor h_previous;
    if (needs_weight_hh && !time_major) h_previous = at::empty({layer.rows, hidden}, options);
    BackwardParams params;
    params.dtype = layer.dtype;
    params.rows = layer.row_map();
    params.hidden_size = hidden;
    params.reverse = d == 1;
    params.weight_hh = pointer(weights.weight_hh);
    params.h0 = moved_const(layer.hx, d * layer.batch * hidden);
    params.output = moved_const(output, d * hidden);
    params.output_stride = directions * hidden;
    params.saved = moved_const(saved, d * layer.rows * kSavedGates * hidden);
    params.grad_output = grad_output.defined() ? moved_const(grad_output, d * hidden) : nullptr;
    params.grad_output_stride = directions * hidden;
    params.grad_h_n = grad_h_n.defined() ? moved_const(grad_h_n, d * layer.batch * hidden) : nullptr;
    params.d_gates = d_gates.data_ptr();
    params.h_previous = h_previous.defined() ? h_previous.data_ptr() : nullptr;
    params.grad_h0 = needs.hx ? moved(gradients.hx, d * layer.batch * hidden) : nullptr;
    plan.target->backward(params, plan);

    const at::Tensor d_input_gates = d_gates.narrow(1, hidden, 3 * hidden);
    if (needs.input) {
      const at::Tensor weight = weights.weight_ih.to(wide);
      if (grad_input.defined())
        grad_input.addmm_(d_input_gates, weight);
      else
        grad_input = at::mm(d_input_gates, weight);
    }
    if (needs_weight_ih) gradient.weight_ih = at::mm(d_input_gates.t(), input_rows.to(wide)).to(narrow);
    if (needs_weight_hh) {
      const at::Tensor weight = at::empty({3 * hidden, hidden}, options.dtype(wide));
      at::Tensor r_and_z = weight.narrow(0, 0, 2 * hidden), n = weight.narrow(0, 2 * hidden, hidden);
      bool first = true;
      for (const auto& [rows, h] : hidden_pieces(layer, params.reverse, d_gates, output_rows.narrow(1, d * hidden, hidden),
                                                 layer.hx.select(0, d), h_previous)
                                       .pieces) {
        const at::Tensor states = h.to(wide);
        const double keep = first ? 0 : 1;
        r_and_z.addmm_(rows.narrow(1, hidden, 2 * hidden).t(), states, keep);
        n.addmm_(rows.narrow(1, 0, hidden).t(), states, keep);
        first = false;
      }
      gradient.weight_hh = weight.to(narrow);
    }
    if (needs_bias_ih || needs_bias_hh) {
      const at::Tensor sums = d_gates.sum(0).to(narrow);
      // Copies: an output that is part of another would keep all of it alive.
      if (needs_bias_ih) gradient.bias_ih = sums.narrow(0, hidden, 3 * hidden).clone();
      if (needs_bias_hh) gradient.bias_hh = at::cat({sums.narrow(0, hidden, 2 * hidden), sums.narrow(0, 0, hidden)});
    }
  }
  if (needs.input) gradients.input = grad_input.to(narrow).view(layer.input.sizes());
  return gradients;
}

}  // namespace gru
