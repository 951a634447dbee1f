// Forward recurrence of one layer and direction. Every thread walks the whole sequence once with the rows and units it
// owns: projects the inputs of a stretch of steps into its own near cache, then takes these steps one by one, each a
// product with W_hh whose sums go through the gates while they are at hand. A few rows (a cell) do not repay
// rearranging the weights, which are then read as they lie (dot.h).
// Included inside the namespace of a target, after update.h, bytes.h and dot.h.
#pragma once

// Large: the product with W_ih, of many rows; Product: the one with W_hh, of the rows of one step.
template <class S, class Product, class Large = Product>
class ForwardPass {
  using Sum = typename Product::Sum;
  using Word = typename Product::Word;
  using V = Vec<Sum>;
  static constexpr int kWidth = V::width;
  // Bytes are made of states right before the product, which takes those of all units.
  static constexpr bool kBytes = std::is_same_v<Product, ProductBytes>;
  using StateProduct = std::conditional_t<kBytes, ProductFloat, Product>;  // states lie as its operand
  using State = typename StateProduct::Element;
  // The state is carried unrounded; where the product's operand is rounded (bfloat16), beside it.
  static constexpr bool kCarry = !std::is_same_v<Sum, State>;
  using Sequence = StepOfSequence<S, Sum, State>;
  static constexpr int64_t kStagedRows = 64;               // inputs converted and projected together
  static constexpr int64_t kStagedRowsFewRows = 1024;      // so many repay reading W_ih from far
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
        stride_hh_(operand_stride<StateProduct>(padded_)),
        stride_bytes_(kBytes ? operand_stride<Product>(padded_) : 0),
        ready_ih_(ready<Large>()),
        ready_hh_(ready<Product>()),
        streams_(params.saved && !params.options.recompute && bytes_kept() > plan.stream_above),
        unpacked_ih_(few_rows() || (params.weights == WeightFormat::Plain && !kOnTiles<Large> &&
                                    inputs_unpacked(kWidth, params.input_size, hidden_))),
        packed_ih_(unpacked_ih_ || ready_ih_ ? 0 : (project_once() ? plan.threads : groups_) * group_ih()),
        packed_hh_(few_rows() || ready_hh_ ? 0 : (single_step() ? plan.threads : groups_) * group_hh()),
        bias_(4 * padded_),
        operand_(2 * rows_.batch * stride_hh_),
        carry_(kCarry ? rows_.batch * padded_ : 0),
        bytes_(plan.threads * rows_.batch * stride_bytes_),
        scales_(kBytes ? plan.threads * (rows_.batch + staged_rows()) : 0),
        staged_(plan.threads * staged_rows() * stride_ih_),
        projected_(projection_size()) {}

  void run() {
    add_biases<S>(p_.bias_ih, p_.bias_hh, hidden_, padded_, bias_.data());
    parallel(plan_.threads, [this](int thread, int threads) {
      walk(thread, threads);
      if (streams_) stream_fence();
    });
  }

 private:
  bool few_rows() const { return plan_.few_rows; }
  // Whether weights are packed ahead as a product reads them.
  template <class P>
  bool ready() const {
    return p_.weights != WeightFormat::Plain && p_.weights == kFormat<P>;
  }
  bool single_step() const { return rows_.seq_len == 1; }
  // Words of a group's packed weights.
  int64_t group_ih() const { return packed_words<Large>(words_ih_) * 3 * kWidth; }
  int64_t group_hh() const { return packed_words<Product>(words_hh_) * 3 * kWidth; }
  int64_t all_rows() const { return rows_.batch * rows_.seq_len; }  // at most, when packed
  int64_t bytes_kept() const { return rows_.in_all() * kSavedValues * hidden_ * static_cast<int64_t>(sizeof(S)); }
  int64_t staged_rows() const {
    if (few_rows()) return std::min(kStagedRowsFewRows, all_rows());
    return project_once() || (ready_ih_ && all_rows() <= kProjectionRows) ? all_rows() : kStagedRows;
  }
  // Whether all inputs are projected at once. Threads that share the batch would each rearrange all of W_ih.
  bool project_once() const {
    return !unpacked_ih_ && !ready_ih_ && !p_.progress && all_rows() <= kProjectionRows &&
           (plan_.split == Split::Units || plan_.threads == 1);
  }
  // Rows (steps x sequences) worth projecting at once.
  int64_t several() const {
    const int64_t row = 3 * padded_ * static_cast<int64_t>(sizeof(Sum));
    if (p_.progress) return std::min(kOverlappingSteps * rows_.batch, all_rows());
    return std::min(std::max(kProjectionRows, kProjectionBytes / row), all_rows());
  }
  // Rows whose projections a thread holds at once: all of few, else several, but at least a whole step.
  int64_t projection_rows(const Share& share) const {
    const int64_t owned = share.row_high - share.row_low;
    return few_rows() ? owned * rows_.seq_len : std::max(owned, several());
  }
  // One block for all threads, divided by what each owns: it grows neither with the threads planned nor depends on how
  // many come.
  int64_t projection_size() const {
    if (few_rows()) return all_rows() * 3 * padded_;
    if (plan_.split == Split::Units) return std::max(rows_.batch, several()) * 3 * padded_;
    return (rows_.batch + plan_.threads * several()) * 3 * padded_;
  }
  Sum* projection_of(const Share& share, int thread) const {
    if (plan_.split == Split::Units) return projected_.data() + projection_rows(share) * 3 * kWidth * share.group_low;
    const int64_t first = few_rows() ? share.row_low * rows_.seq_len : share.row_low + thread * several();
    return projected_.data() + first * 3 * padded_;
  }

  void walk(int thread, int threads) {
    const Share share = share_of(plan_, rows_, groups_, thread, threads);
    PhaseClock clock(Pass::Forward, Phase::Packing);
    Word* const staged = staged_.data() + thread * staged_rows() * stride_ih_;
    Sum* const projected = projection_of(share, thread);
    if (few_rows()) {
      load_h0(rows_.batch * thread / threads, rows_.batch * (thread + 1) / threads);
      if (threads > 1) wait(threads, clock);
      take_few_rows(share, thread, threads, staged, projected, clock);
      return;
    }
    // Weights are packed once for all: by those who will use them, or in equal parts.
    const int64_t pack_low = groups_ * thread / threads, pack_high = groups_ * (thread + 1) / threads;
    if (unpacked_ih_)
      std::memset(static_cast<void*>(staged), 0, staged_rows() * stride_ih_ * sizeof(Word));
    else if (!project_once() && !ready_ih_)
      pack<Large>(p_.weight_ih, p_.input_size, pack_low, pack_high, packed_ih_.data() + pack_low * group_ih());
    if (!single_step() && !ready_hh_)
      pack<Product>(p_.weight_hh, hidden_, pack_low, pack_high, packed_hh_.data() + pack_low * group_hh());
    load_h0(rows_.batch * thread / threads, rows_.batch * (thread + 1) / threads);
    if (threads > 1) wait(threads, clock);

    const int64_t row_length = (share.group_high - share.group_low) * 3 * kWidth;
    const int64_t capacity = projection_rows(share);
    int64_t projected_until = 0;
    const Sum* inputs = projected;
    for (int64_t step = 0; step < rows_.seq_len; ++step) {
      if (step == projected_until) {
        projected_until = project(share, step, capacity, staged, projected, row_length, thread, clock);
        inputs = projected;
      }
      const int64_t high = row_high(share, step);
      const Word* operand = operand_of(step);
      if constexpr (kBytes) operand = quantize_states(step, share.row_low, high, thread);
      const auto take = [&](int64_t group_low, int64_t group_high, const Word* packed) {
        clock.enter(Phase::Product);
        multiply<Product, kGates>(operand, kBytes ? stride_bytes_ : stride_hh_, share.row_low, high, packed, words_hh_,
                                  group_low, group_high, update_block(share, step, inputs, row_length, thread, clock),
                                  kWordsOfSum<Product>, step % 2 == 1);
      };
      if (single_step() && !ready_hh_) {
        Word* const packed = packed_hh_.data() + thread * group_hh();
        for (int64_t group = share.group_low; group < share.group_high; ++group) {
          clock.enter(Phase::Packing);
          pack<Product>(p_.weight_hh, hidden_, group, group + 1, packed);
          take(group, group + 1, packed);
        }
      } else {
        const Word* const packed = ready_hh_ ? static_cast<const Word*>(p_.weight_hh) : packed_hh_.data();
        take(share.group_low, share.group_high, packed + share.group_low * group_hh());
      }
      inputs += (high - share.row_low) * row_length;
      if (threads > 1 && plan_.split == Split::Units) wait(threads, clock);
    }
  }

  template <class P>
  void pack(const void* weight, int64_t k, int64_t first_group, int64_t last_group, Word* packed) const {
    if constexpr (std::is_same_v<P, ProductFloat> && std::is_same_v<S, float>)
      if (p_.weights == WeightFormat::BFloat16)
        return widen_gates(static_cast<const float*>(weight), k, first_group, last_group, packed);
    if constexpr (!kBytes) pack_gates<P>(static_cast<const S*>(weight), hidden_, k, first_group, last_group, packed);
  }

  // Of a thread's rows.
  const Word* quantize_states(int64_t step, int64_t low, int64_t high, int thread) {
    Word* const bytes = bytes_.data() + thread * rows_.batch * stride_bytes_;
    float* const scales = scales_.data() + thread * rows_.batch;
    for (int64_t b = low; b < high; ++b)
      scales[b] = quantize_row(operand_of(step) + b * stride_hh_, hidden_, bytes + b * stride_bytes_);
    return bytes;
  }

  int64_t row_high(const Share& share, int64_t step) const {
    return std::max(share.row_low, std::min(share.row_high, rows_.batch_at(rows_.time_of(step, p_.reverse))));
  }

  void load_h0(int64_t low, int64_t high) {
    const StepResets resets = p_.reverse ? StepResets{} : p_.resets_before(0);
    for (int64_t b = low; b < high; ++b) {
      Word* const current = operand_.data() + b * stride_hh_;
      Word* const other = current + rows_.batch * stride_hh_;
      std::memset(static_cast<void*>(current), 0, stride_hh_ * sizeof(Word));
      put_state(resets(b) ? reset_state(0, b) : static_cast<const S*>(p_.h0) + rows_.sequence(b) * hidden_, b, 0,
                hidden_, 0);
      std::memcpy(static_cast<void*>(other), current, stride_hh_ * sizeof(Word));
    }
  }

  // Null: zero.
  const S* reset_state(int64_t t, int64_t b) const {
    return p_.reset_state ? static_cast<const S*>(p_.reset_state) + p_.reset_offset(t, b) : nullptr;
  }
  // Units [begin, end) of the state that a step takes. source: of all units, null: zero.
  // Not inline, for it is seldom called and would take registers from those who call it.
  __attribute__((noinline)) void put_state(const S* source, int64_t b, int64_t begin, int64_t end, int64_t step) {
    State* const operand = reinterpret_cast<State*>(operand_of(step) + b * stride_hh_);
    for (int64_t j = begin; j < end; j += kWidth) {
      const int valid = static_cast<int>(std::min<int64_t>(kWidth, end - j));
      const V h = source ? load_as(source + j, valid) : V::set(0);
      store_as(operand + j, h, valid);
      if constexpr (kCarry) h.store(carry_.data() + b * padded_ + j);
    }
  }

  // Projects the inputs of as many steps from `step` on as fit; returns the step after them.
  int64_t project(const Share& share, int64_t step, int64_t capacity, Word* staged, Sum* projected, int64_t row_length,
                  int thread, PhaseClock& clock) {
    if (p_.progress) p_.progress->reach(step);
    clock.enter(Phase::Projection);
    int64_t filled = 0, waiting = 0;
    const auto flush = [&] {
      if (waiting == 0) return;
      project_rows(share, staged, waiting, projected + filled * row_length, row_length, thread, clock);
      filled += waiting;
      waiting = 0;
    };
    for (; step < rows_.seq_len; ++step) {
      const int64_t high = row_high(share, step), t = rows_.time_of(step, p_.reverse);
      if (filled + waiting > 0 && filled + waiting + high - share.row_low > capacity) break;
      if (p_.below) {
        clock.enter(Phase::Waiting);
        p_.below->wait(step + 1);
        clock.enter(Phase::Projection);
      }
      for (int64_t b = share.row_low; b < high; ++b) {
        const S* const row = static_cast<const S*>(p_.input) + rows_.row(t, b) * p_.input_size;
        if constexpr (kBytes)
          staged_scales(thread)[waiting] = quantize_row(row, p_.input_size, staged + waiting * stride_ih_);
        else
          stage_row<Product>(row, p_.input_size, staged + waiting * stride_ih_);
        if (++waiting == staged_rows()) flush();
      }
    }
    flush();
    return step;
  }

  void project_rows(const Share& share, const Word* staged, int64_t count, Sum* projected, int64_t row_length,
                    int thread, PhaseClock& clock) const {
    if constexpr (!kBytes) {
      if (unpacked_ih_)
        return multiply_unpacked<Product>(staged, stride_ih_, 0, count, static_cast<const S*>(p_.weight_ih), hidden_,
                                          p_.input_size, share.group_low, share.group_high,
                                          keep_projected(share, projected, row_length));
    }
    if (!project_once()) {
      const Word* const weights = ready_ih_ ? static_cast<const Word*>(p_.weight_ih) : packed_ih_.data();
      const int64_t groups = share.group_high - share.group_low;
      multiply_into<Large, kGates>(staged, stride_ih_, count, weights + share.group_low * group_ih(), words_ih_, groups,
                                   projected, row_length);
      if constexpr (kBytes)
        scale_sums(projected, row_length, staged_scales(thread), count,
                   p_.scale_ih + share.group_low * 2 * kGates * kWidth, groups);
      return;
    }
    // Weights that are read only once are rearranged into the near cache right before their use.
    Word* const packed = packed_ih_.data() + thread * group_ih();
    for (int64_t group = share.group_low; group < share.group_high; ++group) {
      clock.enter(Phase::Packing);
      pack<Large>(p_.weight_ih, p_.input_size, group, group + 1, packed);
      clock.enter(Phase::Projection);
      multiply_into<Large, kGates>(staged, stride_ih_, count, packed, words_ih_, 1,
                                   projected + (group - share.group_low) * 3 * kWidth, row_length);
    }
  }

  float* staged_scales(int thread) const {
    return scales_.data() + plan_.threads * rows_.batch + thread * staged_rows();
  }

  // Takes tiles of a projection; row 0 is the first of `projected`.
  auto keep_projected(const Share& share, Sum* projected, int64_t row_length) const {
    return [=](int64_t first, int rows, int64_t group, int groups, const Sum* sums, int64_t stride) {
      Sum* out = projected + first * row_length + (group - share.group_low) * 3 * kWidth;
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < groups * 3 * kWidth; i += kWidth)
          V::load(sums + r * stride + i).store(out + r * row_length + i);
    };
  }

  void take_few_rows(const Share& share, int thread, int threads, Word* staged, Sum* projected, PhaseClock& clock) {
    clock.enter(Phase::Projection);
    const int64_t row_length = (share.group_high - share.group_low) * 3 * kWidth;
    int64_t filled = 0, waiting = 0;
    const auto flush = [&] {
      if (waiting == 0) return;
      project_rows(share, staged, waiting, projected + filled * row_length, row_length, thread, clock);
      filled += waiting;
      waiting = 0;
    };
    for (int64_t step = 0; step < rows_.seq_len; ++step) {
      for (int64_t b = share.row_low; b < row_high(share, step); ++b) {
        Word* const row = staged + waiting * stride_ih_;
        std::memset(static_cast<void*>(row), 0, stride_ih_ * sizeof(Word));
        stage_row<Product>(
            static_cast<const S*>(p_.input) + rows_.row(rows_.time_of(step, p_.reverse), b) * p_.input_size,
            p_.input_size, row);
        if (++waiting == staged_rows()) flush();
      }
    }
    flush();
    const Sum* inputs = projected;
    for (int64_t step = 0; step < rows_.seq_len; ++step) {
      const int64_t high = row_high(share, step);
      clock.enter(Phase::Product);
      multiply_unpacked<Product>(operand_of(step), stride_hh_, share.row_low, high, static_cast<const S*>(p_.weight_hh),
                                 hidden_, hidden_, share.group_low, share.group_high,
                                 update_block(share, step, inputs, row_length, thread, clock));
      inputs += (high - share.row_low) * row_length;
      if (threads > 1 && plan_.split == Split::Units) wait(threads, clock);
    }
  }

  void wait(int threads, PhaseClock& clock) {
    clock.enter(Phase::Waiting);
    barrier_.wait(threads);
  }

  // Takes blocks of the product with W_hh through the gates.
  auto update_block(const Share& share, int64_t step, const Sum* inputs, int64_t row_length, int thread,
                    PhaseClock& clock) {
    const int64_t t = rows_.time_of(step, p_.reverse);
    const bool is_last = step + 1 == rows_.seq_len;
    const int64_t next_time = rows_.time_of(step + 1, p_.reverse), next = is_last ? 0 : rows_.batch_at(next_time);
    const StepResets resets = is_last ? StepResets{} : p_.resets_before(next_time);
    const float* const state_scales = kBytes ? scales_.data() + thread * rows_.batch : nullptr;
    return [this, share, step, t, next_time, next, resets, inputs, row_length, state_scales, &clock](
               int64_t first, int rows, int64_t group, int groups, Sum* sums, int64_t stride) {
      clock.enter(Phase::Gates);
      const int64_t begin = group * kWidth, padded_units = int64_t{groups} * kWidth;
      const int64_t units = std::min(padded_units, hidden_ - begin);
      const Sum* const input = inputs + (first - share.row_low) * row_length + (group - share.group_low) * 3 * kWidth;
      if constexpr (kBytes)
        scale_sums(sums, stride, state_scales + first, rows, p_.scale_hh + group * 2 * kGates * kWidth, groups);
      alignas(64) Sum candidates[kBlockUnits * kWidth];
      const CellFormula formula(p_.options);
      take_gates(formula, sums, stride, input, row_length, bias_.data() + begin, padded_, rows, padded_units,
                 candidates);
      // Compiled for each: what streams, and lengths and resets, need registers and branches that a short row would
      // feel.
      const auto update_rows = [&](auto streams, auto marked) {
        // On the stack, for a stored vector might, for all that the compiler knows, have changed a member.
        Sequence at = sequence_at(step, t, first, begin);
        typename Sequence::Strides strides = strides_of_sequences();
        [[maybe_unused]] alignas(64) S passing[streams ? kSavedValues * kBlockUnits * kWidth : 1];
        [[maybe_unused]] S* saved = at.gates;
        [[maybe_unused]] const int64_t saved_stride = strides.gates;
        if constexpr (streams) {
          at.gates = passing;
          strides.gates = 0;
          strides.value = padded_units;
        }
        for (int r = 0; r < rows; ++r) {
          const int64_t b = first + r;
          const bool last = b >= next;  // no later step updates this sequence
          const Sum *const gates = sums + r * stride, *const n = candidates + r * padded_units;
          int64_t i = 0;
          for (; i + kWidth <= units; i += kWidth)
            at.template update<true>(formula, last, strides.value, i, kWidth, gates + 3 * i, n + i);
          if (i < units)
            at.template update<false>(formula, last, strides.value, i, static_cast<int>(units - i), gates + 3 * i,
                                      n + i);
          if constexpr (streams) {
            for (int64_t value = 0; value < kSavedValues; ++value)
              stream_row(passing + value * padded_units, units, saved + value * hidden_);
          }
          int64_t further = 1;
          if constexpr (marked) {
            if (resets(b) && !last) put_state(reset_state(next_time, b), b, begin, begin + units, step + 1);
            if (r + 1 == rows) break;
            if (rows_.sequences) further = rows_.sequences[b + 1] - rows_.sequences[b];
          }
          at.advance(strides, further);
          if constexpr (streams) saved += further * saved_stride;
        }
      };
      const auto with_streams = [&](auto marked) {
        streams_ ? update_rows(std::true_type{}, marked) : update_rows(std::false_type{}, marked);
      };
      p_.resets || rows_.sequences ? with_streams(std::true_type{}) : with_streams(std::false_type{});
      clock.enter(Phase::Product);
    };
  }

  Word* operand_of(int64_t step) const { return operand_.data() + (step % 2) * rows_.batch * stride_hh_; }

  Sequence sequence_at(int64_t step, int64_t t, int64_t b, int64_t unit) const {
    const int64_t row = rows_.row(t, b);
    const auto words = [&](int64_t of) { return operand_of(of) + b * stride_hh_; };
    S* const saved = static_cast<S*>(p_.saved);
    return {kCarry ? carry_.data() + b * padded_ + unit : reinterpret_cast<Sum*>(words(step)) + unit,
            reinterpret_cast<State*>(words(step + 1)) + unit,
            static_cast<S*>(p_.output) + row * p_.output_stride + unit,
            static_cast<S*>(p_.h_n) + rows_.sequence(b) * hidden_ + unit,
            saved && !p_.options.recompute ? saved + row * kSavedValues * hidden_ + unit : nullptr,
            saved && p_.options.recompute ? saved + row * hidden_ + unit : nullptr};
  }

  // From a sequence to the next.
  typename Sequence::Strides strides_of_sequences() const {
    const int64_t words = stride_hh_ * kDepth<StateProduct>, rows = rows_.batch_stride;
    return {kCarry ? padded_ : stride_hh_,
            words,
            rows * p_.output_stride,
            hidden_,
            rows * kSavedValues * hidden_,
            rows * hidden_,
            hidden_};
  }

  const ForwardParams& p_;
  const Plan& plan_;
  const Rows& rows_;
  const int64_t hidden_, groups_, padded_, words_ih_, words_hh_, stride_ih_, stride_hh_, stride_bytes_;
  const bool ready_ih_, ready_hh_;  // packed ahead, as the products read them
  const bool streams_;              // what is kept goes past the caches
  const bool unpacked_ih_;          // W_ih is read as it lies
  Workspace<Word> packed_ih_, packed_hh_;
  Workspace<Sum> bias_;      // [4, padded]: r, z, n of the input, n of the hidden state
  Workspace<Word> operand_;  // [2, B, stride_hh]: h of this step and of the next
  Workspace<Sum> carry_;     // [B, padded]
  Workspace<Word> bytes_;    // [threads, B, stride_bytes]: h of this step
  Workspace<float> scales_;  // [threads, B] of them, and [threads, staged_rows] of staged inputs
  Workspace<Word> staged_;   // [threads, staged_rows, stride_ih]
  Workspace<Sum> projected_;
  Barrier barrier_;
};
