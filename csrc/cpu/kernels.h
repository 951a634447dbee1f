// Everything a target is made of, in order; included by each target_*.cpp after GRU_TARGET_BEGIN, so that the compiler
// may use that target's instructions here and nowhere else. No standard header may be included from here on: their
// templates would be compiled for this target too and could replace the others' at link time.
// clang-format off
#include GRU_TARGET_SIMD
#include "math.h"
#include "product.h"
#include "probe.h"
#include "pack.h"
#include "thin.h"
#include "dot.h"
#include "gates.h"
#include "update.h"
#include "bytes.h"
#include "forward.h"
#include "recompute.h"
#include "gradients.h"
#include "backward.h"
// clang-format on

// 16-bit operands that are multiplied as floats.
template <template <class, class, class> class Kernel, class S, class Params>
inline void run_as_floats(const Params& params, const Plan& plan) {
#ifdef GRU_WIDENING
  if (plan.narrow_weights) return Kernel<S, ProductWidening<S>, ProductFloat>(params, plan).run();
#endif
  Kernel<S, ProductFloat, ProductFloat>(params, plan).run();
}

template <template <class, class, class> class Kernel, class Params>
inline void run(const Params& params, const Plan& plan) {
  // Backward takes weights row by row where there are few (thin.h), which products of pairs of rows cannot.
  [[maybe_unused]] constexpr bool kBackward = std::is_same_v<Params, BackwardParams>;
  switch (params.dtype) {
    case DataType::Float32:
      return Kernel<float, ProductFloat, ProductFloat>(params, plan).run();
    case DataType::Float64:
      return Kernel<double, ProductDouble, ProductDouble>(params, plan).run();
    case DataType::BFloat16:
#ifdef GRU_BFLOAT16_DOT
      if constexpr (kBackward)
        if (plan.few_rows) return Kernel<BFloat16, ProductFloat, ProductFloat>(params, plan).run();
      return Kernel<BFloat16, ProductBFloat16, ProductBFloat16>(params, plan).run();
#else
      return run_as_floats<Kernel, BFloat16>(params, plan);
#endif
    case DataType::Float16:
#ifdef GRU_FLOAT16_TILES
      if (processor().float16_tiles && !(kBackward && plan.few_rows))
        return Kernel<Float16, ProductFloat16, ProductFloat16>(params, plan).run();
#endif
      return run_as_floats<Kernel, Float16>(params, plan);
  }
}

inline void forward_bytes(const ForwardParams& params, const Plan& plan) {
  const PassTimer timer(Pass::Forward, plan.threads);
  ForwardPass<float, ProductBytes>(params, plan).run();
}

// By weights that were packed ahead. Those of 16 bits are widened as they are read, or first.
inline void forward_packed(const ForwardParams& params, const Plan& plan) {
#ifdef GRU_WIDENING
  using Widening = ProductWidening<BFloat16>;
  if (params.weights == WeightFormat::BFloat16 && plan.narrow_weights) {
    if (plan.narrow_inputs) return ForwardPass<float, Widening, Widening>(params, plan).run();
    return ForwardPass<float, Widening, ProductFloat>(params, plan).run();
  }
#endif
  ForwardPass<float, ProductFloat>(params, plan).run();
}

inline void forward(const ForwardParams& params, const Plan& plan) {
  if (params.weights == WeightFormat::Int8) return forward_bytes(params, plan);
  const PassTimer timer(Pass::Forward, plan.threads);
  params.weights == WeightFormat::Plain ? run<ForwardPass>(params, plan) : forward_packed(params, plan);
}
inline void backward(const BackwardParams& params, const Plan& plan) {
  const PassTimer timer(Pass::Backward, plan.threads);
  run<BackwardPass>(params, plan);
}

inline double multiply_adds(DataType dtype, int64_t rounds) {
  switch (dtype) {
    case DataType::Float64:
      return multiply_adds<ProductDouble>(rounds);
    case DataType::BFloat16:
#ifdef GRU_BFLOAT16_DOT
      return multiply_adds<ProductBFloat16>(rounds);
#else
      break;
#endif
    case DataType::Float16:
#ifdef GRU_FLOAT16_TILES
      if (processor().float16_tiles) return multiply_adds<ProductFloat16>(rounds);
#endif
      break;
    case DataType::Float32:
      break;
  }
  return multiply_adds<ProductFloat>(rounds);
}
