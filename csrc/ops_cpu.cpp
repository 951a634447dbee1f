// A layer on the CPU: parameters for the kernels, memory for what they write.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>
#include <ATen/record_function.h>
#include <c10/util/accumulate.h>

#include <exception>
#include <mutex>

#include "cpu/plan.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"
#include "ops.h"

namespace gru {

namespace {

// Opens a profiling range that names the path taken; costs next to nothing while no profiler listens.
void open_range(at::RecordFunction& range, const char* pass, const Layer& layer, const cpu::Plan& plan) {
  if (!range.isActive()) return;
  range.before(layer.range_name(pass, plan.target->name) + ", " + plan.division());
}

// apart: whether no direction adds to what another has written.
cpu::Plan plan_for(const Layer& layer, bool apart) {
  return cpu::make_plan(layer.seq_len, cpu::mean_batch(layer.rows, layer.seq_len), layer.input_size, layer.hidden_size,
                        layer.batch_sizes.defined(), apart ? static_cast<int>(layer.directions.size()) : 1,
                        at::get_num_threads());
}

// The passes of all directions, in turn or each on a thread of its own.
template <class Params>
void run(void (*pass)(const Params&, const cpu::Plan&), const c10::SmallVector<Params, 2>& directions,
         const cpu::Plan& plan) {
  if (!plan.directions_at_once) {
    for (const Params& params : directions) pass(params, plan);
    return;
  }
  std::mutex mutex;
  std::exception_ptr failure;  // no exception may leave a thread of the pool
  cpu::parallel(static_cast<int>(directions.size()), [&](int thread, int threads) {
    for (size_t d = static_cast<size_t>(thread); d < directions.size(); d += static_cast<size_t>(threads)) {
      try {
        pass(directions[d], plan);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        failure = std::current_exception();
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
}

const void* pointer(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

void advise_large_pages(const at::Tensor& tensor) { cpu::advise_large_pages(tensor.data_ptr(), tensor.nbytes()); }

at::Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor = at::detail::empty_cpu(sizes, options);
  advise_large_pages(tensor);
  return tensor;
}

bool states_only(const Layer& layer, const at::Tensor& saved) {
  return saved.dim() == 3 && saved.size(2) == layer.hidden_size;
}

// The element at this offset, to be written and to be read.
void* pointer_at(const at::Tensor& tensor, int64_t elements) {
  return static_cast<char*>(tensor.data_ptr()) + elements * tensor.element_size();
}
const void* const_pointer_at(const at::Tensor& tensor, int64_t elements) {
  return static_cast<const char*>(tensor.const_data_ptr()) + elements * tensor.element_size();
}

}  // namespace

at::Tensor empty_saved_cpu(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (bytes < cpu::kBlockBytes) return at::detail::empty_cpu(sizes, options);
  const cpu::Block block = cpu::take_block(bytes);
  return at::from_blob(block.data, sizes, [block](void*) { cpu::give_block(block); }, options);
}

void forward_cpu(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved) {
  const cpu::Plan plan = plan_for(layer, true);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  open_range(range, "forward", layer, plan);
  advise_large_pages(output);
  const int64_t directions = static_cast<int64_t>(layer.directions.size()), hidden = layer.hidden_size;
  c10::SmallVector<ForwardParams, 2> passes;
  for (int64_t d = 0; d < directions; ++d) {
    const Layer::Direction& weights = layer.directions[d];
    ForwardParams& params = passes.emplace_back();
    params.dtype = layer.dtype;
    params.rows = layer.row_map();
    params.input_size = layer.input_size;
    params.hidden_size = hidden;
    params.reverse = d == 1;
    params.input = pointer(layer.input);
    params.h0 = const_pointer_at(layer.hx, d * layer.batch * hidden);
    params.weight_ih = pointer(weights.weight_ih);
    params.weight_hh = pointer(weights.weight_hh);
    params.bias_ih = pointer(weights.bias_ih);
    params.bias_hh = pointer(weights.bias_hh);
    params.output = pointer_at(output, d * hidden);
    params.output_stride = directions * hidden;
    params.h_n = pointer_at(h_n, d * layer.batch * hidden);
    params.states_only = states_only(layer, saved);
    if (saved.dim() == 3) params.saved = pointer_at(saved, d * layer.rows * saved.size(2));
  }
  run(plan.target->forward, passes, plan);
}

LayerGradients backward_cpu(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                            const at::Tensor& saved, const LayerNeeds& needs) {
  // Both directions have a part in the gradient of the input. Its second part may wait in memory of its own where it is
  // as wide as its sums, so that adding it later gives the same bits.
  const bool wide = layer.dtype == DataType::Float32 || layer.dtype == DataType::Float64;
  const cpu::Plan plan = plan_for(layer, wide || !needs.input);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  open_range(range, "backward", layer, plan);
  const int64_t directions = static_cast<int64_t>(layer.directions.size()), hidden = layer.hidden_size;
  const auto options = layer.input.options();

  LayerGradients gradients;
  at::Tensor second_input;
  if (needs.hx) gradients.hx = at::detail::empty_cpu(layer.hx.sizes(), options);
  if (needs.input) gradients.input = fresh(layer.input.sizes(), options);
  if (needs.input && plan.directions_at_once) second_input = at::detail::empty_cpu(layer.input.sizes(), options);
  c10::SmallVector<BackwardParams, 2> passes;
  for (int64_t d = 0; d < directions; ++d) {
    const Layer::Direction& weights = layer.directions[d];
    Layer::Direction& gradient = gradients.directions.emplace_back();
    bool any = needs.input || needs.hx;
    const auto wanted = [&](bool needed, const at::Tensor& weight, at::Tensor& out) -> void* {
      if (!needed) return nullptr;
      any = true;
      out = fresh(weight.sizes(), options);
      return out.data_ptr();
    };
    BackwardParams params;
    params.dtype = layer.dtype;
    params.rows = layer.row_map();
    params.input_size = layer.input_size;
    params.hidden_size = hidden;
    params.reverse = d == 1;
    params.input = pointer(layer.input);
    params.weight_ih = pointer(weights.weight_ih);
    params.weight_hh = pointer(weights.weight_hh);
    params.bias_ih = pointer(weights.bias_ih);
    params.bias_hh = pointer(weights.bias_hh);
    params.states_only = states_only(layer, saved);
    params.saved = const_pointer_at(saved, d * layer.rows * saved.size(2));
    params.grad_output = grad_output.defined() ? const_pointer_at(grad_output, d * hidden) : nullptr;
    params.grad_output_stride = directions * hidden;
    params.grad_h_n = grad_h_n.defined() ? const_pointer_at(grad_h_n, d * layer.batch * hidden) : nullptr;
    params.grad_h0 = needs.hx ? pointer_at(gradients.hx, d * layer.batch * hidden) : nullptr;
    const bool second = d > 0 && second_input.defined();
    if (needs.input) params.grad_input = (second ? second_input : gradients.input).data_ptr();
    params.add_to_input = d > 0 && !second;
    params.grad_weight_ih = wanted(needs.directions[d][0], weights.weight_ih, gradient.weight_ih);
    params.grad_weight_hh = wanted(needs.directions[d][1], weights.weight_hh, gradient.weight_hh);
    params.grad_bias_ih = wanted(needs.directions[d][2], weights.bias_ih, gradient.bias_ih);
    params.grad_bias_hh = wanted(needs.directions[d][3], weights.bias_hh, gradient.bias_hh);
    if (any) passes.push_back(params);
  }
  run(plan.target->backward, passes, plan);
  if (second_input.defined()) gradients.input.add_(second_input);
  return gradients;
}

}  // namespace gru
