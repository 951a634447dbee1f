// The large products of backward: gradients of the input, the weights and the biases. They are taken stretch by
// stretch, right after the recurrence has written the gate gradients of a few hundred rows (step, sequence) and while
// these are still in a cache, so that the gate gradients of a whole sequence never exist. Every element of a gradient
// is summed over the rows in order, in blocks of kSumWords, whatever the thread count. Included inside the namespace of
// a target, after pack.h.
#pragma once

constexpr int64_t kSumWords = 128;  // summed at once: short sums round less

// The rows of a stretch. Row i of its operands is row index[i] of every per-step tensor.
struct Stretch {
  const int64_t* index;
  int64_t rows;
};

template <class S, class Product>
class Gradients {
  static_assert(Product::kPacked == 1, "tiles of many rows");
  using Sum = typename Product::Sum;
  using Word = typename Product::Word;
  using Element = typename Product::Element;
  using V = Vec<Sum>;
  static constexpr int kWidth = V::width;
  static constexpr int64_t kColumns = Columns<Product>::of_group;
  static constexpr int kDepthK = static_cast<int>(kDepth<Product>);
  // Where the gradient is narrower than its sums, these wait in memory of their own until the last stretch.
  static constexpr bool kApart = !std::is_same_v<S, Sum>;
  // Rows of input and few of them: reading W_ih as it lies beats rearranging it. By type, for a row's bits must not
  // depend on the number of rows: here multiplied and summed as product_tile does.
  static constexpr bool kThin = !kApart && kDepthK == 1;
  static constexpr int64_t kThinRows = 4;
  static constexpr int64_t kUnitsAtOnce = 96;  // their gate gradients of a stretch stay in the second-level cache

  // The gradient [3H, n] of one weight, and its other factor of a stretch.
  struct Weight {
    S* out;
    Columns<Product> columns;
    int candidate_section;  // of the gate gradients; the other rows belong to sections 1 and 2
  };

 public:
  // capacity: rows of a stretch at most. stride: words of a row of gate gradients.
  Gradients(const BackwardParams& params, int64_t capacity, int64_t stride, int threads)
      : p_(params),
        hidden_(params.hidden_size),
        section_(words_of<Product>(hidden_)),
        stride_(stride),
        ih_{static_cast<S*>(params.grad_weight_ih), {params.input_size}, 3},
        hh_{static_cast<S*>(params.grad_weight_hh), {hidden_}, 0},
        thin_(kThin && !params.rows.batch_sizes && rows_in_all() <= kThinRows),
        once_(rows_in_all() <= capacity),
        packed_weight_(!params.grad_input || thin_ ? 0
                       : once_                     ? threads * kColumns * 3 * section_
                                                   : ih_.columns.words(3 * section_)),
        packed_ih_(ih_.out ? ih_.columns.words(words_of<Product>(capacity)) : 0),
        packed_hh_(hh_.out ? hh_.columns.words(words_of<Product>(capacity)) : 0),
        pairs_(kDepthK > 1 && (ih_.out || hh_.out) ? words_of<Product>(capacity) * stride_ * kDepthK : 0),
        apart_ih_(kApart && !once_ && ih_.out ? ih_.columns.words(3 * hidden_) : 0),
        apart_hh_(kApart && !once_ && hh_.out ? hh_.columns.words(3 * hidden_) : 0),
        bias_(wants_bias() ? 4 * section_ * kDepthK + kColumns : 0) {}

  bool wanted() const { return p_.grad_input || ih_.out || hh_.out || wants_bias(); }

  // Once, before the first stretch; every thread its part. Ends without a barrier.
  void prepare(int thread, int threads) {
    if (p_.grad_input && !thin_ && !once_) {
      const int64_t groups = ih_.columns.groups(), low = groups * thread / threads;
      pack_weight(low, groups * (thread + 1) / threads, packed_weight_.data() + low * kColumns * 3 * section_);
    }
    if (thread == 0 && wants_bias()) std::fill_n(bias_.data(), 4 * section_ * kDepthK, Sum(0));
  }

  // Packs the factors of a stretch that do not wait for its gate gradients: inputs and states.
  void load(const Stretch& stretch, int thread, int threads) {
    if (ih_.out)
      load_factor(ih_, static_cast<const S*>(p_.input), p_.input_size, stretch, packed_ih_.data(), thread, threads);
    if (hh_.out)
      load_factor(hh_, states(), p_.states_only ? hidden_ : kSavedValues * hidden_, stretch, packed_hh_.data(), thread,
                  threads);
  }

  // gates: [rows, stride] words, every section written. Other threads may still read them when this returns.
  void add(const Word* gates, const Stretch& stretch, bool first, int thread, int threads) {
    if (p_.grad_input) add_input(gates, stretch, thread, threads);
    const int64_t low = hidden_ * thread / threads, high = hidden_ * (thread + 1) / threads;
    if (wants_bias()) add_biases(reinterpret_cast<const Element*>(gates), stretch.rows, low, high);
    if (!ih_.out && !hh_.out) return;
    const Word* factor = gates;
    if constexpr (kDepthK > 1) {
      pair_rows(gates, stretch.rows, low, high);
      factor = pairs_.data();
    }
    if (ih_.out) add_weight(ih_, factor, stretch.rows, packed_ih_.data(), apart_ih_.data(), first, low, high);
    if (hh_.out) add_weight(hh_, factor, stretch.rows, packed_hh_.data(), apart_hh_.data(), first, low, high);
  }

  // After the last stretch; every thread what it summed itself.
  void finish(int thread, int threads) {
    const int64_t low = hidden_ * thread / threads, high = hidden_ * (thread + 1) / threads;
    if (kApart && !once_) {
      if (ih_.out) round_weight(ih_, apart_ih_.data(), low, high);
      if (hh_.out) round_weight(hh_, apart_hh_.data(), low, high);
    }
    round_bias(static_cast<S*>(p_.grad_bias_ih), 3, low, high);
    round_bias(static_cast<S*>(p_.grad_bias_hh), 0, low, high);
  }

 private:
  const S* states() const { return static_cast<const S*>(p_.saved) + (p_.states_only ? 0 : 4 * hidden_); }
  bool wants_bias() const { return p_.grad_bias_ih || p_.grad_bias_hh; }
  int64_t rows_in_all() const {
    const Rows& rows = p_.rows;
    if (!rows.batch_sizes) return rows.seq_len * rows.batch;
    return rows.offsets[rows.seq_len - 1] + rows.batch_sizes[rows.seq_len - 1];
  }

  // --- gradient of the input: [rows, 3H] times W_ih

  void add_input(const Word* gates, const Stretch& stretch, int thread, int threads) {
    const int64_t groups = ih_.columns.groups();
    const int64_t low = stretch.rows * thread / threads, high = stretch.rows * (thread + 1) / threads;
    if (thin_) return input_thin(gates, stretch, low, high);
    if (!once_) return input_rows(gates, stretch, low, high, packed_weight_.data(), 0, groups);
    // Weights that are read only once are rearranged into the near cache right before their use.
    Word* const packed = packed_weight_.data() + thread * kColumns * 3 * section_;
    for (int64_t group = groups * thread / threads; group < groups * (thread + 1) / threads; ++group) {
      pack_weight(group, group + 1, packed);
      input_rows(gates, stretch, 0, stretch.rows, packed, group, group + 1);
    }
  }

  void pack_weight(int64_t first_group, int64_t last_group, Word* packed) const {
    pack_rows<Product>(
        static_cast<const S*>(p_.weight_ih), p_.input_size, ih_.columns, first_group, last_group, 3 * section_,
        [this](int64_t k) { return weight_row<Product>(k, hidden_, 1); }, packed);
  }

  // packed: where first_group lies.
  void input_rows(const Word* gates, const Stretch& stretch, int64_t low, int64_t high, const Word* packed,
                  int64_t first_group, int64_t last_group) const {
    multiply_columns<Product>(
        gates + section_, stride_, low, high, packed, 3 * section_, ih_.columns, first_group, last_group,
        [&](int64_t first, int rows, int64_t begin, int64_t length, const Sum* sums, int64_t row_stride) {
          for (int r = 0; r < rows; ++r) put_input(stretch.index[first + r], begin, length, sums + r * row_stride);
        },
        kSumWords);
  }

  void put_input(int64_t row, int64_t begin, int64_t length, const Sum* sums) const {
    S* const out = static_cast<S*>(p_.grad_input) + row * p_.input_size + begin;
    int64_t i = 0;
    for (; i + kWidth <= length; i += kWidth) {
      const V sum = V::load(sums + i);
      store_as(out + i, p_.add_to_input ? sum + load_as(out + i) : sum);
    }
    if (i == length) return;
    const int valid = static_cast<int>(length - i);
    const V sum = V::load(sums + i);
    store_as(out + i, p_.add_to_input ? sum + load_as(out + i, valid) : sum, valid);
  }

  void input_thin(const Word* gates, const Stretch& stretch, int64_t low, int64_t high) const {
    if constexpr (kThin) {
      Sum sums[kColumns];
      for (int64_t begin = 0; begin < p_.input_size; begin += kColumns) {
        const int64_t length = std::min(kColumns, p_.input_size - begin);
        for (int64_t r = low; r < high; ++r) {
          for (int64_t k = 0; k < 3 * hidden_; k += kSumWords)
            thin_sum(gates + section_ + r * stride_ + k, k, std::min(kSumWords, 3 * hidden_ - k), begin, length, sums);
          put_input(stretch.index[r], begin, length, sums);
        }
      }
    }
  }

  // sums (+)= `count` elements of a row, from element k on, times columns [begin, begin + length) of W_ih.
  void thin_sum(const Word* a, int64_t k, int64_t count, int64_t begin, int64_t length, Sum* sums) const {
    V part[kColumnVectors];
    for (V& sum : part) sum = V::set(0);
    for (int64_t i = 0; i < count; ++i) {
      const S* const from = static_cast<const S*>(p_.weight_ih) + (k + i) * p_.input_size + begin;
      const V factor = V::set(a[i]);
#pragma GCC unroll 16
      for (int g = 0; g < kColumnVectors; ++g) {
        const int64_t valid = length - g * kWidth;
        const V row = valid >= kWidth ? load_as(from + g * kWidth)
                      : valid > 0     ? load_as(from + g * kWidth, static_cast<int>(valid))
                                      : V::set(0);
        part[g] = multiply_add(factor, row, part[g]);
      }
    }
    for (int g = 0; g < kColumnVectors; ++g)
      (k == 0 ? part[g] : V::load(sums + g * kWidth) + part[g]).store(sums + g * kWidth);
  }

  // --- gradients of the weights: [3H, rows] times inputs or states

  // The stretch's rows of a per-step tensor, packed for product_tile.
  void load_factor(const Weight& weight, const S* source, int64_t row_length, const Stretch& stretch, Word* packed,
                   int thread, int threads) const {
    const int64_t words = words_of<Product>(stretch.rows), groups = weight.columns.groups();
    const int64_t low = groups * thread / threads, high = groups * (thread + 1) / threads;
    pack_rows<Product>(
        source, row_length, weight.columns, low, high, words,
        [&](int64_t k) { return k < stretch.rows ? stretch.index[k] : -1; }, packed + low * kColumns * words);
  }

  // Words of two rows each: what pairs a row with the next in a product over rows. Columns of units [low, high).
  void pair_rows(const Word* gates, int64_t rows, int64_t low, int64_t high) const {
    for (int64_t word = 0; word < words_of<Product>(rows); ++word) {
      const Element* const even = reinterpret_cast<const Element*>(gates + 2 * word * stride_);
      const Element* const odd = 2 * word + 1 < rows ? even + stride_ * kDepthK : nullptr;
      Word* const out = pairs_.data() + word * stride_ * kDepthK;
      for (int section = 0; section < 4; ++section) {
        const int64_t begin = section * section_ * kDepthK + low;
        interleave(even + begin, odd ? odd + begin : nullptr, high - low, out + begin);
      }
    }
  }

  void add_weight(const Weight& weight, const Word* gates, int64_t rows, const Word* packed, Sum* apart, bool first,
                  int64_t low, int64_t high) const {
    const int64_t words = words_of<Product>(rows), lda = stride_ * kDepthK, length = section_ * kDepthK;
    for (int gate = 0; gate < 3; ++gate) {
      const Word* const a = gates + (gate < 2 ? gate + 1 : weight.candidate_section) * length;
      for (int64_t unit = low; unit < high; unit += kUnitsAtOnce) {
        for (int64_t group = 0; group < weight.columns.groups(); ++group) {
          weight.columns.with_vectors_of(group, [&](auto vectors) {
            add_group<decltype(vectors)::value>(weight, a, lda, packed + group * kColumns * words, words,
                                                group * kColumns, gate * hidden_, apart, !first, unit,
                                                std::min(high, unit + kUnitsAtOnce));
          });
        }
      }
    }
  }

  // Units [low, high) of the gate whose rows of the gradient begin at `row`, columns from `begin` on.
  template <int G>
  void add_group(const Weight& weight, const Word* a, int64_t lda, const Word* factor, int64_t words, int64_t begin,
                 int64_t row, Sum* apart, bool add, int64_t low, int64_t high) const {
    const int64_t n = weight.columns.count, valid = std::min<int64_t>(G * kWidth, n - begin);
    if (kApart && !once_) {
      const int64_t ldo = weight.columns.vectors() * kWidth;
      multiply_across<Product, G>(a + low, lda, high - low, factor, words, apart + (row + low) * ldo + begin, ldo, add,
                                  kSumWords);
      return;
    }
    if constexpr (!kApart) {
      if (valid == G * kWidth) {
        multiply_across<Product, G>(a + low, lda, high - low, factor, words, weight.out + (row + low) * n + begin, n,
                                    add, kSumWords);
        return;
      }
    }
    constexpr int kTallest = Tiles<Product, G>::max_rows;
    alignas(64) Sum sums[kTallest * G * kWidth];
    for (int64_t unit = low; unit < high; unit += kTallest) {
      const int64_t units = std::min<int64_t>(kTallest, high - unit);
      multiply_across<Product, G>(a + unit, lda, units, factor, words, sums, G * kWidth, false, kSumWords);
      for (int64_t r = 0; r < units; ++r) {
        S* const out = weight.out + (row + unit + r) * n + begin;
        if constexpr (kApart)
          round_row(sums + r * G * kWidth, valid, out);
        else
          add_columns(sums + r * G * kWidth, valid, out, add);
      }
    }
  }

  static void add_columns(const Sum* sums, int64_t valid, Sum* out, bool add) {
    for (int64_t i = 0; i < valid; i += kWidth) {
      const int count = static_cast<int>(std::min<int64_t>(kWidth, valid - i));
      const V sum = V::load(sums + i);
      (add ? sum + V::load(out + i, count) : sum).store(out + i, count);
    }
  }

  void round_weight(const Weight& weight, const Sum* apart, int64_t low, int64_t high) const {
    for (int gate = 0; gate < 3; ++gate) {
      for (int64_t row = gate * hidden_ + low; row < gate * hidden_ + high; ++row)
        round_row(apart + row * weight.columns.vectors() * kWidth, weight.columns.count,
                  weight.out + row * weight.columns.count);
    }
  }

  static void round_row(const Sum* from, int64_t count, S* to) {
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) store_as(to + i, V::load(from + i));
    if (i < count) store_as(to + i, V::load(from + i, static_cast<int>(count - i)), static_cast<int>(count - i));
  }

  // --- gradients of the biases: sums over rows

  void add_biases(const Element* gates, int64_t rows, int64_t low, int64_t high) const {
    constexpr int kAtOnce = 4;
    const int64_t length = section_ * kDepthK, stride = stride_ * kDepthK;
    for (int section = 0; section < 4; ++section) {
      for (int64_t unit = low; unit < high; unit += kWidth * kAtOnce) {
        const Element* const from = gates + section * length + unit;
        Sum* const out = bias_.data() + section * length + unit;
        const int64_t units = high - unit;
        if (units >= kWidth * kAtOnce) {
          V total[kAtOnce];
          for (int g = 0; g < kAtOnce; ++g) total[g] = load_as(from + g * kWidth);
          for (int64_t r = 1; r < rows; ++r)
            for (int g = 0; g < kAtOnce; ++g) total[g] = total[g] + load_as(from + r * stride + g * kWidth);
          for (int g = 0; g < kAtOnce; ++g) (V::load(out + g * kWidth) + total[g]).store(out + g * kWidth);
          continue;
        }
        for (int64_t i = 0; i < units; i += kWidth) {
          const int valid = static_cast<int>(std::min<int64_t>(kWidth, units - i));
          V total = load_as(from + i, valid);
          for (int64_t r = 1; r < rows; ++r) total = total + load_as(from + r * stride + i, valid);
          (V::load(out + i, valid) + total).store(out + i, valid);
        }
      }
    }
  }

  void round_bias(S* out, int candidate_section, int64_t low, int64_t high) const {
    if (!out) return;
    for (int gate = 0; gate < 3; ++gate) {
      const Sum* const sums = bias_.data() + (gate < 2 ? gate + 1 : candidate_section) * section_ * kDepthK;
      round_row(sums + low, high - low, out + gate * hidden_ + low);
    }
  }

  const BackwardParams& p_;
  const int64_t hidden_, section_, stride_;
  const Weight ih_, hh_;
  const bool thin_;
  const bool once_;                        // there is only one stretch
  Workspace<Word> packed_weight_;          // W_ih for the gradient of the input
  Workspace<Word> packed_ih_, packed_hh_;  // inputs and states of the stretch
  Workspace<Word> pairs_;                  // its gate gradients, rows paired
  Workspace<Sum> apart_ih_, apart_hh_, bias_;
};
