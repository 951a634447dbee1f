// A product of few rows with a matrix that is read once, row by row, as it lies: rearranging it takes longer than the
// product. Multiplied and summed in the order of product_tile, so to the same bits.
// Included inside the namespace of a target, after pack.h.
#pragma once

constexpr int64_t kThinRows = 8;  // at most, over all steps of a call

// By type, for a row's bits must not depend on the number of rows: tiles and dot products sum in an order of their own.
template <class Product>
constexpr bool kThin = kDepth<Product> == 1 && Product::kPacked == 1;

// sums += `count` words at a times as many rows of W, one after the other.
template <class Product, class S, int Count>
inline void add_rows(const typename Product::Word* a, const S* const* rows, int64_t length,
                     typename Product::Sum* sums) {
  using V = Vec<typename Product::Sum>;
  V factors[Count];
  for (int i = 0; i < Count; ++i) factors[i] = V::set(a[i]);
  int64_t column = 0;
  for (; column + V::width <= length; column += V::width) {
    V sum = V::load(sums + column);
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) sum = multiply_add(factors[i], load_as(rows[i] + column), sum);
    sum.store(sums + column);
  }
  if (column == length) return;
  V sum = V::load(sums + column);
  for (int i = 0; i < Count; ++i)
    sum = multiply_add(factors[i], load_as(rows[i] + column, static_cast<int>(length - column)), sum);
  sum.store(sums + column);
}

// Rows [low, high) of A, lda words apart, times columns [begin, end) of W, whose row row_of(k) of row_length elements
// meets word k of `words` of A. Hands on (row, first_column, columns, sums), with room for whole vectors.
template <class Product, class S, class RowOf, class Body>
inline void multiply_thin(const typename Product::Word* a, int64_t lda, int64_t low, int64_t high, const S* w,
                          int64_t row_length, int64_t words, const RowOf& row_of, int64_t begin, int64_t end,
                          const Body& body, int64_t words_at_once) {
  using Sum = typename Product::Sum;
  using V = Vec<Sum>;
  constexpr int kWidth = V::width, kAtOnce = 4;  // words of A at once
  constexpr int64_t kColumns = 2048 / sizeof(Sum);
  alignas(64) Sum sums[kThinRows * kColumns], part[kThinRows * kColumns];
  for (int64_t column = begin; column < end; column += kColumns) {
    const int64_t length = std::min(kColumns, end - column);
    for (int64_t block = 0; block < words; block += words_at_once) {
      const int64_t block_end = std::min(words, block + words_at_once);
      Sum* const to = block == 0 ? sums : part;
      std::fill_n(to, (high - low) * kColumns, Sum(0));
      for (int64_t k = block; k < block_end; k += kAtOnce) {
        const int count = static_cast<int>(std::min<int64_t>(kAtOnce, block_end - k));
        const S* rows[kAtOnce];
        for (int i = 0; i < count; ++i) rows[i] = w + row_of(k + i) * row_length + column;
        for (int64_t r = low; r < high; ++r) {
          Sum* const row = to + (r - low) * kColumns;
          if (count == kAtOnce)
            add_rows<Product, S, kAtOnce>(a + r * lda + k, rows, length, row);
          else
            for (int i = 0; i < count; ++i) add_rows<Product, S, 1>(a + r * lda + k + i, rows + i, length, row);
        }
      }
      if (block == 0) continue;
      for (int64_t r = 0; r < high - low; ++r)
        for (int64_t i = r * kColumns; i < r * kColumns + length; i += kWidth)
          (V::load(sums + i) + V::load(part + i)).store(sums + i);
    }
    for (int64_t r = low; r < high; ++r) body(r, column, length, sums + (r - low) * kColumns);
  }
}

// out: `count` rows of W, where `index` says, times a word of each row of A; columns [0, length).
template <class Word, class S>
inline void sum_thin(const Word* a, int64_t lda, const S* w, int64_t row_length, const int64_t* index, int64_t count,
                     int64_t length, S* out) {
  using V = Vec<Word>;
  constexpr int64_t kAtOnce = 4;  // vectors, for each is a chain over the rows
  const auto sum = [&](auto vectors, int64_t at, int valid) {
    constexpr int N = decltype(vectors)::value;
    V sums[N];
    for (V& value : sums) value = V::set(0);
    for (int64_t r = 0; r < count; ++r) {
      const S* const row = w + index[r] * row_length + at;
      const V factor = V::set(a[r * lda]);
      for (int g = 0; g < N; ++g)
        sums[g] = multiply_add(factor, N > 1 ? load_as(row + g * V::width) : load_as(row, valid), sums[g]);
    }
    for (int g = 0; g < N; ++g) N > 1 ? store_as(out + at + g * V::width, sums[g]) : store_as(out + at, sums[g], valid);
  };
  int64_t i = 0;
  for (; i + kAtOnce * V::width <= length; i += kAtOnce * V::width)
    sum(std::integral_constant<int, kAtOnce>{}, i, V::width);
  for (; i < length; i += V::width)
    sum(std::integral_constant<int, 1>{}, i, static_cast<int>(std::min<int64_t>(V::width, length - i)));
}
