// What the forward and the backward kernel with stationary weights have in common.
//
//   W_hh of a group, rows by units and gates, is cut into blocks of units, and these into tiles of 16 units:
//
//            block 0          block 1        ...          in a block, for each tile of 16 units `splits` warps:
//        +-------------+ +-------------+               split 0 has columns [0, K), split 1 columns [K, 2K), ...
//        | units 0..U  | | units U..2U |               K = 16 k_tiles
//        +-------------+ +-------------+
//
//   registers      the three gates' [16 units, K] of W_hh, for the whole sequence; of the sums of a step [16 units,
//                  tile of sequences] for each gate
//   shared memory  the right operand, what the last step gave for every unit of the group (forward: h; backward: the
//                  gradients of the three gates): in a cluster of all the group's sequences, twice, in a grid of a
//                  tile of sequences at a time; the state (forward: h; backward: dLoss/dh) of the block's own units in
//                  float32; what the next step takes from memory
//   exchange       after a step each block hands its units' results to every block of the group
//
// Two ways to exchange. In a cluster: asynchronous stores from shared memory to shared memory, counted by a barrier
// there. In a grid, where a group is larger than a cluster can be: through the L2 cache, by words of which one part is
// data and another the number of the step, so that the data is its own flag.
//
// In a step a warp multiplies. Of the warps of a tile of units two do cells: of 8 sequences split 0 those of the even
// ones and split 1 those of the odd ones, of 16 sequences split 0 those of the first eight and split 1 those of the
// others; a lane two units of one sequence, or of two neighbouring ones. Each hands the other its sums of the sequences
// that are not its own, and the other splits hand them all of theirs. Then the two send what comes out.
//
// Why no buffer is filled while someone reads it: there are two, used by turns, and a warp fills in step s the one that
// was read in step s - 1. It got here through its wait for all results of step s - 1, of which each was sent after the
// sums of that step, that is after the last read of that buffer by the warps behind it.
//
// Why nobody waits for ever: a wait in step s is for results of step s - 1 alone; the blocks of a cluster run together,
// those of a grid are launched cooperatively, and groups do not wait for one another. A block of a cluster may exit:
// all that others store into it belongs to a step for which it has waited, and after the last step nothing is sent.
//
// memory_model.md says, link by link, which section of the PTX manual guarantees that results are seen.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../cell.h"
#include "cell_math.h"
#include "element.h"
#include "launch.h"
#include "primitives.h"
#include "stationary.h"

namespace gru::cuda {

constexpr int kUnitsOfTile = 16;
constexpr int kCellWarps = 2;         // of a tile of units
constexpr int kUnitsOfLane = 2;       // whose cells it does, of one sequence
constexpr int kNoSequence = 1 << 30;  // of lanes without units: beyond any

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
using Pair = std::conditional_t<sizeof(Element) == 2, uint32_t, uint2>;

template <class Element>
__device__ inline Pair<Element> pack_pair(float first, float second) {
  const Element pair[2] = {narrow<Element>(first), narrow<Element>(second)};
  Pair<Element> word;
  memcpy(&word, pair, sizeof word);
  return word;
}

// A row in shared memory, in elements: 16 bytes more than the width, so that rows lie in different banks.
__host__ __device__ constexpr int padded_row(int width, size_t element) {
  return width + static_cast<int>(16 / element);
}

// ---------------------------------------------------------------------------------------------------------------------
// The arguments that both passes have
// ---------------------------------------------------------------------------------------------------------------------

// A block's shared memory: bytes, and elements within the operands. First two barriers, then
// the tail of the weights. While the weights are loaded, what is behind the tail is the stage through which they come.
// What the steps of even and of odd number have of their own lies `turn` apart, what the tiles of sequences have
// `tile`.
constexpr int kTailBegin = 16;
struct SharedParts {
  int operands, operand_turn, operand_tile, operand_next;  // [2] in a cluster, [operands of a step, sequences, row];
                                                           // next: from an operand of a step to another
  int slots, slot_tile;                                    // [tiles, cell warps, sequences of a lane]: a warp's
                                                           // state, float2 [32], and what a step takes from memory
  int biases;                                              // float4 [units], forward
  int sums, sums_turn;                                     // of splits (SplitSums); tiles take turns
  int end;
};

// Whatever a step needs and does not change is worked out here, once, for constants are at hand in every instruction.
struct StationaryPass {
  const int32_t* batch_sizes;                   // [T] or null
  const uint32_t* marks;                        // [rows] or null
  int marked;                                   // whether there are marks: 0 or 1
  int rows, last_input, batch, hidden_size;     // last_input: the last step that has an input
  int padded_size;                              // padded(hidden_size)
  int time_stride, batch_stride, tile_stride;   // rows from a step, a sequence and a tile of sequences to the next
  int splits, blocks, group_batch, tiles, row;  // row: elements of a row of the operand
  SharedParts parts;
  uint64_t* exchange;      // of a grid
  int64_t exchange_words;  // of a direction
  int exchange_length;     // words of a row
  bool paired;             // what is stored in rows without padding is stored by pairs of units
  CellFormula formula;
};

// All but the shared memory and the exchange; paired as far as sizes alone say.
template <class Element>
void fill(StationaryPass& pass, const Partition& partition, const LayerParams& layer,
          const StationarySequence& sequence) {
  const Rows& rows = layer.rows;
  pass.batch_sizes = sequence.batch_sizes;
  pass.marks = layer.marks;
  pass.marked = layer.marks != nullptr ? 1 : 0;
  pass.rows = static_cast<int>(sequence.rows);
  pass.last_input = static_cast<int>(rows.seq_len) - 1;
  pass.batch = static_cast<int>(rows.batch);
  pass.hidden_size = static_cast<int>(layer.hidden_size);
  pass.padded_size = static_cast<int>(padded(layer.hidden_size, sizeof(Element)));
  pass.time_stride = static_cast<int>(rows.time_stride);
  pass.batch_stride = static_cast<int>(rows.batch_stride);
  pass.tile_stride = partition.tile * pass.batch_stride;
  pass.splits = partition.splits;
  pass.blocks = partition.blocks;
  pass.group_batch = partition.group_batch;
  pass.tiles = partition.group_batch / partition.tile;
  pass.row = padded_row(partition.width(), sizeof(Element));
  pass.exchange = sequence.exchange;
  pass.paired = layer.hidden_size % kUnitsOfLane == 0;
  pass.formula = CellFormula(layer.options);
}

// Resets of one direction (LayerParams in ../gru.h).
template <class Element>
struct Resets {
  uint32_t mark;                      // of a row behind which, as forward goes, the state is reset
  int ahead;                          // 1 where that reset's time is the next one, 0 where it is the row's own
  const Element* state;               // of a reset at (t, b), or null: zero
  int64_t time_stride, batch_stride;  // elements, of state
};

template <class Element>
Resets<Element> resets_of(const LayerParams& layer) {
  Resets<Element> resets{};
  if (layer.marks == nullptr) return resets;
  resets.mark = layer.reset_mark();
  resets.ahead = static_cast<int>(layer.time_of_reset_behind(0));
  resets.state = static_cast<const Element*>(layer.reset_state);
  resets.time_stride = layer.reset_time_stride;
  resets.batch_stride = layer.reset_batch_stride;
  return resets;
}

// The value, in a register from here on. Else the compiler fetches a constant anew in each step, which takes 38 cycles
// where an instruction cannot take it from where it is, and works out anew what is made of it. For a value that all
// lanes share it leaves a shuffle out; hence the lane's number, where registers have been counted for that. By whole
// warps.
template <class Value>
__device__ inline Value hold(Value value) {
#if GRU_ARCHITECTURE == 900
  const Value lane = static_cast<Value>(static_cast<int>(threadIdx.x) % kWarpSize);
  return static_cast<Value>(shuffle_xor(value ^ lane, 0) ^ lane);
#else
  return shuffle_xor(value, 0);
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Who a thread is
// ---------------------------------------------------------------------------------------------------------------------

struct Place {
  int lane, warp;
  int unit_tiles;        // of the block
  int unit_tile, split;  // of the warp. Warps that do cells lie on different quarters of the multiprocessor
  int rank, group;       // of the block
  int units;             // of a block
  int tile_unit;         // first unit of the warp's tile, in the layer
  int unit;              // the first of the two whose cells the lane does
  // Split 1 multiplies with the sequences of the tile in another order, their numbers exclusive or this: so the sums
  // that come first are in both warps that do cells those of the lane's own sequences, and the others belong to the
  // other.
  int swap;
  int in_tile;                          // the lane's (first) sequence, within a tile of sequences
  int sequence;                         // in the batch, of the first tile
  int row, operand_tile, operand_next;  // as in pass

  __device__ Place(const StationaryPass& pass, int tile)
      : lane(static_cast<int>(threadIdx.x) % kWarpSize),
        warp(static_cast<int>(threadIdx.x) / kWarpSize),
        unit_tiles(static_cast<int>(blockDim.x) / kWarpSize / pass.splits),
        unit_tile(warp % unit_tiles),
        split(warp / unit_tiles),
        rank(static_cast<int>(blockIdx.x) % pass.blocks),
        group(static_cast<int>(blockIdx.x) / pass.blocks),
        units(unit_tiles * kUnitsOfTile),
        tile_unit(rank * units + unit_tile * kUnitsOfTile),
        unit(tile_unit + lane / 4 * kUnitsOfLane),
        swap(split != 1 ? 0 : own_half(tile)),
        in_tile(lane % 4 * 2 + swap),
        sequence(group * pass.group_batch + in_tile),
        row(hold(pass.row)),
        operand_tile(hold(pass.parts.operand_tile)),
        operand_next(hold(pass.parts.operand_next)) {}
  // Of 8 sequences split 0 has the even ones, of more the first half.
  __device__ static int own_half(int tile) { return tile == kSequencesOfTile ? 1 : tile / 2; }
  __device__ bool does_cells() const { return split < kCellWarps; }
  // Of the lane's units those that there are; 0 or less: none.
  __device__ int exist(int hidden_size) const {
    return hidden_size - unit < kUnitsOfLane ? hidden_size - unit : kUnitsOfLane;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// The steps of a pass
// ---------------------------------------------------------------------------------------------------------------------

// The row of a sequence in the step at hand and in the next one, with the sequences there are. Beyond the last step the
// row leads nowhere. By whole warps.
class Steps {
 public:
  __device__ Steps(const StationaryPass& pass, bool descending, int sequence) : along_(descending ? -1 : 1) {
    const int first = descending ? pass.last_input : 0;
    stride_ = hold(along_ * pass.time_stride);
    row_ = hold(first * pass.time_stride + sequence * pass.batch_stride);
    active_ = next_active_ = hold(pass.batch);
    if (pass.batch_sizes == nullptr) return;
    active_ = size_of(pass, 0);
    row_ = (descending ? pass.rows - active_ : 0) + sequence;
  }
  __device__ int row() const { return row_; }
  // Sequences in the step.
  __device__ int active() const { return active_; }

  // Has a look at step `next`, the next one. Once a step, of packed rows.
  __device__ void look_ahead(const StationaryPass& pass, int next) {
    next_active_ = size_of(pass, next);
    stride_ = along_ > 0 ? active_ : -next_active_;
  }
  // Rows from the step at hand to the next one.
  __device__ int stride() const { return stride_; }
  __device__ int next_active() const { return next_active_; }

  // To the next step, at which one has looked.
  __device__ void advance() {
    row_ += stride_;
    active_ = next_active_;
  }

 private:
  // To be asked for 0, 1, 2, ... in turn: memory is read once in 32 steps.
  __device__ int size_of(const StationaryPass& pass, int step) {
    if (step % kWarpSize == 0) {
      const int of_lane = step + static_cast<int>(threadIdx.x) % kWarpSize, last = pass.last_input;
      const int time = of_lane < last ? of_lane : last;
      sizes_ = pass.batch_sizes[along_ > 0 ? time : last - time];
    }
    return shuffle(sizes_, step % kWarpSize);
  }

  int along_, active_, next_active_, sizes_ = 0, row_, stride_;
};

// A lane's unit in a tensor of rows.
template <class Element>
struct Column {
  Element* first;
  int row_bytes;

  __device__ Element* at(int row) const {
    using Byte = std::conditional_t<std::is_const_v<Element>, const char, char>;
    return reinterpret_cast<Element*>(reinterpret_cast<Byte*>(first) + wide_product(row, row_bytes));
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Runs of neighbouring elements: what a lane takes from memory, copied into shared memory a step ahead, and what it
// stores
// ---------------------------------------------------------------------------------------------------------------------

// kCount elements, aligned to their size, 16 bytes at most.
template <class Element, int kCount>
struct Run {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(Element)), kWords = kBytes / 4;
  static constexpr int kSlot = kBytes * kWarpSize;         // bytes of a warp in shared memory
  static constexpr int kMove = kBytes < 16 ? kBytes : 16;  // at once
  struct alignas(kMove) Moved {
    uint32_t words[kMove / 4];
  };

  // The elements at `from`, or 0.
  __device__ static void fetch(unsigned char* slot, const Element* from, bool exists, int lane) {
#pragma unroll
    for (int part = 0; part < kBytes / kMove; ++part) {
      copy_async<kMove>(slot + (part * kWarpSize + lane) * kMove, from + part * kMove / sizeof(Element),
                        exists ? kMove : 0);
    }
  }
  __device__ static void read(float (&values)[kCount], const unsigned char* slot, int lane) {
    Moved moved[kBytes / kMove];
#pragma unroll
    for (int part = 0; part < kBytes / kMove; ++part) {
      moved[part] = *reinterpret_cast<const Moved*>(slot + (part * kWarpSize + lane) * kMove);
#pragma unroll
      for (uint32_t& word : moved[part].words) word = opaque(word);
    }
    if constexpr (std::is_same_v<Element, __nv_bfloat16>) {  // by one instruction each
      uint32_t words[kWords];
      memcpy(words, moved, sizeof words);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const uint32_t wide[2] = {words[i] << 16, words[i] & 0xffff0000u};
        memcpy(values + 2 * i, wide, sizeof wide);
      }
    } else {
      Element elements[kCount];
      memcpy(elements, moved, sizeof elements);
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = widen(elements[i]);
    }
  }
  __device__ static void store(Element* to, const float (&values)[kCount]) {
    Element elements[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) elements[i] = narrow<Element>(values[i]);
    Moved moved[kBytes / kMove];
    memcpy(moved, elements, sizeof moved);
#pragma unroll
    for (int part = 0; part < kBytes / kMove; ++part) reinterpret_cast<Moved*>(to)[part] = moved[part];
  }
};

template <class Element>
using PairRun = Run<Element, kUnitsOfLane>;
template <class Element>
using GatesRun = Run<Element, kSavedGates * kUnitsOfLane>;  // the four values kept of each of two units

template <class Element>
__device__ inline void store_pair(Element* to, Pair<Element> pair) {
  *reinterpret_cast<Pair<Element>*>(to) = pair;
}
// Of a lane's two units those that exist, one by one.
template <class Element>
__device__ inline void store_units(Element* to, Pair<Element> pair, int exist) {
  Element units[kUnitsOfLane];
  memcpy(units, &pair, sizeof units);
#pragma unroll
  for (int i = 0; i < kUnitsOfLane; ++i) {
    if (i < exist) to[i] = units[i];
  }
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

template <int kTiles, int kSequences, class Element, class Function>
void dispatch_exchange(Element element, bool grid, Function& function) {
  if constexpr (runs_in_grid(kTiles, sizeof(Element))) {
    if (grid) return function(element, Constant<kTiles>(), Constant<1>(), Constant<kSequences>());
  }
  function(element, Constant<kTiles>(), Constant<0>(), Constant<kSequences>());
}

template <int kIndex, class Element, class Function>
void dispatch_tiles(Element element, const Partition& partition, Function& function) {
  constexpr int kTiles = tiles_of_warp(sizeof(Element), kIndex);
  if constexpr (kTiles == 0) {
    throw std::invalid_argument("gru_ext: no kernel with stationary weights has " + std::to_string(partition.k_tiles) +
                                " tiles");
  } else if (partition.k_tiles == kTiles) {
    constexpr int kLargest = largest_tile(kTiles, sizeof(Element));
    if (partition.tile == kLargest) return dispatch_exchange<kTiles, kLargest>(element, partition.grid, function);
    dispatch_exchange<kTiles, kSequencesOfTile>(element, partition.grid, function);
  } else {
    dispatch_tiles<kIndex + 1>(element, partition, function);
  }
}

// Calls function(Element(), tiles, grid, sequences), the parameters of a kernel: the type that `dtype` names, float32
// perhaps as TF32, and numbers as types with a value.
template <class Function>
void dispatch_stationary(DataType dtype, const Partition& partition, Function&& function) {
  const auto with_tiles = [&](auto element) { dispatch_tiles<0>(element, partition, function); };
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
