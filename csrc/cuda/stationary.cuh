// What the forward and the backward kernel with stationary weights have in common. 16-bit elements.
//
//   W_hh of a group, rows by units and gates, is cut into blocks of units, and these into tiles of 16 units:
//
//            block 0          block 1        ...          in a block, for each tile of 16 units `splits` warps:
//        +-------------+ +-------------+               tile 0: warp 0 columns [0, K), warp 1 columns [K, 2K), ...
//        | units 0..U  | | units U..2U |               tile 1: warp s columns [0, K), ...
//        +-------------+ +-------------+               K = 16 k_tiles
//
//   registers      the three gates' [16 units, K] of W_hh, as the left operand of the tensor cores, for the whole
//                  sequence; of the sums of a step [16 units, 8 sequences] for each gate
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
#pragma once

#include <cstring>
#include <stdexcept>

#include "element.h"
#include "launch.h"
#include "primitives.h"
#include "stationary.h"

namespace gru::cuda {

constexpr int kUnitsOfTile = 16, kSequencesOfTile = 8, kMostThreads = 256;

template <class Element>
__device__ inline uint32_t pack_pair(Element first, Element second) {
  const Element pair[2] = {first, second};
  uint32_t word;
  memcpy(&word, pair, sizeof word);
  return word;
}
template <class Element>
__device__ inline Pack<float, 2> unpack_pair(uint32_t word) {
  Element pair[2];
  memcpy(pair, &word, sizeof word);
  return {{widen(pair[0]), widen(pair[1])}};
}

// Two neighbouring units, the first of which is `unit`, at `address`. Paired: both exist or neither, and an address is
// a multiple of 4. What does not exist reads as 0 and is not written.
template <class Element>
__device__ inline uint32_t load_units(const Element* address, int unit, int hidden_size, bool paired) {
  if (unit >= hidden_size) return 0;
  if (paired) return *reinterpret_cast<const uint32_t*>(address);
  return pack_pair(address[0], unit + 1 < hidden_size ? address[1] : narrow<Element>(0.0f));
}
template <class Element>
__device__ inline void store_units(Element* address, uint32_t word, int unit, int hidden_size, bool paired) {
  if (unit >= hidden_size) return;
  if (paired) {
    *reinterpret_cast<uint32_t*>(address) = word;
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
  int seq_len, batch;
  bool descending;

  __device__ Steps(const int32_t* batch_sizes, int seq_len, int64_t rows, int64_t time_stride, int batch,
                   bool descending)
      : batch_sizes(batch_sizes),
        time_stride(time_stride),
        offset(descending ? rows : 0),
        seq_len(seq_len),
        batch(batch),
        descending(descending) {}

  struct Step {
    int64_t row;  // of sequence 0
    int active;   // sequences in the step
  };
  // To be asked for 0, 1, 2, ... in turn.
  __device__ Step at(int step) {
    const int time = descending ? seq_len - 1 - step : step;
    if (batch_sizes == nullptr) return {time * time_stride, batch};
    const int active = batch_sizes[time];
    if (descending) offset -= active;
    const Step found{offset, active};
    if (!descending) offset += active;
    return found;
  }
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
// The product
// ---------------------------------------------------------------------------------------------------------------------

// A row of the right operand in shared memory, in elements: 16 bytes more than the width, so that the rows of a matrix
// lie in different banks.
__host__ __device__ constexpr int operand_row(int width) { return width + 8; }

// A warp's part of W_hh: the first tiles in registers, those for which there are none in shared memory, as they would
// lie in registers, [3, tail, 32].
constexpr int kMostTilesInRegisters = 12;
constexpr int tiles_in_registers(int tiles) { return tiles < kMostTilesInRegisters ? tiles : kMostTilesInRegisters; }
constexpr int tiles_in_tail(int tiles) { return tiles - tiles_in_registers(tiles); }

template <int kTiles>
struct Weights {
  uint32_t words[3][tiles_in_registers(kTiles)][4];
  uint4* tail;
};
inline size_t tail_bytes(const Partition& partition) {
  return 3 * static_cast<size_t>(tiles_in_tail(partition.k_tiles) * partition.warps) * kWarpSize * sizeof(uint4);
}

// Takes the tiles of one gate. load(words, tile) gives one as the tensor cores want it.
template <int kTiles, class Load>
__device__ inline void take_tiles(Weights<kTiles>& weights, int gate, Load&& load) {
  constexpr int kIn = tiles_in_registers(kTiles), kTail = tiles_in_tail(kTiles);
#pragma unroll
  for (int tile = 0; tile < kIn; ++tile) load(weights.words[gate][tile], tile);
#pragma unroll
  for (int tile = 0; tile < kTail; ++tile) {
    uint32_t words[4];
    load(words, kIn + tile);
    weights.tail[(gate * kTail + tile) * kWarpSize] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// W_hh comes into the registers through shared memory, a gate at a time: first all threads copy the block's part, with
// many loads under way, then every warp takes its tiles. Row i of a tile is unit 2 i, row i + 8 unit 2 i + 1, so that a
// lane's sums are of neighbouring units. `tail` and `stage` are places in shared memory that do not overlap.

// 8 elements at `address`, of which the first `exist` are there; the others are 0.
template <class Element>
__device__ inline uint4 load_chunk(const Element* address, int exist, bool aligned) {
  if (exist >= 8 && aligned) return *reinterpret_cast<const uint4*>(address);
  Element values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = i < exist ? address[i] : narrow<Element>(0.0f);
  return make_uint4(pack_pair(values[0], values[1]), pack_pair(values[2], values[3]), pack_pair(values[4], values[5]),
                    pack_pair(values[6], values[7]));
}

// For forward: stage [units, columns + 8], rows of W_hh as they are.
template <class Element, int kTiles>
__device__ inline void load_weights(Weights<kTiles>& weights, uint4* tail, Element* stage, const Element* weight_hh,
                                    int hidden_size, int splits, const Place& place) {
  const int columns = kTiles * splits * 16, chunks = columns / 8, row = columns + 8;
  const bool aligned = hidden_size % 8 == 0 && reinterpret_cast<uintptr_t>(weight_hh) % 16 == 0;
  weights.tail = tail + place.warp * 3 * tiles_in_tail(kTiles) * kWarpSize + place.lane;
  // Lanes 8 m to 8 m + 7 name the rows of matrix m: even units and odd ones, then both again 8 columns on.
  const int named = place.unit_tile * kUnitsOfTile + place.lane % 8 * 2 + place.lane / 8 % 2;
  const Element* const mine = stage + named * row + place.split * kTiles * 16 + place.lane / 16 * 8;
#pragma unroll
  for (int gate = 0; gate < 3; ++gate) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < place.units * chunks; i += static_cast<int>(blockDim.x)) {
      const int column = i % chunks * 8, unit = place.rank * place.units + i / chunks;
      const Element* const from = weight_hh + static_cast<int64_t>(gate * hidden_size + unit) * hidden_size + column;
      *reinterpret_cast<uint4*>(stage + i / chunks * row + column) =
          load_chunk(from, unit < hidden_size ? hidden_size - column : 0, aligned);
    }
    block_sync();
    take_tiles(weights, gate, [&](uint32_t (&words)[4], int tile) { load_matrices(words, mine + tile * 16); });
    block_sync();
  }
}
inline size_t stage_bytes(const Partition& partition, size_t element) {
  return static_cast<size_t>(partition.units()) * static_cast<size_t>(partition.columns() + 8) * element;
}

// For backward: stage [columns, units + 8], with the gates in the order n, r, z; of each 16 units the even ones before
// the odd ones.
template <class Element, int kTiles>
__device__ inline void load_weights_transposed(Weights<kTiles>& weights, uint4* tail, Element* stage,
                                               const Element* weight_hh, int hidden_size, int splits,
                                               const Place& place) {
  const int columns = kTiles * splits * 16, chunks = place.units / 8, row = place.units + 8;
  const bool aligned = hidden_size % 8 == 0 && reinterpret_cast<uintptr_t>(weight_hh) % 16 == 0;
  weights.tail = tail + place.warp * 3 * tiles_in_tail(kTiles) * kWarpSize + place.lane;
  const int named = place.split * kTiles * 16 + place.lane / 16 * 8 + place.lane % 8;
  const Element* const mine = stage + named * row + place.unit_tile * kUnitsOfTile + place.lane / 8 % 2 * 8;
#pragma unroll
  for (int gate = 0; gate < 3; ++gate) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < columns * chunks; i += static_cast<int>(blockDim.x)) {
      const int column = i / chunks, first = i % chunks * 8, unit = place.rank * place.units + first;
      const Element* const from =
          weight_hh + static_cast<int64_t>((gate + 2) % 3 * hidden_size + column) * hidden_size + unit;
      const uint4 chunk = load_chunk(from, column < hidden_size ? hidden_size - unit : 0, aligned);
      Element values[8];
      memcpy(values, &chunk, sizeof values);
      Element* const to = stage + column * row + first / 16 * 16 + first % 16 / 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<uint2*>(to + half * 8) =
            make_uint2(pack_pair(values[half], values[half + 2]), pack_pair(values[half + 4], values[half + 6]));
      }
    }
    block_sync();
    take_tiles(weights, gate,
               [&](uint32_t (&words)[4], int tile) { load_matrices_transposed(words, mine + tile * 16 * row); });
    block_sync();
  }
}
inline size_t transposed_stage_bytes(const Partition& partition, size_t element) {
  return static_cast<size_t>(partition.columns()) * static_cast<size_t>(partition.units() + 8) * element;
}

// sums[gate] = the warp's part of W_hh times 8 rows of the operand, which begin at `operand`; those of the next gate
// lie `gate_stride` elements on, or are the same ones where that is 0.
template <class Element, int kTiles, bool kOneOperand>
__device__ inline void multiply(float (&sums)[3][4], const Weights<kTiles>& weights, const Element* operand, int row,
                                int gate_stride, const Place& place) {
#pragma unroll
  for (int gate = 0; gate < 3; ++gate) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[gate][i] = 0.0f;
  }
  const Element* const mine = operand + place.lane % 8 * row + place.lane / 8 * 8 + place.split * kTiles * 16;
  constexpr int kIn = tiles_in_registers(kTiles), kTail = tiles_in_tail(kTiles);
#pragma unroll
  for (int tile = 0; tile < kTiles; tile += 2) {
    uint32_t words[4];
    if (kOneOperand) load_matrices(words, mine + tile * 16);
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      if (!kOneOperand) load_matrices(words, mine + gate * gate_stride + tile * 16);
      if (tile < kIn) {
        mma_m16n8k16<Element>(sums[gate], weights.words[gate][tile], {words[0], words[1]});
        mma_m16n8k16<Element>(sums[gate], weights.words[gate][tile + 1], {words[2], words[3]});
      } else {
        const uint4* const kept = weights.tail + (gate * kTail + tile - kIn) * kWarpSize;
        const uint4 first = kept[0], second = kept[kWarpSize];
        mma_m16n8k16<Element>(sums[gate], {first.x, first.y, first.z, first.w}, {words[0], words[1]});
        mma_m16n8k16<Element>(sums[gate], {second.x, second.y, second.z, second.w}, {words[2], words[3]});
      }
    }
  }
}

// Adds the sums of a tile's warps up, in order, for the leader. `sums` [2, unit tiles, splits - 1, kCount, 32] in
// shared memory, by turns.
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
// The exchange
// ---------------------------------------------------------------------------------------------------------------------

class ClusterExchange {
 public:
  // barriers: two, in shared memory. bytes: what one step brings from all other blocks.
  __device__ ClusterExchange(uint64_t* barriers, int blocks, int bytes)
      : barriers_(barriers), blocks_(blocks), bytes_(bytes) {}
  // Before the first step, by all; what has been written to shared memory is seen by all blocks afterwards.
  __device__ void start(int leaders) {
    if (blocks_ == 1) return block_sync();
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) mbarrier_init(barriers_ + i, static_cast<unsigned>(leaders) + 1);
      mbarrier_init_fence();
    }
    cluster_sync();
  }
  // At the beginning of step `step`, before anything is sent.
  __device__ void expect(int step) {
    if (blocks_ > 1 && threadIdx.x == 0) mbarrier_arrive_expect(barriers_ + (step + 1) % 2, bytes_);
  }
  // Until all results of the step before are in buffer step % 2. By whole warps.
  __device__ void wait(int step) {
    if (blocks_ > 1 && step > 0) mbarrier_wait(barriers_ + step % 2, static_cast<unsigned>((step - 1) / 2 % 2));
  }
  // Sends 8 rows of 32 bytes, `row` elements apart, which the warp has written to its own block, to the same place in
  // all others. By a leader.
  template <class Element>
  __device__ void send(const Element* first, int row, int step, const Place& place) {
    constexpr int kChunks = kSequencesOfTile * 2;
    if (blocks_ == 1) return;
    warp_sync();
    for (int chunk = place.lane; chunk < kChunks * (blocks_ - 1); chunk += kWarpSize) {
      const int other = chunk / kChunks, part = chunk % kChunks;
      const unsigned rank = static_cast<unsigned>(other + (other >= place.rank ? 1 : 0));
      const Element* const from = first + part / 2 * row + part % 2 * 8;
      store_async(cluster_pointer(from, rank), *reinterpret_cast<const uint4*>(from),
                  cluster_pointer(barriers_ + (step + 1) % 2, rank));
    }
  }
  // The warp's results of the step are in its own block and on their way. By all.
  __device__ void finish(int step, const Place& place) {
    if (blocks_ == 1) return block_sync();
    if (!place.leads()) return;
    warp_sync();
    if (place.lane == 0) mbarrier_arrive(barriers_ + (step + 1) % 2);
  }

 private:
  uint64_t* barriers_;
  int blocks_;
  int bytes_;
};

// words [2, groups, tiles of sequences, rows, units of the group / 2], rows being 8 for each operand; 0 before the
// launch.
class GridExchange {
 public:
  __device__ GridExchange(uint64_t* words, int groups, int tiles, int rows, int units, const Place& place)
      : words_(words + static_cast<int64_t>(place.group) * tiles * rows * (units / 2)),
        turn_(static_cast<int64_t>(groups) * tiles * rows * (units / 2)),
        rows_(rows),
        length_(units / 2) {}
  // Fills the operand, `row` elements a row, with the results of the step before. By all threads.
  template <class Element>
  __device__ void gather(Element* operand, int row, int step, int tile) {
    constexpr int kAtOnce = 8;
    const uint64_t* const from = words_ + step % 2 * turn_ + static_cast<int64_t>(tile) * rows_ * length_;
    const int count = rows_ * length_, threads = static_cast<int>(blockDim.x);
    for (int first = static_cast<int>(threadIdx.x); first < count; first += kAtOnce * threads) {
      uint64_t found[kAtOnce];
      spin_until([&] {
        bool there = true;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (first + i * threads >= count) continue;
          found[i] = load_relaxed(from + first + i * threads);
          there = there && static_cast<int>(found[i] >> 32) == step;
        }
        return there;
      });
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int word = first + i * threads;
        if (word >= count) continue;
        *reinterpret_cast<uint32_t*>(operand + word / length_ * row + word % length_ * 2) =
            static_cast<uint32_t>(found[i]);
      }
    }
  }
  // The lane's result of the step for two units.
  __device__ void publish(uint32_t word, int step, int tile, int row, int unit) {
    uint64_t* const to = words_ + (step + 1) % 2 * turn_ + (static_cast<int64_t>(tile) * rows_ + row) * length_;
    store_relaxed(to + unit / 2, static_cast<uint64_t>(step + 1) << 32 | word);
  }

 private:
  uint64_t* words_;
  int64_t turn_;
  int rows_, length_;
};

inline int64_t exchange_words(const Partition& partition, int operands) {
  if (!partition.grid) return 0;
  return int64_t{2} * partition.groups * operands * partition.group_batch * (partition.blocks * partition.units() / 2);
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

// Calls function(Element()) for the type that `dtype` names, one of the 16-bit ones.
template <class Function>
void dispatch_half(DataType dtype, Function&& function) {
  if (dtype == DataType::BFloat16) return function(__nv_bfloat16());
  if (dtype == DataType::Float16) return function(__half());
  throw std::invalid_argument("gru_ext: kernels with stationary weights take bfloat16 and float16");
}

// Calls function(tiles) for the number of tiles that kernels are compiled for, as a type whose value it is.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
template <class Function>
void dispatch_tiles(int k_tiles, Function&& function) {
  switch (k_tiles) {
    case 4:
      return function(Constant<4>());
    case 8:
      return function(Constant<8>());
    case 12:
      return function(Constant<12>());
    case 16:
      return function(Constant<16>());
  }
  throw std::invalid_argument("gru_ext: no kernel has so many tiles");
}

}  // namespace gru::cuda
