// A software model of the AMX tile instructions that csrc/cpu/amx.h uses, to be included after csrc/cpu/target.h and
// before it: the intrinsics become these functions. As the processor does, it works in the order of Intel's manual,
// with subnormals taken and given as zero; where the processor would fault it aborts with a message. A tile's memory is
// read and written byte for byte as the instruction does it, so a page that may not be touched stops it.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_model {

// Faults to plant, one a run: the tests must notice each.
enum Fault { kNone, kDropLastWord, kDropLastRow, kReadPastRow, kMixRows, kNoRelease };
inline Fault fault = kNone;
inline std::atomic<int64_t> products{0};  // instructions run, for the tests to see that they were

struct Tile {
  int rows = 0, row_bytes = 0;
  uint8_t data[16][64] = {};
};
struct State {
  bool configured = false;
  Tile tiles[8];
};
inline thread_local State state;

[[noreturn]] inline void misuse(const char* instruction, const char* what) {
  std::fprintf(stderr, "amx_model: %s: %s\n", instruction, what);
  std::abort();
}

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
  const Tile& from = tile("tilestored", number);
  for (int r = 0; r < from.rows; ++r) std::memcpy(static_cast<uint8_t*>(to) + r * stride, from.data[r], from.row_bytes);
}

inline void zero(int number) {
  Tile& to = tile("tilezero", number);
  std::memset(to.data, 0, sizeof to.data);
}

inline void release() {
  if (fault != kNoRelease) state = State();
}

inline float flush(float value) { return std::fabs(value) < FLT_MIN ? std::copysign(0.0f, value) : value; }

inline float widen(const uint8_t* bfloat16) {
  const uint32_t bits = (uint32_t{bfloat16[1]} << 24) + (uint32_t{bfloat16[0]} << 16);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return flush(value);
}

__attribute__((target("fma"))) inline void dot_product(int sums, int left, int right) {
  Tile& c = tile("tdpbf16ps", sums);
  const Tile &a = tile("tdpbf16ps", left), &b = tile("tdpbf16ps", right);
  if (sums == left || sums == right || left == right) misuse("tdpbf16ps", "the three tiles must differ");
  if (c.rows != a.rows || c.row_bytes != b.row_bytes || a.row_bytes != 4 * b.rows || c.row_bytes % 4 != 0)
    misuse("tdpbf16ps", "the shapes of the tiles do not fit");
  ++products;
  const int words = a.row_bytes / 4 - (fault == kDropLastWord && a.row_bytes < 64);
  const int columns = c.row_bytes / 4, rows = c.rows - (fault == kDropLastRow && c.rows > 1);
  float weights[2][16][16];
  for (int k = 0; k < words; ++k)
    for (int n = 0; n < columns; ++n)
      for (int half = 0; half < 2; ++half) weights[half][k][n] = widen(b.data[k] + 4 * n + 2 * half);
  for (int m = 0; m < rows; ++m) {
    const uint8_t* const row = a.data[fault == kMixRows && m == 7 ? 6 : m];
    float part[2][16] = {};
    for (int k = 0; k < words; ++k)
      for (int half = 0; half < 2; ++half) {
        const float factor = widen(row + 4 * k + 2 * half);
        for (int n = 0; n < columns; ++n)
          part[half][n] = flush(__builtin_fmaf(factor, weights[half][k][n], part[half][n]));
      }
    for (int n = 0; n < columns; ++n) {
      float sum;
      std::memcpy(&sum, c.data[m] + 4 * n, sizeof sum);
      sum = flush(flush(sum) + flush(part[0][n] + part[1][n]));
      std::memcpy(c.data[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

}  // namespace amx_model

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_model::load_config
#define _tile_release amx_model::release
#define _tile_loadd amx_model::load
#define _tile_stored amx_model::store
#define _tile_zero amx_model::zero
#define _tile_dpbf16ps amx_model::dot_product
