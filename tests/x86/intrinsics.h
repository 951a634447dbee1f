// What the two halves of intrinsics.cpp share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <random>
#include <vector>

namespace x86_check {

union Block {
  alignas(64) uint32_t words[16];
  float floats[16];
  double doubles[8];
};

// How results are compared, and what is drawn for them.
enum class Kind { Bits, Floats, Doubles, Exponents, DoubleExponents, Estimate, Sums };

struct Call {
  const char* name;
  Kind kind;
  void (*run)(const Block* in, Block& out);
};

}  // namespace x86_check
