// Weights rearranged for product_tile: for each group of units, [words][G] vectors in the order they are read.
// Included inside the namespace of a target, after product.h.
#pragma once

// kWidth rows of k elements, as words: row i in lane i of `rows` on return, transposed to one vector a word.
template <class Product, class S>
inline void load_transposed(const S* const* sources, int valid, int64_t first, int count,
                            Vec<typename Product::Sum>* out) {
  using Sum = typename Product::Sum;
  using Element = typename Product::Element;
  constexpr int kWidth = Vec<Sum>::width, depth = kDepth<Product>;
  for (int i = 0; i < kWidth; ++i) {
    if (i >= valid) {
      out[i] = Vec<Sum>::set(0);
    } else if constexpr (std::is_same_v<S, Element>) {
      // Whole words are moved as bits; only the end of a row, and an odd element there, goes lane by lane.
      const S* source = sources[i] + first * depth;
      if (count == kWidth * depth) {
        out[i] = Vec<Sum>::load(reinterpret_cast<const Sum*>(source));
      } else {
        alignas(64) S words[kWidth * depth] = {};
        std::memcpy(words, source, static_cast<size_t>(count) * sizeof(S));
        out[i] = Vec<Sum>::load(reinterpret_cast<const Sum*>(words));
      }
    } else {
      out[i] = count == kWidth ? load_as(sources[i] + first) : load_as(sources[i] + first, count);
    }
  }
  transpose(out);
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
    typename Product::Word* out = packed + (group - first_group) * words * 3 * kWidth;
    for (int gate = 0; gate < 3; ++gate) {
      const S* sources[kWidth];
      for (int i = 0; i < valid; ++i) sources[i] = weight + (gate * hidden_size + group * kWidth + i) * k;
      for (int64_t word = 0; word < words; word += kWidth) {
        Vec<Sum> lanes[kWidth];
        const int count = static_cast<int>(std::min<int64_t>(kWidth * depth, k - word * depth));
        load_transposed<Product>(sources, valid, word, count, lanes);
        const int vectors = static_cast<int>(std::min<int64_t>(kWidth, words - word));
        for (int i = 0; i < vectors; ++i) lanes[i].store(out + ((word + i) * 3 + gate) * kWidth);
      }
    }
  }
}

// The row of W_hh that belongs to row k of the backward product, whose operand is ordered n, r, z.
inline int64_t backward_row(int64_t k, int64_t hidden_size) {
  return k < hidden_size ? k + 2 * hidden_size : k - hidden_size;
}

// For W_hh [3H, H] row-major as the right-hand side of backward: groups of G vectors of units, K = 3H in order n, r, z.
template <class Product, int G, class S>
inline void pack_backward(const S* weight, int64_t hidden_size, int64_t first_group, int64_t last_group,
                          typename Product::Word* packed) {
  using Sum = typename Product::Sum;
  constexpr int kWidth = Vec<Sum>::width, depth = kDepth<Product>;
  const int64_t words = words_of<Product>(3 * hidden_size);
  for (int64_t group = first_group; group < last_group; ++group) {
    typename Product::Word* out = packed + (group - first_group) * words * G * kWidth;
    for (int64_t word = 0; word < words; ++word) {
      for (int g = 0; g < G; ++g, out += kWidth) {
        const int64_t unit = (group * G + g) * kWidth;
        const int valid = static_cast<int>(std::clamp<int64_t>(hidden_size - unit, 0, kWidth));
        if constexpr (depth == 1) {
          const S* source = weight + backward_row(word, hidden_size) * hidden_size + unit;
          if (valid == kWidth)
            load_as(source).store(out);
          else
            (valid > 0 ? load_as(source, valid) : Vec<Sum>::set(0)).store(out);
        } else {
          S* pairs = reinterpret_cast<S*>(out);
          for (int d = 0; d < depth; ++d) {
            const int64_t k = word * depth + d;
            const bool inside = k < 3 * hidden_size;
            const S* source = inside ? weight + backward_row(k, hidden_size) * hidden_size + unit : nullptr;
            for (int i = 0; i < kWidth; ++i) pairs[i * depth + d] = inside && i < valid ? source[i] : S{};
          }
        }
      }
    }
  }
}
