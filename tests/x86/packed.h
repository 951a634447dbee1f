// Weights packed ahead, as csrc/cpu/packed.h says, and what a step of weights of bytes is, by csrc/cpu/bytes.h.
#pragma once

#include "../../csrc/cpu/packed.h"
#include "check.h"

namespace x86_check {

using gru::WeightFormat;

// The matrix W [3H, K], `of` ih or hh, of a layer's arguments; of bytes whole numbers, with the scales of their rows.
class Packed {
 public:
  Packed(WeightFormat format, const Results& arguments, const std::string& of, int64_t hidden, int64_t columns,
         int64_t lanes)
      : depth_(gru::cpu::word_depth(format)),
        words_((columns + depth_ - 1) / depth_),
        values_((hidden + lanes - 1) / lanes * 3 * lanes),
        bytes_(static_cast<size_t>(values_ * words_ * 4)),
        scales_(static_cast<size_t>(format == WeightFormat::Int8 ? 2 * values_ : 0)) {
    const std::vector<double>& weight = arguments.at("w_" + of);
    for (int64_t row = 0; row < 3 * hidden; ++row) {
      const int64_t gate = row / hidden, group = row % hidden / lanes, lane = row % hidden % lanes;
      double sum = 0;
      for (int64_t k = 0; k < columns; ++k) {
        const double value = weight[static_cast<size_t>(row * columns + k)];
        const int64_t at = (((group * words_ + k / depth_) * 3 + gate) * lanes + lane) * depth_ + k % depth_;
        if (format == WeightFormat::Int8)
          put(at, static_cast<int8_t>(value));
        else if (format == WeightFormat::BFloat16)
          put(at, rounded<gru::cpu::BFloat16>(value));
        else
          put(at, static_cast<float>(value));
        sum += value;
      }
      if (format != WeightFormat::Int8) continue;
      float* const scale = scales_.data() + (group * 2 * 3 + gate) * lanes + lane;
      scale[0] = static_cast<float>(arguments.at("s_" + of)[static_cast<size_t>(row)]);
      scale[3 * lanes] = static_cast<float>(sum);
    }
  }
  const void* data() const { return bytes_.data(); }
  const float* scales() const { return scales_.data(); }

 private:
  template <class T>
  void put(int64_t at, T element) const {
    std::memcpy(bytes_.data() + at * static_cast<int64_t>(sizeof element), &element, sizeof element);
  }

  int64_t depth_, words_, values_;
  Guarded<char> bytes_;
  Guarded<float> scales_;
};

// W x [3H], of bytes W with scales, and a row x of floats, which becomes bytes as the kernels make them of it.
inline std::vector<double> times_bytes(const std::vector<double>& weight, const std::vector<double>& scales,
                                       const double* x, int64_t columns) {
  float largest = 0;
  bool finite = true;
  for (int64_t k = 0; k < columns; ++k) {
    finite = finite && std::isfinite(x[k]);
    largest = std::max(largest, static_cast<float>(std::abs(x[k])));
  }
  const bool zero = largest < 0x1p-100f;
  const float inverse = 127 / largest, scale = !finite ? NAN : zero ? 0 : largest / 127;
  std::vector<double> out(scales.size());
  for (size_t row = 0; row < out.size(); ++row) {
    const double* const bytes = weight.data() + static_cast<int64_t>(row) * columns;
    double sum = 0;
    for (int64_t k = 0; k < columns && finite && !zero; ++k)
      sum += std::nearbyint(static_cast<float>(x[k]) * inverse) * bytes[k];
    out[row] = sum * scales[row] * scale;
  }
  return out;
}

// A step in float64, by the arguments of a layer of bytes: r, z, n, hn and the new state.
inline std::array<std::vector<double>, 5> step_by_bytes(const Results& a, const double* x, int64_t input_size,
                                                        const double* h, int64_t hidden) {
  std::vector<double> input = times_bytes(a.at("w_ih"), a.at("s_ih"), x, input_size),
                      state = times_bytes(a.at("w_hh"), a.at("s_hh"), h, hidden);
  for (size_t i = 0; i < input.size(); ++i) {
    input[i] += a.at("b_ih")[i];
    state[i] += a.at("b_hh")[i];
  }
  const auto sigmoid = [](double value) { return 1 / (1 + std::exp(-value)); };
  std::array<std::vector<double>, 5> out;
  for (int64_t unit = 0; unit < hidden; ++unit) {
    const auto of_gate = [=](int64_t gate) { return static_cast<size_t>(gate * hidden + unit); };
    const double hn = state[of_gate(2)], r = sigmoid(input[of_gate(0)] + state[of_gate(0)]),
                 z = sigmoid(input[of_gate(1)] + state[of_gate(1)]), n = std::tanh(input[of_gate(2)] + r * hn);
    const double values[] = {r, z, n, hn, (h[unit] - n) * z + n};
    for (size_t i = 0; i < out.size(); ++i) out[i].push_back(values[i]);
  }
  return out;
}

}  // namespace x86_check
