// The one inner loop of every product of the CPU kernels: a tile of R rows by G*U vectors of units, kept in registers
// over kWordsAtOnce of K. Each (row, unit) is one accumulator summed over k in order, so its bits depend neither on the
// tile it falls into nor on the batch or the thread count around it.
// Included inside the namespace of a target, after its simd header.
#pragma once

// How a product is multiplied. Element: what the operands are stored as. Word: what the inner loop steps by (two
// bfloat16 make one word). Sum: what accumulates. step: one word of A with a vector of words of W. lanes: both vectors.
// kPacked: words of k that lie in one vector of packed weights.
struct ProductFloat {
  static constexpr int64_t kPacked = 1;
  using Element = float;
  using Word = float;
  using Sum = float;
  static Vec<float> lanes(Vec<float> a, Vec<float> w, Vec<float> sum) { return multiply_add(a, w, sum); }
  static Vec<float> step(const Word* a, Vec<float> w, Vec<float> sum) {
    return multiply_add(Vec<float>::set(*a), w, sum);
  }
};
struct ProductDouble {
  static constexpr int64_t kPacked = 1;
  using Element = double;
  using Word = double;
  using Sum = double;
  static Vec<double> lanes(Vec<double> a, Vec<double> w, Vec<double> sum) { return multiply_add(a, w, sum); }
  static Vec<double> step(const Word* a, Vec<double> w, Vec<double> sum) {
    return multiply_add(Vec<double>::set(*a), w, sum);
  }
};
#ifdef GRU_BFLOAT16_DOT
struct ProductBFloat16 {
  static constexpr int64_t kPacked = 1;
  using Element = BFloat16;
  using Word = float;  // the bits of two bfloat16, moved about but never computed with as a float
  using Sum = float;
  static Vec<float> lanes(Vec<float> a, Vec<float> w, Vec<float> sum) { return dot_halves(a, w, sum); }
  static Vec<float> step(const Word* a, Vec<float> w, Vec<float> sum) { return dot_halves(broadcast_bits(a), w, sum); }
};
#endif

#ifdef GRU_FLOAT16_TILES
struct ProductFloat16 {
  static constexpr int64_t kPacked = 1;
  using Element = Float16;
  using Word = float;  // the bits of two float16
  using Sum = float;
  static Vec<float> lanes(Vec<float> a, Vec<float> w, Vec<float> sum) {  // in whatever order the lanes are summed
    sum = multiply_add(widen(first_half(a), Float16{}), widen(first_half(w), Float16{}), sum);
    return multiply_add(widen(second_half(a), Float16{}), widen(second_half(w), Float16{}), sum);
  }
  static Vec<float> step(const Word* a, Vec<float> w, Vec<float> sum) {
    const Float16* const pair = reinterpret_cast<const Float16*>(a);
    sum = multiply_add(Vec<float>::set(to_float(pair[0])), widen(low_halves(w), Float16{}), sum);
    return multiply_add(Vec<float>::set(to_float(pair[1])), widen(high_halves(w), Float16{}), sum);
  }
};
#endif

#ifdef GRU_WIDENING
// Weights of a 16-bit type S stay in 16 bits when they are packed, two words of k to a vector, and are widened as they
// are read: the bits of ProductFloat's sums, from half the bytes. For tiles of few rows, where reading is what takes
// time and there are registers to widen in.
template <class S>
struct ProductWidening : ProductFloat {
  static constexpr int64_t kPacked = 2;
  static Vec<float> pack(Vec<float> even, Vec<float> odd) { return pack_halves(even, odd, S{}); }
  template <int Odd>
  static Vec<float> widen(const float* packed) {
    return widen_half<Odd>(packed, S{});
  }
};
#endif

// Words of four bytes, moved about as floats. The sums are whole numbers, in the bits of floats (bytes.h).
struct ProductBytes {
  static constexpr int64_t kPacked = 1;
  using Element = int8_t;
  using Word = float;
  using Sum = float;
  static Vec<float> lanes(Vec<float> a, Vec<float> w, Vec<float> sum) { return add_bytes(a, w, sum); }
  static Vec<float> step(const Word* a, Vec<float> w, Vec<float> sum) { return add_bytes(broadcast_bits(a), w, sum); }
};

// The weights packed ahead that a product reads as they are; Plain: none.
template <class Product>
constexpr WeightFormat kFormat = std::is_same_v<Product, ProductFloat>   ? WeightFormat::Float32
                                 : std::is_same_v<Product, ProductBytes> ? WeightFormat::Int8
                                                                         : WeightFormat::Plain;
#ifdef GRU_WIDENING
template <>
constexpr WeightFormat kFormat<ProductWidening<BFloat16>> = WeightFormat::BFloat16;
#endif

template <class Product>
constexpr int64_t kDepth = sizeof(typename Product::Word) / sizeof(typename Product::Element);

// Whether it is multiplied on tiles (amx.h), where there are several rows or columns to share an operand.
template <class Product>
constexpr bool kOnTiles = false;
#ifdef GRU_TILES
template <>
constexpr bool kOnTiles<ProductBFloat16> = true;
template <>
constexpr bool kOnTiles<ProductBytes> = true;
#endif
#ifdef GRU_FLOAT16_TILES
template <>
constexpr bool kOnTiles<ProductFloat16> = true;
#endif

// Words of k summed at once. Every addition rounds at the size of the sum so far: a chain of n terms is off by some
// sqrt(n) / 6 units in the last place, blocks and their sums by that of either's length.
constexpr int64_t kWordsAtOnce = 512;
// Whole numbers are exact, and are not added as floats.
template <class Product>
constexpr int64_t kWordsOfSum = std::is_same_v<Product, ProductBytes> ? int64_t{1} << 40 : kWordsAtOnce;

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

template <class Product>
inline int64_t words_of(int64_t k) {  // words that hold k elements; an odd one is filled up with a zero
  return (k + kDepth<Product> - 1) / kDepth<Product>;
}

// Vectors of packed weights that hold so many words of k.
template <class Product>
inline int64_t packed_words(int64_t words) {
  return (words + Product::kPacked - 1) / Product::kPacked;
}

// Words from one row of an operand to the next, with room for whole vectors. Rows a multiple of a page apart would fall
// on the same cache lines.
template <class Product>
inline int64_t operand_stride(int64_t k) {
  const int64_t words = round_up(words_of<Product>(k), 16);
  return words % 256 == 0 ? words + 16 : words;
}

// a: R rows of `words` words, lda apart; across: R columns of `words` rows, lda apart. w: U groups of
// [packed_words(words)][G] vectors, group_stride values apart. out: R rows of U*G vectors, ldo values apart; written,
// or added to.
template <class Product, int G, int R, int U, bool across = false>
inline void product_tile(const typename Product::Word* a, int64_t lda, const typename Product::Word* w,
                         int64_t group_stride, int64_t words, typename Product::Sum* out, int64_t ldo, bool add) {
  using Sum = typename Product::Sum;
  constexpr int kWidth = Vec<Sum>::width;
  Vec<Sum> sums[R][U][G];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) sums[r][u][g] = Vec<Sum>::set(0);
  // Word k of A with vectors that load(where they lie) makes of the weights from `from` on.
  const auto step = [&](int64_t k, const typename Product::Word* from,
                        const auto& load) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int u = 0; u < U; ++u) {
      Vec<Sum> weights[G];
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) weights[g] = load(from + u * group_stride + g * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g)
          sums[r][u][g] = Product::step(across ? a + k * lda + r : a + r * lda + k, weights[g], sums[r][u][g]);
    }
  };
  if constexpr (Product::kPacked == 1) {
    const auto load = [](const Sum* at) __attribute__((always_inline)) { return Vec<Sum>::load(at); };
#pragma GCC unroll 2
    for (int64_t k = 0; k < words; ++k) step(k, w + k * G * kWidth, load);
  } else {
    const auto even = [](const Sum* at) __attribute__((always_inline)) { return Product::template widen<0>(at); };
    const auto odd = [](const Sum* at) __attribute__((always_inline)) { return Product::template widen<1>(at); };
    int64_t k = 0;
    for (; k + 2 <= words; k += 2, w += G * kWidth) {
      step(k, w, even);
      step(k + 1, w, odd);
    }
    if (k < words) step(k, w, even);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) {
        Sum* const to = out + r * ldo + (u * G + g) * kWidth;
        (add ? Vec<Sum>::load(to) + sums[r][u][g] : sums[r][u][g]).store(to);
      }
}

// Tile shapes by the number of vector registers. For few rows more groups at once, so that enough independent sums are
// in flight to hide the latency of a multiply-add.
constexpr int kLargestTile = kVectorRegisters == 32 ? 24 : 12;  // vectors of sums
constexpr int kBlockVectors = 96;                               // of sums that leave the product together
constexpr int kNarrowRows = 2;                                  // at most, of tiles that widen their weights
constexpr int kGates = 3;                                       // vectors of a group in the forward pass: r, z, n
constexpr int kColumnVectors = kVectorRegisters == 32 ? 4 : 2;  // and of a group of any other matrix's columns
template <int G, int R>
constexpr int kGroupsAtOnce = [] {
  if (G != kGates && G != kColumnVectors) return 1;  // a matrix's last columns: a single group
  // The compiler keeps a word of every row and the vectors of one group beside the sums.
  constexpr int fit = std::min(kLargestTile, kVectorRegisters - R - G) / (G * R);
  // A single row waits for its weights; from memory more of them come the more are read at a time.
  constexpr int most = R == 1 && G == kGates && kVectorRegisters == 32 ? 4 : 2;
  return std::clamp(fit, 1, most);
}();
template <class Product>
using TileFunction = void (*)(const typename Product::Word*, int64_t, const typename Product::Word*, int64_t, int64_t,
                              typename Product::Sum*, int64_t, bool);

constexpr int64_t kFarWords = int64_t{2} << 20;  // of weights that may come from memory

template <class Product, int G>
struct Tiles {
  // Rows at once: 8 x 3 or 6 x 4 vectors fill 24 of 32 registers, 4 x 3 or 6 x 2 fill 12 of 16.
  static constexpr int max_rows = Product::kPacked > 1 ? kNarrowRows : std::min(8, kLargestTile / G);

  TileFunction<Product> many = nullptr;  // groups_at_once groups
  TileFunction<Product> two = nullptr;   // two groups, where those are at least as many
  TileFunction<Product> one = nullptr;   // a single group
  int groups_at_once = 1;

  static Tiles of(int rows) { return find<max_rows>(rows); }
  // Groups at once for the tallest of the equal tiles that so many rows are cut into, of weights of so many words.
  static int groups_for(int64_t rows, int64_t words) {
    const int64_t tiles = (rows + max_rows - 1) / max_rows;
    const int most = rows <= 0 ? 1 : of(static_cast<int>((rows + tiles - 1) / tiles)).groups_at_once;
    return words > kFarWords ? most : std::min(most, 2);
  }
  static TileFunction<Product> across(int rows) { return find_across<max_rows>(rows); }

 private:
  template <int R>
  static TileFunction<Product> find_across(int rows) {
    if constexpr (R > 1) {
      if (rows < R) return find_across<R - 1>(rows);
    }
    return product_tile<Product, G, R, 1, true>;
  }
  template <int R>
  static Tiles find(int rows) {
    if constexpr (R > 1) {
      if (rows < R) return find<R - 1>(rows);
    }
    constexpr int U = kGroupsAtOnce<G, R>;
    return {product_tile<Product, G, R, U>, product_tile<Product, G, R, std::min(U, 2)>, product_tile<Product, G, R, 1>,
            U};
  }
};

#ifdef GRU_TILES
#include "amx.h"
#endif

// out, ldo values from row to row: rows [low, high) x `groups` groups of A W, tile by tile. Weights are outermost: a
// group is read from far once and from the near cache for the other tiles. descending: the last groups first.
template <class Product, int G>
inline void multiply_block(const typename Product::Word* a, int64_t lda, int64_t low, int64_t high,
                           const typename Product::Word* w, int64_t words, int64_t groups, typename Product::Sum* out,
                           int64_t ldo, int64_t words_at_once, int64_t at_once, bool descending = false) {
  constexpr int kWidth = Vec<typename Product::Sum>::width, max_rows = Tiles<Product, G>::max_rows;
  const int64_t total = high - low, tiles = (total + max_rows - 1) / max_rows;
  const int64_t group_stride = packed_words<Product>(words) * G * kWidth;
  const int64_t turns = (groups + at_once - 1) / at_once;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t group = (descending ? turns - 1 - turn : turn) * at_once;
    const int64_t here = std::min(at_once, groups - group);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = total * i / tiles, last = total * (i + 1) / tiles;
      const Tiles<Product, G> tile = Tiles<Product, G>::of(static_cast<int>(last - first));
      // The last groups, and where a tile one row shorter than its neighbours wants more groups at once than they take.
      const int64_t step = here == tile.groups_at_once ? here : here % 2 == 0 && tile.groups_at_once > 1 ? 2 : 1;
      const TileFunction<Product> run = step > 2 ? tile.many : step == 2 ? tile.two : tile.one;
      for (int64_t k = 0; k < words; k += words_at_once)
        for (int64_t u = group; u < group + here; u += step)
          run(a + (low + first) * lda + k, lda, w + u * group_stride + k / Product::kPacked * G * kWidth, group_stride,
              std::min(words_at_once, words - k), out + first * ldo + u * G * kWidth, ldo, k > 0);
    }
  }
}

// w: where first_group lies. Computes rows [low, high) x groups [first_group, last_group) of A W, handing each finished
// block to body(first_row, rows, group, groups, sums, row_stride), to whom the sums then belong. A block is several
// tiles, as many as the near cache does not mind: what body does to one vector is a long chain, and only others can
// fill its time.
//
// descending: the last groups first, where there is a single tile of rows. Weights larger than the near cache are
// walked to and fro, step by step, for what was read last is still near; with more tiles arithmetic binds, and the
// processor fetches ahead better in one direction.
template <class Product, int G, class Body>
inline void multiply(const typename Product::Word* a, int64_t lda, int64_t low, int64_t high,
                     const typename Product::Word* w, int64_t words, int64_t first_group, int64_t last_group,
                     const Body& body, int64_t words_at_once = kWordsOfSum<Product>, bool descending = false) {
#ifdef GRU_TILES
  if constexpr (kOnTiles<Product>)
    return multiply_tiles<Product, G>(a, lda, low, high, w, words, first_group, last_group, body, descending);
#endif
  using Sum = typename Product::Sum;
  constexpr int64_t kWidth = Vec<Sum>::width;
  const int64_t total = high - low, count = last_group - first_group;
  if (total <= 0 || count <= 0) return;
  alignas(64) Sum sums[kBlockVectors * kWidth];
  const int64_t at_once = Tiles<Product, G>::groups_for(total, count * packed_words<Product>(words) * G * kWidth);
  constexpr int64_t kRows = kBlockVectors / G;  // that a block of a single group has room for
  const int64_t row_blocks = (total * at_once + kRows - 1) / kRows;
  const int64_t most_rows = (total + row_blocks - 1) / row_blocks;
  const int64_t most_groups = std::max(at_once, kRows / most_rows / at_once * at_once);
  const int64_t group_blocks = (count + most_groups - 1) / most_groups;
  if (total > Tiles<Product, G>::max_rows) descending = false;
  for (int64_t block = 0; block < group_blocks; ++block) {
    const int64_t begin = (descending ? group_blocks - 1 - block : block) * most_groups;
    const int64_t groups = std::min(most_groups, count - begin), ldo = groups * G * kWidth;
    for (int64_t i = 0; i < row_blocks; ++i) {
      const int64_t first = low + total * i / row_blocks, last = low + total * (i + 1) / row_blocks;
      multiply_block<Product, G>(a, lda, first, last, w + begin * packed_words<Product>(words) * G * kWidth, words,
                                 groups, sums, ldo, words_at_once, at_once, descending);
      body(first, static_cast<int>(last - first), first_group + begin, static_cast<int>(groups), sums, ldo);
    }
  }
}

// The same, all of it to out: `groups` groups, ldo values from row to row.
template <class Product, int G>
inline void multiply_into(const typename Product::Word* a, int64_t lda, int64_t rows, const typename Product::Word* w,
                          int64_t words, int64_t groups, typename Product::Sum* out, int64_t ldo) {
#ifdef GRU_TILES
  if constexpr (kOnTiles<Product>) {
    constexpr int64_t kOfGroup = G * Vec<float>::width;
    const auto put = [=](int64_t first, int count, int64_t group, int at_once, const float* sums, int64_t stride) {
      for (int r = 0; r < count; ++r)
        std::memcpy(out + (first + r) * ldo + group * kOfGroup, sums + r * stride,
                    sizeof(float) * static_cast<size_t>(at_once * kOfGroup));
    };
    return multiply_tiles<Product, G>(a, lda, 0, rows, w, words, 0, groups, put);
  }
#endif
  const int64_t packed = groups * packed_words<Product>(words) * G * Vec<typename Product::Sum>::width;
  multiply_block<Product, G>(a, lda, 0, rows, w, words, groups, out, ldo, kWordsOfSum<Product>,
                             Tiles<Product, G>::groups_for(rows, packed));
}

// The columns of a matrix lie packed in groups of kColumnVectors vectors; the last group has only as many as it needs.
template <class Product>
struct Columns {
  static constexpr int64_t width = Vec<typename Product::Sum>::width;
  static constexpr int64_t of_group = kColumnVectors * width;

  int64_t count;  // columns

  int64_t vectors() const { return (count + width - 1) / width; }
  int64_t groups() const { return (vectors() + kColumnVectors - 1) / kColumnVectors; }
  int64_t vectors_of(int64_t group) const {
    return std::min<int64_t>(kColumnVectors, vectors() - group * kColumnVectors);
  }
  int64_t words(int64_t k) const { return packed_words<Product>(k) * vectors() * width; }  // of all of it, packed

  // Calls body(integral_constant: vectors of the group).
  template <class Body>
  void with_vectors_of(int64_t group, const Body& body) const {
    with_vectors<kColumnVectors>(vectors_of(group), body);
  }

 private:
  template <int G, class Body>
  static void with_vectors(int64_t vectors, const Body& body) {
    if constexpr (G > 1) {
      if (vectors < G) return with_vectors<G - 1>(vectors, body);
    }
    body(std::integral_constant<int, G>{});
  }
};

// As multiply, for groups of columns; hands on (first_row, rows, first_column, columns, sums, row_stride).
template <class Product, class Body>
inline void multiply_columns(const typename Product::Word* a, int64_t lda, int64_t low, int64_t high,
                             const typename Product::Word* w, int64_t words, Columns<Product> columns,
                             int64_t first_group, int64_t last_group, const Body& body,
                             int64_t words_at_once = kWordsAtOnce, bool descending = false) {
  using Sum = typename Product::Sum;
  constexpr int64_t of_group = Columns<Product>::of_group;
  const auto run = [&](auto vectors, int64_t first, int64_t last) {
    multiply<Product, decltype(vectors)::value>(
        a, lda, low, high, w + (first - first_group) * packed_words<Product>(words) * of_group, words, first, last,
        [&](int64_t row, int rows, int64_t group, int groups, const Sum* sums, int64_t stride) {
          const int64_t begin = group * of_group;
          body(row, rows, begin, std::min(groups * of_group, columns.count - begin), sums, stride);
        },
        words_at_once, descending);
  };
  const int64_t whole = std::min(last_group, columns.vectors() / kColumnVectors);
  if (first_group < whole) run(std::integral_constant<int, kColumnVectors>{}, first_group, whole);
  if (whole < last_group) columns.with_vectors_of(whole, [&](auto vectors) { run(vectors, whole, last_group); });
}

// C (+)= A^T W for one group of G vectors: A is [words][columns] words, lda apart, and C [columns] rows, ldo apart.
// There is no end to the words, which are rows: summed in blocks of words_at_once, and these in runs.
template <class Product, int G>
inline void multiply_across(const typename Product::Word* a, int64_t lda, int64_t columns,
                            const typename Product::Word* w, int64_t words, typename Product::Sum* out, int64_t ldo,
                            bool add, int64_t words_at_once) {
  using Sum = typename Product::Sum;
  constexpr int kWidth = Vec<Sum>::width, max_rows = Tiles<Product, G>::max_rows;
  constexpr int64_t kBlocksOfRun = 64, kOfRow = G * kWidth;
  const int64_t tiles = (columns + max_rows - 1) / max_rows, of_run = kBlocksOfRun * words_at_once;
  alignas(64) Sum sums[max_rows * kOfRow];
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = columns * i / tiles, last = columns * (i + 1) / tiles;
    const TileFunction<Product> run = Tiles<Product, G>::across(static_cast<int>(last - first));
    const auto blocks = [&](int64_t low, int64_t high, Sum* to, int64_t stride, bool after) {
      for (int64_t k = low; k < high; k += words_at_once)
        run(a + k * lda + first, lda, w + k * kOfRow, 0, std::min(words_at_once, high - k), to, stride,
            after || k > low);
    };
    Sum* const to = out + first * ldo;
    blocks(0, std::min(of_run, words), to, ldo, add);
    for (int64_t low = of_run; low < words; low += of_run) {
      blocks(low, std::min(low + of_run, words), sums, kOfRow, false);
      for (int64_t r = 0; r < last - first; ++r)
        for (int64_t j = 0; j < kOfRow; j += kWidth)
          (Vec<Sum>::load(to + r * ldo + j) + Vec<Sum>::load(sums + r * kOfRow + j)).store(to + r * ldo + j);
    }
  }
}
