// Forward recurrence of one layer and direction. Every thread walks the whole sequence once with the rows and units it
// owns: projects the inputs of a stretch of steps into its own near cache, then takes these steps one by one, each a
// product with W_hh whose sums go through the gates while they are at hand. A single step (a cell) reads each weight
// only once, so there a group's weights are rearranged into the near cache right before their use, not all beforehand.
// Included inside the namespace of a target, after pack.h.
#pragma once

template <class S, class Product>
class ForwardPass {
  using Sum = typename Product::Sum;
  using Word = typename Product::Word;
  using Element = typename Product::Element;
  using V = Vec<Sum>;
  static constexpr int kWidth = V::width;
  // The state is carried unrounded; where the product's operand is rounded (bfloat16), beside it.
  static constexpr bool kCarry = !std::is_same_v<Sum, Element>;
  static constexpr int64_t kStagedRows = 64;               // inputs converted and projected together
  static constexpr int64_t kProjectionBytes = 512 * 1024;  // of one thread: stays in its second-level cache
  static constexpr int64_t kProjectionRows = 128;          // at least: W_ih is read once for so many

 public:
  ForwardPass(const ForwardParams& params, const Plan& plan)
      : p_(params),
        plan_(plan),
        rows_(params.rows),
        hidden_(params.hidden_size),
        groups_((hidden_ + kWidth - 1) / kWidth),
        padded_(groups_ * kWidth),
        words_ih_(words_of<Product>(params.input_size)),
        words_hh_(words_of<Product>(hidden_)),
        stride_ih_(operand_stride<Product>(params.input_size)),
        stride_hh_(operand_stride<Product>(padded_)),
        packed_ih_((single_step() ? plan.threads : groups_) * group_ih()),
        packed_hh_((single_step() ? plan.threads : groups_) * group_hh()),
        bias_(4 * padded_),
        operand_(2 * rows_.batch * stride_hh_),
        carry_(kCarry ? rows_.batch * padded_ : 0),
        staged_(plan.threads * staged_rows() * stride_ih_),
        projected_(plan.threads * projection_size()) {}

  void run() {
    add_biases();
    parallel(plan_.threads, [this](int thread, int threads) { walk(thread, threads); });
  }

 private:
  bool single_step() const { return rows_.seq_len == 1; }
  // Words of a group's packed weights.
  int64_t group_ih() const { return words_ih_ * 3 * kWidth; }
  int64_t group_hh() const { return words_hh_ * 3 * kWidth; }
  int64_t staged_rows() const { return single_step() ? rows_.batch : kStagedRows; }
  // Rows (steps x sequences) whose projections a thread holds at once.
  int64_t projection_rows() const {
    const int64_t row = 3 * padded_ * static_cast<int64_t>(sizeof(Sum));
    const int64_t several = std::max<int64_t>(kProjectionRows, kProjectionBytes / row);
    return std::max<int64_t>(rows_.batch, std::min<int64_t>(several, rows_.batch * rows_.seq_len));
  }
  int64_t projection_size() const { return projection_rows() * 3 * padded_; }

  void add_biases() {  // r and z: both biases together; n: apart, for b_hn stands inside r * ( )
    const S* ih = static_cast<const S*>(p_.bias_ih);
    const S* hh = static_cast<const S*>(p_.bias_hh);
    Sum* out = bias_.data();
    std::fill_n(out, 4 * padded_, Sum(0));
    if (!ih) return;
    for (int64_t j = 0; j < hidden_; ++j) {
      for (int gate = 0; gate < 2; ++gate)
        out[gate * padded_ + j] = scalar(ih[gate * hidden_ + j]) + scalar(hh[gate * hidden_ + j]);
      out[2 * padded_ + j] = scalar(ih[2 * hidden_ + j]);
      out[3 * padded_ + j] = scalar(hh[2 * hidden_ + j]);
    }
  }

  void walk(int thread, int threads) {
    const Share share = share_of(plan_, rows_, groups_, thread, threads);
    Word* const staged = staged_.data() + thread * staged_rows() * stride_ih_;
    Sum* const projected = projected_.data() + thread * projection_size();
    if (single_step()) {
      load_h0(rows_.batch * thread / threads, rows_.batch * (thread + 1) / threads);
      if (threads > 1) barrier_.wait(threads);
      take_single_step(share, thread, staged, projected);
      return;
    }
    // Weights are packed once for all: by those who will use them, or in equal parts.
    const int64_t pack_low = groups_ * thread / threads, pack_high = groups_ * (thread + 1) / threads;
    pack_gates<Product>(static_cast<const S*>(p_.weight_ih), hidden_, p_.input_size, pack_low, pack_high,
                        packed_ih_.data() + pack_low * group_ih());
    pack_gates<Product>(static_cast<const S*>(p_.weight_hh), hidden_, hidden_, pack_low, pack_high,
                        packed_hh_.data() + pack_low * group_hh());
    load_h0(rows_.batch * thread / threads, rows_.batch * (thread + 1) / threads);
    if (threads > 1) barrier_.wait(threads);

    const int64_t row_length = (share.group_high - share.group_low) * 3 * kWidth;
    const int64_t capacity = projection_rows();
    int64_t projected_until = 0;
    const Sum* inputs = projected;
    for (int64_t step = 0; step < rows_.seq_len; ++step) {
      if (step == projected_until) {
        projected_until = project(share, step, capacity, staged, projected, row_length);
        inputs = projected;
      }
      inputs = take_step(share, step, inputs, row_length, packed_hh_.data() + share.group_low * group_hh());
      if (threads > 1 && plan_.split == Split::Units) barrier_.wait(threads);
    }
  }

  int64_t row_high(const Share& share, int64_t step) const {
    return std::max(share.row_low, std::min(share.row_high, rows_.batch_at(rows_.time_of(step, p_.reverse))));
  }

  void load_h0(int64_t low, int64_t high) {
    for (int64_t b = low; b < high; ++b) {
      const S* source = static_cast<const S*>(p_.h0) + b * hidden_;
      Word* const current = operand_.data() + b * stride_hh_;
      Word* const other = current + rows_.batch * stride_hh_;
      std::memset(static_cast<void*>(current), 0, stride_hh_ * sizeof(Word));
      for (int64_t j = 0; j < hidden_; j += kWidth) {
        const int valid = static_cast<int>(std::min<int64_t>(kWidth, hidden_ - j));
        const V h = load_as(source + j, valid);
        store_as(reinterpret_cast<Element*>(current) + j, h, valid);
        if constexpr (kCarry) h.store(carry_.data() + b * padded_ + j);
      }
      std::memcpy(static_cast<void*>(other), current, stride_hh_ * sizeof(Word));
    }
  }

  // Projects the inputs of as many steps from `step` on as fit; returns the step after them.
  int64_t project(const Share& share, int64_t step, int64_t capacity, Word* staged, Sum* projected,
                  int64_t row_length) {
    int64_t filled = 0, waiting = 0;
    const auto flush = [&] {
      project_staged(share, staged, waiting, packed_ih_.data() + share.group_low * group_ih(),
                     projected + filled * row_length, row_length);
      filled += waiting;
      waiting = 0;
    };
    for (; step < rows_.seq_len; ++step) {
      const int64_t high = row_high(share, step), t = rows_.time_of(step, p_.reverse);
      if (filled + waiting > 0 && filled + waiting + high - share.row_low > capacity) break;
      for (int64_t b = share.row_low; b < high; ++b) {
        stage(static_cast<const S*>(p_.input) + rows_.row(t, b) * p_.input_size, staged + waiting * stride_ih_);
        if (++waiting == kStagedRows) flush();
      }
    }
    flush();
    return step;
  }

  // `weights` is where the share's first group lies.
  void project_staged(const Share& share, const Word* staged, int64_t count, const Word* weights, Sum* projected,
                      int64_t row_length) {
    multiply<Product, 3>(staged, stride_ih_, 0, count, weights, words_ih_, share.group_low, share.group_high,
                         [&](int64_t first, int rows, int64_t group, int groups, const Sum* sums, int64_t stride) {
                           Sum* out = projected + first * row_length + (group - share.group_low) * 3 * kWidth;
                           for (int r = 0; r < rows; ++r)
                             for (int i = 0; i < groups * 3 * kWidth; i += kWidth)
                               V::load(sums + r * stride + i).store(out + r * row_length + i);
                         });
  }

  void take_single_step(const Share& share, int thread, Word* staged, Sum* projected) {
    for (int64_t b = share.row_low; b < share.row_high; ++b)
      stage(static_cast<const S*>(p_.input) + rows_.row(0, b) * p_.input_size,
            staged + (b - share.row_low) * stride_ih_);
    Word* const ih = packed_ih_.data() + thread * group_ih();
    Word* const hh = packed_hh_.data() + thread * group_hh();
    for (int64_t group = share.group_low; group < share.group_high; ++group) {
      const Share one{share.row_low, share.row_high, group, group + 1};
      pack_gates<Product>(static_cast<const S*>(p_.weight_ih), hidden_, p_.input_size, group, group + 1, ih);
      project_staged(one, staged, share.row_high - share.row_low, ih, projected, 3 * kWidth);
      pack_gates<Product>(static_cast<const S*>(p_.weight_hh), hidden_, hidden_, group, group + 1, hh);
      take_step(one, 0, projected, 3 * kWidth, hh);
    }
  }

  void stage(const S* source, Word* out) const {
    const int64_t size = p_.input_size;
    if constexpr (std::is_same_v<S, Element>) {
      std::memcpy(static_cast<void*>(out), source, size * sizeof(S));
    } else {
      int64_t i = 0;
      for (; i + kWidth <= size; i += kWidth) load_as(source + i).store(out + i);
      if (i < size) load_as(source + i, static_cast<int>(size - i)).store(out + i, static_cast<int>(size - i));
    }
    if (size % kDepth<Product>) reinterpret_cast<Element*>(out)[size] = Element{};
  }

  // Returns where the next step's projected inputs begin.
  const Sum* take_step(const Share& share, int64_t step, const Sum* inputs, int64_t row_length, const Word* weights) {
    const int64_t t = rows_.time_of(step, p_.reverse), high = row_high(share, step);
    const int64_t next = step + 1 < rows_.seq_len ? rows_.batch_at(rows_.time_of(step + 1, p_.reverse)) : 0;
    const Word* const current = operand_.data() + (step % 2) * rows_.batch * stride_hh_;
    Word* const following = operand_.data() + ((step + 1) % 2) * rows_.batch * stride_hh_;
    multiply<Product, 3>(
        current, stride_hh_, share.row_low, high, weights, words_hh_, share.group_low, share.group_high,
        [&](int64_t first, int rows, int64_t group, int groups, const Sum* sums, int64_t stride) {
          for (int r = 0; r < rows; ++r) {
            const int64_t b = first + r;
            const Sum* const input = inputs + (b - share.row_low) * row_length + (group - share.group_low) * 3 * kWidth;
            const Cell cell{t, b, b >= next, current + b * stride_hh_, following + b * stride_hh_};
            for (int u = 0; u < groups; ++u) {
              const int64_t offset = int64_t{u} * 3 * kWidth, unit = (group + u) * kWidth;
              if (unit + kWidth <= hidden_)
                update<true>(cell, unit, sums + r * stride + offset, input + offset);
              else
                update<false>(cell, unit, sums + r * stride + offset, input + offset);
            }
          }
        });
    return inputs + (high - share.row_low) * row_length;
  }

  struct Cell {
    int64_t t, b;
    bool last;  // no later step updates this sequence
    const Word* current;
    Word* following;
  };

  template <bool Full>
  inline __attribute__((always_inline)) void update(const Cell& cell, int64_t unit, const Sum* sums, const Sum* input) {
    const int valid = static_cast<int>(hidden_ - unit);
    const Sum* bias = bias_.data() + unit;
    const auto sum = [&](int gate) { return V::load(sums + gate * kWidth); };
    const auto projected = [&](int gate) { return V::load(input + gate * kWidth) + V::load(bias + gate * padded_); };
    Sum* const carry = kCarry ? carry_.data() + cell.b * padded_ + unit
                              : reinterpret_cast<Sum*>(const_cast<Word*>(cell.current)) + unit;
    const V hn = sum(2) + V::load(bias + 3 * padded_);
    const CellState<V> state =
        cell_forward<VectorMath<Sum>>(sum(0) + projected(0), sum(1) + projected(1), projected(2), hn, V::load(carry));
    if constexpr (kCarry) state.h.store(carry);
    store_as(reinterpret_cast<Element*>(cell.following) + unit, state.h);
    const int64_t row = rows_.row(cell.t, cell.b);
    const auto put = [&](S* out, V value) {
      if constexpr (Full)
        store_as(out, value);
      else
        store_as(out, value, valid);
    };
    put(static_cast<S*>(p_.output) + row * p_.output_stride + unit, state.h);
    if (cell.last) put(static_cast<S*>(p_.h_n) + cell.b * hidden_ + unit, state.h);
    if (p_.saved) {
      S* const saved = static_cast<S*>(p_.saved) + row * kSavedGates * hidden_ + unit;
      put(saved, state.r);
      put(saved + hidden_, state.z);
      put(saved + 2 * hidden_, state.n);
      put(saved + 3 * hidden_, hn);
    }
  }

  const ForwardParams& p_;
  const Plan& plan_;
  const Rows& rows_;
  const int64_t hidden_, groups_, padded_, words_ih_, words_hh_, stride_ih_, stride_hh_;
  Workspace<Word> packed_ih_, packed_hh_;
  Workspace<Sum> bias_;      // [4, padded]: r, z, n of the input, n of the hidden state
  Workspace<Word> operand_;  // [2, B, stride_hh]: h of this step and of the next
  Workspace<Sum> carry_;     // [B, padded]
  Workspace<Word> staged_;   // [threads, staged_rows, stride_ih]
  Workspace<Sum> projected_;
  Barrier barrier_;
};
