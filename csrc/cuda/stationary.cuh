// What the forward and the backward kernel with stationary weights have in common.
//
//   W_hh of a group, rows by units and gates, is cut into blocks of units, and these into tiles of 16 units:
//
//            block 0          block 1        ...          in a block, for each tile of 16 units `splits` warps:
//        +-------------+ +-------------+               tile 0: warp 0 columns [0, K), warp 1 columns [K, 2K), ...
//        | units 0..U  | | units U..2U |               tile 1: warp s columns [0, K), ...
//        +-------------+ +-------------+               K = 16 k_tiles
//
//   registers      the three gates' [16 units, K] of W_hh, for the whole sequence; of the sums of a step [16 units, 8
//                  sequences] for each gate
//   shared memory  the right operand, what the last step gave for every unit of the group (forward: h; backward: the
//                  gradients of the three gates): in a cluster of all the group's sequences, twice, in a grid of 8
//                  sequences at a time; the state (forward: h; backward: dLoss/dh) of the block's own units in float32
//   exchange       after a step each block hands its units' results to every block of the group
//
// Two ways to exchange. In a cluster: asynchronous stores from shared memory to shared memory, counted by a barrier
// there. In a grid, where a group is larger than a cluster can be: through the L2 cache, by words of which one half is
// data and the other the number of the step, so that the data is its own flag.
//
// In a step a warp multiplies; the warps of a tile add their sums up, the first of them (the leader) in order; the
// leader does the cells of its 16 units, two units of two sequences a lane, and sends what comes out.
//
// Why no buffer is filled while someone reads it: there are two, used by turns, and a leader fills in step s the one
// that was read in step s - 1. It got here through its wait for all results of step s - 1, of which each was sent after
// the sums of that step, that is after the last read of that buffer by the warps behind it.
//
// Why nobody waits for ever: a wait in step s is for results of step s - 1 alone; the blocks of a cluster run together,
// those of a grid are launched cooperatively, and groups do not wait for one another. A block of a cluster may exit:
// all that others store into it belongs to a step for which it has waited, and after the last step nothing is sent.
//
// memory_model.md says, link by link, which section of the PTX manual guarantees that results are seen.
#pragma once

#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "cell_math.h"
#include "element.h"
#include "launch.h"
#include "primitives.h"
#include "stationary.h"

namespace gru::cuda {

constexpr int kUnitsOfTile = 16, kSequencesOfTile = 8, kMostThreads = 256;

// A float32 that the product rounds to TF32.
struct TensorFloat {
  float value;
};
__host__ __device__ inline float widen(TensorFloat value) { return value.value; }
template <>
__host__ __device__ inline TensorFloat narrow<TensorFloat>(float value) {
  return {value};
}

// Two neighbouring units as they are stored: 4 bytes of a 16-bit type, 8 of float32.
template <class Element>
struct PairOf {
  using type = uint32_t;
};
template <>
struct PairOf<float> {
  using type = uint2;
};
template <>
struct PairOf<TensorFloat> {
  using type = uint2;
};
template <class Element>
using Pair = typename PairOf<Element>::type;

template <class Element>
__device__ inline Pair<Element> pack_pair(Element first, Element second) {
  const Element pair[2] = {first, second};
  Pair<Element> word;
  memcpy(&word, pair, sizeof word);
  return word;
}
template <class Element>
__device__ inline Pack<float, 2> unpack_pair(Pair<Element> word) {
  Element pair[2];
  memcpy(pair, &word, sizeof word);
  return {{widen(pair[0]), widen(pair[1])}};
}

// Two neighbouring units, the first of which is `unit`, at `address`. Paired: both exist or neither, and an address is
// a multiple of a pair's size. What does not exist reads as 0 and is not written.
template <class Element>
__device__ inline Pair<Element> load_units(const Element* address, int unit, int hidden_size, bool paired) {
  if (unit >= hidden_size) return Pair<Element>{};
  if (paired) return *reinterpret_cast<const Pair<Element>*>(address);
  return pack_pair(address[0], unit + 1 < hidden_size ? address[1] : narrow<Element>(0.0f));
}
template <class Element>
__device__ inline void store_units(Element* address, Pair<Element> word, int unit, int hidden_size, bool paired) {
  if (unit >= hidden_size) return;
  if (paired) {
    *reinterpret_cast<Pair<Element>*>(address) = word;
    return;
  }
  Element pair[2];
  memcpy(pair, &word, sizeof word);
  address[0] = pair[0];
  if (unit + 1 < hidden_size) address[1] = pair[1];
}

// ---------------------------------------------------------------------------------------------------------------------
// The steps of a pass
// ---------------------------------------------------------------------------------------------------------------------

struct Steps {
  const int32_t* batch_sizes;
  int64_t time_stride, offset;
  int seq_len, batch;  // batch: of the next step
  bool descending;

  __device__ Steps(const int32_t* batch_sizes, int seq_len, int64_t rows, int64_t time_stride, int batch,
                   bool descending)
      : batch_sizes(batch_sizes),
        time_stride(time_stride),
        offset(descending ? rows : 0),
        seq_len(seq_len),
        batch(batch),
        descending(descending) {
    if (batch_sizes != nullptr) this->batch = batch_sizes[time(0)];
  }

  struct Step {
    int64_t row;  // of sequence 0
    int active;   // sequences in the step
  };
  // To be asked for 0, 1, 2, ... in turn.
  __device__ Step at(int step) {
    if (batch_sizes == nullptr) return {time(step) * time_stride, batch};
    const int active = batch;
    if (step + 1 < seq_len) batch = batch_sizes[time(step + 1)];  // a step ahead, so that nobody waits for it
    if (descending) offset -= active;
    const Step found{offset, active};
    if (!descending) offset += active;
    return found;
  }
  __device__ int time(int step) const { return descending ? seq_len - 1 - step : step; }
};

// ---------------------------------------------------------------------------------------------------------------------
// Who a thread is
// ---------------------------------------------------------------------------------------------------------------------

struct Place {
  int lane, warp;
  int unit_tile, split;  // of the warp
  int rank, group;       // of the block
  int units;             // of a block
  int tile_unit;         // first unit of the warp's tile, in the layer
  int unit;              // the first of the two whose cells the lane does
  int sequence;          // the first of the two, within a tile of sequences

  __device__ Place(int splits, int blocks)
      : lane(static_cast<int>(threadIdx.x) % kWarpSize),
        warp(static_cast<int>(threadIdx.x) / kWarpSize),
        unit_tile(warp / splits),
        split(warp % splits),
        rank(static_cast<int>(blockIdx.x) % blocks),
        group(static_cast<int>(blockIdx.x) / blocks),
        units(static_cast<int>(blockDim.x) / kWarpSize / splits * kUnitsOfTile),
        tile_unit(rank * units + unit_tile * kUnitsOfTile),
        unit(tile_unit + lane / 4 * 2),
        sequence(lane % 4 * 2) {}
  __device__ bool leads() const { return split == 0; }
  // Where the lane's state of a tile of sequences lies.
  __device__ int state(int tile) const { return (tile * (units / kUnitsOfTile) + unit_tile) * kWarpSize + lane; }
};

// ---------------------------------------------------------------------------------------------------------------------
// The sums
// ---------------------------------------------------------------------------------------------------------------------

// Adds the sums of a tile's warps up, in order, for the leader. `shared` [2, unit tiles, splits - 1, kCount, 32]: tiles
// of sequences alternate between the two. Where a step's last tile and the next one's first share a slot, it is the
// wait between the steps that keeps a warp from writing while the leader still reads.
template <int kCount>
__device__ inline void add_splits(float* own, float* shared, int turn, int splits, const Place& place) {
  if (splits == 1) return;
  const int tiles = place.units / kUnitsOfTile;
  float* const slots = shared + ((turn % 2 * tiles + place.unit_tile) * (splits - 1)) * kCount * kWarpSize;
  if (!place.leads()) {
    float* const slot = slots + (place.split - 1) * kCount * kWarpSize + place.lane;
#pragma unroll
    for (int i = 0; i < kCount; ++i) slot[i * kWarpSize] = own[i];
  }
  barrier_sync(1 + place.unit_tile, splits * kWarpSize);
  if (!place.leads()) return;
  for (int split = 1; split < splits; ++split) {
    const float* const slot = slots + (split - 1) * kCount * kWarpSize + place.lane;
#pragma unroll
    for (int i = 0; i < kCount; ++i) own[i] += slot[i * kWarpSize];
  }
}
inline size_t splits_bytes(const Partition& partition, int count) {
  return sizeof(float) * 2 * static_cast<size_t>(partition.warps / partition.splits) *
         static_cast<size_t>(partition.splits - 1) * static_cast<size_t>(count) * kWarpSize;
}

// ---------------------------------------------------------------------------------------------------------------------
// Launching
// ---------------------------------------------------------------------------------------------------------------------

inline LaunchShape launch_shape(const Partition& partition, int directions, size_t shared) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(partition.groups * partition.blocks), static_cast<unsigned>(directions));
  shape.block = dim3(static_cast<unsigned>(partition.warps * kWarpSize));
  shape.shared = shared;
  shape.cluster = partition.grid ? 1 : static_cast<unsigned>(partition.blocks);
  shape.cooperative = partition.grid;
  return shape;
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls function(Element(), tiles) for the type that `dtype` names, float32 perhaps as TF32, and the number of tiles as
// a type whose value it is.
template <class Function>
void dispatch_stationary(DataType dtype, const Partition& partition, Function&& function) {
  const int k_tiles = partition.k_tiles;
  const auto with_tiles = [&](auto element) {
    constexpr bool kHalf = sizeof(element) == 2;
    if (k_tiles == 4) return function(element, Constant<4>());
    if (k_tiles == 8) return function(element, Constant<8>());
    if constexpr (kHalf) {
      if (k_tiles == 12) return function(element, Constant<12>());
      if (k_tiles == 16) return function(element, Constant<16>());
      if (k_tiles == 24) return function(element, Constant<24>());
    }
    throw std::invalid_argument("gru_ext: no kernel with stationary weights has so many tiles");
  };
  switch (dtype) {
    case DataType::Float32:
      return partition.tf32 ? with_tiles(TensorFloat()) : with_tiles(float());
    case DataType::BFloat16:
      return with_tiles(__nv_bfloat16());
    case DataType::Float16:
      return with_tiles(__half());
    case DataType::Float64:
      break;
  }
  throw std::invalid_argument("gru_ext: kernels with stationary weights take float32, bfloat16 and float16");
}

}  // namespace gru::cuda
