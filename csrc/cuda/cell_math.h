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

// Of 16-bit types the cell's functions to some 1e-7, well below what rounding takes; else the accurate ones.
struct ApproximateMath {
  __device__ static float sigmoid(float value) { return divide_approximate(1.0f, 1.0f + exp_approximate(-value)); }
  __device__ static float tanh(float value) {
    return 1.0f - divide_approximate(2.0f, 1.0f + exp_approximate(2.0f * value));
  }
};
template <class Element>
using CellMath = std::conditional_t<sizeof(Element) == 2, ApproximateMath, Math>;

}  // namespace gru::cuda
