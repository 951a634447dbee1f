// Element types on the GPU: what is stored, what is computed with, how both move to and from memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

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

// `kWidth` neighbouring elements moved by one instruction. The address must be a multiple of their size.
template <class Element, int kWidth>
struct alignas(sizeof(Element) * kWidth) Pack {
  Element value[kWidth];
};

template <int kWidth, class Element>
__host__ __device__ inline Pack<Element, kWidth> load(const Element* address) {
  return *reinterpret_cast<const Pack<Element, kWidth>*>(address);
}

// As one word: nvcc may store a pack of a 16-bit type element by element.
template <int kWidth, class Element>
__host__ __device__ inline void store(Element* address, const Pack<Element, kWidth>& pack) {
  constexpr size_t kBytes = sizeof pack;
  if constexpr (kWidth == 1) {
    *address = pack.value[0];
  } else {
    uint32_t words[kBytes / sizeof(uint32_t)];
    memcpy(words, &pack, kBytes);
    if constexpr (kBytes == 4) *reinterpret_cast<uint32_t*>(address) = words[0];
    if constexpr (kBytes == 8) *reinterpret_cast<uint2*>(address) = make_uint2(words[0], words[1]);
    if constexpr (kBytes == 16) *reinterpret_cast<uint4*>(address) = make_uint4(words[0], words[1], words[2], words[3]);
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "a pack of several elements is a word of a GPU");
  }
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
// instruction moves, or all at once.
template <int kWidth, class Element>
struct SavedGates {
  static constexpr int kAll = kWidth * static_cast<int>(kSavedGates), kMost = 16 / static_cast<int>(sizeof(Element));
  static constexpr int kAtOnce = kAll < kMost ? kAll : kMost, kParts = kAll / kAtOnce;
  Pack<Element, kAtOnce> part[kParts];

  // Gate 0 is r, 1 is z, 2 is n, 3 is hn.
  __host__ __device__ Element& at(int unit, int gate) {
    const int place = unit * static_cast<int>(kSavedGates) + gate;
    return part[place / kAtOnce].value[place % kAtOnce];
  }
};

template <int kWidth, class Element>
__device__ inline SavedGates<kWidth, Element> load_gates(const Element* address) {
  using Gates = SavedGates<kWidth, Element>;
  Gates gates;
#pragma unroll
  for (int i = 0; i < Gates::kParts; ++i) gates.part[i] = load<Gates::kAtOnce>(address + i * Gates::kAtOnce);
  return gates;
}

template <int kWidth, class Element>
__device__ inline void store_gates(Element* address, const SavedGates<kWidth, Element>& gates) {
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

// A batch or hidden size in the 32 bits that kernels count with. Products of the two need 64.
inline uint32_t cell_size(int64_t size) {
  if (size > 2147483647) throw std::length_error("gru_ext: a time step is larger than a launch can be");
  return static_cast<uint32_t>(size);
}

// Threads for a [batch, hidden_size] grid of elements, `width` units of one sequence each. A grid can have more blocks
// along x than along y, so x walks the batch and y the units. kCellBlocks of a multiprocessor leave a thread 64
// registers: left to itself nvcc takes fewer and waits for one load before it starts the next.
constexpr int kCellThreads = 128, kCellBlocks = 8;
struct CellGrid {
  dim3 grid, block;
};
inline CellGrid cell_grid(int64_t batch, int64_t hidden_size, int width) {
  const int64_t packs = (hidden_size + width - 1) / width;
  int64_t x = 1;
  while (x < packs && x < kCellThreads) x *= 2;
  const int64_t y = kCellThreads / x, blocks = (packs + x - 1) / x;
  CellGrid cells;
  cells.block = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
  cells.grid = dim3(static_cast<unsigned>((batch + y - 1) / y), static_cast<unsigned>(blocks));
  return cells;
}

// What a thread of such a grid does, if it exists: units [unit, unit + kWidth) of a sequence.
struct CellPlace {
  uint32_t sequence, unit;
};
template <int kWidth>
__device__ inline CellPlace cell_place() {
  return {blockIdx.x * blockDim.y + threadIdx.y, (blockIdx.y * blockDim.x + threadIdx.x) * kWidth};
}

}  // namespace gru::cuda
