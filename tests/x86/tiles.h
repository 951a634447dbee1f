// A software model of the AMX tile instructions that csrc/cpu/amx.h uses: the intrinsics become these functions. As the
// processor does, it works in the order of Intel's manual, with subnormals taken (but for float16) and given as zero;
// where the processor would fault it aborts with a message. A tile's memory is read and written byte for byte as the
// instruction does it, so a page that may not be touched stops it.
#pragma once

#include <atomic>

#include "vectors.h"

namespace x86_model {

inline std::atomic<int64_t> products{0};  // instructions run, for the tests to see that they were

struct Tile {
  int rows = 0, row_bytes = 0;
  int sums = 0;              // instructions since it was zeroed
  bool after_a_run = false;  // when it was stored last, that was a whole run of sums
  uint8_t data[16][64] = {};
};
struct State {
  bool configured = false;
  Tile tiles[8];
};
inline thread_local State state;

inline Tile& tile(const char* instruction, int number) {
  if (!state.configured) misuse(instruction, "no configuration is loaded");
  if (number < 0 || number >= 8) misuse(instruction, "there is no such tile");
  if (state.tiles[number].rows == 0) misuse(instruction, "the tile is not configured");
  return state.tiles[number];
}

inline void load_config(const void* from) {
  uint8_t bytes[64];
  std::memcpy(bytes, from, sizeof bytes);
  if (bytes[0] != 1 || bytes[1] != 0) misuse("ldtilecfg", "palette must be 1 and start_row 0");
  for (int i = 2; i < 64; ++i)
    if ((i < 16 || (i >= 32 && i < 48) || i >= 56) && bytes[i] != 0) misuse("ldtilecfg", "a reserved byte is not zero");
  state = State();  // the instruction clears every tile
  state.configured = true;
  for (int i = 0; i < 8; ++i) {
    Tile& tile = state.tiles[i];
    tile.row_bytes = bytes[16 + 2 * i] + 256 * bytes[17 + 2 * i];
    tile.rows = bytes[48 + i];
    if (tile.rows > 16 || tile.row_bytes > 64) misuse("ldtilecfg", "a tile is larger than 16 rows of 64 bytes");
    if ((tile.rows == 0) != (tile.row_bytes == 0)) misuse("ldtilecfg", "a tile has rows or bytes but not both");
  }
}

inline void load(int number, const void* from, int64_t stride) {
  Tile& to = tile("tileloadd", number);
  const uint8_t* const bytes = static_cast<const uint8_t*>(from);
  std::memset(to.data, 0, sizeof to.data);
  for (int r = 0; r < to.rows; ++r) {
    std::memcpy(to.data[r], bytes + r * stride, to.row_bytes);
    if (fault == kReadPastRow && to.row_bytes < 64) std::memcpy(to.data[r], bytes + r * stride, 64);
  }
}

inline void store(int number, void* to, int64_t stride) {
  Tile& from = tile("tilestored", number);
  constexpr int kRun = 64;
  if (fault == kDropLastRun && from.after_a_run) std::memset(from.data, 0, sizeof from.data);
  from.after_a_run = from.sums == kRun;
  for (int r = 0; r < from.rows; ++r) std::memcpy(static_cast<uint8_t*>(to) + r * stride, from.data[r], from.row_bytes);
}

inline void zero(int number) {
  Tile& to = tile("tilezero", number);
  to.sums = 0;
  std::memset(to.data, 0, sizeof to.data);
}

inline void release() {
  if (fault != kNoRelease) state = State();
}

// Element `half` of each word of 64 bytes, as floats.
template <class S>
inline __m512 widened(const uint8_t* row, int half) {
  return lanes<__m512>([&](int i) {
    S element;
    std::memcpy(&element, row + 4 * i + 2 * half, sizeof element);
    return gru::cpu::to_float(element);
  });
}

// The tiles of an instruction, their rows and words as its planted faults leave them.
struct Operands {
  Tile& c;
  const Tile &a, &b;
  int words, rows;

  Operands(const char* name, int sums, int left, int right)
      : c(tile(name, sums)), a(tile(name, left)), b(tile(name, right)) {
    if (sums == left || sums == right || left == right) misuse(name, "the three tiles must differ");
    if (c.rows != a.rows || c.row_bytes != b.row_bytes || a.row_bytes != 4 * b.rows || c.row_bytes % 4 != 0)
      misuse(name, "the shapes of the tiles do not fit");
    ++products;
    ++c.sums;
    words = a.row_bytes / 4 - (fault == kDropLastWord && a.row_bytes < 64);
    rows = c.rows - (fault == kDropLastRow && c.rows > 1);
  }
  const uint8_t* row(int m) const { return a.data[fault == kMixRows && m == 7 ? 6 : m]; }
};

// tdpbf16ps, tdpfp16ps: the latter takes subnormals of float16, which are normal numbers as float32.
template <class S>
inline void dot_product(int sums, int left, int right) {
  const Operands of(std::is_same_v<S, gru::cpu::Float16> ? "tdpfp16ps" : "tdpbf16ps", sums, left, right);
  __m512 weights[2][16];
  for (int k = 0; k < of.words; ++k)
    for (int half = 0; half < 2; ++half) weights[half][k] = flushed(widened<S>(of.b.data[k], half));
  for (int m = 0; m < of.rows; ++m) {
    __m512 part[2] = {};
    for (int half = 0; half < 2; ++half) {
      const __m512 factors = flushed(widened<S>(of.row(m), fault == kSwapHalves ? 1 - half : half));
      for (int k = 0; k < of.words; ++k)
        part[half] = flushed(fused(__m512{} + factors[k], weights[half][k], part[half]));
    }
    __m512 sum;
    std::memcpy(&sum, of.c.data[m], sizeof sum);
    sum = flushed(flushed(sum) + flushed(part[0] + part[1]));
    std::memcpy(of.c.data[m], &sum, static_cast<size_t>(of.c.row_bytes));
  }
}

// tdpbusd.
inline void byte_product(int sums, int left, int right) {
  const Operands of("tdpbusd", sums, left, right);
  for (int m = 0; m < of.rows; ++m) {
    Words sum;
    std::memcpy(&sum, of.c.data[m], sizeof sum);
    for (int k = 0; k < of.words; ++k) {
      uint32_t word;
      std::memcpy(&word, of.row(m) + 4 * k, sizeof word);
      if (fault == kSwapHalves) word = word << 16 | word >> 16;
      sum = byte_dot(sum, Words{} + word, as<Words>(of.b.data[k]));
    }
    std::memcpy(of.c.data[m], &sum, static_cast<size_t>(of.c.row_bytes));
  }
}

}  // namespace x86_model

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#undef _tile_dpfp16ps
#define _tile_loadconfig x86_model::load_config
#define _tile_release x86_model::release
#define _tile_loadd x86_model::load
#define _tile_stored x86_model::store
#define _tile_zero x86_model::zero
#define _tile_dpbf16ps x86_model::dot_product<gru::cpu::BFloat16>
#define _tile_dpbusd x86_model::byte_product
#define _tile_dpfp16ps x86_model::dot_product<gru::cpu::Float16>
