// How the blocks of a group hand round what a step gave (stationary.cuh).
#pragma once

#include "stationary.cuh"

namespace gru::cuda {

// kOperands: 1 in forward, 3 in backward. The two barriers are the first words of shared memory.
template <class Element, int kOperands>
class ClusterExchange {
 public:
  __device__ ClusterExchange(const StationaryPass& pass, const Place& place)
      : first_(place.lane / kChunks),
        chunk_((place.lane % kChunks / kInRow * kCellWarps + place.swapped()) * pass.row + place.tile_unit +
               place.lane % kInRow * kElements),
        own_(place.in_tile * pass.row + place.unit),
        blocks_(hold(pass.blocks)),
        bytes_(hold(static_cast<unsigned>((pass.blocks - 1) * kOperands * pass.group_batch *
                                          (kUnitsOfTile / kCellWarps) * static_cast<int>(sizeof(Element))))) {}
  // Before the first step, by all; what has been written to shared memory is seen by all blocks afterwards.
  __device__ void start(const StationaryPass& pass, const Place& place) const {
    if (pass.blocks == 1) return block_sync();
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) mbarrier_init(barrier(i), static_cast<unsigned>(place.unit_tiles * kCellWarps));
      mbarrier_init_fence();
    }
    cluster_sync();
  }
  // Until all results of the step before are in the operands of step % 2. By whole warps.
  __device__ void wait(unsigned step) const {
    if (blocks_ > 1 && step > 0) mbarrier_wait(barrier(step % 2), (step - 1) / 2 % 2);
  }
  // Stores the lane's results for each operand of the next step, whose tile of sequences begins at `next`.
  __device__ void keep(const StationaryPass& pass, Element* next, const Pair<Element> (&results)[kOperands]) const {
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
      *reinterpret_cast<Pair<Element>*>(next + own_ + i * pass.parts.operand_next) = results[i];
    }
  }
  // When all tiles are kept: sends the warp's 16 units of every other row to the same place in all other blocks. By
  // whole warps.
  __device__ void send(const StationaryPass& pass, const Element* next, int tiles, unsigned step,
                       const Place& place) const {
    if (blocks_ == 1) return;
    warp_sync();
    uint64_t* const arrived = barrier((step + 1) % 2);
    if (place.lane == 0) mbarrier_arrive_expect(arrived, bytes_);
    for (int other = first_; other < blocks_ - 1; other += kAtOnce) {
      const unsigned rank = static_cast<unsigned>(other + (other >= place.rank ? 1 : 0));
      const ClusterPointer there = cluster_pointer(arrived, rank);
      const Element* from = next + chunk_;
      ClusterPointer to = cluster_pointer(from, rank);
      for (int tile = 0;;) {
        uint4 chunks[kOperands];
#pragma unroll
        for (int i = 0; i < kOperands; ++i) {
          chunks[i] = *reinterpret_cast<const uint4*>(from + i * pass.parts.operand_next);
        }
#pragma unroll
        for (int i = 0; i < kOperands; ++i) {
          store_async(to + i * pass.parts.operand_next * static_cast<int>(sizeof(Element)), chunks[i], there);
        }
        if (++tile == tiles) break;
        from += pass.parts.operand_tile;
        to = to + pass.parts.operand_tile * static_cast<int>(sizeof(Element));
      }
    }
  }
  // At the end of a step, by all.
  __device__ void finish() const {
    if (blocks_ == 1) block_sync();
  }

 private:
  // A chunk is 16 bytes; the warp's four rows make kChunks, so that it sends to kAtOnce blocks by one instruction.
  static constexpr int kInRow = kUnitsOfTile * static_cast<int>(sizeof(Element)) / 16,
                       kElements = kUnitsOfTile / kInRow;
  static constexpr int kChunks = kSequencesOfTile / kCellWarps * kInRow, kAtOnce = kWarpSize / kChunks;

  __device__ static uint64_t* barrier(unsigned index) { return reinterpret_cast<uint64_t*>(shared_memory()) + index; }

  int first_, chunk_, own_, blocks_;
  unsigned bytes_;  // that a step brings for each warp that does cells, from its like in all other blocks
};

// In 4-byte pieces of data: forward's words are a piece and the number of the step, 8 bytes, backward's three pieces,
// of the three gates, and the number, 16 bytes. words [2, groups, tiles of sequences, 8, words of a row]; 0 before the
// launch. A piece is a pair of 16-bit units or one unit of float32.
template <class Element, class Word>
class GridExchange {
 public:
  static constexpr int kUnits = 4 / static_cast<int>(sizeof(Element)), kPieces = kUnitsOfLane / kUnits;

  __device__ GridExchange(const StationaryPass& pass, const Place& place) : length_(pass.exchange_length) {
    const int of_group = pass.group_batch * length_;
    turn_ = static_cast<int>(gridDim.x) / pass.blocks * of_group;
    words_ = reinterpret_cast<Word*>(pass.exchange + blockIdx.y * pass.exchange_words) + place.group * of_group;
    own_ = place.in_tile * length_ + place.unit / kUnits;
  }

  // Fills the operand of a tile of sequences, `row` elements a row, with the results of the step before: calls put(to,
  // words) for its element and the kAtOnce neighbouring words that lie there. All 8 rows are on their way at the same
  // time. By all threads.
  template <int kAtOnce, class Put>
  __device__ void gather(Element* operand, int row, unsigned step, int tile, Put&& put) const {
    const Word* const from = words_ + (static_cast<int>(step % 2) * turn_ + tile * kSequencesOfTile * length_);
    for (int column = static_cast<int>(threadIdx.x) * kAtOnce; column < length_;
         column += static_cast<int>(blockDim.x) * kAtOnce) {
      Word words[kSequencesOfTile][kAtOnce];
      spin_until("words of the grid: the step's results from its other blocks", [&] {
        uint32_t different = 0;
#pragma unroll
        for (int i = 0; i < kSequencesOfTile; ++i) read(words[i], from + i * length_ + column);
#pragma unroll
        for (int i = 0; i < kSequencesOfTile * kAtOnce; ++i) {
          different |= number(words[i / kAtOnce][i % kAtOnce]) ^ step;
        }
        return different == 0;
      });
#pragma unroll
      for (int i = 0; i < kSequencesOfTile; ++i) put(operand + i * row + column * kUnits, words[i]);
    }
  }
  // Piece number `piece` of the lane's result of a step. make(number) gives the word.
  template <class Make>
  __device__ void publish(unsigned step, int tile, int piece, Make&& make) const {
    const int turn = static_cast<int>((step + 1) % 2) * turn_;
    store_relaxed(words_ + (own_ + turn + tile * kSequencesOfTile * length_ + piece), make(step + 1));
  }

 private:
  __device__ static uint32_t number(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
  __device__ static uint32_t number(const uint4& word) { return word.w; }
  __device__ static void read(uint64_t (&words)[2], const uint64_t* first) { load_relaxed(words, first); }
  __device__ static void read(uint4 (&words)[1], const uint4* first) { words[0] = load_relaxed(first); }

  Word* words_;
  int length_, own_, turn_;
};

// The lane's piece number `index`.
__device__ inline uint32_t piece_of(uint32_t pair, int) { return pair; }
__device__ inline uint32_t piece_of(uint2 pair, int index) { return index == 0 ? pair.x : pair.y; }

inline int exchange_length(const Partition& partition, size_t element) {
  return partition.blocks * partition.units() * static_cast<int>(element) / 4;
}
// Of 8 bytes; a word has `size` of them.
inline int64_t exchange_words(const Partition& partition, size_t element, int size) {
  if (!partition.grid) return 0;
  return int64_t{2} * partition.groups * size * partition.group_batch * exchange_length(partition, element);
}

}  // namespace gru::cuda
