// The large products of backward: C = A B or C += A B, blocked for the caches around the same product_tile. Each
// element of C is summed over k in order within blocks of kBlockK and over the blocks in order, whatever the thread
// count, and a row of C depends on no other row of A. Included inside the namespace of a target, after pack.h.
#pragma once

// A, B, C: storage types.
template <class A, class B, class C, class Product>
class Gemm {
  using Sum = typename Product::Sum;
  using Word = typename Product::Word;
  using Element = typename Product::Element;
  using V = Vec<Sum>;
  static constexpr int kWidth = V::width;
  static constexpr int kGroup = kVectorRegisters == 32 ? 4 : 2;  // vectors of columns in a group
  static constexpr int64_t kColumns = int64_t{kGroup} * kWidth;
  static constexpr int64_t kSumK = 64 * kDepth<Product>;     // summed at once: short sums round less
  static constexpr int64_t kBlockK = 256 * kDepth<Product>;  // C is read and written once for so many
  static constexpr int64_t kBlockN = 8 * kColumns;           // of B: with kBlockK half a second-level cache
  static constexpr int64_t kBlockM = 96;                     // of A: a multiple of kWidth
  static constexpr int64_t kThinK = 16, kThinM = 4;
  // Where C is narrower than the sums, they wait in memory of their own until the last block of k.
  static constexpr bool kApart = !std::is_same_v<C, Sum>;

 public:
  Gemm(const GemmParams& params, int threads)
      : p_(params),
        threads_(threads),
        packs_(thin() ? 0 : 1),
        words_(words_of<Product>(std::min(kBlockK, p_.k))),
        stride_(operand_stride<Product>(std::min(kBlockK, p_.k))),
        size_b_(round_up(std::min(kBlockN, p_.n), kColumns) * words_),
        a_(packs_ * threads * kBlockM * stride_),
        b_(packs_ * threads * size_b_),
        sums_(packs_ && kApart && p_.k > kBlockK ? p_.m * p_.n : 0) {}

  void run() {
    parallel(threads_, [this](int thread, int threads) {
      // Whole tiles of rows to each thread.
      const int64_t blocks = (p_.m + kWidth - 1) / kWidth;
      const int64_t low = blocks * thread / threads * kWidth;
      const int64_t high = std::min(p_.m, blocks * (thread + 1) / threads * kWidth);
      if (thin())
        multiply_thin(low, high);
      else if (low < high)
        multiply_rows(low, high, a_.data() + thread * kBlockM * stride_, b_.data() + thread * size_b_);
    });
  }

 private:
  // Few rows or a short sum do not repay packing B. A row's bits must not depend on the number of rows: the thin
  // product of few rows is for those types only where it multiplies and sums as product_tile does.
  bool thin() const {
    constexpr bool as_tile = !kApart && kDepth<Product> == 1;
    return p_.k <= kThinK || (as_tile && p_.m <= kThinM);
  }

  void multiply_thin(int64_t low, int64_t high) {
    for (int64_t k = 0; k < p_.k; k += kBlockK) {
      for (int64_t m = low; m < high; m += kThinM) {
        if (m + kThinM <= high)
          thin_rows<kThinM>(m, k);
        else
          for (int64_t r = m; r < high; ++r) thin_rows<1>(r, k);
      }
    }
  }

  template <int R>
  void thin_rows(int64_t m, int64_t k) {
    const int64_t depth = std::min(kBlockK, p_.k - k);
    const A* const a = static_cast<const A*>(p_.a) + m * p_.a_row_stride + k * p_.a_k_stride;
    for (int64_t n = 0; n < p_.n; n += kColumns) {
      const B* const b = static_cast<const B*>(p_.b) + k * p_.b_stride + n;
      const int64_t columns = std::min(kColumns, p_.n - n);
      V sums[R][kGroup];
      for (int64_t i = 0; i < depth; i += kSumK) {
        V part[R][kGroup];
        thin_sum<R>(a + i * p_.a_k_stride, b + i * p_.b_stride, columns, std::min(kSumK, depth - i), part);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int g = 0; g < kGroup; ++g) sums[r][g] = i == 0 ? part[r][g] : sums[r][g] + part[r][g];
      }
      if (columns == kColumns) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int g = 0; g < kGroup; ++g) put(m + r, n + g * kWidth, kWidth, sums[r][g], k == 0, k + depth == p_.k);
        continue;
      }
      for (int r = 0; r < R; ++r)
        for (int64_t i = 0; i < columns; i += kWidth)
          put(m + r, n + i, static_cast<int>(std::min<int64_t>(kWidth, columns - i)), sums[r][i / kWidth], k == 0,
              k + depth == p_.k);
    }
  }

  template <int R>
  inline __attribute__((always_inline)) void thin_sum(const A* a, const B* b, int64_t columns, int64_t count,
                                                      V (&sums)[R][kGroup]) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int g = 0; g < kGroup; ++g) sums[r][g] = V::set(0);
    for (int64_t i = 0; i < count; ++i) {
      const B* const from = b + i * p_.b_stride;
      V row[kGroup];
#pragma GCC unroll 16
      for (int g = 0; g < kGroup; ++g) {
        const int64_t valid = columns - g * kWidth;
        row[g] = valid >= kWidth ? load_as(from + g * kWidth)
                 : valid > 0     ? load_as(from + g * kWidth, static_cast<int>(valid))
                                 : V::set(0);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const V factor = V::set(scalar(a[r * p_.a_row_stride + i * p_.a_k_stride]));
#pragma GCC unroll 16
        for (int g = 0; g < kGroup; ++g) sums[r][g] = multiply_add(factor, row[g], sums[r][g]);
      }
    }
  }

  void multiply_rows(int64_t low, int64_t high, Word* a, Word* b) {
    for (int64_t n = 0; n < p_.n; n += kBlockN) {
      const int64_t columns = std::min(kBlockN, p_.n - n), groups = (columns + kColumns - 1) / kColumns;
      for (int64_t k = 0; k < p_.k; k += kBlockK) {
        const int64_t depth = std::min(kBlockK, p_.k - k), words = words_of<Product>(depth);
        pack_b(n, columns, k, depth, b);
        for (int64_t m = low; m < high; m += kBlockM) {
          const int64_t rows = std::min(kBlockM, high - m);
          pack_a(m, rows, k, depth, a);
          multiply<Product, kGroup>(
              a, stride_, 0, rows, b, words, 0, groups,
              [&](int64_t first, int count, int64_t group, int at_once, const Sum* sums, int64_t stride) {
                const int64_t begin = group * kColumns;
                const int64_t length = std::min(at_once * kColumns, columns - begin);
                for (int r = 0; r < count; ++r)
                  for (int64_t i = 0; i < length; i += kWidth)
                    put(m + first + r, n + begin + i, static_cast<int>(std::min<int64_t>(kWidth, length - i)),
                        V::load(sums + r * stride + i), k == 0, k + depth == p_.k);
              },
              kSumK / kDepth<Product>);
        }
      }
    }
  }

  inline __attribute__((always_inline)) void put(int64_t m, int64_t n, int valid, V value, bool first, bool last) {
    C* const c = static_cast<C*>(p_.c) + m * p_.c_stride + n;
    const bool full = valid == kWidth;
    if constexpr (kApart) {
      if (first && p_.accumulate) value = value + load_as(c, valid);
      if (!(first && last)) {
        Sum* const apart = sums_.data() + m * p_.n + n;
        if (!first) value = value + V::load(apart, valid);
        if (!last) return value.store(apart, valid);
      }
      store_as(c, value, valid);
    } else {
      const bool add = !first || p_.accumulate;
      (void)last;
      if (full)
        store_as(c, add ? value + load_as(c) : value);
      else
        store_as(c, add ? value + load_as(c, valid) : value, valid);
    }
  }

  // Rows [m, m + rows) and elements [k, k + depth) of A as operand rows.
  void pack_a(int64_t m, int64_t rows, int64_t k, int64_t depth, Word* out) const {
    const A* const source = static_cast<const A*>(p_.a) + m * p_.a_row_stride + k * p_.a_k_stride;
    if (p_.a_k_stride == 1) {
      for (int64_t r = 0; r < rows; ++r)
        copy_row(source + r * p_.a_row_stride, depth, reinterpret_cast<Element*>(out + r * stride_));
      return;
    }
    // A lies transposed: kWidth elements of a row of memory are one k of kWidth rows.
    for (int64_t r = 0; r < rows; r += kWidth) {
      const int valid = static_cast<int>(std::min<int64_t>(kWidth, rows - r));
      for (int64_t i = 0; i < depth; i += kWidth) {
        const int count = static_cast<int>(std::min<int64_t>(kWidth, depth - i));
        Vec<Sum> lanes[kWidth];
        for (int j = 0; j < kWidth; ++j) {
          const A* const from = source + r + (i + j) * p_.a_k_stride;
          lanes[j] = j >= count ? V::set(0) : valid == kWidth ? load_as(from) : load_as(from, valid);
        }
        transpose(lanes);
        for (int j = 0; j < valid; ++j)
          store_as(reinterpret_cast<Element*>(out + (r + j) * stride_) + i, lanes[j]);  // the row has room for all
      }
    }
  }

  static void copy_row(const A* source, int64_t depth, Element* out) {
    int64_t i = 0;
    for (; i + kWidth <= depth; i += kWidth) store_as(out + i, load_as(source + i));
    if (i < depth) store_as(out + i, load_as(source + i, static_cast<int>(depth - i)));
  }

  void pack_b(int64_t n, int64_t columns, int64_t k, int64_t depth, Word* out) const {
    constexpr int64_t kStep = kDepth<Product>;
    for (int64_t begin = 0; begin < columns; begin += kColumns) {
      for (int64_t word = 0; word < words_of<Product>(depth); ++word) {
        for (int g = 0; g < kGroup; ++g, out += kWidth) {
          const int64_t column = begin + g * kWidth;
          const int valid = static_cast<int>(std::clamp<int64_t>(columns - column, 0, kWidth));
          const B* const source = static_cast<const B*>(p_.b) + (k + word * kStep) * p_.b_stride + n + column;
          if constexpr (kStep == 1) {
            const V value = valid == kWidth ? load_as(source) : valid > 0 ? load_as(source, valid) : V::set(0);
            value.store(out);
          } else {
            const bool odd = word * kStep + 1 >= depth;
            interleave(source, odd ? nullptr : source + p_.b_stride, valid, reinterpret_cast<Element*>(out));
          }
        }
      }
    }
  }

  static void interleave(const B* even, const B* odd, int valid, Element* out) {
    if (odd && valid == kWidth) {
      for (int i = 0; i < kWidth; ++i) {
        out[2 * i] = even[i];
        out[2 * i + 1] = odd[i];
      }
      return;
    }
    for (int i = 0; i < kWidth; ++i) {
      out[2 * i] = i < valid ? even[i] : B{};
      out[2 * i + 1] = odd && i < valid ? odd[i] : B{};
    }
  }

  const GemmParams& p_;
  const int threads_;
  const int64_t packs_;  // 0 or 1
  const int64_t words_, stride_, size_b_;
  Workspace<Word> a_, b_;
  Workspace<Sum> sums_;
};

// Sums of columns [0, n) of A [m, n] into out [n], in blocks of rows so that rounding grows with the block, not with m.
template <class A, class C, class Sum>
void column_sums(const GemmParams& p, int threads) {
  using V = Vec<Sum>;
  constexpr int kWidth = V::width, kAtOnce = 4;
  constexpr int64_t kRows = 128;
  parallel(threads, [&p](int thread, int count) {
    const int64_t vectors = (p.n + kWidth * kAtOnce - 1) / (kWidth * kAtOnce);
    const int64_t high = std::min(p.n, vectors * (thread + 1) / count * kWidth * kAtOnce);
    for (int64_t n = vectors * thread / count * kWidth * kAtOnce; n < high; n += kWidth * kAtOnce) {
      int valid[kAtOnce];
      V total[kAtOnce];
      for (int g = 0; g < kAtOnce; ++g) {
        valid[g] = static_cast<int>(std::clamp<int64_t>(p.n - n - g * kWidth, 0, kWidth));
        total[g] = V::set(0);
      }
      for (int64_t m = 0; m < p.m; m += kRows) {
        V sum[kAtOnce] = {V::set(0), V::set(0), V::set(0), V::set(0)};
        const int64_t last = std::min(p.m, m + kRows);
        const A* source = static_cast<const A*>(p.a) + m * p.a_row_stride + n;
        if (valid[kAtOnce - 1] == kWidth) {
          for (int64_t r = m; r < last; ++r, source += p.a_row_stride)
            for (int g = 0; g < kAtOnce; ++g) sum[g] = sum[g] + load_as(source + g * kWidth);
        } else {
          for (int64_t r = m; r < last; ++r, source += p.a_row_stride)
            for (int g = 0; g < kAtOnce; ++g)
              if (valid[g] > 0) sum[g] = sum[g] + load_as(source + g * kWidth, valid[g]);
        }
        for (int g = 0; g < kAtOnce; ++g) total[g] = total[g] + sum[g];
      }
      for (int g = 0; g < kAtOnce; ++g)
        if (valid[g] > 0) store_as(static_cast<C*>(p.c) + n + g * kWidth, total[g], valid[g]);
    }
  });
}
