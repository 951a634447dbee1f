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
#include "forward.h"
#include "backward.h"
#include "gemm.h"
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
      return BackwardPass<float, float, ProductFloat>(params, plan).run();
    case DataType::Float64:
      return BackwardPass<double, double, ProductDouble>(params, plan).run();
    case DataType::BFloat16:
      return BackwardPass<BFloat16, BFloat16, ProductForBFloat16>(params, plan).run();
    case DataType::Float16:
      return BackwardPass<Float16, float, ProductFloat>(params, plan).run();
  }
}

inline void gemm(const GemmParams& params, int threads) {
  switch (params.dtype) {
    case DataType::Float32:
      return Gemm<float, float, float, ProductFloat>(params, threads).run();
    case DataType::Float64:
      return Gemm<double, double, double, ProductDouble>(params, threads).run();
    case DataType::BFloat16:
      return Gemm<BFloat16, BFloat16, BFloat16, ProductForBFloat16>(params, threads).run();
    case DataType::Float16:
      return Gemm<float, Float16, Float16, ProductFloat>(params, threads).run();
  }
}

// c [n] = sums over the m rows of a; b is not used.
inline void column_sums(const GemmParams& params, int threads) {
  switch (params.dtype) {
    case DataType::Float32:
      return column_sums<float, float, float>(params, threads);
    case DataType::Float64:
      return column_sums<double, double, double>(params, threads);
    case DataType::BFloat16:
      return column_sums<BFloat16, BFloat16, float>(params, threads);
    case DataType::Float16:
      return column_sums<float, Float16, float>(params, threads);
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
