// Products of bfloat16, float16 and bytes on AMX tiles, in place of product_tile. A tile holds up to 16 rows of 64
// bytes, and the operands fit as they lie: rows of words of A are a tile, and so are 16 words of one vector of the
// packed weights.
//
// One instruction adds to each sum its own 16 words (fewer at the end), even and odd elements apart, each in order, and
// then their sum: the bits of a (row, unit) depend on the words alone, not on the rows around it or the tile it falls
// into. Like vdpbf16ps it takes subnormal bfloat16 for zero, flushes subnormal results and rounds to nearest whatever
// the processor is set to; only the order of the additions differs. Its sums of 16 words take the place of
// words_at_once; there may be no end to them, so they are summed in runs. Included inside the namespace of a target, by
// product.h.
#pragma once

constexpr int64_t kTileRows = 16, kTileWords = 16;
constexpr int64_t kWordsOfRun = 64 * kTileWords;  // whole numbers need none

// What LDTILECFG reads.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t tile_rows, int64_t words) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(words * 4);
  }
};
static_assert(sizeof(TileShapes) == 64);

// Tiles 0 to 3 hold sums, 4 and 5 the operands A and B, 6 and 7 those of the last `tail` words of a sum, so that
// nothing beyond an operand is read. Every shape stays within one call of multiply_tiles.
inline void configure_tiles(int64_t rows, int64_t tail) {
  TileShapes shapes;
  for (int tile = 0; tile < 4; ++tile) shapes.set(tile, rows, kTileWords);
  shapes.set(4, rows, kTileWords);
  shapes.set(5, kTileWords, kTileWords);
  if (tail > 0) {
    shapes.set(6, rows, tail);
    shapes.set(7, tail, kTileWords);
  }
  // Before 12.4, 13.3 and 14 GCC believes that LDTILECFG reads 8 bytes and drops what is written to the other 56 (GCC
  // bug 114098), unless it is volatile.
  constexpr int kParts = sizeof shapes / sizeof(uint64_t);
  uint64_t parts[kParts];
  std::memcpy(parts, &shapes, sizeof shapes);
  alignas(64) volatile uint64_t block[kParts];
  for (int i = 0; i < kParts; ++i) block[i] = parts[i];
  _tile_loadconfig(const_cast<const uint64_t*>(block));
}

// The intrinsics want tile numbers that are literals.
template <int Tile>
inline __attribute__((always_inline)) void load_tile(const float* from, int64_t stride) {
  static_assert(Tile >= 4 && Tile < 8);
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  if constexpr (Tile == 4) _tile_loadd(4, from, bytes);
  if constexpr (Tile == 5) _tile_loadd(5, from, bytes);
  if constexpr (Tile == 6) _tile_loadd(6, from, bytes);
  if constexpr (Tile == 7) _tile_loadd(7, from, bytes);
}

#ifdef GRU_FLOAT16_TILES
#define GRU_FLOAT16_PRODUCT(...) _tile_dpfp16ps(__VA_ARGS__)
#else
#define GRU_FLOAT16_PRODUCT(...)
#endif
#define GRU_DOT_PRODUCT(...)                               \
  {                                                        \
    if constexpr (std::is_same_v<Product, ProductBytes>) { \
      _tile_dpbusd(__VA_ARGS__);                           \
    } else if constexpr (kIsFloat16<Product>) {            \
      GRU_FLOAT16_PRODUCT(__VA_ARGS__);                    \
    } else {                                               \
      _tile_dpbf16ps(__VA_ARGS__);                         \
    }                                                      \
  }
template <class Product>
constexpr bool kIsFloat16 = std::is_same_v<typename Product::Element, Float16>;
template <class Product, int Sums, bool Tail>
inline __attribute__((always_inline)) void add_product() {
  static_assert(Sums >= 0 && Sums < 4);
  if constexpr (Tail) {
    if constexpr (Sums == 0) GRU_DOT_PRODUCT(0, 6, 7);
    if constexpr (Sums == 1) GRU_DOT_PRODUCT(1, 6, 7);
    if constexpr (Sums == 2) GRU_DOT_PRODUCT(2, 6, 7);
    if constexpr (Sums == 3) GRU_DOT_PRODUCT(3, 6, 7);
  } else {
    if constexpr (Sums == 0) GRU_DOT_PRODUCT(0, 4, 5);
    if constexpr (Sums == 1) GRU_DOT_PRODUCT(1, 4, 5);
    if constexpr (Sums == 2) GRU_DOT_PRODUCT(2, 4, 5);
    if constexpr (Sums == 3) GRU_DOT_PRODUCT(3, 4, 5);
  }
}
#undef GRU_DOT_PRODUCT
#undef GRU_FLOAT16_PRODUCT

// One or two tiles of rows with up to four or two vectors, at most four tiles of sums: enough in flight to hide the
// latency of the instruction, and B is read once for two tiles of rows.
template <class Product, int RowTiles, int Vectors>
struct TileProduct {
  static_assert(RowTiles * Vectors <= 4);

  const float* a;                 // the first tile of rows
  int64_t lda, second_row, rows;  // second_row: where the other tile of rows begins; rows: of both together
  const float* w[Vectors];
  int64_t ldw, words;  // ldw: from one word of a vector to the next

  // out: ldo values from row to row, 16 from vector to vector.
  inline __attribute__((always_inline)) void run(float* out, int64_t ldo) const {
    constexpr int64_t kRow = Vectors * 16;
    alignas(64) float part[RowTiles * kTileRows * kRow];
    constexpr int64_t kRun = std::is_same_v<Product, ProductBytes> ? kWordsOfSum<Product> : kWordsOfRun;
    int64_t k = 0;
    do {
      sum(k, std::min(words, k + kRun), k > 0 ? part : out, k > 0 ? kRow : ldo);
      for (int64_t r = 0; r < rows && k > 0; ++r)
        for (int64_t i = 0; i < kRow; i += 16)
          (Vec<float>::load(out + r * ldo + i) + Vec<float>::load(part + r * kRow + i)).store(out + r * ldo + i);
      k += kRun;
    } while (k < words);
  }

 private:
  inline __attribute__((always_inline)) void sum(int64_t k, int64_t end, float* out, int64_t ldo) const {
    // GCC's tile loads do not tell the compiler that they read memory.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (; k + kTileWords <= end; k += kTileWords) step<false>(k);
    if (k < end) step<true>(k);
    const int64_t bytes = ldo * static_cast<int64_t>(sizeof(float));
    _tile_stored(0, out, bytes);
    if constexpr (RowTiles == 1) {
      if constexpr (Vectors > 1) _tile_stored(1, out + 16, bytes);
      if constexpr (Vectors > 2) _tile_stored(2, out + 32, bytes);
      if constexpr (Vectors > 3) _tile_stored(3, out + 48, bytes);
    } else {
      if constexpr (Vectors > 1) _tile_stored(1, out + 16, bytes);
      _tile_stored(2, out + second_row * ldo, bytes);
      if constexpr (Vectors > 1) _tile_stored(3, out + second_row * ldo + 16, bytes);
    }
  }

  template <bool Tail>
  inline __attribute__((always_inline)) void step(int64_t k) const {
    constexpr int kA = Tail ? 6 : 4, kB = Tail ? 7 : 5;
    const int64_t at = k * ldw;
    load_tile<kA>(a + k, lda);
    load_tile<kB>(w[0] + at, ldw);
    add_product<Product, 0, Tail>();
    if constexpr (RowTiles == 1) {
      if constexpr (Vectors > 1) {
        load_tile<kB>(w[1] + at, ldw);
        add_product<Product, 1, Tail>();
      }
      if constexpr (Vectors > 2) {
        load_tile<kB>(w[2] + at, ldw);
        add_product<Product, 2, Tail>();
      }
      if constexpr (Vectors > 3) {
        load_tile<kB>(w[3] + at, ldw);
        add_product<Product, 3, Tail>();
      }
    } else if constexpr (Vectors == 1) {
      load_tile<kA>(a + second_row * lda + k, lda);
      add_product<Product, 2, Tail>();
    } else {
      load_tile<kB>(w[1] + at, ldw);
      add_product<Product, 1, Tail>();
      load_tile<kA>(a + second_row * lda + k, lda);
      add_product<Product, 3, Tail>();
      load_tile<kB>(w[0] + at, ldw);
      add_product<Product, 2, Tail>();
    }
  }
};

// As multiply, which see. All tiles of rows are of one height, so that one configuration serves; the last may begin
// within the one before, whose rows it computes again to the same bits.
template <class Product, int G, class Body>
inline void multiply_tiles(const float* a, int64_t lda, int64_t low, int64_t high, const float* w, int64_t words,
                           int64_t first_group, int64_t last_group, const Body& body, bool descending = false) {
  constexpr int64_t kWidth = 16;
  constexpr int64_t kGroups = G % 2 == 0 ? 1 : 2;  // at once: an even number of vectors, for pairs
  const int64_t total = high - low, group_stride = words * G * kWidth, ldw = G * kWidth;
  if (total <= 0 || first_group >= last_group) return;
  const int64_t tiles = (total + kTileRows - 1) / kTileRows, rows = (total + tiles - 1) / tiles;
  alignas(64) float sums[2 * kTileRows * kGroups * G * kWidth];
  configure_tiles(rows, words % kTileWords);
  const int64_t turns = (last_group - first_group + kGroups - 1) / kGroups;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t group = first_group + (descending ? turns - 1 - turn : turn) * kGroups;
    const int64_t groups = std::min(kGroups, last_group - group), ldo = groups * G * kWidth;
    const float* const weights = w + (group - first_group) * group_stride;
    const auto vector = [&](int64_t i) { return weights + i / G * group_stride + i % G * kWidth; };
    for (int64_t tile = 0, done = 0; tile < tiles; tile += 2) {
      const int64_t begin = std::min(tile * rows, total - rows);
      const float* const from = a + (low + begin) * lda;
      int64_t end = begin + rows;
      if (tile + 1 < tiles) {
        const int64_t second = std::min((tile + 1) * rows, total - rows) - begin, both = second + rows;
        using Pair = TileProduct<Product, 2, 2>;
        using Single = TileProduct<Product, 2, 1>;
        int64_t i = 0;
        for (; i + 2 <= groups * G; i += 2)
          Pair{from, lda, second, both, {vector(i), vector(i + 1)}, ldw, words}.run(sums + i * kWidth, ldo);
        if (i < groups * G) Single{from, lda, second, both, {vector(i)}, ldw, words}.run(sums + i * kWidth, ldo);
        end = begin + both;
      } else {
        for (int64_t i = 0; i < groups * G; i += G) {
          TileProduct<Product, 1, G> product{from, lda, 0, rows, {}, ldw, words};
          for (int g = 0; g < G; ++g) product.w[g] = vector(i + g);
          product.run(sums + i * kWidth, ldo);
        }
      }
      const int64_t first = std::max(begin, done);
      body(low + first, static_cast<int>(end - first), group, static_cast<int>(groups), sums + (first - begin) * ldo,
           ldo);
      done = end;
    }
  }
  _tile_release();  // a thread without tile data is cheaper to switch
}

// As multiply_adds (probe.h): of a round, an instruction for each tile of sums, one after the other.
template <class Product>
inline double tile_multiply_adds(int64_t rounds) {
  constexpr int64_t kWords = kTileRows * kTileWords;
  // Words of two numbers, of opposite signs in A: the sums stay zero while the products do not.
  alignas(64) uint32_t a[kWords], b[kWords];
  std::fill_n(a, kWords, 0xbe803e80u);
  std::fill_n(b, kWords, 0x3e803e80u);
  configure_tiles(kTileRows, 0);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  load_tile<4>(reinterpret_cast<const float*>(a), kTileWords);
  load_tile<5>(reinterpret_cast<const float*>(b), kTileWords);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t round = 0; round < rounds; ++round) {
    add_product<Product, 0, false>();
    add_product<Product, 1, false>();
    add_product<Product, 2, false>();
    add_product<Product, 3, false>();
  }
  _tile_release();
  return 2.0 * 4 * kDepth<Product> * kTileWords * kWords * static_cast<double>(rounds);
}
