// A layer on the CPU: parameters for the kernels, memory for what they write.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/movedim.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <array>
#include <exception>
#include <mutex>

#include "checks.h"
#include "cpu/packed.h"
#include "cpu/plan.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"
#include "layer.h"
#include "layer_cpu_sequences.h"

namespace gru {

namespace {

// Opens a profiling range that names the path taken; costs next to nothing while no profiler listens.
void open_range(at::RecordFunction& range, const char* pass, const Layer& layer, const Sequences& sequences,
                const cpu::Plan& plan) {
  if (!range.isActive()) return;
  const std::string cut = sequences.cut() ? ", " + std::to_string(sequences.pieces()) + " pieces" : "";
  range.before(layer.range_name(pass, plan.target->name) + ", " + plan.division() + cut);
}

// apart: whether no direction adds to what another has written.
cpu::Plan plan_for(const Layer& layer, const Sequences& sequences, bool apart) {
  const int64_t seq_len = sequences.seq_len(), batch = cpu::mean_batch(sequences.steps(), seq_len);
  const int directions = apart ? static_cast<int>(layer.directions()) : 1, threads = at::get_num_threads();
  if (!layer.stacked)
    return cpu::make_plan(layer.dtype, seq_len, batch, layer.input_size, layer.hidden_size, directions, threads,
                          layer.format);
  return cpu::make_members_plan(layer.dtype, layer.members, seq_len, batch, layer.input_size, layer.hidden_size,
                                directions, threads);
}

// take(0), take(1), ... take(count - 1), on so many threads.
template <class Take>
void share(int threads, size_t count, const Take& take) {
  std::mutex mutex;
  std::exception_ptr failure;  // no exception may leave a thread of the pool
  cpu::parallel(threads, [&](int thread, int there) {
    for (size_t i = static_cast<size_t>(thread); i < count; i += static_cast<size_t>(there)) {
      try {
        take(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        failure = std::current_exception();
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
}

// to += from, on two threads where that is worth it. Not by ATen, whose threads treat denormals each in its own way.
template <class Element>
void add_to(const at::Tensor& to, const at::Tensor& from) {
  Element* const sums = to.mutable_data_ptr<Element>();
  const Element* const terms = from.const_data_ptr<Element>();
  constexpr int64_t kWorthAThread = 1 << 15;
  const int64_t count = to.numel();
  cpu::parallel(count > kWorthAThread ? 2 : 1, [=](int thread, int there) {
    for (int64_t i = count * thread / there; i < count * (thread + 1) / there; ++i) sums[i] += terms[i];
  });
}

// The passes of all members and directions, member by member: in turn, or each direction or each member on a thread of
// its own.
template <class Params>
void run(void (*pass)(const Params&, const cpu::Plan&), const c10::SmallVector<Params, 2>& passes, const Layer& layer,
         const cpu::Plan& plan) {
  const size_t members = static_cast<size_t>(layer.members), each = passes.size() / members;
  const auto run_pass = [&](size_t i) {
    if (passes[i].rows.batch > 0) pass(passes[i], plan);
  };
  const auto run_member = [&](size_t m) {
    for (size_t i = m * each; i < (m + 1) * each; ++i) run_pass(i);
  };
  if (plan.members_at_once > 1) return share(plan.members_at_once, members, run_member);
  for (size_t m = 0; m < members; ++m) {
    if (plan.directions_at_once)
      share(static_cast<int>(each), each, [&](size_t d) { run_pass(m * each + d); });
    else
      run_member(m);
  }
}

// Packed weights for vectors of so many lanes. Those that were packed for others come this way at every call.
at::Tensor packed_for(int64_t lanes, const at::Tensor& weight, int64_t hidden_size) {
  if (weight.size(3) == lanes) return weight;
  const at::Tensor units = weight.movedim(0, 2).flatten(2, 3).narrow(2, 0, hidden_size);  // [words, 3, H, ...]
  const int64_t groups = cpu::groups_of(hidden_size, lanes);
  c10::SmallVector<int64_t, 5> sizes(units.sizes());
  sizes[2] = groups * lanes;
  const at::Tensor padded = at::zeros(sizes, weight.options());
  padded.narrow(2, 0, hidden_size).copy_(units);
  return padded.unflatten(2, {groups, lanes}).movedim(2, 0).contiguous();
}

// Where the weights of a layer that is to run by this target lie: its own, or in memory that `kept` keeps.
void take_packed(const Layer& layer, int64_t direction, const cpu::Target& target, ForwardParams& params,
                 c10::SmallVector<at::Tensor, 4>& kept) {
  if (layer.format == WeightFormat::Plain) return;
  const auto data = [&](const at::Tensor& packed) {
    kept.push_back(packed_for(target.lanes, packed, layer.hidden_size));
    return kept.back().const_data_ptr();
  };
  const Weights& weights = layer.weights[direction];
  params.weight_ih = data(weights[kWeightIh]);
  params.weight_hh = data(weights[kWeightHh]);
  if (layer.scales.empty()) return;
  params.scale_ih = static_cast<const float*>(data(layer.scales[direction][kWeightIh]));
  params.scale_hh = static_cast<const float*>(data(layer.scales[direction][kWeightHh]));
}

void advise_large_pages(const at::Tensor& tensor) { cpu::advise_large_pages(tensor.data_ptr(), tensor.nbytes()); }

at::Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor = at::detail::empty_cpu(sizes, options);
  advise_large_pages(tensor);
  return tensor;
}

}  // namespace

at::Tensor empty_saved_cpu(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (bytes < cpu::kBlockBytes) return at::detail::empty_cpu(sizes, options);
  const cpu::Block block = cpu::take_block(bytes);
  return at::from_blob(block.data, sizes, [block](void*) { cpu::give_block(block); }, options);
}

int64_t saved_row_cpu(const Layer& layer) { return kSavedValues * layer.hidden_size; }

void forward_cpu(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved) {
  const Sequences sequences(layer);
  const cpu::Plan plan = plan_for(layer, sequences, true);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  open_range(range, "forward", layer, sequences, plan);
  advise_large_pages(output);
  const int64_t directions = layer.directions(), hidden = layer.hidden_size;
  const int64_t values = saved.defined() ? saved.size(-1) : 0;
  at::Tensor begins, ends;  // of pieces
  if (sequences.cut()) {
    begins = sequences.states();
    ends = sequences.states();
    sequences.begin(begins);
  }
  c10::SmallVector<ForwardParams, 2> passes;
  c10::SmallVector<at::Tensor, 4> packed;
  for (int64_t m = 0; m < layer.members; ++m) {
    for (int64_t d = 0; d < directions; ++d) {
      const int64_t pass = m * directions + d, state = pass * layer.batch * hidden;
      ForwardParams& params = passes.emplace_back();
      layer.fill(params, m, d);
      take_packed(layer, d, *plan.target, params, packed);
      sequences.fill(params, m);
      params.h0 = const_pointer_at(layer.hx, m * layer.strides.hx + d * layer.batch * hidden);
      params.output = pointer_at(output, (m * layer.rows * directions + d) * hidden);
      params.output_stride = directions * hidden;
      params.h_n = pointer_at(h_n, state);
      if (sequences.cut()) {
        params.h0 = const_pointer_at(begins, d * layer.rows * hidden);
        params.h_n = pointer_at(ends, d * layer.rows * hidden);
      }
      if (values != 0) params.saved = pointer_at(saved, pass * layer.rows * values);
    }
  }
  run(plan.target->forward, passes, layer, plan);
  if (sequences.cut()) sequences.end(ends, h_n);
  sequences.clear_padding(output);
  sequences.hand_on(layer.hx, layer.strides.hx, h_n);
}

cpu::Plan stack_plan_cpu(const Layer& first, int64_t layers) {
  const Sequences sequences(first, false);
  const int64_t seq_len = sequences.seq_len();
  if (sequences.empty()) return {};
  const int64_t longest_piece = first.resets.defined() ? Sequences(first).seq_len() : seq_len;
  return cpu::make_stack_plan(first.dtype, layers, seq_len, cpu::mean_batch(sequences.steps(), seq_len),
                              first.input_size, first.hidden_size, static_cast<int>(first.directions()),
                              at::get_num_threads(), longest_piece, first.format);
}

void forward_stack_cpu(c10::ArrayRef<Layer> layers, const cpu::Plan& plan, at::Tensor& output, at::Tensor& h_n) {
  advise_large_pages(output);
  const Sequences sequences(layers.front(), false);
  std::vector<cpu::Progress> progress(layers.size());
  c10::SmallVector<ForwardParams, 4> passes(layers.size());
  c10::SmallVector<at::Tensor, 4> packed;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    ForwardParams& params = passes[i];
    layer.fill(params, 0, 0);
    take_packed(layer, 0, *plan.target, params, packed);
    sequences.fill(params, 0);
    params.h0 = layer.hx.const_data_ptr();
    params.output = (i + 1 < layers.size() ? layers[i + 1].input : output).data_ptr();
    params.output_stride = layer.hidden_size;
    params.h_n = pointer_at(h_n, static_cast<int64_t>(i) * layer.batch * layer.hidden_size);
    params.progress = &progress[i];
    if (i > 0) params.below = &progress[i - 1];
  }
  // Whatever the number of threads, each takes its layers from below upwards, so that nobody waits for ever.
  share(plan.layers_at_once, layers.size(), [&](size_t i) {
    struct End {
      cpu::Progress& progress;
      int64_t steps;
      ~End() { progress.reach(steps); }  // also of a pass that throws, for the thread that waits for it
    } const end{progress[i], layers[i].seq_len};
    plan.target->forward(passes[i], plan);
  });
  sequences.clear_padding(output);
  for (size_t i = 0; i < layers.size(); ++i) sequences.hand_on(layers[i].hx, 0, h_n.select(0, static_cast<int64_t>(i)));
}

Gradients backward_cpu(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                       const at::Tensor& saved, const Needs& needs) {
  // Both directions have a part in the gradient of the input. Its second part may wait in memory of its own where it is
  // as wide as its sums, so that adding it later gives the same bits.
  const bool wide = layer.dtype == DataType::Float32 || layer.dtype == DataType::Float64;
  const Sequences sequences(layer);
  const cpu::Plan plan = plan_for(layer, sequences, wide || !needs.input);
  at::RecordFunction range(at::RecordScope::USER_SCOPE);
  open_range(range, "backward", layer, sequences, plan);
  const int64_t directions = layer.directions(), hidden = layer.hidden_size;
  const bool shared = saved.dim() == layer.input.dim() + 1;  // by all members
  const int64_t saved_stride = layer.stacked && !shared ? saved.stride(0) : 0;
  const int64_t values = saved.size(-1), input_elements = layer.rows * layer.input_size;
  const auto options = layer.input.options();

  Gradients gradients;
  at::Tensor second_input;
  const auto input_sizes = layer.sizes_of_all(layer.input.sizes());
  if (needs.hx) gradients.hx = at::detail::empty_cpu(layer.sizes_of_all(layer.hx.sizes()), options);
  if (needs.input) gradients.input = fresh(input_sizes, options);
  if (needs.input && plan.directions_at_once) second_input = at::detail::empty_cpu(input_sizes, options);
  if (needs.reset_state) gradients.reset_state = zeros(layer.sizes_of_all(layer.reset_sizes()), options);
  for (int64_t d = 0; d < directions; ++d) {
    const int64_t columns[] = {layer.input_size, hidden};
    Weights& gradient = gradients.weights.emplace_back();
    for (size_t role = 0; role < kRoles; ++role) {
      if (!needs.weights[d][role]) continue;
      const std::array<int64_t, 2> sizes{3 * hidden, columns[role % 2]};
      gradient[role] = fresh(layer.sizes_of_all(at::IntArrayRef(sizes).slice(0, role < kBiasIh ? 2 : 1)), options);
      if (sequences.empty()) gradient[role].zero_();
    }
  }
  at::Tensor grad_begins, grad_ends;  // of pieces
  if (sequences.cut()) {
    grad_ends = sequences.states();
    sequences.begin_back(grad_h_n, grad_ends);
    if (needs.hx || needs.reset_state) grad_begins = sequences.states();
  }
  c10::SmallVector<BackwardParams, 2> passes;
  for (int64_t m = 0; m < layer.members; ++m) {
    for (int64_t d = 0; d < directions; ++d) {
      const ByRole<bool>& of_weights = needs.weights[d];
      if (!needs.input && !needs.hx && !needs.reset_state &&
          std::find(of_weights.begin(), of_weights.end(), true) == of_weights.end())
        continue;
      const int64_t pass = m * directions + d, state = pass * layer.batch * hidden;
      BackwardParams& params = passes.emplace_back();
      layer.fill(params, m, d);
      sequences.fill(params, m);
      params.saved = const_pointer_at(saved, m * saved_stride + d * layer.rows * values);
      params.grad_output = const_pointer_or_null(grad_output, (m * layer.rows * directions + d) * hidden);
      params.grad_output_stride = directions * hidden;
      params.grad_h_n = const_pointer_or_null(grad_h_n, state);
      params.grad_h0 = needs.hx ? pointer_at(gradients.hx, state) : nullptr;
      params.grad_reset_state =
          needs.reset_state ? pointer_at(gradients.reset_state, pass * layer.rows * hidden) : nullptr;
      if (sequences.cut()) {
        params.grad_h_n = const_pointer_at(grad_ends, d * layer.rows * hidden);
        params.grad_h0 = grad_begins.defined() ? pointer_at(grad_begins, d * layer.rows * hidden) : nullptr;
        params.grad_reset_state = nullptr;
      }
      const bool second = d > 0 && second_input.defined();
      if (needs.input) params.grad_input = pointer_at(second ? second_input : gradients.input, m * input_elements);
      params.add_to_input = d > 0 && !second;
      const auto weight_of = [&, m](Role role, int64_t elements) {
        const at::Tensor& all = gradients.weights[d][role];
        return all.defined() ? pointer_at(all, m * elements) : nullptr;
      };
      params.grad_weight_ih = weight_of(kWeightIh, 3 * hidden * layer.input_size);
      params.grad_weight_hh = weight_of(kWeightHh, 3 * hidden * hidden);
      params.grad_bias_ih = weight_of(kBiasIh, 3 * hidden);
      params.grad_bias_hh = weight_of(kBiasHh, 3 * hidden);
    }
  }
  run(plan.target->backward, passes, layer, plan);
  if (grad_begins.defined()) sequences.end_back(grad_begins, gradients.hx, gradients.reset_state);
  for (const at::Tensor& tensor : {gradients.input, second_input}) sequences.clear_padding(tensor);
  sequences.hand_on(grad_h_n, directions * layer.batch * hidden, gradients.hx);
  if (second_input.defined()) {
    const auto add = layer.dtype == DataType::Float64 ? add_to<double> : add_to<float>;
    add(gradients.input, second_input);
  }
  return gradients;
}

}  // namespace gru
