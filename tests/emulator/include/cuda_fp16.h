// Stands in for CUDA's half-precision type: the compiler's own.
#pragma once

struct __half {
  __half() = default;
  explicit __half(float value) : value(static_cast<_Float16>(value)) {}
  operator float() const { return static_cast<float>(value); }
  _Float16 value;
};
inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return __half(value); }
