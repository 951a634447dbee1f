// The functions that ../cell.h asks for.
#pragma once

#include <cmath>
#include <type_traits>

#include "primitives.h"

namespace gru::cuda {

// The accurate functions, which pass NaN and inf through: exp overflows to inf and 1 / inf is 0.
struct Math {
  __device__ static float sigmoid(float value) { return 1.0f / (1.0f + expf(-value)); }
  __device__ static double sigmoid(double value) { return 1.0 / (1.0 + exp(-value)); }
  __device__ static float tanh(float value) { return tanhf(value); }
  __device__ static double tanh(double value) { return ::tanh(value); }
};

// To some 1e-7, well below what rounding to 16 bits takes. inf and 0 come out right, and NaN passes through.
struct ApproximateMath {
  static constexpr float kLog2E = 1.4426950408889634f;
  __device__ static float sigmoid(float value) {
    return reciprocal_approximate(1.0f + exp2_approximate(-kLog2E * value));
  }
  __device__ static float tanh(float value) {
    return 1.0f - 2.0f * reciprocal_approximate(1.0f + exp2_approximate(2.0f * kLog2E * value));
  }
};

// For bfloat16 the candidate to 2^-11 of its value, a quarter of what rounding takes, by one special function instead
// of two. Not the gates: as an error of a sigmoid 2^-12 would be small beside its rounding, but not beside 1 - z of a
// state that is to last.
struct BFloat16Math : ApproximateMath {
  __device__ static float tanh(float value) { return tanh_approximate(value); }
};

template <class Element>
using CellMath = std::conditional_t<std::is_same_v<Element, __nv_bfloat16>, BFloat16Math,
                                    std::conditional_t<sizeof(Element) == 2, ApproximateMath, Math>>;

}  // namespace gru::cuda
