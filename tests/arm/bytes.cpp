// The products of bytes of simd_neon.h against the same in plain C++. Compiled with and without the instruction for
// them (GRU_BYTE_DOT).
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "cpu/target.h"

namespace gru::cpu::byte_check {
#include "cpu/simd_neon.h"

namespace {

constexpr int kWidth = Vec<float>::width;

template <class To, class From>
To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(static_cast<void*>(&to), &from, sizeof to);
  return to;
}
struct Words {
  int32_t lanes[kWidth];
};
struct Bytes {
  int8_t of_lane[kWidth][4];
};
struct Floats {
  float lanes[kWidth];
};

int wrong(const char* what) {
  std::fprintf(stderr, "products of bytes: %s\n", what);
  return 1;
}

int check_products(std::mt19937& generator) {
  std::uniform_int_distribution<int> byte(-127, 127), whole(-1000000, 1000000);
  for (int round = 0; round < 500; ++round) {
    Bytes a, w;
    Words sums;
    for (int i = 0; i < kWidth; ++i) {
      sums.lanes[i] = whole(generator);
      for (int j = 0; j < 4; ++j) {
        a.of_lane[i][j] = static_cast<int8_t>(round == 0 ? 127 : round == 1 ? -127 : byte(generator));
        w.of_lane[i][j] = static_cast<int8_t>(round < 2 ? 127 : byte(generator));
      }
    }
    const Vec<float> added = add_bytes(bits_of<Vec<float>>(a), bits_of<Vec<float>>(w), bits_of<Vec<float>>(sums));
    for (int i = 0; i < kWidth; ++i)
      for (int j = 0; j < 4; ++j) sums.lanes[i] += a.of_lane[i][j] * w.of_lane[i][j];
    const Words got = bits_of<Words>(added);
    const Floats floats = bits_of<Floats>(from_integers(added, Vec<float>::set(0)));
    for (int i = 0; i < kWidth; ++i) {
      if (got.lanes[i] != sums.lanes[i]) return wrong("a sum");
      if (floats.lanes[i] != static_cast<float>(sums.lanes[i])) return wrong("a sum as a float");
    }
  }
  return 0;
}

int check_bytes_stored() {
  const Floats values{{-2.5f, 3.5f, 126.6f, -127.0f}};
  const int8_t expected[kWidth] = {-2, 4, 127, -127};
  for (int n = 0; n <= kWidth; ++n) {
    int8_t stored[kWidth] = {55, 55, 55, 55};
    store_bytes(stored, bits_of<Vec<float>>(values), n);
    for (int i = 0; i < kWidth; ++i)
      if (stored[i] != (i < n ? expected[i] : 55)) return wrong("a byte stored");
  }
  return 0;
}

int check_magnitudes() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Vec<float> before = larger_magnitude(bits_of<Vec<float>>(Floats{{-3, nan, -0.0f, 2}}), Vec<float>::set(0));
  const Floats both = bits_of<Floats>(larger_magnitude(bits_of<Vec<float>>(Floats{{2, INFINITY, -1, -nan}}), before));
  return both.lanes[0] == 3 && std::isnan(both.lanes[1]) && both.lanes[2] == 1 && std::isnan(both.lanes[3])
             ? 0
             : wrong("a magnitude");
}

}  // namespace
}  // namespace gru::cpu::byte_check

#ifdef GRU_BYTE_DOT
int check_byte_dots() {
#else
int check_plain_bytes() {
#endif
  std::mt19937 generator(20250301);
  using namespace gru::cpu::byte_check;
  return check_products(generator) + check_bytes_stored() + check_magnitudes();
}
