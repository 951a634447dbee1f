// The gates of a stretch of backward, computed again from the inputs and the states: one product over all of its rows,
// for where the forward pass kept the states alone.
// Included inside the namespace of a target, after gates.h.
#pragma once

template <class S, class Product>
class Regeneration {
  static_assert(Product::kPacked == 1, "tiles of many rows");
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
        unpacked_ih_(!kOnTiles<Product> && inputs_unpacked(kWidth, params.input_size, hidden_)),
        packed_ih_(wanted() && !unpacked_ih_ ? groups_ * group_ih() : 0),
        packed_hh_(wanted() ? groups_ * group_hh() : 0),
        bias_(wanted() ? 4 * padded_ : 0),
        staged_(wanted() ? threads * kStagedRows * stride_ : 0),
        projected_(wanted() ? threads * kStagedRows * kGates * padded_ : 0),
        gates_(wanted() ? capacity * kValues * hidden_ : 0) {}

  bool wanted() const { return p_.options.recompute; }

  // Once; every thread its part. Ends without a barrier.
  void prepare(int thread, int threads) {
    if (!wanted()) return;
    const int64_t low = groups_ * thread / threads, high = groups_ * (thread + 1) / threads;
    if (unpacked_ih_)
      std::memset(static_cast<void*>(staged_of(thread)), 0, kStagedRows * stride_ * sizeof(Word));
    else
      pack_gates<Product>(static_cast<const S*>(p_.weight_ih), hidden_, p_.input_size, low, high,
                          packed_ih_.data() + low * group_ih());
    pack_gates<Product>(static_cast<const S*>(p_.weight_hh), hidden_, hidden_, low, high,
                        packed_hh_.data() + low * group_hh());
    if (thread == 0) add_biases<S>(p_.bias_ih, p_.bias_hh, hidden_, padded_, bias_.data());
  }

  // index: where the stretch's rows lie in every per-step tensor. Other threads may still be at theirs on return.
  void run(const int64_t* index, int64_t rows, int thread, int threads) {
    if (!wanted()) return;
    Word* const staged = staged_of(thread);
    Sum* const projected = projected_.data() + thread * kStagedRows * kGates * padded_;
    const int64_t high = rows * (thread + 1) / threads;
    for (int64_t first = rows * thread / threads; first < high; first += kStagedRows) {
      const int64_t count = std::min(kStagedRows, high - first), row_length = kGates * padded_;
      const S* const input = static_cast<const S*>(p_.input);
      for (int64_t i = 0; i < count; ++i)
        stage_row<Product>(input + index[first + i] * p_.input_size, p_.input_size, staged + i * stride_);
      if (unpacked_ih_)
        multiply_unpacked<Product>(staged, stride_, 0, count, static_cast<const S*>(p_.weight_ih), hidden_,
                                   p_.input_size, 0, groups_,
                                   [=](int64_t row, int tall, int64_t group, int, const Sum* sums, int64_t stride) {
                                     for (int r = 0; r < tall; ++r)
                                       std::copy_n(sums + r * stride, kGates * kWidth,
                                                   projected + (row + r) * row_length + group * kGates * kWidth);
                                   });
      else
        multiply_into<Product, kGates>(staged, stride_, count, packed_ih_.data(), words_ih_, groups_, projected,
                                       row_length);
      const S* const states = static_cast<const S*>(p_.saved);
      for (int64_t i = 0; i < count; ++i)
        stage_row<Product>(states + index[first + i] * hidden_, hidden_, staged + i * stride_);
      multiply<Product, kGates>(staged, stride_, 0, count, packed_hh_.data(), words_hh_, 0, groups_,
                                [&](int64_t row, int tall, int64_t group, int wide, Sum* sums, int64_t stride) {
                                  keep(first + row, tall, group, wide, sums, stride, projected + row * row_length);
                                });
    }
  }

  // r | z | n | hn [4H] of a row of the stretch.
  const S* row(int64_t i) const { return gates_.data() + i * kValues * hidden_; }

 private:
  Word* staged_of(int thread) const { return staged_.data() + thread * kStagedRows * stride_; }
  // Words of a group's packed weights.
  int64_t group_ih() const { return words_ih_ * kGates * kWidth; }
  int64_t group_hh() const { return words_hh_ * kGates * kWidth; }

  // A block of the product with W_hh, whose first row is row `first` of the stretch; projected: where that row's
  // projection lies.
  void keep(int64_t first, int rows, int64_t group, int groups, Sum* sums, int64_t stride, const Sum* projected) {
    const int64_t begin = group * kWidth, units = int64_t{groups} * kWidth;
    alignas(64) Sum candidates[kBlockUnits * kWidth];
    take_gates(CellFormula(p_.options), sums, stride, projected + kGates * begin, kGates * padded_,
               bias_.data() + begin, padded_, rows, units, candidates);
    for (int r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < std::min(units, hidden_ - begin); i += kWidth) {
        S* const out = gates_.data() + (first + r) * kValues * hidden_ + begin + i;
        const Sum* const gates = sums + r * stride + kGates * i;
        const int valid = static_cast<int>(std::min<int64_t>(kWidth, hidden_ - begin - i));
        store_as(out, V::load(gates), valid);
        store_as(out + hidden_, V::load(gates + kWidth), valid);
        store_as(out + 2 * hidden_, V::load(candidates + r * units + i), valid);
        store_as(out + 3 * hidden_, V::load(gates + 2 * kWidth), valid);
      }
    }
  }

  const BackwardParams& p_;
  const int64_t hidden_, groups_, padded_, words_ih_, words_hh_, stride_;
  const bool unpacked_ih_;  // as in the forward pass
  Workspace<Word> packed_ih_, packed_hh_;
  Workspace<Sum> bias_;
  Workspace<Word> staged_;    // [threads, kStagedRows, stride]
  Workspace<Sum> projected_;  // [threads, kStagedRows, 3 padded]
  Workspace<S> gates_;        // [capacity, 4H]
};
