// What bounds every kernel of a target, as two loops to be timed (peaks.cpp): multiply-adds on nothing but registers,
// and vectors read from memory with nothing done to them but an addition.
// Included inside the namespace of a target, after product.h.
#pragma once

// Sums in flight: two started a cycle and six cycles to finish one are the most that a machine asks for; with two
// constants they fit 16 registers.
constexpr int kProbeChains = 12;
// Vectors of sums while reading, enough for an addition's latency.
constexpr int kProbeLoads = 8;

// Does `rounds` rounds of multiply-adds and returns how many operations these were, two for each multiply-add.
template <class Product>
inline double multiply_adds(int64_t rounds) {
#ifdef GRU_TILES
  if constexpr (kOnTiles<Product>) return tile_multiply_adds<Product>(rounds);
#endif
  using Sum = typename Product::Sum;
  using V = Vec<Sum>;
  // Volatile, so that the compiler knows neither what goes in nor whether anyone reads what comes out. x becomes 1 - x:
  // a quarter and three quarters by turns, exact in bfloat16 too, never subnormal and never growing. The sum is the
  // next product's factor, for a product of two constants would be computed once where it is not fused with the sum.
  volatile Sum start = Sum(0.25), factor = Sum(-1), addend = Sum(1);
  const V by = V::set(factor), plus = V::set(addend);
  V sums[kProbeChains];
#pragma GCC unroll 16
  for (int i = 0; i < kProbeChains; ++i) sums[i] = V::set(start);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kProbeChains; ++i) sums[i] = Product::lanes(sums[i], by, plus);
  }
  V total = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < kProbeChains; ++i) total = total + sums[i];
  Sum lanes[V::width];
  total.store(lanes);
  start = lanes[0];
  return 2.0 * kProbeChains * V::width * kDepth<Product> * static_cast<double>(rounds);
}

// Reads `bytes` bytes at `data`, a multiple of kProbeBytes, `rounds` times over.
inline void read_bytes(const void* data, int64_t bytes, int64_t rounds) {
  using V = Vec<float>;
  constexpr int64_t step = int64_t{kProbeLoads} * V::width;
  static_assert(kProbeBytes % (step * sizeof(float)) == 0, "whole steps");
  const float* const values = static_cast<const float*>(data);
  const int64_t count = bytes / static_cast<int64_t>(sizeof(float));
  V sums[kProbeLoads];
#pragma GCC unroll 16
  for (int i = 0; i < kProbeLoads; ++i) sums[i] = V::set(0);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t at = 0; at < count; at += step) {
#pragma GCC unroll 16
      for (int i = 0; i < kProbeLoads; ++i) sums[i] = sums[i] + V::load(values + at + i * V::width);
    }
  }
  V total = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < kProbeLoads; ++i) total = total + sums[i];
  float lanes[V::width];
  total.store(lanes);
  volatile float sink = lanes[0];
  (void)sink;
}
