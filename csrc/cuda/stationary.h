// Passes whose recurrent weights stay on the chip: one launch walks the whole sequence, of one or both directions, with
// W_hh in the registers of the blocks that share it. The functions enqueue on `stream` and never wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../gru.h"

namespace gru::cuda {

// Tiles of 16 columns of W_hh, for each of three gates, that a warp may hold: those there is a kernel for, by index; 0
// behind the last. Whoever launches, plans or tunes reads them here.
constexpr int tiles_of_warp(size_t element, int index) {
  constexpr int kHalf[] = {2, 4, 8, 12, 16, 24, 0}, kFloat[] = {2, 4, 8, 0};
  return element == 2 ? kHalf[index] : kFloat[index];
}

// Every tunable of the kernels with stationary weights, by the largest hidden size that a line serves: tiles of 16
// columns that a warp holds, warps that share the columns of 16 units, warps of a block. (tiles * splits * 16 columns
// must hold the hidden size.) More splits: shorter chains of products and more blocks, hence more exchange. The first
// line that fits is taken, those for clusters only where all sequences fit into clusters that run at the same time.
struct Tuning {
  int64_t largest_hidden_size;
  int k_tiles, splits, warps;
  bool only_cluster = false;
};
constexpr Tuning kTuningsOfHalf[] = {
    {64, 2, 2, 8},   {128, 4, 2, 16},       {256, 8, 2, 8},   {384, 12, 2, 8},
    {512, 16, 2, 8}, {768, 24, 2, 6, true}, {1024, 16, 4, 8}, {2048, 16, 8, 8},
};
constexpr Tuning kTuningsOfFloat[] = {
    {64, 2, 2, 8},  {128, 4, 2, 8}, {256, 4, 4, 8}, {384, 8, 3, 6},
    {512, 8, 4, 4}, {640, 8, 5, 5}, {768, 8, 6, 6}, {1024, 8, 8, 8},
};
constexpr Tuning kTuningsOfTf32[] = {
    {64, 2, 2, 8}, {128, 4, 2, 8}, {256, 8, 2, 8}, {384, 8, 3, 6}, {512, 8, 4, 8}, {1024, 8, 8, 8},
};
// Warps that a block may have: where a warp holds few 16-bit tiles registers are there for 16, and all of them do
// cells: two splits.
constexpr int most_warps(int k_tiles, size_t element) { return element == 2 && k_tiles <= 4 ? 16 : 8; }
constexpr bool all_do_cells(int k_tiles, size_t element) { return most_warps(k_tiles, element) > 8; }

// Sequences of a tile, whose product and cells a warp does at a time: 8, or, where there are registers for that, 16.
constexpr int kSequencesOfTile = 8;
constexpr int largest_tile(int k_tiles, size_t element) {
  return element == 2 && !all_do_cells(k_tiles, element) ? 2 * kSequencesOfTile : kSequencesOfTile;
}

// Whether there is a kernel that exchanges through a grid: not for sizes that fit into a block or a cluster.
constexpr bool runs_in_grid(int k_tiles, size_t element) { return element == 4 || (k_tiles >= 8 && k_tiles < 24); }

// How the work of one direction is divided. A group of blocks holds all of W_hh; groups share the batch, and have
// nothing to do with one another.
struct Partition {
  int k_tiles = 0;              // of a warp
  int splits = 0;               // warps that share the columns of the same 16 units: at least 2
  int warps = 0;                // of a block
  int blocks = 0;               // of a group
  bool grid = false;            // they exchange through the L2 cache, else in a cluster
  int tile = kSequencesOfTile;  // sequences of a tile
  int group_batch = 0;          // sequences of a group, a multiple of its tile
  int groups = 0;
  bool tf32 = false;  // of float32: the product rounds what it multiplies to TF32, for the tensor cores

  int units() const { return warps / splits * 16; }      // of a block
  int columns() const { return k_tiles * splits * 16; }  // of W_hh that a block has room for: at least H
  int width() const { return units() * blocks > columns() ? units() * blocks : columns(); }  // of h in shared memory
};

// Bytes of shared memory that a block of the pass takes; elements have `element` bytes.
size_t forward_shared(const Partition& partition, size_t element);
size_t backward_shared(const Partition& partition, size_t element);

// Writes sizes[0, count), which is in host memory, to `to`, in the GPU's. The values travel with the launch itself, so
// that this can be captured into a graph.
void write_sizes(const int64_t* sizes, int64_t count, int32_t* to, cudaStream_t stream);

// Words that one direction of a pass on a grid exchanges through. Both passes are given them zeroed.
int64_t forward_exchange_words(const Partition& partition, size_t element);
int64_t backward_exchange_words(const Partition& partition, size_t element);

// What the passes take beside params, of which there is one for each direction, alike in dtype, rows and sizes.
struct StationarySequence {
  const int32_t* batch_sizes = nullptr;  // [T] in the GPU's memory, null exactly when params->rows is not packed
  int64_t rows = 0;                      // of the input
  uint64_t* exchange = nullptr;          // [directions, words], null unless the partition is of a grid
};

// input_gates[d]: storage [rows, 3, P], P = padded(H), contiguous, at a multiple of 16 bytes: W_ih x, without bias. Its
// padding holds anything.
void forward_stationary(const Partition& partition, const ForwardParams* params, int directions,
                        const void* const* input_gates, const StationarySequence& sequence, cudaStream_t stream);

// Writes d_gates[d], storage [rows, 4H] as BackwardStep in step.h (not of padding), and, unless null, grad_h0 and, at
// resets, grad_reset_state. grad_output comes by
// pairs of elements: its address and its stride must be multiples of two, and the second of the last pair, where H is
// odd, may hold anything.
void backward_stationary(const Partition& partition, const BackwardParams* params, int directions, void* const* d_gates,
                         const StationarySequence& sequence, cudaStream_t stream);

}  // namespace gru::cuda
