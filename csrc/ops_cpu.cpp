// A layer on the CPU: parameters for the kernels, and after the backward recurrence the large products.
#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>

#include "cpu/plan.h"
#include "cpu/workspace.h"
#include "ops.h"

namespace gru {

namespace {

// Opens a profiling range that names the path taken; costs next to nothing while no profiler listens.
void open_range(at::RecordFunction& range, const char* pass, const Layer& layer, const cpu::Plan& plan) {
  if (!range.isActive()) return;
  range.before(std::string("gru_ext::") + pass + " " + plan.words() + ", " + name(layer.dtype) +
               " H=" + std::to_string(layer.hidden_size));
}

cpu::Plan plan_for(const Layer& layer) {
  return cpu::make_plan(layer.seq_len, (layer.rows + layer.seq_len - 1) / layer.seq_len, layer.input_size,
                        layer.hidden_size, layer.batch_sizes.defined(), at::get_num_threads());
}

const void* pointer(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

void advise_large_pages(const at::Tensor& tensor) { cpu::advise_large_pages(tensor.data_ptr(), tensor.nbytes()); }

at::Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(sizes, options);
  advise_large_pages(tensor);
  return tensor;
}

// The element at this offset, to be written and to be read.
void* pointer_at(const at::Tensor& tensor, int64_t elements) {
  return static_cast<char*>(tensor.data_ptr()) + elements * tensor.element_size();
}
const void* const_pointer_at(const at::Tensor& tensor, int64_t elements) {
  return static_cast<const char*>(tensor.const_data_ptr()) + elements * tensor.element_size();
}

// One pass's large products: C = A B with A taken from d_gates.
class Products {
 public:
  Products(const Layer& layer, const cpu::Plan& plan, const at::Tensor& d_gates)
      : layer_(layer), plan_(plan), d_gates_(d_gates), row_(kGateGradients * layer.hidden_size) {}

  // c [rows, n] (+)= d_gates[:, column : column + k] b, b [k, n]
  void times(int64_t column, const at::Tensor& b, const at::Tensor& c, bool accumulate) const {
    run(layer_.rows, b.size(1), b.size(0), const_pointer_at(d_gates_, column), row_, 1, b, c, accumulate);
  }

  // c [m, n] = d_gates[:, column : column + m]^T b, b [rows, n]
  void transposed_times(int64_t column, const at::Tensor& b, const at::Tensor& c) const {
    run(c.size(0), c.size(1), b.size(0), const_pointer_at(d_gates_, column), 1, row_, b, c, false);
  }

  at::Tensor column_sums() const {
    at::Tensor sums = at::empty({row_}, layer_.input.options());
    GemmParams params;
    params.dtype = layer_.dtype;
    params.m = layer_.rows;
    params.n = row_;
    params.a = d_gates_.const_data_ptr();
    params.a_row_stride = row_;
    params.c = sums.data_ptr();
    plan_.target->column_sums(params, cpu::threads_for(layer_.rows, row_, 1, at::get_num_threads()));
    return sums;
  }

 private:
  void run(int64_t m, int64_t n, int64_t k, const void* a, int64_t a_row_stride, int64_t a_k_stride,
           const at::Tensor& b, const at::Tensor& c, bool accumulate) const {
    GemmParams params;
    params.dtype = layer_.dtype;
    params.m = m;
    params.n = n;
    params.k = k;
    params.a = a;
    params.a_row_stride = a_row_stride;
    params.a_k_stride = a_k_stride;
    params.b = b.const_data_ptr();
    params.b_stride = b.stride(0);
    params.c = c.data_ptr();
    params.c_stride = c.stride(0);
    params.accumulate = accumulate;
    plan_.target->gemm(params, cpu::threads_for(m, n, k, at::get_num_threads()));
  }

  const Layer& layer_;
  const cpu::Plan& plan_;
  const at::Tensor& d_gates_;
  const int64_t row_;
};

// dW_hh = d_gates^T h_(t-1), whose rows are in the order n, r, z there and r, z, n here.
at::Tensor gradient_of_weight_hh(const Products& products, const at::Tensor& h_previous) {
  const int64_t hidden = h_previous.size(1);
  const at::Tensor gradient = fresh({3 * hidden, hidden}, h_previous.options());
  products.transposed_times(hidden, h_previous, gradient.narrow(0, 0, 2 * hidden));
  products.transposed_times(0, h_previous, gradient.narrow(0, 2 * hidden, hidden));
  return gradient;
}

}  // namespace

void forward_cpu(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved) {
  const cpu::Plan plan = plan_for(layer);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  open_range(range, "forward", layer, plan);
  advise_large_pages(output);
  advise_large_pages(saved);
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
    params.h0 = const_pointer_at(layer.hx, d * layer.batch * hidden);
    params.weight_ih = pointer(weights.weight_ih);
    params.weight_hh = pointer(weights.weight_hh);
    params.bias_ih = pointer(weights.bias_ih);
    params.bias_hh = pointer(weights.bias_hh);
    params.output = pointer_at(output, d * hidden);
    params.output_stride = directions * hidden;
    params.h_n = pointer_at(h_n, d * layer.batch * hidden);
    if (saved.dim() == 3) params.saved = pointer_at(saved, d * layer.rows * kSavedValues * hidden);
    plan.target->forward(params, plan);
  }
}

LayerGradients backward_cpu(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                            const at::Tensor& saved, const LayerNeeds& needs) {
  const cpu::Plan plan = plan_for(layer);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  open_range(range, "backward", layer, plan);
  const int64_t directions = static_cast<int64_t>(layer.directions.size()), hidden = layer.hidden_size;
  const auto options = layer.input.options();
  const at::Tensor input_rows = layer.input.view({layer.rows, layer.input_size});

  LayerGradients gradients;
  if (needs.hx) gradients.hx = at::empty(layer.hx.sizes(), options);
  at::Tensor grad_input_rows;
  if (needs.input) {
    gradients.input = fresh(layer.input.sizes(), options);
    grad_input_rows = gradients.input.view({layer.rows, layer.input_size});
  }
  for (int64_t d = 0; d < directions; ++d) {
    const Layer::Direction& weights = layer.directions[d];
    const auto& [needs_weight_ih, needs_weight_hh, needs_bias_ih, needs_bias_hh] = needs.directions[d];
    Layer::Direction& gradient = gradients.directions.emplace_back();
    const bool needs_gates =
        needs.input || needs_weight_ih || needs_weight_hh || needs_bias_ih || needs_bias_hh || needs.hx;
    if (!needs_gates) continue;

    const at::Tensor d_gates = fresh({layer.rows, kGateGradients * hidden},
                                     layer.dtype == DataType::Float16 ? options.dtype(at::kFloat) : options);
    BackwardParams params;
    params.dtype = layer.dtype;
    params.rows = layer.row_map();
    params.hidden_size = hidden;
    params.reverse = d == 1;
    params.weight_hh = pointer(weights.weight_hh);
    params.saved = const_pointer_at(saved, d * layer.rows * kSavedValues * hidden);
    params.grad_output = grad_output.defined() ? const_pointer_at(grad_output, d * hidden) : nullptr;
    params.grad_output_stride = directions * hidden;
    params.grad_h_n = grad_h_n.defined() ? const_pointer_at(grad_h_n, d * layer.batch * hidden) : nullptr;
    params.d_gates = d_gates.data_ptr();
    params.grad_h0 = needs.hx ? pointer_at(gradients.hx, d * layer.batch * hidden) : nullptr;
    plan.target->backward(params, plan);

    const Products products(layer, plan, d_gates);
    if (needs.input) products.times(hidden, weights.weight_ih, grad_input_rows, d > 0);
    if (needs_weight_ih) {
      gradient.weight_ih = fresh(weights.weight_ih.sizes(), options);
      products.transposed_times(hidden, input_rows, gradient.weight_ih);
    }
    if (needs_weight_hh)
      gradient.weight_hh = gradient_of_weight_hh(products, saved.select(0, d).narrow(1, 4 * hidden, hidden));
    if (needs_bias_ih || needs_bias_hh) {
      const at::Tensor sums = products.column_sums();
      // Copies: an output that is part of another would keep all of it alive.
      if (needs_bias_ih) gradient.bias_ih = sums.narrow(0, hidden, 3 * hidden).clone();
      if (needs_bias_hh) gradient.bias_hh = at::cat({sums.narrow(0, hidden, 2 * hidden), sums.narrow(0, 0, hidden)});
    }
  }
  return gradients;
}

}  // namespace gru
