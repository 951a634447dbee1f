// What a warp does together: exchange, and the products of its tensor cores, whose fragments are laid out as
// csrc/cuda/primitives.h shows them. Each function gets what every lane brought, and gives each its result.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "checks.h"

namespace gru::cuda::emulated {

// ---------------------------------------------------------------------------------------------------------------------
// Exchange of lanes
// ---------------------------------------------------------------------------------------------------------------------

struct Exchange {
  const void* value;
  void* result;
  unsigned source;
  size_t bytes;
};

inline void exchange_lanes(void* const (&arguments)[emulator::kWarp], unsigned mask) {
  for (unsigned lane = 0; lane < emulator::kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const auto* const mine = static_cast<const Exchange*>(arguments[lane]);
    // A value read from a lane outside the mask is undefined.
    if ((mask >> mine->source & 1) == 0) {
      std::memset(mine->result, emulator::kPoison, mine->bytes);
    } else {
      std::memcpy(mine->result, static_cast<const Exchange*>(arguments[mine->source])->value, mine->bytes);
    }
  }
}

template <class Value>
Value exchange(const char* operation, Value value, unsigned source, unsigned mask, emulator::Site site) {
  static_assert(std::is_trivially_copyable_v<Value> && (sizeof(Value) == 4 || sizeof(Value) == 8));
  Value result;
  Exchange exchange{&value, &result, source, sizeof(Value)};
  emulator::meet_lanes(operation, mask, &exchange, exchange_lanes, site);
  return result;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensor cores
// ---------------------------------------------------------------------------------------------------------------------

template <class Element>
float element(uint32_t word, int half) {
  const auto bits = static_cast<uint16_t>(word >> 16 * half);
  Element value;
  std::memcpy(&value, &bits, sizeof bits);
  return static_cast<float>(value);
}

inline float tf32(uint32_t word) {
  word &= 0xffffe000u;  // the processor reads 10 bits of the fraction
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

struct MultiplyAdd {
  float* d;
  const uint32_t *a, *b;
};

template <class Element>
void multiply_add_lanes(void* const (&arguments)[emulator::kWarp], unsigned /*mask*/) {
  constexpr int kDepth = std::is_same_v<Element, float> ? 8 : 16;
  float a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* const of = static_cast<const MultiplyAdd*>(arguments[lane]);
    const int g = lane / 4, t = lane % 4;
    if constexpr (std::is_same_v<Element, float>) {
      a[g][t] = tf32(of->a[0]);
      a[g + 8][t] = tf32(of->a[1]);
      a[g][t + 4] = tf32(of->a[2]);
      a[g + 8][t + 4] = tf32(of->a[3]);
      b[t][g] = tf32(of->b[0]);
      b[t + 4][g] = tf32(of->b[1]);
    } else {
      for (int i = 0; i < 2; ++i) {
        a[g][2 * t + i] = element<Element>(of->a[0], i);
        a[g + 8][2 * t + i] = element<Element>(of->a[1], i);
        a[g][2 * t + 8 + i] = element<Element>(of->a[2], i);
        a[g + 8][2 * t + 8 + i] = element<Element>(of->a[3], i);
        b[2 * t + i][g] = element<Element>(of->b[0], i);
        b[2 * t + 8 + i][g] = element<Element>(of->b[1], i);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* const d = static_cast<const MultiplyAdd*>(arguments[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
      d[i] += sum;
    }
  }
}

struct LoadMatrices {
  const void* row;
  uint32_t* words;
  bool transposed;
};

inline void load_matrices_lanes(void* const (&arguments)[emulator::kWarp], unsigned /*mask*/) {
  for (int lane = 0; lane < 32; ++lane) {
    const auto* const of = static_cast<const LoadMatrices*>(arguments[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t halves[2];
      for (int i = 0; i < 2; ++i) {
        const int row = of->transposed ? lane % 4 * 2 + i : lane / 4;
        const int column = of->transposed ? lane / 4 : lane % 4 * 2 + i;
        const void* const from = static_cast<const LoadMatrices*>(arguments[8 * matrix + row])->row;
        std::memcpy(&halves[i], static_cast<const unsigned char*>(from) + 2 * column, 2);
      }
      of->words[matrix] = halves[0] | static_cast<uint32_t>(halves[1]) << 16;
    }
  }
}

inline void load_matrices(const void* row, uint32_t (&words)[4], bool transposed, emulator::Site site) {
  check_shared(row, 16, "ldmatrix", site);
  check_aligned(row, 16, "ldmatrix", site);
  LoadMatrices load{row, words, transposed};
  emulator::meet_lanes("ldmatrix", ~0u, &load, load_matrices_lanes, site);
}

}  // namespace gru::cuda::emulated
