// The passes of a layer by every target, dtype and format of the weights, against float64 and the portable target.
#include <optional>

#include "packed.h"

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
  WeightFormat weights;
  Results arguments;  // input, h0, weights, biases, incoming gradients, saved; of bytes, s_ih and s_hh: their scales

  explicit Layer(const Sizes& of, WeightFormat format = WeightFormat::Plain) : sizes(of), weights(format) {
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
    for (const auto& [name, bytes] : {std::pair{"w_ih", "s_ih"}, std::pair{"w_hh", "s_hh"}}) {
      for (double& weight : arguments.at(name)) {
        if (weights == WeightFormat::BFloat16) weight = gru::cpu::scalar(rounded<BFloat16>(weight));
        if (weights == WeightFormat::Int8) weight = static_cast<double>(draw(-127, 127));
      }
      if (weights == WeightFormat::Int8) arguments[bytes] = numbers<S>(3 * h, scale / 64);
    }
    // Rows of bytes without a scale, or with an extreme one; of states none that are large beside the others' errors.
    for (const auto& [name, width] : {std::pair{"input", i}, std::pair{"h0", h}, std::pair{"reset_state", h}}) {
      std::vector<double>& values = arguments.at(name);
      for (int64_t at = 0; weights == WeightFormat::Int8 && at < static_cast<int64_t>(values.size()); at += width) {
        double* const row = values.data() + at;
        const std::vector<double> factors = {0, 1e-35, name == std::string("input") ? 1e30 : 1, NAN, INFINITY};
        if (draw(0, 3) > 0) continue;
        const double factor = draw_from(factors);
        if (std::isfinite(factor))
          std::transform(row, row + width, row, [=](double value) { return rounded<float>(value * factor); });
        else
          row[draw(0, width - 1)] = factor;
      }
    }
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
Results forward(const Target& target, const Layer& layer, const Plan& plan,
                WeightFormat weights = WeightFormat::Plain) {
  const int64_t h = layer.sizes.hidden_size, i = layer.sizes.input_size;
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
  p.weights = weights;
  std::optional<Packed> ih, hh;
  if (weights != WeightFormat::Plain) {
    ih.emplace(weights, layer.arguments, "ih", h, i, target.lanes);
    hh.emplace(weights, layer.arguments, "hh", h, h, target.lanes);
    p.weight_ih = ih->data();
    p.weight_hh = hh->data();
    p.scale_ih = ih->scales();
    p.scale_hh = hh->scales();
  }
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

// A pass by `threads` threads; on tiles when the target and what it multiplies have them.
template <class S>
Results run(bool back, const Target& target, const Layer& layer, Plan plan, int threads = 1,
            Split split = Split::Batch) {
  plan.threads = threads;
  plan.split = split;
  const bool of_dtype = std::is_same_v<S, BFloat16> || (std::is_same_v<S, Float16> && modelled.float16_tiles);
  const bool tiles = &target == &kAmx && (of_dtype || layer.weights == WeightFormat::Int8);
  const std::string what = target.name + (" " + layer.sizes.words());
  Results results;
  watch_tiles(what, tiles && !plan.few_rows, [&] {
    results = back ? backward<S>(target, layer, plan) : forward<S>(target, layer, plan, layer.weights);
  });
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

// What forward makes of weights of bytes, each step from the state that it had made itself: rounding to bytes may fall
// on either side after the least difference.
Results by_bytes(const Layer& layer, const Results& results) {
  const int64_t i = layer.sizes.input_size, h = layer.sizes.hidden_size;
  const Rows& rows = layer.rows;
  const Results& arguments = layer.arguments;
  const std::vector<double> zero(static_cast<size_t>(h));
  Results out;
  for (const auto& [name, values] : results) out[name].resize(values.size());
  for (int64_t step = 0; step < rows.seq_len; ++step) {
    const int64_t t = rows.time_of(step, layer.sizes.reverse), reset = t + layer.sizes.reverse;
    const int64_t before = rows.time_of(step - 1, layer.sizes.reverse);
    for (int64_t b = 0; b < rows.batch_at(t); ++b) {
      const auto has = [&](int64_t time) { return time >= 0 && time < rows.seq_len && b < rows.batch_at(time); };
      const double* state = has(before) ? results.at("output").data() + rows.row(before, b) * h
                                        : arguments.at("h0").data() + rows.sequence(b) * h;
      if (has(reset) && layer.resets && layer.resets[static_cast<size_t>(rows.row(reset, b))])
        state = layer.keeps_zero || rows.offsets ? zero.data()
                                                 : arguments.at("reset_state").data() + rows.row(reset, b) * h;
      const int64_t row = rows.row(t, b);
      const auto values = step_by_bytes(arguments, arguments.at("input").data() + row * i, i, state, h);
      const auto saved = out.at("saved").begin() + row * gru::kSavedValues * h;
      for (int64_t value = 0; value < gru::kSavedGates; ++value)
        std::copy_n(values[static_cast<size_t>(value)].begin(), h, saved + value * h);
      std::copy_n(state, h, saved + gru::kSavedGates * h);
      std::copy_n(values.back().begin(), h, out.at("output").begin() + row * h);
      if (!has(2 * t - before)) std::copy_n(values.back().begin(), h, out.at("h_n").begin() + rows.sequence(b) * h);
    }
  }
  return out;
}

template <class S>
void check_layer(bool back, const std::vector<const Target*>& targets, const Sizes& sizes,
                 WeightFormat weights = WeightFormat::Plain) {
  const bool bytes = weights == WeightFormat::Int8;
  Layer layer(sizes, weights);
  layer.fill<S>();
  if (back) layer.arguments["saved"] = forward<S>(kPlain, layer, Plan()).at("saved");
  Results truth = back ? backward<double>(kPlain, layer, Plan()) : forward<double>(kPlain, layer, Plan());
  const Results errors = reference<S>(back, layer, truth);
  const bool few_rows = weights == WeightFormat::Plain && draw(0, 3) == 0;
  for (const Target* target : targets) {
    const std::string what = std::string(target->name) + " " + sizes.words();
    Plan plan;
    plan.few_rows = few_rows;
    const auto all = [&](int threads, Split split) { return run<S>(back, *target, layer, plan, threads, split); };
    const Results results = all(1, Split::Batch);
    if (bytes) truth = by_bytes(layer, results);
    for (const auto& [name, values] : truth)
      compare(what + " " + name, results.at(name), bytes ? 0 : errors.at(name)[0], values, kUnits<S>);
    must_equal(what + ", two threads over the batch", results, all(2, Split::Batch));
    must_equal(what + ", two threads over the units", results, all(2, Split::Units));
    plan.narrow_weights = true;
    must_equal(what + ", narrow weights", results, all(1, Split::Batch));
    plan.narrow_inputs = true;
    plan.stream_above = -1;
    must_equal(what + ", narrow inputs, and kept past the caches", results, all(2, Split::Units));
    for (const int64_t b : {int64_t{0}, sizes.batch - 1}) {
      const int64_t length = sizes.lengths.empty() ? sizes.seq_len : sizes.lengths[static_cast<size_t>(b)];
      Layer alone({length, 1, sizes.input_size, sizes.hidden_size, sizes.reverse, {}, false, sizes.resets}, weights);
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

// Plain, padded and packed by turns; `count` of them were drawn before.
Sizes draw_sizes(int64_t count, int64_t batch, const std::vector<int64_t>& inputs, const std::vector<int64_t>& widths) {
  Sizes sizes{draw(1, 6),      batch, draw_from(inputs), widths[static_cast<size_t>(count) % widths.size()],
              draw(0, 1) == 1, {}};
  sizes.resets = draw(0, 1) == 1;
  if (count % 3 == 2) return sizes;
  sizes.padded = count % 3 == 0;
  for (int64_t b = 0; b < batch; ++b) sizes.lengths.push_back(draw(1, sizes.seq_len));
  sizes.lengths[0] = sizes.seq_len;
  std::sort(sizes.lengths.rbegin(), sizes.lengths.rend());
  return sizes;
}

}  // namespace

void check_passes(bool back) {
  const std::vector<int64_t> widths = {1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 100, 129};
  const Target &avx512 = gru::cpu::kTargetAvx512, &dot = gru::cpu::kTargetAvx512Bf16;
  int64_t count = 0;
  const auto sizes = [&](int64_t batch) { return draw_sizes(count++, batch, widths, widths); };
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

void check_packed() {
  std::vector<const Target*> targets = {&kPlain, &gru::cpu::kTargetAvx512, &gru::cpu::kTargetAvx512Bf16, &kAmx};
  std::vector<const Target*> of_bytes = targets;
  for (const Target* target : {&gru::cpu::kTargetAvx512Vnni, &gru::cpu::kTargetAvx2Vnni})
    if (target->forward) of_bytes.push_back(target);
  int64_t count = 0;
  const auto check = [&](const Sizes& sizes) {
    check_layer<float>(false, targets, sizes, WeightFormat::Float32);
    check_layer<float>(false, targets, sizes, WeightFormat::BFloat16);
    check_layer<float>(false, of_bytes, sizes, WeightFormat::Int8);
    count += 3;
  };
  check({70, 4, 3, 5, true, {}});  // inputs are staged in several parts
  for (int64_t batch = 1; batch <= 20; ++batch)
    check(draw_sizes(count / 3, batch, {1, 3, 17, 64, 129}, {1, 5, 15, 16, 17, 33}));
  std::printf("packed: %d layers, error at most %.2f of the bound\n", static_cast<int>(count), worst_ratio);
}

}  // namespace x86_check
