// Backward of one layer and direction: from the last step of the forward pass to its first, each step the cell's own
// gradients, then a product with W_hh that carries them to the step before. The gate gradients of a stretch of steps
// stay in scratch memory, where they are both the operand of that product and of the large ones that follow the stretch
// (gradients.h).
// Included inside the namespace of a target, after gradients.h.
#pragma once

// Product: the recurrence's, of the rows of one step; Large: those of many rows.
template <class S, class Product, class Large = Product>
class BackwardPass {
  using Sum = typename Product::Sum;
  using Word = typename Product::Word;
  using Element = typename Product::Element;
  using V = Vec<Sum>;
  static constexpr int kWidth = V::width;
  static constexpr int64_t kColumns = Columns<Product>::of_group;
  // Rows (step, sequence) of a stretch, if a single step has not more: enough to repay reading and writing the
  // gradients of the weights once a stretch, few enough for its gate gradients to stay in a cache.
  static constexpr int64_t kStretchRows = 256;

 public:
  BackwardPass(const BackwardParams& params, const Plan& plan)
      : p_(params),
        plan_(plan),
        rows_(params.rows),
        hidden_(params.hidden_size),
        columns_{hidden_},
        padded_(columns_.vectors() * kWidth),
        section_(words_of<Product>(hidden_) * kDepth<Product>),
        words_(words_of<Product>(3 * section_)),
        stride_(operand_stride<Product>(4 * section_)),
        capacity_(std::max(rows_.batch, std::min(kStretchRows, rows_.batch * rows_.seq_len))),
        thin_(kThin<Product> && rows_.in_all() <= kThinRows),
        packed_(thin_ ? 0 : columns_.words(words_)),
        carry_(rows_.batch * padded_),
        gates_(round_up(capacity_, kDepth<Product>) * stride_),
        index_(plan.threads * capacity_),
        gradients_(params, capacity_, stride_),
        regeneration_(params, capacity_, plan.threads) {}

  void run() {
    parallel(plan_.threads, [this](int thread, int threads) { walk(thread, threads); });
  }

 private:
  bool single_step() const { return rows_.seq_len == 1; }
  int64_t group_words() const { return packed_words<Product>(words_) * kColumns; }

  // Step number s of backward is step T-1-s of forward.
  int64_t time_of(int64_t step) const { return rows_.time_of(rows_.seq_len - 1 - step, p_.reverse); }
  int64_t active_at(int64_t step) const { return rows_.batch_at(time_of(step)); }

  void walk(int thread, int threads) {
    const Share share = share_of(plan_, rows_, columns_.groups(), thread, threads);
    PhaseClock clock(Pass::Backward, Phase::Packing);
    const auto meet = [&] {
      if (threads > 1) wait(threads, clock);
    };
    prepare(thread, threads);
    meet();
    int64_t* const index = index_.data() + thread * capacity_;
    int64_t number = 0;  // of the stretch
    for (int64_t step = 0; step < rows_.seq_len; ++number) {
      clock.enter(Phase::Gradients);
      const int64_t end = end_of_stretch(step, index);
      const Stretch stretch{index, rows_between(step, end)};
      gradients_.load(stretch, thread, threads);
      if (regeneration_.wanted()) {
        clock.enter(Phase::Recompute);
        regeneration_.run(index, stretch.rows, thread, threads);
        meet();
      }
      take_stretch(share, step, end, index, threads, clock);
      step = end;
      if (step < rows_.seq_len || p_.grad_h0 || p_.grad_reset_state) carry_on(share, step - 1, stretch.rows, clock);
      meet();
      if (!gradients_.wanted()) continue;
      clock.enter(Phase::Gradients);
      gradients_.add(gates_.data(), stretch, number, thread, threads);
      meet();
    }
    clock.enter(Phase::Gradients);
    gradients_.finish(number, thread, threads);
    if (p_.grad_h0) store_h0(share);
  }

  void wait(int threads, PhaseClock& clock) {
    clock.enter(Phase::Waiting);
    barrier_.wait(threads);
  }

  void prepare(int thread, int threads) {
    const int64_t groups = columns_.groups();
    const int64_t pack_low = groups * thread / threads, pack_high = groups * (thread + 1) / threads;
    if (!thin_) pack(pack_low, pack_high, packed_.data() + pack_low * group_words());
    gradients_.prepare(thread, threads);
    regeneration_.prepare(thread, threads);
    load_carry(rows_.batch * thread / threads, rows_.batch * (thread + 1) / threads);
    if (hidden_ != section_) {  // what fills the last words is never written again
      const int64_t low = capacity_ * thread / threads, high = capacity_ * (thread + 1) / threads;
      std::memset(static_cast<void*>(gates_.data() + low * stride_), 0, (high - low) * stride_ * sizeof(Word));
    }
  }

  void pack(int64_t first_group, int64_t last_group, Word* out) const {
    pack_rows<Product>(
        static_cast<const S*>(p_.weight_hh), hidden_, columns_, first_group, last_group, words_,
        [this](int64_t k) { return weight_row<Product>(k, hidden_, 0); }, out);
  }

  void load_carry(int64_t low, int64_t high) {
    for (int64_t b = low; b < high; ++b) {
      Sum* const carry = carry_.data() + b * padded_;
      std::fill_n(carry, padded_, Sum(0));
      if (!p_.grad_h_n) continue;
      const S* source = static_cast<const S*>(p_.grad_h_n) + rows_.sequence(b) * hidden_;
      for (int64_t j = 0; j < hidden_; j += kWidth) {
        const int valid = static_cast<int>(std::min<int64_t>(kWidth, hidden_ - j));
        load_as(source + j, valid).store(carry + j);
      }
    }
  }

  // Fills in where the rows of the stretch that begins at `step` lie; returns the step after it.
  int64_t end_of_stretch(int64_t step, int64_t* index) const {
    int64_t count = 0;
    for (; step < rows_.seq_len; ++step) {
      const int64_t active = active_at(step), time = time_of(step);
      if (count > 0 && count + active > capacity_) break;
      for (int64_t b = 0; b < active; ++b) index[count++] = rows_.row(time, b);
    }
    return step;
  }
  int64_t rows_between(int64_t step, int64_t end) const {
    int64_t count = 0;
    for (; step < end; ++step) count += active_at(step);
    return count;
  }

  int64_t inside(const Share& share, int64_t row) const {
    return std::max(share.row_low, std::min(share.row_high, row));
  }

  void take_stretch(const Share& share, int64_t step, int64_t end, const int64_t* index, int threads,
                    PhaseClock& clock) {
    const int64_t unit_low = share.group_low * kColumns;
    const int64_t unit_high = std::min(hidden_, share.group_high * kColumns);
    int64_t before = 0, here = 0;  // where the rows of the last step and of this one begin in the stretch
    int64_t came = 0;              // sequences whose gradients of the step before wait for the product
    for (; step < end; ++step) {
      const int64_t active = active_at(step);
      const int64_t* const rows = index + here;  // of every per-step tensor
      const int64_t came_high = inside(share, came);
      if (came > 0) {
        const StepResets resets = p_.resets_before(time_of(step - 1));
        product(
            share, gates_.data() + before * stride_, came_high, packed_.data() + share.group_low * group_words(),
            [&](int64_t b, int64_t begin, int64_t units, const Sum* sums) {
              Sum* const carry = carry_.data() + b * padded_ + begin;
              const bool is_reset = resets(b);
              if (is_reset) give_to_reset_state(step - 1, b, begin, units, sums);
              for (int64_t i = 0; i < units; i += kWidth) {
                const V dh = is_reset ? V::set(0) : V::load(carry + i) + V::load(sums + i);
                if (b < active)
                  update(rows[b], b, begin + i, dh, here + b);
                else
                  dh.store(carry + i);
              }
            },
            clock, step % 2 == 1);
      }
      clock.enter(Phase::Gates);
      for (int64_t b = came_high; b < inside(share, active); ++b)
        for (int64_t unit = unit_low; unit < unit_high; unit += kWidth)
          update(rows[b], b, unit, V::load(carry_.data() + b * padded_ + unit), here + b);
      came = active;
      before = here;
      here += active;
      if (threads > 1 && plan_.split == Split::Units) wait(threads, clock);
    }
  }

  // dLoss/dh before a step, where the state was reset: none of it reaches the step before. Not inline, for it is seldom
  // called and would take registers from those who call it.
  __attribute__((noinline)) void give_to_reset_state(int64_t step, int64_t b, int64_t begin, int64_t units,
                                                     const Sum* sums) const {
    if (!p_.grad_reset_state) return;
    const int64_t row = rows_.row(p_.reset_time(time_of(step)), b);
    const Sum* const carry = carry_.data() + b * padded_ + begin;
    S* const out = static_cast<S*>(p_.grad_reset_state) + row * hidden_ + begin;
    for (int64_t i = 0; i < std::min(units, hidden_ - begin); i += kWidth) {
      const int valid = static_cast<int>(std::min<int64_t>(kWidth, hidden_ - begin - i));
      store_as(out + i, V::load(carry + i) + V::load(sums + i), valid);
    }
  }

  // The product of a stretch's last step, whose rows are the last of `count`, into the carry.
  void carry_on(const Share& share, int64_t step, int64_t count, PhaseClock& clock) {
    const int64_t active = active_at(step);
    const Word* const gates = gates_.data() + (count - active) * stride_;
    const StepResets resets = p_.resets_before(time_of(step));
    const auto add = [&](int64_t b, int64_t begin, int64_t units, const Sum* sums) {
      Sum* const carry = carry_.data() + b * padded_ + begin;
      const bool is_reset = resets(b);
      if (is_reset) give_to_reset_state(step, b, begin, units, sums);
      for (int64_t i = 0; i < units; i += kWidth)
        (is_reset ? V::set(0) : V::load(carry + i) + V::load(sums + i)).store(carry + i);
    };
    const int64_t high = inside(share, active);
    product(share, gates, high, packed_.data() + share.group_low * group_words(), add, clock);
  }

  // Gate gradients of the share's sequences below `high` times W_hh, handed on as (sequence, first unit, units, sums).
  // `weights` is where the share's first group lies.
  template <class Body>
  void product(const Share& share, const Word* gates, int64_t high, const Word* weights, const Body& body,
               PhaseClock& clock, bool descending = false) const {
    clock.enter(Phase::Product);
    if constexpr (kThin<Product>) {
      if (thin_) {
        return multiply_thin<Product>(
            gates, stride_, share.row_low, high, static_cast<const S*>(p_.weight_hh), hidden_, words_,
            [this](int64_t k) { return weight_row<Product>(k, hidden_, 0); }, share.group_low * kColumns,
            std::min(hidden_, share.group_high * kColumns),
            [&](int64_t row, int64_t begin, int64_t length, const Sum* sums) {
              clock.enter(Phase::Gates);
              body(row, begin, length, sums);
              clock.enter(Phase::Product);
            },
            kWordsAtOnce);
      }
    }
    multiply_columns<Product>(
        gates, stride_, share.row_low, high, weights, words_, columns_, share.group_low, share.group_high,
        [&](int64_t first, int rows, int64_t begin, int64_t units, const Sum* sums, int64_t stride) {
          clock.enter(Phase::Gates);
          for (int r = 0; r < rows; ++r) body(first + r, begin, units, sums + r * stride);
          clock.enter(Phase::Product);
        },
        kWordsAtOnce, descending);
  }

  void store_h0(const Share& share) const {
    const int64_t unit_low = share.group_low * kColumns;
    const int64_t unit_high = std::min(hidden_, share.group_high * kColumns);
    for (int64_t b = share.row_low; b < share.row_high; ++b) {
      for (int64_t unit = unit_low; unit < unit_high; unit += kWidth) {
        const int valid = static_cast<int>(std::min<int64_t>(kWidth, hidden_ - unit));
        store_as(static_cast<S*>(p_.grad_h0) + rows_.sequence(b) * hidden_ + unit,
                 V::load(carry_.data() + b * padded_ + unit), valid);
      }
    }
  }

  // row: of every per-step tensor; place: of the stretch.
  inline __attribute__((always_inline)) void update(int64_t row, int64_t b, int64_t unit, V dh, int64_t place) {
    if (unit + kWidth <= hidden_)
      update_units<true>(row, b, unit, dh, place);
    else
      update_units<false>(row, b, unit, dh, place);
  }

  template <bool Full>
  inline __attribute__((always_inline)) void update_units(int64_t row, int64_t b, int64_t unit, V dh, int64_t place) {
    const int valid = static_cast<int>(hidden_ - unit);
    const auto get = [&](const S* from) {
      if constexpr (Full)
        return load_as(from);
      else
        return load_as(from, valid);
    };
    const auto put = [&](Element* to, V value) {
      if constexpr (Full)
        store_as(to, value);
      else
        store_as(to, value, valid);
    };
    if (p_.grad_output) dh = dh + get(static_cast<const S*>(p_.grad_output) + row * p_.grad_output_stride + unit);
    const S* const saved = static_cast<const S*>(p_.saved);
    const S* const kept =
        p_.options.recompute ? regeneration_.row(place) + unit : saved + row * kSavedValues * hidden_ + unit;
    const S* const previous = p_.options.recompute ? saved + row * hidden_ + unit : kept + 4 * hidden_;
    const CellFormula formula(p_.options);
    const CellGradient<V> gradient = formula.backward(dh, get(kept), get(kept + hidden_), get(kept + 2 * hidden_),
                                                      get(kept + 3 * hidden_), get(previous), V::set(1));
    gradient.carry.store(carry_.data() + b * padded_ + unit);
    Element* const out = reinterpret_cast<Element*>(gates_.data() + place * stride_) + unit;
    put(out, gradient.dn_hidden);
    put(out + section_, gradient.dr);
    put(out + 2 * section_, gradient.dz);
    put(out + 3 * section_, gradient.dn);
  }

  const BackwardParams& p_;
  const Plan& plan_;
  const Rows& rows_;
  const int64_t hidden_;
  const Columns<Product> columns_;
  const int64_t padded_, section_, words_, stride_, capacity_;
  const bool thin_;           // so few rows that W_hh is read as it lies
  Workspace<Word> packed_;    // W_hh
  Workspace<Sum> carry_;      // [B, padded]: dLoss/dh but for the part that waits for the product
  Workspace<Word> gates_;     // [capacity, stride]: the stretch's gate gradients
  Workspace<int64_t> index_;  // [threads, capacity]
  Gradients<S, Large> gradients_;
  Regeneration<S, Large> regeneration_;
  Barrier barrier_;
};
