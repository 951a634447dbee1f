// Element types on the GPU: what is stored, what is computed with, how both move to and from memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "../gru.h"

namespace gru::cuda {

// The type a stored type is computed with.
template <class Storage>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class Storage>
using Compute = typename ComputeOf<Storage>::type;

__host__ __device__ inline float widen(float value) { return value; }
__host__ __device__ inline double widen(double value) { return value; }
__host__ __device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__host__ __device__ inline float widen(__half value) { return __half2float(value); }

template <class Storage>
__host__ __device__ inline Storage narrow(Compute<Storage> value) {
  return value;
}
template <>
__host__ __device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}
template <>
__host__ __device__ inline __half narrow<__half>(float value) {
  return __float2half(value);
}

// What cell.h asks for. The accurate functions, which pass NaN and inf through: exp overflows to inf and 1 / inf is 0.
struct Math {
  __host__ __device__ static float sigmoid(float value) { return 1.0f / (1.0f + expf(-value)); }
  __host__ __device__ static double sigmoid(double value) { return 1.0 / (1.0 + exp(-value)); }
  __host__ __device__ static float tanh(float value) { return tanhf(value); }
  __host__ __device__ static double tanh(double value) { return ::tanh(value); }
};

// `kWidth` neighbouring elements moved by one instruction. The address must be a multiple of their size.
template <class Element, int kWidth>
struct alignas(sizeof(Element) * kWidth) Pack {
  Element value[kWidth];
};

template <int kWidth, class Element>
__host__ __device__ inline Pack<Element, kWidth> load(const Element* address) {
  return *reinterpret_cast<const Pack<Element, kWidth>*>(address);
}

template <int kWidth, class Element>
__host__ __device__ inline void store(Element* address, const Pack<Element, kWidth>& pack) {
  *reinterpret_cast<Pack<Element, kWidth>*>(address) = pack;
}

// Elements moved at once where everything allows it: 8 bytes of storage.
template <class Storage>
constexpr int kWide = 8 / static_cast<int>(sizeof(Storage));

// Whether packs of `width` elements may be used at `address` and at every multiple of `stride` elements from it. Null
// and stride 0 are fine.
template <class Element>
bool packable(const Element* address, int64_t stride, int width) {
  return reinterpret_cast<uintptr_t>(address) % (sizeof(Element) * static_cast<size_t>(width)) == 0 &&
         stride % width == 0;
}

// The gates of `kWidth` neighbouring units as a row of `saved` has them. They move by 16 bytes, the most that one
// instruction moves, if units come in packs, else one by one.
template <int kWidth, class Element>
struct SavedGates {
  static constexpr int kAtOnce = kWidth == 1 ? 1 : 16 / static_cast<int>(sizeof(Element));
  static constexpr int kParts = kWidth * static_cast<int>(kSavedGates) / kAtOnce;
  Pack<Element, kAtOnce> part[kParts];

  // Gate 0 is r, 1 is z, 2 is n, 3 is hn.
  __host__ __device__ Element& at(int unit, int gate) {
    const int place = unit * static_cast<int>(kSavedGates) + gate;
    return part[place / kAtOnce].value[place % kAtOnce];
  }
};

template <int kWidth, class Element>
__host__ __device__ inline SavedGates<kWidth, Element> load_gates(const Element* address) {
  using Gates = SavedGates<kWidth, Element>;
  Gates gates;
#pragma unroll
  for (int i = 0; i < Gates::kParts; ++i) gates.part[i] = load<Gates::kAtOnce>(address + i * Gates::kAtOnce);
  return gates;
}

template <int kWidth, class Element>
__host__ __device__ inline void store_gates(Element* address, const SavedGates<kWidth, Element>& gates) {
  using Gates = SavedGates<kWidth, Element>;
#pragma unroll
  for (int i = 0; i < Gates::kParts; ++i) store<Gates::kAtOnce>(address + i * Gates::kAtOnce, gates.part[i]);
}

// `elements` further on; null stays null.
template <class Element>
__host__ __device__ inline Element* further(Element* address, int64_t elements) {
  return address == nullptr ? nullptr : address + elements;
}

// Calls function(Storage()) for the type that `dtype` names.
template <class Function>
void dispatch(DataType dtype, Function&& function) {
  switch (dtype) {
    case DataType::Float32:
      return function(float());
    case DataType::Float64:
      return function(double());
    case DataType::BFloat16:
      return function(__nv_bfloat16());
    case DataType::Float16:
      return function(__half());
  }
  throw std::invalid_argument("gru_ext: unknown element type");
}

// As many members of an ensemble as one launch takes, a z of the grid each: as many as there can be. The tests have
// fewer, so that theirs take several launches.
#ifndef GRU_MEMBERS_AT_ONCE
#define GRU_MEMBERS_AT_ONCE 65535
#endif
constexpr int64_t kMembersAtOnce = GRU_MEMBERS_AT_ONCE;

// Threads for a [batch, hidden_size] grid of elements, `width` units a thread: x walks the units, y the batch. Kernels
// stride over what a grid of the largest size does not reach.
struct CellGrid {
  dim3 grid, block;
};
inline CellGrid cell_grid(int64_t batch, int64_t hidden_size, int width) {
  constexpr int64_t kThreads = 128, kLargestX = 2147483647, kLargestY = 65535;
  const int64_t packs = (hidden_size + width - 1) / width;
  int64_t x = 1;
  while (x < packs && x < kThreads) x *= 2;
  const int64_t y = kThreads / x;
  const int64_t blocks_x = (packs + x - 1) / x, blocks_y = (batch + y - 1) / y;
  CellGrid cells;
  cells.block = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
  cells.grid = dim3(static_cast<unsigned>(blocks_x < kLargestX ? blocks_x : kLargestX),
                    static_cast<unsigned>(blocks_y < kLargestY ? blocks_y : kLargestY));
  return cells;
}

}  // namespace gru::cuda
