// The forward cell on vectors of units, for the forward pass and for backward where it computes the gates again.
// Included inside the namespace of a target, after pack.h.
#pragma once

// A row of `size` elements as an operand; what fills its last word is zero.
template <class Product, class S>
inline void stage_row(const S* source, int64_t size, typename Product::Word* out) {
  using Element = typename Product::Element;
  constexpr int kWidth = Vec<typename Product::Sum>::width;
  if constexpr (std::is_same_v<S, Element>) {
    std::memcpy(static_cast<void*>(out), source, size * sizeof(S));
  } else {
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth) load_as(source + i).store(out + i);
    if (i < size) load_as(source + i, static_cast<int>(size - i)).store(out + i, static_cast<int>(size - i));
  }
  if (size % kDepth<Product>) reinterpret_cast<Element*>(out)[size] = Element{};
}

// out [4, padded]: r and z, both biases together; n, the input's, and n, the hidden state's: b_hn stands inside r * (
// ).
template <class S, class Sum>
inline void add_biases(const void* bias_ih, const void* bias_hh, int64_t hidden_size, int64_t padded, Sum* out) {
  const S* ih = static_cast<const S*>(bias_ih);
  const S* hh = static_cast<const S*>(bias_hh);
  std::fill_n(out, 4 * padded, Sum(0));
  if (!ih) return;
  for (int64_t j = 0; j < hidden_size; ++j) {
    for (int gate = 0; gate < 2; ++gate)
      out[gate * padded + j] = scalar(ih[gate * hidden_size + j]) + scalar(hh[gate * hidden_size + j]);
    out[2 * padded + j] = scalar(ih[2 * hidden_size + j]);
    out[3 * padded + j] = scalar(hh[2 * hidden_size + j]);
  }
}

// Vectors of units in the largest block of sums that a product hands on.
constexpr int kBlockUnits = 64;

// Sums [rows][units / width][3 vectors], `stride` values from row to row, become gates: r, z and hn in their place, and
// n in `candidates` [rows, units]. input: W_ih x in the same order, input_stride from row to row; bias: where the units
// of add_biases' first row lie. One gate after the other, for all of the block: within a vector a candidate waits for
// its reset gate and each gate for one long chain, and only other vectors can fill that time.
template <class Sum>
inline void take_gates(CellFormula formula, Sum* sums, int64_t stride, const Sum* input, int64_t input_stride,
                       const Sum* bias, int64_t padded, int64_t rows, int64_t units, Sum* candidates) {
  using V = Vec<Sum>;
  using Math = VectorMath<Sum>;
  constexpr int64_t kWidth = V::width;
  const Sum *const bias_z = bias + padded, *const bias_n = bias + 2 * padded, *const bias_hn = bias + 3 * padded;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < units; i += kWidth) {
      Sum* const at = sums + r * stride + 3 * i;
      const Sum* const from = input + r * input_stride + 3 * i;
      const V reset = V::load(from) + V::load(bias + i), update = V::load(from + kWidth) + V::load(bias_z + i);
      formula.gate<Math>(V::load(at) + reset).store(at);
      formula.gate<Math>(V::load(at + kWidth) + update).store(at + kWidth);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < units; i += kWidth) {
      Sum* const at = sums + r * stride + 3 * i;
      const V hn = V::load(at + 2 * kWidth) + V::load(bias_hn + i);
      const V projected = V::load(input + r * input_stride + 3 * i + 2 * kWidth) + V::load(bias_n + i);
      hn.store(at + 2 * kWidth);
      formula.candidate<Math>(V::load(at), projected, hn).store(candidates + r * units + i);
    }
  }
}
