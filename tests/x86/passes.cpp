// The passes of a layer by every target and dtype, against float64 and the portable target.
#include "check.h"

namespace x86_check {

namespace {

using gru::DataType;
using gru::Rows;
using gru::cpu::BFloat16;
using gru::cpu::Float16;
using gru::cpu::Plan;
using gru::cpu::Split;
using gru::cpu::Target;

const Target &kAmx = gru::cpu::kTargetAvx512Amx, &kPlain = gru::cpu::kTargetPortable;

template <class S>
constexpr DataType kType = std::is_same_v<S, float>      ? DataType::Float32
                           : std::is_same_v<S, double>   ? DataType::Float64
                           : std::is_same_v<S, BFloat16> ? DataType::BFloat16
                                                         : DataType::Float16;
template <class S>
constexpr double kUnits = std::is_same_v<S, float>      ? 8 * 0x1p-23  // as tests/gate.py has them
                          : std::is_same_v<S, double>   ? 8 * 0x1p-52
                          : std::is_same_v<S, BFloat16> ? 2 * 0x1p-7
                                                        : 2 * 0x1p-10;

// One GRU layer and direction; lengths, when not empty, those of a packed batch, longest first, or of a padded one.
struct Sizes {
  int64_t seq_len, batch, input_size, hidden_size;
  bool reverse;
  std::vector<int64_t> lengths;
  bool padded = false;  // the sequences then lie the last one first
  bool resets = false;  // at random, to a state of their own but where packed

  std::string words() const {
    return "T " + std::to_string(seq_len) + " B " + std::to_string(batch) + " I " + std::to_string(input_size) + " H " +
           std::to_string(hidden_size) + (reverse ? " reverse" : "") +
           (lengths.empty() ? ""
            : padded        ? " padded"
                            : " packed") +
           (resets ? " resets" : "");
  }
};

struct Layer {
  Sizes sizes;
  std::vector<int64_t> batch_sizes, offsets, sequences;
  std::unique_ptr<bool[]> resets;  // [rows]
  bool keeps_zero = false;         // they reset to zero
  Rows rows;
  int64_t count = 0;  // of rows
  Results arguments;  // input, h0, weights, biases, incoming gradients, saved

  explicit Layer(const Sizes& of) : sizes(of) {
    rows.seq_len = of.seq_len;
    rows.batch = of.batch;
    rows.time_stride = of.batch;
    rows.batch_stride = 1;
    count = of.seq_len * of.batch;
    if (!of.lengths.empty()) {
      int64_t steps = 0;
      for (int64_t t = 0; t < of.seq_len; ++t) {
        offsets.push_back(steps);
        batch_sizes.push_back(std::count_if(of.lengths.begin(), of.lengths.end(), [t](int64_t n) { return n > t; }));
        steps += batch_sizes.back();
      }
      rows.batch_sizes = batch_sizes.data();
      for (int64_t b = of.batch; b-- > 0;) sequences.push_back(b);
      if (of.padded) {
        rows.sequences = sequences.data();
      } else {
        rows.offsets = offsets.data();
        count = steps;
      }
    }
    if (!of.resets) return;
    resets = std::make_unique<bool[]>(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) resets[static_cast<size_t>(i)] = draw(0, 2) == 0;
  }
  Layer(const Layer&) = delete;

  template <class S>
  void fill() {
    const int64_t h = sizes.hidden_size, i = sizes.input_size;
    const double scale = 1 / std::sqrt(3.0 * static_cast<double>(h));
    arguments = {{"input", numbers<S>(count * i, 1)},        {"h0", numbers<S>(sizes.batch * h, 0.5)},
                 {"w_ih", numbers<S>(3 * h * i, scale)},     {"w_hh", numbers<S>(3 * h * h, scale)},
                 {"b_ih", numbers<S>(3 * h, scale)},         {"b_hh", numbers<S>(3 * h, scale)},
                 {"grad_output", numbers<S>(count * h, 1)},  {"grad_h_n", numbers<S>(sizes.batch * h, 1)},
                 {"reset_state", numbers<S>(count * h, 0.5)}};
    if (!sizes.padded) return;
    for (int64_t b = 0; b < sizes.batch; ++b) {
      for (int64_t t = sizes.lengths[static_cast<size_t>(b)]; t < sizes.seq_len; ++t) {
        for (const auto& [name, width] :
             {std::pair{"input", i}, std::pair{"grad_output", h}, std::pair{"reset_state", h}})
          std::fill_n(arguments.at(name).begin() + rows.row(t, b) * width, width, std::nan(""));
      }
    }
  }

  // Sizes, rows and resets.
  void put(gru::LayerParams& p, const void* reset_state) const {
    p.rows = rows;
    p.input_size = sizes.input_size;
    p.hidden_size = sizes.hidden_size;
    p.reverse = sizes.reverse;
    p.resets = resets.get();
    if (!resets || rows.offsets || keeps_zero) return;
    p.reset_state = reset_state;
    p.reset_time_stride = rows.time_stride * sizes.hidden_size;
    p.reset_batch_stride = rows.batch_stride * sizes.hidden_size;
  }
};

template <class S>
Results forward(const Target& target, const Layer& layer, const Plan& plan) {
  const int64_t h = layer.sizes.hidden_size;
  const Guarded<S> input(layer.arguments.at("input")), h0(layer.arguments.at("h0")), w_ih(layer.arguments.at("w_ih")),
      w_hh(layer.arguments.at("w_hh")), b_ih(layer.arguments.at("b_ih")), b_hh(layer.arguments.at("b_hh")),
      reset_state(layer.arguments.at("reset_state"));
  const Guarded<S> output(static_cast<size_t>(layer.count * h)), h_n(static_cast<size_t>(layer.sizes.batch * h)),
      saved(static_cast<size_t>(layer.count * h * gru::kSavedValues));
  gru::ForwardParams p;
  p.dtype = kType<S>;
  layer.put(p, reset_state.data());
  p.output_stride = h;
  p.input = input.data();
  p.h0 = h0.data();
  p.weight_ih = w_ih.data();
  p.weight_hh = w_hh.data();
  p.bias_ih = b_ih.data();
  p.bias_hh = b_hh.data();
  p.output = output.data();
  p.h_n = h_n.data();
  p.saved = saved.data();
  target.forward(p, plan);
  return {{"output", output.values()}, {"h_n", h_n.values()}, {"saved", saved.values()}};
}

template <class S>
Results backward(const Target& target, const Layer& layer, const Plan& plan) {
  const int64_t h = layer.sizes.hidden_size, i = layer.sizes.input_size;
  const Guarded<S> input(layer.arguments.at("input")), w_ih(layer.arguments.at("w_ih")),
      w_hh(layer.arguments.at("w_hh")), saved(layer.arguments.at("saved")),
      grad_output(layer.arguments.at("grad_output")), grad_h_n(layer.arguments.at("grad_h_n"));
  const Guarded<S> grad_input(static_cast<size_t>(layer.count * i)),
      grad_h0(static_cast<size_t>(layer.sizes.batch * h)), grad_w_ih(static_cast<size_t>(3 * h * i)),
      grad_w_hh(static_cast<size_t>(3 * h * h)), grad_b_ih(static_cast<size_t>(3 * h)),
      grad_b_hh(static_cast<size_t>(3 * h)), grad_reset_state(static_cast<size_t>(layer.count * h));
  gru::BackwardParams p;
  p.dtype = kType<S>;
  layer.put(p, nullptr);
  p.grad_output_stride = h;
  p.grad_reset_state = grad_reset_state.data();
  p.input = input.data();
  p.weight_ih = w_ih.data();
  p.weight_hh = w_hh.data();
  p.saved = saved.data();
  p.grad_output = grad_output.data();
  p.grad_h_n = grad_h_n.data();
  p.grad_h0 = grad_h0.data();
  p.grad_input = grad_input.data();
  p.grad_weight_ih = grad_w_ih.data();
  p.grad_weight_hh = grad_w_hh.data();
  p.grad_bias_ih = grad_b_ih.data();
  p.grad_bias_hh = grad_b_hh.data();
  target.backward(p, plan);
  return {{"grad_input", grad_input.values()},
          {"grad_h0", grad_h0.values()},
          {"grad_w_ih", grad_w_ih.values()},
          {"grad_w_hh", grad_w_hh.values()},
          {"grad_b_ih", grad_b_ih.values()},
          {"grad_b_hh", grad_b_hh.values()},
          {"grad_reset_state", grad_reset_state.values()}};
}

// A pass by `threads` threads; on tiles when the target and the dtype have them.
template <class S>
Results run(bool back, const Target& target, const Layer& layer, Plan plan, int threads = 1,
            Split split = Split::Batch) {
  plan.threads = threads;
  plan.split = split;
  const bool tiles =
      &target == &kAmx && (std::is_same_v<S, BFloat16> || (std::is_same_v<S, Float16> && modelled.float16_tiles));
  const std::string what = target.name + (" " + layer.sizes.words());
  Results results;
  watch_tiles(what, tiles && !plan.few_rows,
              [&] { results = back ? backward<S>(target, layer, plan) : forward<S>(target, layer, plan); });
  gru::cpu::parallel(2, [&](int, int) {
    if (x86_model::state.configured) fail(what + ": the tiles are not released");
  });
  return results;
}

// Gradients that are sums over the batch.
bool summed(const std::string& name) { return name.rfind("grad_w", 0) == 0 || name.rfind("grad_b", 0) == 0; }

// The values of one sequence in tensors of the whole batch: rows of time for per-step tensors, one row for states.
Results of_sequence(const Results& all, const Layer& layer, int64_t b, int64_t length) {
  Results out;
  for (const auto& [name, values] : all) {
    const bool state = name == "h0" || name == "h_n" || name == "grad_h0" || name == "grad_h_n";
    if (summed(name)) continue;
    const bool shared = name[1] == '_';  // weights and biases
    if (shared && name != "h_n") {
      out[name] = values;
      continue;
    }
    const int64_t width = static_cast<int64_t>(values.size()) / (state ? layer.sizes.batch : layer.count);
    for (int64_t t = 0; t < (state ? 1 : length); ++t) {
      const auto from = values.begin() + (state ? layer.rows.sequence(b) : layer.rows.row(t, b)) * width;
      out[name].insert(out[name].end(), from, from + width);
    }
  }
  return out;
}

// The errors of the portable target; of float64, whose own are the truth's, those of float32 (see tests/gate.py).
template <class S>
Results reference(bool back, const Layer& layer, const Results& truth) {
  using Reference = std::conditional_t<std::is_same_v<S, double>, float, S>;
  const Results plain = back ? backward<Reference>(kPlain, layer, Plan()) : forward<Reference>(kPlain, layer, Plan());
  Results errors;
  for (const auto& [name, values] : truth)
    errors[name] = {largest_error(plain.at(name), values) * (std::is_same_v<S, double> ? 1.5 * 0x1p-29 : 1)};
  return errors;
}

template <class S>
void check_layer(bool back, const std::vector<const Target*>& targets, const Sizes& sizes) {
  Layer layer(sizes);
  layer.fill<S>();
  if (back) layer.arguments["saved"] = forward<S>(kPlain, layer, Plan()).at("saved");
  const Results truth = back ? backward<double>(kPlain, layer, Plan()) : forward<double>(kPlain, layer, Plan());
  const Results errors = reference<S>(back, layer, truth);
  const bool few_rows = draw(0, 3) == 0;
  for (const Target* target : targets) {
    const std::string what = std::string(target->name) + " " + sizes.words();
    Plan plan;
    plan.few_rows = few_rows;
    const auto all = [&](int threads, Split split) { return run<S>(back, *target, layer, plan, threads, split); };
    const Results results = all(1, Split::Batch);
    for (const auto& [name, values] : truth)
      compare(what + " " + name, results.at(name), errors.at(name)[0], values, kUnits<S>);
    must_equal(what + ", two threads over the batch", results, all(2, Split::Batch));
    must_equal(what + ", two threads over the units", results, all(2, Split::Units));
    plan.narrow_weights = true;
    must_equal(what + ", narrow weights", results, all(1, Split::Batch));
    plan.stream_above = -1;
    must_equal(what + ", kept past the caches", results, all(2, Split::Units));
    for (const int64_t b : {int64_t{0}, sizes.batch - 1}) {
      const int64_t length = sizes.lengths.empty() ? sizes.seq_len : sizes.lengths[static_cast<size_t>(b)];
      Layer alone({length, 1, sizes.input_size, sizes.hidden_size, sizes.reverse, {}, false, sizes.resets});
      for (int64_t t = 0; sizes.resets && t < length; ++t)
        alone.resets[static_cast<size_t>(t)] = layer.resets[static_cast<size_t>(layer.rows.row(t, b))];
      alone.keeps_zero = layer.rows.offsets != nullptr;
      alone.arguments = of_sequence(layer.arguments, layer, b, length);
      must_equal(what + ", sequence " + std::to_string(b) + " alone",
                 of_sequence(run<S>(back, *target, alone, plan), alone, 0, length),
                 of_sequence(results, layer, b, length));
    }
  }
}

}  // namespace

void check_passes(bool back) {
  const std::vector<int64_t> widths = {1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 100, 129};
  const Target &avx512 = gru::cpu::kTargetAvx512, &dot = gru::cpu::kTargetAvx512Bf16;
  int64_t count = 0;
  const auto sizes = [&](int64_t batch) {
    Sizes sizes{draw(1, 6),      batch, draw_from(widths), widths[static_cast<size_t>(count) % widths.size()],
                draw(0, 1) == 1, {}};
    sizes.resets = draw(0, 1) == 1;
    if (++count % 3 == 0) return sizes;
    sizes.padded = count % 3 == 1;
    for (int64_t b = 0; b < batch; ++b) sizes.lengths.push_back(draw(1, sizes.seq_len));
    sizes.lengths[0] = sizes.seq_len;
    std::sort(sizes.lengths.rbegin(), sizes.lengths.rend());
    return sizes;
  };
  // Sums of more than one run, over a stretch of many rows and along a wide row; and many stretches.
  for (const Sizes& large : {Sizes{1, 2089, 3, 5, false, {}}, Sizes{3, 2, 2049 + 16, 3, false, {}},
                             Sizes{300, 7, 2, 3, true, {}}, Sizes{2200, 4, 1, 2, false, {}}}) {
    check_layer<BFloat16>(back, {&kAmx}, large);
    check_layer<Float16>(back, {&kAmx}, large);
  }
  for (int64_t batch = 1; batch <= 40; ++batch) {
    check_layer<BFloat16>(back, {&kAmx}, sizes(batch));
    if (batch % 2 == 0) check_layer<Float16>(back, {&kAmx}, sizes(batch));
    if (batch % 4 != 1) continue;
    modelled.float16_tiles = false;  // of an older processor
    check_layer<BFloat16>(back, {&avx512, &dot}, sizes(batch));
    check_layer<Float16>(back, {&avx512, &dot, &kAmx}, sizes(batch));
    check_layer<float>(back, {&avx512, &dot, &kAmx}, sizes(batch));
    check_layer<double>(back, {&avx512, &dot, &kAmx}, sizes(batch));
    modelled.float16_tiles = true;
  }
  std::printf("%s: %d layers, error at most %.2f of the bound\n", back ? "backward" : "forward",
              static_cast<int>(count) + 8, worst_ratio);
}

}  // namespace x86_check
