// Weights rearranged for product_tile: for each group of units, [packed words][G] vectors in the order they are read.
// Included inside the namespace of a target, after product.h.
#pragma once

// kWidth rows of k elements, as words: row i in lane i of `rows` on return, transposed to one vector a word.
template <class Product, class S>
inline void load_transposed(const S* const* sources, int valid, int64_t first, int count,
                            Vec<typename Product::Sum>* out) {
  using Sum = typename Product::Sum;
  using Element = typename Product::Element;
  constexpr int kWidth = Vec<Sum>::width, depth = kDepth<Product>;
  constexpr bool as_bits = std::is_same_v<S, Element>;  // whole words, whatever is in them
  const bool whole = valid == kWidth && count == kWidth * depth;
  for (int i = 0; whole && i < kWidth; ++i) {
    const S* const source = sources[i] + first * depth;
    __builtin_prefetch(reinterpret_cast<const char*>(source) + 8 * kLineBytes, 0, 2);
    if constexpr (as_bits)
      out[i] = Vec<Sum>::load(reinterpret_cast<const Sum*>(source));
    else
      out[i] = load_as(source);
  }
  for (int i = 0; !whole && i < kWidth; ++i) {
    const S* const source = i < valid ? sources[i] + first * depth : nullptr;
    if constexpr (as_bits) {
      alignas(64) S words[kWidth * depth] = {};
      if (source) std::memcpy(words, source, static_cast<size_t>(count) * sizeof(S));
      out[i] = Vec<Sum>::load(reinterpret_cast<const Sum*>(words));
    } else {
      out[i] = source ? load_as(source, count) : Vec<Sum>::set(0);
    }
  }
  transpose(out);
}

// `count` words of k in a row, a vector each, as packed weights; `stride` values from vector to vector. What fills the
// last one is zero.
template <class Product>
inline void store_packed(const Vec<typename Product::Sum>* vectors, int count, typename Product::Word* out,
                         int64_t stride) {
  if constexpr (Product::kPacked == 1) {
    for (int i = 0; i < count; ++i) vectors[i].store(out + i * stride);
  } else {
    for (int i = 0; i < count; i += 2)
      Product::pack(vectors[i], i + 1 < count ? vectors[i + 1] : Vec<float>::set(0)).store(out + i / 2 * stride);
  }
}

// For W [3H, K] row-major (W_ih, W_hh): groups of kWidth units, G = 3 vectors (r, z, n) for each word of k. packed:
// where the first group goes.
template <class Product, class S>
inline void pack_gates(const S* weight, int64_t hidden_size, int64_t k, int64_t first_group, int64_t last_group,
                       typename Product::Word* packed) {
  using Sum = typename Product::Sum;
  constexpr int kWidth = Vec<Sum>::width, depth = kDepth<Product>;
  const int64_t words = words_of<Product>(k);
  for (int64_t group = first_group; group < last_group; ++group) {
    const int valid = static_cast<int>(std::min<int64_t>(kWidth, hidden_size - group * kWidth));
    typename Product::Word* out = packed + (group - first_group) * packed_words<Product>(words) * 3 * kWidth;
    for (int gate = 0; gate < 3; ++gate) {
      const S* sources[kWidth];
      for (int i = 0; i < valid; ++i) sources[i] = weight + (gate * hidden_size + group * kWidth + i) * k;
      for (int64_t word = 0; word < words; word += kWidth) {
        Vec<Sum> lanes[kWidth];
        const int count = static_cast<int>(std::min<int64_t>(kWidth * depth, k - word * depth));
        load_transposed<Product>(sources, valid, word, count, lanes);
        const int vectors = static_cast<int>(std::min<int64_t>(kWidth, words - word));
        store_packed<Product>(lanes, vectors, out + (word / Product::kPacked * 3 + gate) * kWidth, 3 * kWidth);
      }
    }
  }
}

// The same of weights packed ahead as pairs of bfloat16.
inline void widen_gates(const float* pairs, int64_t k, int64_t first_group, int64_t last_group, float* packed) {
  constexpr int64_t kWidth = Vec<float>::width, kOfWord = kGates * kWidth;
  const int64_t of_group = (k + 1) / 2 * kOfWord;
  for (int64_t group = first_group; group < last_group; ++group)
    for (int64_t word = 0; word < k; ++word)
      for (int64_t i = 0; i < kOfWord; i += kWidth, packed += kWidth) {
        const float* const from = pairs + group * of_group + word / 2 * kOfWord + i;
        (word % 2 ? widen_half<1>(from, BFloat16{}) : widen_half<0>(from, BFloat16{})).store(packed);
      }
}

#ifdef GRU_BFLOAT16_DOT
// Words of two rows each, even below odd; no odd: zeros.
template <class S>
inline void interleave(const S* even, const S* odd, int64_t count, float* out) {
  constexpr int kWidth = Vec<float>::width;
  for (int64_t i = 0; i < count; i += kWidth) {
    const int valid = static_cast<int>(std::min<int64_t>(kWidth, count - i));
    pair_words(even + i, odd ? odd + i : nullptr, valid).store(out + i, valid);
  }
}

// The same of all rows, stride elements apart, and up to a vector of columns, each of which becomes a row of words, lda
// apart, with zeros up to a whole vector.
template <class S>
inline void interleave_turned(const S* from, int64_t stride, int64_t rows, int columns, float* out, int64_t lda) {
  constexpr int kWidth = Vec<float>::width;
  for (int64_t first = 0; first < rows; first += 2 * kWidth) {
    Vec<float> words[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const int64_t row = first + 2 * i;
      const S* const even = from + row * stride;
      words[i] = row < rows ? pair_words(even, row + 1 < rows ? even + stride : nullptr, columns) : Vec<float>::set(0);
    }
    transpose(words);
    for (int i = 0; i < columns; ++i) words[i].store(out + i * lda + first / 2);
  }
}
#endif

// Rows of a matrix, row_length elements apart, as the right-hand side of a product over rows: groups of columns, and in
// each of them `words` words of k. row_of(k) is the row that stands at k, or negative: zeros. packed: where first_group
// goes. Row by row: along a column every row would be another page.
template <class Product, class S, class RowOf>
inline void pack_rows(const S* source, int64_t row_length, Columns<Product> columns, int64_t first_group,
                      int64_t last_group, int64_t words, const RowOf& row_of, typename Product::Word* packed) {
  using Sum = typename Product::Sum;
  constexpr int kWidth = Vec<Sum>::width, depth = kDepth<Product>;
  for (int64_t word = 0; word < words; word += Product::kPacked) {
    const auto at = [&](int64_t k) {
      const int64_t row = k < words * depth ? row_of(k) : -1;
      return row < 0 ? nullptr : source + row * row_length;
    };
    const S *const row = at(word * depth), *const next = at((word + 1) * depth), *const odd = at(word * depth + 1);
    typename Product::Word* out = packed;
    for (int64_t group = first_group; group < last_group; ++group) {
      const int64_t begin = group * columns.of_group, width = columns.vectors_of(group) * kWidth;
      const int64_t length = std::min(width, columns.count - begin);
      typename Product::Word* const to = out + word / Product::kPacked * width;
      out += packed_words<Product>(words) * width;
      if (!row || length < width) std::memset(static_cast<void*>(to), 0, width * sizeof *to);
      if constexpr (depth == 2) {
        if (row) interleave(row + begin, odd ? odd + begin : nullptr, length, to);
      } else {
        for (int64_t i = begin; i < begin + length && (row || next); i += kWidth) {
          const int valid = static_cast<int>(std::min<int64_t>(kWidth, begin + length - i));
          const auto load = [&](const S* from) {
            if (!from) return Vec<Sum>::set(0);
            return valid == kWidth ? load_as(from + i) : load_as(from + i, valid);
          };
          const Vec<Sum> rows[2] = {load(row), Product::kPacked == 1 ? Vec<Sum>::set(0) : load(next)};
          store_packed<Product>(rows, Product::kPacked, to + i - begin, 0);
        }
      }
    }
  }
}

// In backward a row of gate gradients holds four sections, each a whole number of words long (for an odd H a zero fills
// the last word): r*dn, dr, dz, dn. The first three are those of W_hh h + b_hh in the order n, r, z, the last three
// those of W_ih x + b_ih. This is the row of the weight [3H, *] that meets element k of the three from `section` on.
template <class Product>
inline int64_t weight_row(int64_t k, int64_t hidden_size, int section) {
  const int64_t length = words_of<Product>(hidden_size) * kDepth<Product>, unit = k % length;
  const int64_t gate = (k / length + section + 2) % 3;  // r, z, n
  return unit < hidden_size ? gate * hidden_size + unit : -1;
}
