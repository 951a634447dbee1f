// 16-bit storage types and their scalar conversions (round to nearest even), for targets and tails without vector ones.
#pragma once

#include <cstdint>
#include <cstring>

namespace gru::cpu {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(BFloat16 value) { return float_from_bits(static_cast<uint32_t>(value.bits) << 16); }

inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = bits_from_float(value);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};  // a NaN must not round to infinity
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t rest = value.bits & 0x7fff;
  if (rest >= 0x7c00) return float_from_bits(sign | 0x7f800000 | ((rest & 0x3ff) << 13));  // infinity, NaN
  if (rest < 0x400) {  // zero and subnormals: rest * 2^-24 is exact in float
    const float magnitude = static_cast<float>(rest) * 5.9604644775390625e-8f;
    return float_from_bits(sign | bits_from_float(magnitude));
  }
  return float_from_bits(sign | ((rest + (112 << 10)) << 13));
}

inline Float16 to_float16(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (rest >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and above round to infinity
  if (rest < 0x38800000) {  // below 2^-14: let float addition round to a multiple of 2^-24
    const float rounded = float_from_bits(rest) + 0.5f;
    return {static_cast<uint16_t>(sign | (bits_from_float(rounded) - 0x3f000000))};
  }
  return {static_cast<uint16_t>(sign | ((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13))};
}

}  // namespace gru::cpu
