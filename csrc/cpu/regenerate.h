// The gates of a stretch of backward, computed again from the inputs and the states: one product over all of its rows,
// for where the forward pass kept the states alone.
// Included inside the namespace of a target, after gates.h.
#pragma once

template <class S, class Product>
class Regeneration {
  using Sum = typename Product::Sum;
  using Word = typename Product::Word;
  using V = Vec<Sum>;
  static constexpr int kWidth = V::width;
  static constexpr int64_t kStagedRows = 64;
  static constexpr int64_t kValues = 4;  // r, z, n, hn

 public:
  // capacity: rows of a stretch at most.
  Regeneration(const BackwardParams& params, int64_t capacity, int threads)
      : p_(params),
        hidden_(params.hidden_size),
        groups_((hidden_ + kWidth - 1) / kWidth),
        padded_(groups_ * kWidth),
        words_ih_(words_of<Product>(params.input_size)),
        words_hh_(words_of<Product>(hidden_)),
        stride_(operand_stride<Product>(std::max(params.input_size, hidden_))),
        packed_ih_(wanted() ? groups_ * words_ih_ * kGates * kWidth : 0),
        packed_hh_(wanted() ? groups_ * words_hh_ * kGates * kWidth : 0),
        bias_(wanted() ? 4 * padded_ : 0),
        staged_(wanted() ? threads * kStagedRows * stride_ : 0),
        projected_(wanted() ? threads * kStagedRows * kGates * padded_ : 0),
        gates_(wanted() ? capacity * kValues * hidden_ : 0) {}

  bool wanted() const { return p_.states_only; }

  // Once; every thread its part. Ends without a barrier.
  void prepare(int thread, int threads) {
    if (!wanted()) return;
    const int64_t low = groups_ * thread / threads, high = groups_ * (thread + 1) / threads;
    pack_gates<Product>(static_cast<const S*>(p_.weight_ih), hidden_, p_.input_size, low, high,
                        packed_ih_.data() + low * words_ih_ * kGates * kWidth);
    pack_gates<Product>(static_cast<const S*>(p_.weight_hh), hidden_, hidden_, low, high,
                        packed_hh_.data() + low * words_hh_ * kGates * kWidth);
    if (thread == 0) add_biases<S>(p_.bias_ih, p_.bias_hh, hidden_, padded_, bias_.data());
  }

  // index: where the stretch's rows lie in every per-step tensor. Other threads may still be at theirs on return.
  void run(const int64_t* index, int64_t rows, int thread, int threads) {
    if (!wanted()) return;
    Word* const staged = staged_.data() + thread * kStagedRows * stride_;
    Sum* const projected = projected_.data() + thread * kStagedRows * kGates * padded_;
    const int64_t high = rows * (thread + 1) / threads;
    for (int64_t first = rows * thread / threads; first < high; first += kStagedRows) {
      const int64_t count = std::min(kStagedRows, high - first), row_length = kGates * padded_;
      const S* const input = static_cast<const S*>(p_.input);
      for (int64_t i = 0; i < count; ++i)
        stage_row<Product>(input + index[first + i] * p_.input_size, p_.input_size, staged + i * stride_);
      multiply<Product, kGates>(staged, stride_, 0, count, packed_ih_.data(), words_ih_, 0, groups_,
                                [&](int64_t row, int tall, int64_t group, int wide, const Sum* sums, int64_t stride) {
                                  for (int r = 0; r < tall; ++r)
                                    std::memcpy(projected + (row + r) * row_length + group * kGates * kWidth,
                                                sums + r * stride, sizeof(Sum) * wide * kGates * kWidth);
                                });
      const S* const states = static_cast<const S*>(p_.saved);
      for (int64_t i = 0; i < count; ++i)
        stage_row<Product>(states + index[first + i] * hidden_, hidden_, staged + i * stride_);
      multiply<Product, kGates>(staged, stride_, 0, count, packed_hh_.data(), words_hh_, 0, groups_,
                                [&](int64_t row, int tall, int64_t group, int wide, const Sum* sums, int64_t stride) {
                                  for (int r = 0; r < tall; ++r)
                                    for (int u = 0; u < wide; ++u)
                                      keep(first + row + r, (group + u) * kWidth,
                                           sums + r * stride + u * kGates * kWidth,
                                           projected + (row + r) * row_length + (group + u) * kGates * kWidth);
                                });
    }
  }

  // r | z | n | hn [4H] of a row of the stretch.
  const S* row(int64_t i) const { return gates_.data() + i * kValues * hidden_; }

 private:
  void keep(int64_t row, int64_t unit, const Sum* sums, const Sum* input) {
    // The state after the step is not asked for, so the one before it does not matter.
    const Gates<V> gates = gates_of(sums, input, bias_.data() + unit, padded_, V::set(0));
    S* const out = gates_.data() + row * kValues * hidden_ + unit;
    const int valid = static_cast<int>(std::min<int64_t>(kWidth, hidden_ - unit));
    store_as(out, gates.state.r, valid);
    store_as(out + hidden_, gates.state.z, valid);
    store_as(out + 2 * hidden_, gates.state.n, valid);
    store_as(out + 3 * hidden_, gates.hn, valid);
  }

  const BackwardParams& p_;
  const int64_t hidden_, groups_, padded_, words_ih_, words_hh_, stride_;
  Workspace<Word> packed_ih_, packed_hh_;
  Workspace<Sum> bias_;
  Workspace<Word> staged_;    // [threads, kStagedRows, stride]
  Workspace<Sum> projected_;  // [threads, kStagedRows, 3 padded]
  Workspace<S> gates_;        // [capacity, 4H]
};
