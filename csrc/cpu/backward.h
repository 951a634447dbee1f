// Backward recurrence of one layer and direction: from the last step of the forward pass to its first, each step the
// cell's own gradients, then a product with W_hh that carries them to the step before. The gradients before the
// activations go out to d_gates, from which the large products follow outside; where their type is that of the
// product's operand, d_gates is the operand.
// Included inside the namespace of a target, after pack.h.
#pragma once

// S: storage of weights, states and outputs. D: storage of d_gates.
template <class S, class D, class Product>
class BackwardPass {
  using Sum = typename Product::Sum;
  using Word = typename Product::Word;
  using Element = typename Product::Element;
  using V = Vec<Sum>;
  static constexpr int kWidth = V::width;
  static constexpr int kGroup = kVectorRegisters == 32 ? 4 : 2;  // vectors of units in a group

 public:
  BackwardPass(const BackwardParams& params, const Plan& plan)
      : p_(params),
        plan_(plan),
        rows_(params.rows),
        hidden_(params.hidden_size),
        groups_((hidden_ + kGroup * kWidth - 1) / (kGroup * kWidth)),
        padded_(groups_ * kGroup * kWidth),
        words_(words_of<Product>(3 * hidden_)),
        stride_(operand_stride<Product>(3 * hidden_)),
        packed_((single_step() ? plan.threads : groups_) * group_words()),
        carry_(rows_.batch * padded_),
        operand_apart_(!std::is_same_v<D, Element> || 3 * hidden_ % kDepth<Product> != 0),
        operand_(operand_apart_ ? 2 * rows_.batch * stride_ : 0) {}

  void run() {
    parallel(plan_.threads, [this](int thread, int threads) { walk(thread, threads); });
  }

 private:
  bool single_step() const { return rows_.seq_len == 1; }

  // Step number s of backward is step T-1-s of forward.
  int64_t time_of(int64_t step) const { return rows_.time_of(rows_.seq_len - 1 - step, p_.reverse); }

  void walk(int thread, int threads) {
    const Share share = share_of(plan_, rows_, groups_, thread, threads);
    const int64_t pack_low = groups_ * thread / threads, pack_high = groups_ * (thread + 1) / threads;
    if (!single_step()) pack(pack_low, pack_high, packed_.data() + pack_low * group_words());
    load_carry(rows_.batch * thread / threads, rows_.batch * (thread + 1) / threads);
    if (operand_apart_) {
      const int64_t low = 2 * rows_.batch * thread / threads, high = 2 * rows_.batch * (thread + 1) / threads;
      std::memset(operand_.data() + low * stride_, 0, (high - low) * stride_ * sizeof(Word));
    }
    if (threads > 1) barrier_.wait(threads);

    int64_t came = 0;  // sequences whose gradients of the step before are waiting for the product
    for (int64_t step = 0; step < rows_.seq_len; ++step) {
      const int64_t active = rows_.batch_at(time_of(step));
      take_step(share, step, came, active);
      came = active;
      if (threads > 1 && plan_.split == Split::Units) barrier_.wait(threads);
    }
    if (!p_.grad_h0) return;
    if (!single_step()) return finish(share, came, packed_.data() + share.group_low * group_words());
    // Weights that are read only once are rearranged into the near cache right before their use.
    Word* const weights = packed_.data() + thread * group_words();
    for (int64_t group = share.group_low; group < share.group_high; ++group) {
      pack(group, group + 1, weights);
      finish({share.row_low, share.row_high, group, group + 1}, came, weights);
    }
  }

  int64_t group_words() const { return words_ * kGroup * kWidth; }

  void pack(int64_t first_group, int64_t last_group, Word* out) {
    pack_backward<Product, kGroup>(static_cast<const S*>(p_.weight_hh), hidden_, first_group, last_group, out);
  }

  void load_carry(int64_t low, int64_t high) {
    for (int64_t b = low; b < high; ++b) {
      Sum* const carry = carry_.data() + b * padded_;
      std::fill_n(carry, padded_, Sum(0));
      if (!p_.grad_h_n) continue;
      const S* source = static_cast<const S*>(p_.grad_h_n) + b * hidden_;
      for (int64_t j = 0; j < hidden_; j += kWidth) {
        const int valid = static_cast<int>(std::min<int64_t>(kWidth, hidden_ - j));
        load_as(source + j, valid).store(carry + j);
      }
    }
  }

  int64_t inside(const Share& share, int64_t row) const {
    return std::max(share.row_low, std::min(share.row_high, row));
  }

  // The operand's rows that step number `step` of backward wrote (row 0 of the batch).
  const Word* operand_of(int64_t step) const {
    if (operand_apart_) return operand_.data() + (step % 2) * rows_.batch * stride_;
    return reinterpret_cast<const Word*>(static_cast<const D*>(p_.d_gates) +
                                         rows_.row(time_of(step), 0) * kGateGradients * hidden_);
  }
  int64_t operand_row_stride() const {
    if (operand_apart_) return stride_;
    // Words; a row of d_gates is a whole number of them, 4H being even.
    return rows_.batch_stride * kGateGradients * hidden_ / kDepth<Product>;
  }

  // `weights` is where the share's first group lies. For sequences [low, high): waiting gradients times W_hh, handed on
  // as (sequence, unit, sums) vector by vector.
  template <class Body>
  void product(const Share& share, int64_t step, int64_t low, int64_t high, const Word* weights, const Body& body) {
    multiply<Product, kGroup>(
        operand_of(step), operand_row_stride(), low, high, weights, words_, share.group_low, share.group_high,
        [&](int64_t first, int rows, int64_t group, int groups, const Sum* sums, int64_t stride) {
          const int64_t begin = group * kGroup * kWidth;
          const int64_t units = std::min<int64_t>(int64_t{groups} * kGroup * kWidth, hidden_ - begin);
          for (int r = 0; r < rows; ++r) {
            for (int64_t i = 0; i < units; i += kWidth) body(first + r, begin + i, V::load(sums + r * stride + i));
          }
        });
  }

  void take_step(const Share& share, int64_t step, int64_t came, int64_t active) {
    const int64_t came_high = inside(share, came), active_high = inside(share, active);
    if (step > 0) {
      product(share, step - 1, share.row_low, came_high, packed_.data() + share.group_low * group_words(),
              [&](int64_t b, int64_t unit, V sum) {
                Sum* const carry = carry_.data() + b * padded_ + unit;
                const V dh = V::load(carry) + sum;
                if (b < active)
                  update(step, b, unit, dh);
                else
                  dh.store(carry);
              });
    }
    const int64_t unit_low = share.group_low * kGroup * kWidth;
    const int64_t unit_high = std::min(hidden_, share.group_high * kGroup * kWidth);
    for (int64_t b = step > 0 ? came_high : share.row_low; b < active_high; ++b)
      for (int64_t unit = unit_low; unit < unit_high; unit += kWidth)
        update(step, b, unit, V::load(carry_.data() + b * padded_ + unit));
  }

  void finish(const Share& share, int64_t came, const Word* weights) {
    const int64_t came_high = inside(share, came);
    S* const out = static_cast<S*>(p_.grad_h0);
    const auto put = [&](int64_t b, int64_t unit, V dh) {
      S* const to = out + b * hidden_ + unit;
      if (unit + kWidth <= hidden_)
        store_as(to, dh);
      else
        store_as(to, dh, static_cast<int>(hidden_ - unit));
    };
    product(share, rows_.seq_len - 1, share.row_low, came_high, weights,
            [&](int64_t b, int64_t unit, V sum) { put(b, unit, V::load(carry_.data() + b * padded_ + unit) + sum); });
    for (int64_t b = came_high; b < share.row_high; ++b)
      for (int64_t unit = share.group_low * kGroup * kWidth;
           unit < std::min(hidden_, share.group_high * kGroup * kWidth); unit += kWidth)
        put(b, unit, V::load(carry_.data() + b * padded_ + unit));
  }

  inline __attribute__((always_inline)) void update(int64_t step, int64_t b, int64_t unit, V dh) {
    if (unit + kWidth <= hidden_)
      update_units<true>(step, b, unit, dh);
    else
      update_units<false>(step, b, unit, dh);
  }

  template <bool Full>
  inline __attribute__((always_inline)) void update_units(int64_t step, int64_t b, int64_t unit, V dh) {
    const int valid = static_cast<int>(hidden_ - unit);
    const auto get = [&](const S* from) {
      if constexpr (Full)
        return load_as(from);
      else
        return load_as(from, valid);
    };
    const auto put = [&](auto* to, V value) {
      if constexpr (Full)
        store_as(to, value);
      else
        store_as(to, value, valid);
    };
    const int64_t row = rows_.row(time_of(step), b);
    if (p_.grad_output) dh = dh + get(static_cast<const S*>(p_.grad_output) + row * p_.grad_output_stride + unit);
    const S* const saved = static_cast<const S*>(p_.saved) + row * kSavedValues * hidden_ + unit;
    const CellGradient<V> gradient = cell_backward(dh, get(saved), get(saved + hidden_), get(saved + 2 * hidden_),
                                                   get(saved + 3 * hidden_), get(saved + 4 * hidden_), V::set(1));
    gradient.carry.store(carry_.data() + b * padded_ + unit);
    D* const out = static_cast<D*>(p_.d_gates) + row * kGateGradients * hidden_ + unit;
    put(out, gradient.dn_hidden);
    put(out + hidden_, gradient.dr);
    put(out + 2 * hidden_, gradient.dz);
    put(out + 3 * hidden_, gradient.dn);
    if (operand_apart_) {
      Element* const operand =
          reinterpret_cast<Element*>(operand_.data() + ((step % 2) * rows_.batch + b) * stride_) + unit;
      put(operand, gradient.dn_hidden);
      put(operand + hidden_, gradient.dr);
      put(operand + 2 * hidden_, gradient.dz);
    }
  }

  const BackwardParams& p_;
  const Plan& plan_;
  const Rows& rows_;
  const int64_t hidden_, groups_, padded_, words_, stride_;
  Workspace<Word> packed_;
  Workspace<Sum> carry_;  // [B, padded]: dLoss/dh but for the part that waits for the product
  // An odd 3H would pair the last of (n, r, z) with the dn after them, and an infinite dn times a weight of zero is
  // NaN.
  const bool operand_apart_;
  Workspace<Word> operand_;  // [2, B, stride]: the gradients (n, r, z) of this step and the one before
  Barrier barrier_;
};
