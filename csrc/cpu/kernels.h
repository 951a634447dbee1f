// Everything a target is made of, in order; included by each target_*.cpp after GRU_TARGET_BEGIN, so that the compiler
// may use that target's instructions here and nowhere else. No standard header may be included from here on: their
// templates would be compiled for this target too and could replace the others' at link time.
// clang-format off
#include GRU_TARGET_SIMD
#include "math.h"
#include "product.h"
#include "probe.h"
#include "pack.h"
#include "dot.h"
#include "gates.h"
#include "forward.h"
#include "regenerate.h"
#include "gradients.h"
#include "backward.h"
// clang-format on

#ifdef GRU_BFLOAT16_DOT
using ProductForBFloat16 = ProductBFloat16;
#else
using ProductForBFloat16 = ProductFloat;
#endif

inline void forward(const ForwardParams& params, const Plan& plan) {
  switch (params.dtype) {
    case DataType::Float32:
      return ForwardPass<float, ProductFloat>(params, plan).run();
    case DataType::Float64:
      return ForwardPass<double, ProductDouble>(params, plan).run();
    case DataType::BFloat16:
      return ForwardPass<BFloat16, ProductForBFloat16>(params, plan).run();
    case DataType::Float16:
      return ForwardPass<Float16, ProductFloat>(params, plan).run();
  }
}

inline void backward(const BackwardParams& params, const Plan& plan) {
  switch (params.dtype) {
    case DataType::Float32:
      return BackwardPass<float, ProductFloat>(params, plan).run();
    case DataType::Float64:
      return BackwardPass<double, ProductDouble>(params, plan).run();
    case DataType::BFloat16:
      return BackwardPass<BFloat16, ProductForBFloat16>(params, plan).run();
    case DataType::Float16:
      return BackwardPass<Float16, ProductFloat>(params, plan).run();
  }
}

inline double multiply_adds(DataType dtype, int64_t rounds) {
  switch (dtype) {
    case DataType::Float64:
      return multiply_adds<ProductDouble>(rounds);
    case DataType::BFloat16:
      return multiply_adds<ProductForBFloat16>(rounds);
    case DataType::Float32:
    case DataType::Float16:
      break;
  }
  return multiply_adds<ProductFloat>(rounds);
}
