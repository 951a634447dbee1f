// The large products of backward: gradients of the input, the weights and the biases. They are taken stretch by
// stretch, right after the recurrence has written the gate gradients of a few hundred rows (step, sequence) and while
// these are still in a cache, so that the gate gradients of a whole sequence never exist. Every element of a gradient
// is summed over the rows in order, in blocks and blocks of blocks, whatever the thread count: there is no end to the
// rows, and short sums round less (product.h). Included inside the namespace of a target, after pack.h.
#pragma once

constexpr int64_t kSumWords = 128;       // of a product, summed at once
constexpr int64_t kStretchesOfRun = 32;  // whose gradients of weights are summed before they meet the earlier ones
constexpr int64_t kBiasRows = 32;        // added up one after the other

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
  static constexpr bool kTurned = kOnTiles<Product>;  // tiles want the units of the gate gradients as rows
  static constexpr int64_t kUnitsAtOnce = 96;  // their gate gradients of a stretch stay in the second-level cache

  // The gradient [3H, n] of one weight, and its other factor of a stretch.
  struct Weight {
    S* out;
    Columns<Product> columns;
    int candidate_section;  // of the gate gradients; the other rows belong to sections 1 and 2

    int64_t row_length() const { return columns.vectors() * kWidth; }  // of sums that wait
  };

 public:
  // capacity: rows of a stretch at most. stride: words of a row of gate gradients.
  Gradients(const BackwardParams& params, int64_t capacity, int64_t stride)
      : p_(params),
        hidden_(params.hidden_size),
        section_(words_of<Product>(hidden_)),
        stride_(stride),
        ih_{static_cast<S*>(params.grad_weight_ih), {params.input_size}, 3},
        hh_{static_cast<S*>(params.grad_weight_hh), {hidden_}, 0},
        thin_(kThin<Product> && params.rows.in_all() <= kThinRows),
        once_(params.rows.in_all() <= capacity),
        runs_(stretches_at_most(capacity) > kStretchesOfRun),
        packed_weight_(params.grad_input && !thin_ ? ih_.columns.words(3 * section_) : 0),
        packed_ih_(ih_.out && !thin_ ? ih_.columns.words(words_of<Product>(capacity)) : 0),
        packed_hh_(hh_.out && !thin_ ? hh_.columns.words(words_of<Product>(capacity)) : 0),
        stride_of_pairs_(kTurned ? operand_stride<Product>(capacity) : stride_ * kDepthK),
        pairs_(kDepthK == 1 || (!ih_.out && !hh_.out)
                   ? 0
                   : (kTurned ? 4 * hidden_ : words_of<Product>(capacity)) * stride_of_pairs_),
        run_ih_(runs_ && ih_.out ? 3 * hidden_ * ih_.row_length() : 0),
        run_hh_(runs_ && hh_.out ? 3 * hidden_ * hh_.row_length() : 0),
        apart_ih_(kApart && !once_ && ih_.out ? 3 * hidden_ * ih_.row_length() : 0),
        apart_hh_(kApart && !once_ && hh_.out ? 3 * hidden_ * hh_.row_length() : 0),
        bias_(wants_bias() ? levels_for(stretches_at_most(capacity)) * level_length() + kColumns : 0) {}

  bool wanted() const { return p_.grad_input || ih_.out || hh_.out || wants_bias(); }

  // Once, before the first stretch; every thread its part. Ends without a barrier.
  void prepare(int thread, int threads) {
    if (p_.grad_input && !thin_) {
      const int64_t groups = ih_.columns.groups(), low = groups * thread / threads;
      pack_weight(low, groups * (thread + 1) / threads, packed_weight_.data() + low * kColumns * 3 * section_);
    }
  }

  // Packs the factors of a stretch that do not wait for its gate gradients: inputs and states.
  void load(const Stretch& stretch, int thread, int threads) {
    if (thin_) return;
    if (ih_.out)
      load_factor(ih_, static_cast<const S*>(p_.input), p_.input_size, stretch, packed_ih_.data(), thread, threads);
    if (hh_.out) load_factor(hh_, states(), states_stride(), stretch, packed_hh_.data(), thread, threads);
  }

  // gates: [rows, stride] words, every section written. number: of the stretch, from 0 on. Other threads may still read
  // them when this returns.
  void add(const Word* gates, const Stretch& stretch, int64_t number, int thread, int threads) {
    if (p_.grad_input) add_input(gates, stretch, thread, threads);
    const int64_t low = hidden_ * thread / threads, high = hidden_ * (thread + 1) / threads;
    if (wants_bias()) add_biases(reinterpret_cast<const Element*>(gates), stretch.rows, number, low, high);
    if (!ih_.out && !hh_.out) return;
    if constexpr (kThin<Product>) {
      if (thin_) {
        weight_thin(ih_, gates, stretch, static_cast<const S*>(p_.input), p_.input_size, low, high);
        return weight_thin(hh_, gates, stretch, states(), states_stride(), low, high);
      }
    }
    const Word* factor = gates;
    if constexpr (kDepthK > 1) {
      pair_rows(gates, stretch.rows, low, high);
      factor = pairs_.data();
    }
    const auto add_to = [&](const Weight& weight, const Word* packed, Sum* run, Sum* apart) {
      if (!weight.out) return;
      const bool again = (runs_ ? number % kStretchesOfRun : number) > 0;
      Sum* const to = runs_ ? run : kApart && !once_ ? apart : nullptr;
      add_weight(weight, factor, stretch.rows, packed, to, again, low, high);
      if (runs_ && (number + 1) % kStretchesOfRun == 0) add_run(weight, run, apart, number, low, high);
    };
    add_to(ih_, packed_ih_.data(), run_ih_.data(), apart_ih_.data());
    add_to(hh_, packed_hh_.data(), run_hh_.data(), apart_hh_.data());
  }

  // After the last of so many stretches; every thread what it summed itself.
  void finish(int64_t stretches, int thread, int threads) {
    const int64_t low = hidden_ * thread / threads, high = hidden_ * (thread + 1) / threads;
    const auto finish_weight = [&](const Weight& weight, const Sum* run, Sum* apart) {
      if (!weight.out) return;
      if (runs_ && stretches % kStretchesOfRun != 0) add_run(weight, run, apart, stretches - 1, low, high);
      if (kApart && !once_) round_weight(weight, apart, low, high);
    };
    finish_weight(ih_, run_ih_.data(), apart_ih_.data());
    finish_weight(hh_, run_hh_.data(), apart_hh_.data());
    if (wants_bias()) join_biases(stretches, low, high);
    round_bias(static_cast<S*>(p_.grad_bias_ih), 3, low, high);
    round_bias(static_cast<S*>(p_.grad_bias_hh), 0, low, high);
  }

 private:
  const S* states() const { return static_cast<const S*>(p_.saved) + (p_.options.recompute ? 0 : 4 * hidden_); }
  int64_t states_stride() const { return p_.options.recompute ? hidden_ : kSavedValues * hidden_; }
  bool wants_bias() const { return p_.grad_bias_ih || p_.grad_bias_hh; }
  int64_t stretches_at_most(int64_t capacity) const {
    const Rows& rows = p_.rows;
    // Of sequences of different lengths any two neighbours have more rows than one could hold.
    if (rows.batch_sizes) return std::min(rows.seq_len, 2 * rows.in_all() / capacity + 1);
    const int64_t steps = capacity / rows.batch;
    return (rows.seq_len + steps - 1) / steps;
  }

  // --- gradient of the input: [rows, 3H] times W_ih

  void add_input(const Word* gates, const Stretch& stretch, int thread, int threads) {
    const int64_t groups = ih_.columns.groups();
    const int64_t low = stretch.rows * thread / threads, high = stretch.rows * (thread + 1) / threads;
    if constexpr (kThin<Product>) {
      if (thin_) return input_thin(gates, stretch, groups * thread / threads, groups * (thread + 1) / threads);
    }
    input_rows(gates, stretch, low, high, packed_weight_.data(), 0, groups);
  }

  void pack_weight(int64_t first_group, int64_t last_group, Word* packed) const {
    pack_rows<Product>(
        static_cast<const S*>(p_.weight_ih), p_.input_size, ih_.columns, first_group, last_group, 3 * section_,
        [this](int64_t k) { return weight_row<Product>(k, hidden_, 1); }, packed);
  }

  void input_thin(const Word* gates, const Stretch& stretch, int64_t first_group, int64_t last_group) const {
    multiply_thin<Product>(
        gates + section_, stride_, 0, stretch.rows, static_cast<const S*>(p_.weight_ih), p_.input_size, 3 * section_,
        [this](int64_t k) { return weight_row<Product>(k, hidden_, 1); }, first_group * kColumns,
        std::min(p_.input_size, last_group * kColumns),
        [&](int64_t row, int64_t begin, int64_t length, const Sum* sums) {
          put_input(stretch.index[row], begin, length, sums);
        },
        kSumWords);
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

  // Of few rows, which are all that there are: row by row of the gradient, each written once and in order.
  void weight_thin(const Weight& weight, const Word* gates, const Stretch& stretch, const S* source, int64_t row_length,
                   int64_t low, int64_t high) const {
    if (!weight.out) return;
    for (int gate = 0; gate < 3; ++gate) {
      const Word* const a = gates + (gate < 2 ? gate + 1 : weight.candidate_section) * section_;
      for (int64_t unit = low; unit < high; ++unit)
        sum_thin(a + unit, stride_, source, row_length, stretch.index, stretch.rows, weight.columns.count,
                 weight.out + (gate * hidden_ + unit) * weight.columns.count);
    }
  }

  // Words of two rows each: what pairs a row with the next in a product over rows. Columns of units [low, high).
  void pair_rows(const Word* gates, int64_t rows, int64_t low, int64_t high) const {
    const Element* const elements = reinterpret_cast<const Element*>(gates);
    const int64_t stride = stride_ * kDepthK, length = section_ * kDepthK;
    if constexpr (kTurned) {
      for_units(low, high, kWidth, [&](int64_t at, int64_t units) {
        Word* const out = pairs_.data() + (at / length * hidden_ + at % length) * stride_of_pairs_;
        interleave_turned(elements + at, stride, rows, static_cast<int>(units), out, stride_of_pairs_);
      });
    } else {
      for (int64_t row = 0; row < rows; row += 2) {
        const Element* const even = elements + row * stride;
        const Element* const odd = row + 1 < rows ? even + stride : nullptr;
        Word* const out = pairs_.data() + row / 2 * stride_of_pairs_;
        for (int64_t begin = low; begin < 4 * length; begin += length)
          interleave(even + begin, odd ? odd + begin : nullptr, high - low, out + begin);
      }
    }
  }

  // to: where the sums wait, null: nowhere.
  void add_weight(const Weight& weight, const Word* gates, int64_t rows, const Word* packed, Sum* to, bool add,
                  int64_t low, int64_t high) const {
    const int64_t words = words_of<Product>(rows), lda = stride_of_pairs_;
    for (int gate = 0; gate < 3; ++gate) {
      const int64_t section = gate < 2 ? gate + 1 : weight.candidate_section;
      if constexpr (kTurned) {
        multiply_columns<Product>(
            gates + section * hidden_ * lda, lda, low, high, packed, words, weight.columns, 0, weight.columns.groups(),
            [&](int64_t first, int count, int64_t begin, int64_t columns, const Sum* sums, int64_t stride) {
              for (int r = 0; r < count; ++r, sums += stride) {
                const int64_t row = gate * hidden_ + first + r;
                if (to)
                  add_columns(sums, round_up(columns, kWidth), to + row * weight.row_length() + begin, add);
                else
                  round_row(sums, columns, weight.out + row * weight.columns.count + begin);
              }
            });
      } else {
        const Word* const a = gates + section * section_ * kDepthK;
        for (int64_t unit = low; unit < high; unit += kUnitsAtOnce) {
          for (int64_t group = 0; group < weight.columns.groups(); ++group) {
            weight.columns.with_vectors_of(group, [&](auto vectors) {
              add_group<decltype(vectors)::value>(weight, a, lda, packed + group * kColumns * words, words,
                                                  group * kColumns, gate * hidden_, to, add, unit,
                                                  std::min(high, unit + kUnitsAtOnce));
            });
          }
        }
      }
    }
  }

  // Units [low, high) of the gate whose rows of the gradient begin at `row`, columns from `begin` on.
  template <int G>
  void add_group(const Weight& weight, const Word* a, int64_t lda, const Word* factor, int64_t words, int64_t begin,
                 int64_t row, Sum* to, bool add, int64_t low, int64_t high) const {
    const int64_t n = weight.columns.count, valid = std::min<int64_t>(G * kWidth, n - begin);
    if (to) {
      const int64_t ldo = weight.row_length();
      multiply_across<Product, G>(a + low, lda, high - low, factor, words, to + (row + low) * ldo + begin, ldo, add,
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

  // What a run has summed, up to stretch `last`, to the runs before.
  void add_run(const Weight& weight, const Sum* run, Sum* apart, int64_t last, int64_t low, int64_t high) const {
    const bool add = last >= kStretchesOfRun;
    const int64_t length = weight.row_length();
    for_rows(low, high, [&](int64_t row) {
      if constexpr (kApart)
        add_columns(run + row * length, length, apart + row * length, add);
      else
        add_columns(run + row * length, weight.columns.count, weight.out + row * weight.columns.count, add);
    });
  }

  void round_weight(const Weight& weight, const Sum* apart, int64_t low, int64_t high) const {
    for_rows(low, high, [&](int64_t row) {
      round_row(apart + row * weight.row_length(), weight.columns.count, weight.out + row * weight.columns.count);
    });
  }

  // The rows of a weight that belong to units [low, high).
  template <class Body>
  void for_rows(int64_t low, int64_t high, const Body& body) const {
    for (int gate = 0; gate < 3; ++gate)
      for (int64_t row = gate * hidden_ + low; row < gate * hidden_ + high; ++row) body(row);
  }

  static void round_row(const Sum* from, int64_t count, S* to) {
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) store_as(to + i, V::load(from + i));
    if (i < count) store_as(to + i, V::load(from + i, static_cast<int>(count - i)), static_cast<int>(count - i));
  }

  // --- gradients of the biases: sums over rows, pairwise

  // Level l holds the sum of 2^l stretches where bit l of their number is set, as in a counter: a new stretch's sum
  // goes up through all levels that the step to the next number clears.
  int64_t level_length() const { return 4 * section_ * kDepthK; }
  static int64_t levels_for(int64_t stretches) {
    int64_t levels = 0;
    for (; stretches > 0; stretches /= 2) ++levels;
    return levels;
  }

  void add_biases(const Element* gates, int64_t rows, int64_t number, int64_t low, int64_t high) const {
    constexpr int kAtOnce = 4;
    const auto add = [&](auto vectors, int64_t at, int valid) {
      constexpr int N = decltype(vectors)::value;
      V total[N];
      sum_rows<N>(gates + at, rows, valid, total);
      Sum* to = bias_.data() + at;
      for (int64_t bits = number; bits % 2 == 1; bits /= 2, to += level_length())
        for (int g = 0; g < N; ++g) total[g] = V::load(to + g * kWidth, valid) + total[g];
      for (int g = 0; g < N; ++g) total[g].store(to + g * kWidth, valid);
    };
    for_units(low, high, kWidth * kAtOnce, [&](int64_t at, int64_t units) {
      if (units == kWidth * kAtOnce) return add(std::integral_constant<int, kAtOnce>{}, at, kWidth);
      for (int64_t i = 0; i < units; i += kWidth)
        add(std::integral_constant<int, 1>{}, at + i, static_cast<int>(std::min<int64_t>(kWidth, units - i)));
    });
  }

  // total: N vectors, the sums of `rows` >= 1 rows.
  template <int N>
  void sum_rows(const Element* from, int64_t rows, int valid, V* total) const {
    const int64_t stride = stride_ * kDepthK;
    const auto get = [valid](const Element* at) { return valid == kWidth ? load_as(at) : load_as(at, valid); };
    if (rows > kBiasRows) {
      V other[N];
      sum_rows<N>(from, rows / 2, valid, total);
      sum_rows<N>(from + rows / 2 * stride, rows - rows / 2, valid, other);
      for (int g = 0; g < N; ++g) total[g] = total[g] + other[g];
      return;
    }
    V sums[N];
    for (int g = 0; g < N; ++g) sums[g] = get(from + g * kWidth);
    for (int64_t r = 1; r < rows; ++r)
      for (int g = 0; g < N; ++g) sums[g] = sums[g] + get(from + r * stride + g * kWidth);
    for (int g = 0; g < N; ++g) total[g] = sums[g];
  }

  // Into the first level what all of them hold after so many stretches, the shortest sums first.
  void join_biases(int64_t stretches, int64_t low, int64_t high) const {
    for_units(low, high, kWidth, [&](int64_t at, int64_t units) {
      const int valid = static_cast<int>(units);
      const Sum* from = bias_.data() + at;
      V total = V::set(0);
      for (int64_t bits = stretches; bits > 0; bits /= 2, from += level_length())
        if (bits % 2 == 1) total = V::load(from, valid) + total;
      total.store(bias_.data() + at, valid);
    });
  }

  // body(where they begin in a row of gate gradients, how many) for units [low, high) of each section.
  template <class Body>
  void for_units(int64_t low, int64_t high, int64_t at_once, const Body& body) const {
    for (int section = 0; section < 4; ++section)
      for (int64_t unit = low; unit < high; unit += at_once)
        body(section * section_ * kDepthK + unit, std::min(at_once, high - unit));
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
  const bool runs_;                        // so many that their sums are summed in runs
  Workspace<Word> packed_weight_;          // W_ih for the gradient of the input
  Workspace<Word> packed_ih_, packed_hh_;  // inputs and states of the stretch
  const int64_t stride_of_pairs_;
  Workspace<Word> pairs_;  // its gate gradients, rows paired; kTurned: [4 sections, units]
  Workspace<Sum> run_ih_, run_hh_, apart_ih_, apart_hh_;
  Workspace<Sum> bias_;  // [levels, 4 sections]
};
