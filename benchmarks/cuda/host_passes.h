// The passes of csrc/gru.h on the host in float64, time-major and of one direction, and numbers as the dtypes store
// them: what steps.cu checks the kernels against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/element.h"

namespace benchmarks {

using gru::DataType;
using gru::cuda::Compute;
using gru::cuda::dispatch;
using gru::cuda::narrow;
using gru::cuda::widen;
using Values = std::vector<double>;

struct Type {
  const char* name;
  DataType dtype;
  bool tf32;
  double tolerance;  // of the largest value: some eight roundings, of float32 and float64 more for their sums
};
constexpr Type kTypes[] = {
    {"bfloat16", DataType::BFloat16, false, 8.0 / 256}, {"float32", DataType::Float32, false, 1e-5},
    {"tf32", DataType::Float32, true, 8.0 / 2048},      {"float16", DataType::Float16, false, 8.0 / 2048},
    {"float64", DataType::Float64, false, 1e-12},
};

inline size_t stored_size(DataType dtype) {
  return dtype == DataType::Float64 ? 8 : dtype == DataType::Float32 ? 4 : 2;
}
inline size_t compute_size(DataType dtype) { return dtype == DataType::Float64 ? 8 : 4; }

// As they are stored, and back.
inline std::vector<unsigned char> stored(DataType dtype, const std::vector<double>& values) {
  std::vector<unsigned char> bytes(values.size() * stored_size(dtype));
  dispatch(dtype, [&](auto element) {
    using Storage = decltype(element);
    for (size_t i = 0; i < values.size(); ++i) {
      const Storage value = narrow<Storage>(static_cast<Compute<Storage>>(values[i]));
      std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
    }
  });
  return bytes;
}
inline std::vector<double> widened(DataType dtype, const std::vector<unsigned char>& bytes) {
  std::vector<double> values(bytes.size() / stored_size(dtype));
  dispatch(dtype, [&](auto element) {
    for (size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&element, bytes.data() + i * sizeof element, sizeof element);
      values[i] = static_cast<double>(widen(element));
    }
  });
  return values;
}

// Numbers in [-scale, scale] that the dtype has.
inline Values draw(std::mt19937& generator, DataType dtype, int64_t count, double scale) {
  std::uniform_real_distribution<double> distribution(-scale, scale);
  Values values(static_cast<size_t>(count));
  for (double& value : values) value = distribution(generator);
  return widened(dtype, stored(dtype, values));
}

// Where saved has a value of a unit: r, z, n, hn or h_(t-1). padded: units that a row has room for.
inline size_t saved_place(size_t row, size_t value, size_t unit, size_t padded) {
  return row * 5 * padded + (value < 4 ? 4 * unit + value : 4 * padded + unit);
}

struct HostForward {
  Values input_gates, weight_hh, bias_ih, bias_hh, h0, hidden_gates;  // hidden_gates: the step path's, else empty
  Values output, h_n, saved;

  // Rows of input_gates and saved may be padded.
  void run(size_t seq_len, size_t batch, size_t hidden_size) {
    const size_t gates = 3 * hidden_size, rows = seq_len * batch;
    const size_t gate_stride = input_gates.size() / (3 * rows), padded = saved.size() / (5 * rows);
    h_n = h0;
    for (size_t row = 0; row < rows; ++row) {
      const size_t b = row % batch;
      const Values before(h_n.begin() + static_cast<std::ptrdiff_t>(b * hidden_size),
                          h_n.begin() + static_cast<std::ptrdiff_t>((b + 1) * hidden_size));
      const auto hidden = [&](size_t gate) {
        if (!hidden_gates.empty()) return hidden_gates[b * gates + gate];
        double sum = 0;
        for (size_t k = 0; k < hidden_size; ++k) sum += weight_hh[gate * hidden_size + k] * before[k];
        return sum;
      };
      for (size_t unit = 0; unit < hidden_size; ++unit) {
        const auto sigmoid = [](double value) { return 1 / (1 + std::exp(-value)); };
        const auto input = [&](size_t gate) {
          return input_gates[(3 * row + gate) * gate_stride + unit] + bias_ih[gate * hidden_size + unit];
        };
        const auto recurrent = [&](size_t gate) {
          return hidden(gate * hidden_size + unit) + bias_hh[gate * hidden_size + unit];
        };
        const double r = sigmoid(input(0) + recurrent(0)), z = sigmoid(input(1) + recurrent(1));
        const double hn = recurrent(2), n = std::tanh(input(2) + r * hn);
        const double h = (1 - z) * n + z * before[unit];
        const double values[] = {r, z, n, hn, before[unit]};
        for (size_t value = 0; value < 5; ++value) saved[saved_place(row, value, unit, padded)] = values[value];
        output[row * hidden_size + unit] = h_n[b * hidden_size + unit] = h;
      }
    }
  }
};

struct HostBackward {
  Values weight_hh, saved, grad_output, grad_h_n, product;  // product: the step path's, else empty
  Values d_gates, grad_h0;

  void run(size_t seq_len, size_t batch, size_t hidden_size) {
    const size_t padded = saved.size() / (5 * seq_len * batch);
    grad_h0 = grad_h_n;  // dLoss/dh of the step at hand
    for (size_t s = 0; s < seq_len; ++s) {
      for (size_t b = 0; b < batch; ++b) {
        const size_t row = (seq_len - 1 - s) * batch + b;
        Values carry(hidden_size);
        for (size_t unit = 0; unit < hidden_size; ++unit) {
          double& dh = grad_h0[b * hidden_size + unit];
          if (!product.empty() && s > 0) dh += product[b * hidden_size + unit];
          dh += grad_output[row * hidden_size + unit];
          const auto value = [&](size_t index) { return saved[saved_place(row, index, unit, padded)]; };
          const double r = value(0), z = value(1), n = value(2), hn = value(3), h = value(4);
          const double dn = dh * (1 - z) * (1 - n * n), dz = dh * (h - n) * z * (1 - z), dr = dn * hn * r * (1 - r);
          const double gradients[] = {r * dn, dr, dz, dn};
          for (size_t gate = 0; gate < 4; ++gate) {
            d_gates[(row * 4 + gate) * hidden_size + unit] = gradients[gate];
          }
          carry[unit] = dh * z;
        }
        for (size_t unit = 0; unit < hidden_size; ++unit) {
          double& dh = grad_h0[b * hidden_size + unit] = carry[unit];
          if (!product.empty()) continue;
          for (size_t k = 0; k < hidden_size; ++k) {
            const double* const gates = &d_gates[row * 4 * hidden_size + k];
            dh += gates[0] * weight_hh[(2 * hidden_size + k) * hidden_size + unit] +
                  gates[hidden_size] * weight_hh[k * hidden_size + unit] +
                  gates[2 * hidden_size] * weight_hh[(hidden_size + k) * hidden_size + unit];
          }
        }
      }
    }
  }
};

// What is wrong with a tensor; nothing if it is right. NaN is expected of padding, which may hold anything.
inline std::string difference(const char* name, const Values& values, const Values& expected, double tolerance) {
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) || std::abs(values[i] - expected[i]) <= tolerance * largest) continue;
    return std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]) + " and should be " +
           std::to_string(expected[i]);
  }
  return "";
}

}  // namespace benchmarks
