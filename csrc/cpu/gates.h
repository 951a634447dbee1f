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

template <class V>
struct Gates {
  CellState<V> state;
  V hn;
};

// One vector of units. sums and input: W_hh h and W_ih x, a vector for each gate; bias: where the units of add_biases'
// first row lie.
template <class Sum>
inline __attribute__((always_inline)) Gates<Vec<Sum>> gates_of(const Sum* sums, const Sum* input, const Sum* bias,
                                                               int64_t padded, Vec<Sum> h_previous) {
  using V = Vec<Sum>;
  constexpr int kWidth = V::width;
  const auto sum = [&](int gate) { return V::load(sums + gate * kWidth); };
  const auto projected = [&](int gate) { return V::load(input + gate * kWidth) + V::load(bias + gate * padded); };
  const V hn = sum(2) + V::load(bias + 3 * padded);
  return {cell_forward<VectorMath<Sum>>(sum(0) + projected(0), sum(1) + projected(1), projected(2), hn, h_previous),
          hn};
}
