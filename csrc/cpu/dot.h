// Products with weights read once, as they lie: rows of W are dotted with rows of A along k, a vector of k at a time,
// and the lanes summed at the end. For a single step (a cell) rearranging the weights would cost more than the product.
// Every (row, unit) is summed in the same order, whatever the batch and the tile.
// Included inside the namespace of a target, after pack.h.
#pragma once

// Lane i of the result is the sum of all lanes of sums[i], added in one order for all i.
template <class V>
inline V sum_lanes(V* sums) {
  transpose(sums);  // now vector l holds lane l of all sums
  for (int half = V::width / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
  return sums[0];
}

// `count` (<= kWidth * depth) elements of a row of W as one vector of words, zero beyond.
template <class Product, class S>
inline Vec<typename Product::Sum> load_words(const S* from, int64_t count) {
  using V = Vec<typename Product::Sum>;
  constexpr int64_t full = V::width * kDepth<Product>;
  if constexpr (kDepth<Product> == 1) {
    return count >= full ? load_as(from) : load_as(from, static_cast<int>(count));
  } else {
    if (count >= full) return V::load(reinterpret_cast<const typename Product::Sum*>(from));
    alignas(64) S words[full] = {};
    std::memcpy(words, from, static_cast<size_t>(count) * sizeof(S));
    return V::load(reinterpret_cast<const typename Product::Sum*>(words));
  }
}

// R rows of A with width / R rows of W: out[r * out_stride + i] for the i-th row of W. Rows of W beyond `valid` give 0.
// Rows of A are padded with zeros to whole vectors.
template <class Product, class S, int R>
[[gnu::always_inline]] inline void dot_tile(const typename Product::Word* a, int64_t lda, const S* w, int64_t ldw,
                                            int valid, int64_t k, typename Product::Sum* out, int64_t out_stride) {
  using V = Vec<typename Product::Sum>;
  constexpr int kWidth = V::width, J = kWidth / R;
  constexpr int64_t step = kWidth * kDepth<Product>;
  V sums[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) sums[i] = V::set(0);
  const S* rows[J];
  for (int j = 0; j < J; ++j) rows[j] = w + std::min(j, valid - 1) * ldw;
  for (int64_t i = 0; i < k; i += step) {
    V states[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) states[r] = V::load(a + r * lda + i / kDepth<Product>);
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
      const V weights = load_words<Product>(rows[j] + i, k - i);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sums[r * J + j] = Product::lanes(states[r], weights, sums[r * J + j]);
    }
  }
  typename Product::Sum totals[kWidth];
  sum_lanes(sums).store(totals);
  if (valid == J) {
    for (int r = 0; r < R; ++r) std::memcpy(out + r * out_stride, totals + r * J, J * sizeof totals[0]);
    return;
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < J; ++j) out[r * out_stride + j] = j < valid ? totals[r * J + j] : 0;
}

// A long row, block by block. Out of the way: what stands beside dot_tile's loop makes it slower for the short ones.
constexpr int64_t kVectorsAtOnce = 256;  // of k, summed lane by lane
template <class Product>
constexpr int64_t kElementsAtOnce = kVectorsAtOnce * Vec<typename Product::Sum>::width * kDepth<Product>;

template <class Product, class S, int R>
[[gnu::noinline]] void dot_blocks(const typename Product::Word* a, int64_t lda, const S* w, int64_t ldw, int valid,
                                  int64_t k, typename Product::Sum* out, int64_t out_stride) {
  using Sum = typename Product::Sum;
  constexpr int J = Vec<Sum>::width / R;
  constexpr int64_t at_once = kElementsAtOnce<Product>;
  for (int64_t i = 0; i < k; i += at_once) {
    Sum part[R * J];
    dot_tile<Product, S, R>(a + i / kDepth<Product>, lda, w + i, ldw, valid, std::min(at_once, k - i), part, J);
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < J; ++j)
        out[r * out_stride + j] = (i == 0 ? Sum(0) : out[r * out_stride + j]) + part[r * J + j];
  }
}

// As multiply with G = 3 and gates r, z, n, but for W [3H, k] as it lies. Hands on (first_row, rows, group, 1, sums,
// row_stride) for each group of kWidth units.
template <class Product, class S, class Body>
inline void multiply_unpacked(const typename Product::Word* a, int64_t lda, int64_t low, int64_t high, const S* w,
                              int64_t hidden_size, int64_t k, int64_t first_group, int64_t last_group,
                              const Body& body) {
  using Sum = typename Product::Sum;
  constexpr int kWidth = Vec<Sum>::width;
  constexpr int kTall = kWidth >= 16 ? 4 : kWidth >= 4 ? 2 : 1;
  constexpr int64_t stride = 3 * kWidth;
  alignas(64) Sum sums[kTall * stride];
  for (int64_t group = first_group; group < last_group; ++group) {
    const int units = static_cast<int>(std::min<int64_t>(kWidth, hidden_size - group * kWidth));
    const auto run = [&](int64_t row, auto rows) {
      constexpr int R = decltype(rows)::value;
      constexpr int J = kWidth / R;
      for (int gate = 0; gate < 3; ++gate) {
        const S* const weights = w + (gate * hidden_size + group * kWidth) * k;
        Sum* const out = sums + gate * kWidth;
        for (int unit = 0; unit < kWidth; unit += J) {
          if (unit < units) {
            const int valid = std::min(J, units - unit);
            if (k <= kElementsAtOnce<Product>) {
              dot_tile<Product, S, R>(a + row * lda, lda, weights + unit * k, k, valid, k, out + unit, stride);
            } else {
              dot_blocks<Product, S, R>(a + row * lda, lda, weights + unit * k, k, valid, k, out + unit, stride);
            }
          } else {
            for (int r = 0; r < R; ++r) std::fill_n(out + r * stride + unit, J, Sum(0));
          }
        }
      }
      body(row, R, group, 1, sums, stride);
    };
    int64_t row = low;
    for (; row + kTall <= high; row += kTall) run(row, std::integral_constant<int, kTall>{});
    for (; row < high; ++row) run(row, std::integral_constant<int, 1>{});
  }
}
