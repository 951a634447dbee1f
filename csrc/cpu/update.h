// What a step of the forward pass reads and writes of a sequence: its state, the results, and what is kept.
// Included inside the namespace of a target, after gates.h.
#pragma once

// Where all of it lies; null where it is not wanted. S: storage; Sum: of the state that is carried; State: of the next
// step's operand.
template <class S, class Sum, class State>
struct StepOfSequence {
  using V = Vec<Sum>;
  struct Strides {
    int64_t carry, following, output, h_n, gates, states, value;  // value: from r to z to n ... of what is kept
  };
  Sum* carry;
  State* following;
  S *output, *h_n, *gates, *states;

  // To the pass's next sequence, which lies so many sequences further in tensors [B, *].
  void advance(const Strides& strides, int64_t sequences) {
    carry += strides.carry;
    following += strides.following;
    output += sequences * strides.output;
    h_n += sequences * strides.h_n;
    if (gates) gates += sequences * strides.gates;
    if (states) states += sequences * strides.states;
  }

  // A vector of units, `i` units on; full: all of them valid. r_z_hn: three vectors.
  template <bool Full>
  inline __attribute__((always_inline)) void update(CellFormula formula, bool last, int64_t value, int64_t i, int valid,
                                                    const Sum* r_z_hn, const Sum* candidate) const {
    constexpr int kWidth = V::width;
    const auto put = [&](auto* out, V values) {
      if constexpr (Full)
        store_as(out + i, values);
      else
        store_as(out + i, values, valid);
    };
    const V z = V::load(r_z_hn + kWidth), n = V::load(candidate), h_previous = V::load(carry + i);
    const V h = formula.state(z, n, h_previous);
    if constexpr (!std::is_same_v<Sum, State>) h.store(carry + i);
    put(following, h);  // beyond the last unit it stays zero: an infinite input makes NaN of the lanes there
    put(output, h);
    if (last) put(h_n, h);
    if (states) put(states, h_previous);
    if (gates) {
      put(gates, V::load(r_z_hn));
      put(gates + value, z);
      put(gates + 2 * value, n);
      put(gates + 3 * value, V::load(r_z_hn + 2 * kWidth));
      put(gates + 4 * value, h_previous);
    }
  }
};

// Whole lines past the caches, which they exceed: nobody reads them before the backward pass, and a line that is stored
// to in the ordinary way is fetched first.
template <class S>
inline void stream_row(const S* from, int64_t count, S* to) {
  constexpr int64_t kLine = kLineBytes / static_cast<int64_t>(sizeof(S));
  const auto before = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) % kLineBytes / sizeof(S));
  int64_t i = std::min(count, before);
  std::copy_n(from, i, to);
  for (; i + kLine <= count; i += kLine) stream_line(from + i, to + i);
  std::copy_n(from + i, count - i, to + i);
}
