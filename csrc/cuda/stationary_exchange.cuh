// How the warps of a tile of units hand round their sums, and the blocks of a group what a step gave (stationary.cuh).
#pragma once

#include "stationary.cuh"

namespace gru::cuda {

// Hands round the sums of a tile's warps, of the kCells sequences of a lane. shared: Part [2, unit tiles, warps that do
// cells, splits - 1, kValues, 32]; tiles
// of sequences alternate between the two, whose `turn` is 0 and parts.sums_turn. Where a step's last tile and the next
// one's first share a slot, it is the wait between the steps that keeps a warp from writing while another still reads.
template <int kCells, int kValues>
class SplitSums {
 public:
  __device__ SplitSums(const StationaryPass& pass, const Place& place)
      : barrier_(1 + place.unit_tile), threads_(hold(pass.splits * kWarpSize)) {
    const int senders = pass.splits - 1;
    const int of_tile = place.unit_tile * kCellWarps * senders * kSlot + place.lane;
    const int sender = place.split == 0 ? 0 : place.split - 1;
    give_ = pass.parts.sums + (of_tile + ((place.split == 0 ? senders : 0) + sender) * kSlot) * kBytes;
    take_ = pass.parts.sums + (of_tile + place.split * senders * kSlot) * kBytes;
  }
  // In a warp that does cells: own[cell][value] becomes that of both units of a sequence of the lane's, added up in
  // order.
  __device__ void share(float2 (&own)[kCells][kValues], const float (&sums)[kCells][kValues][4], int turn) const {
    give(at(give_ + turn), sums, 1);
    barrier_sync(barrier_, threads_);
    const Part* from = at(take_ + turn);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const Part mine = part(sums, i, 0);
#pragma unroll
      for (int cell = 0; cell < kCells; ++cell) own[cell][i] = of_cell(mine, cell);
      add(own, i, from[i * kWarpSize]);
    }
#pragma unroll 1
    for (int sent = 2 * kWarpSize; sent < threads_; sent += kWarpSize) {
      from += kSlot;
#pragma unroll
      for (int i = 0; i < kValues; ++i) add(own, i, from[i * kWarpSize]);
    }
  }
  // In another.
  __device__ void give_away(const StationaryPass& pass, const float (&sums)[kCells][kValues][4], int turn) const {
    give(at(give_ + turn), sums, 0);
    give(at(give_ + turn + (pass.splits - 1) * kSlot * kBytes), sums, 1);
    barrier_sync(barrier_, threads_);
  }

 private:
  using Part = std::conditional_t<kCells == 1, float2, float4>;
  static constexpr int kSlot = kValues * kWarpSize, kBytes = static_cast<int>(sizeof(Part));

  // Of a value's sums those of the lane's own cells (0), or of the cells that the other warp does (1).
  __device__ static Part part(const float (&sums)[kCells][kValues][4], int value, int whose) {
    if constexpr (kCells == 1) {
      return make_float2(sums[0][value][whose], sums[0][value][whose + 2]);
    } else {
      const float (&of)[4] = sums[whose][value];
      return make_float4(of[0], of[1], of[2], of[3]);
    }
  }
  __device__ static float2 of_cell(float2 part, int) { return part; }
  __device__ static float2 of_cell(const float4& part, int cell) {
    return cell == 0 ? make_float2(part.x, part.z) : make_float2(part.y, part.w);
  }
  __device__ static void add(float2 (&own)[kCells][kValues], int value, const Part& part) {
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell) {
      own[cell][value].x += of_cell(part, cell).x;
      own[cell][value].y += of_cell(part, cell).y;
    }
  }
  __device__ static void give(Part* to, const float (&sums)[kCells][kValues][4], int whose) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) to[i * kWarpSize] = part(sums, i, whose);
  }
  __device__ static Part* at(int byte) { return reinterpret_cast<Part*>(shared_memory() + byte); }

  int barrier_, threads_, give_, take_;
};

// kOperands: 1 in forward, 3 in backward. The two barriers are the first words of shared memory.
template <class Element, int kOperands, int kCells>
class ClusterExchange {
 public:
  __device__ ClusterExchange(const StationaryPass& pass, const Place& place)
      : first_(place.lane / kChunks),
        chunk_((place.lane % kChunks / kInRow * (kCellWarps / kCells) + place.swap) * pass.row + place.tile_unit +
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
  // Stores the lane's results for each operand of the next step, of a cell whose tile of sequences begins at `next`.
  __device__ void keep(const Place& place, Element* next, const Pair<Element> (&results)[kOperands], int cell) const {
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
      *reinterpret_cast<Pair<Element>*>(next + own_ + cell * place.row + i * place.operand_next) = results[i];
    }
  }
  // When all tiles are kept: sends the warp's 16 units of every other row to the same place in all other blocks. By
  // whole warps.
  __device__ void send(const Element* next, int tiles, unsigned step, const Place& place) const {
    if (blocks_ == 1) return;
    warp_sync();
    uint64_t* const arrived = barrier((step + 1) % 2);
    if (place.lane == 0) mbarrier_arrive_expect(arrived, bytes_);
    for (int other = first_; other < blocks_ - 1; other += kAtOnce) {
      const unsigned rank = static_cast<unsigned>(other + (other >= place.rank ? 1 : 0));
      const ClusterPointer there = cluster_pointer(arrived, rank);
      const Element* from = next + chunk_;
      for (int tile = 0;;) {
        uint4 chunks[kCells][kOperands];
        const auto place_of = [&](int i, int operand) {
          return i * (kSequencesOfTile / kCellWarps) * place.row + operand * place.operand_next;
        };
#pragma unroll
        for (int i = 0; i < kCells; ++i) {
#pragma unroll
          for (int operand = 0; operand < kOperands; ++operand) {
            chunks[i][operand] = *reinterpret_cast<const uint4*>(from + place_of(i, operand));
          }
        }
#pragma unroll
        for (int i = 0; i < kCells; ++i) {
#pragma unroll
          for (int operand = 0; operand < kOperands; ++operand) {
            store_async(cluster_pointer(from + place_of(i, operand), rank), chunks[i][operand], there);
          }
        }
        if (++tile == tiles) break;
        from += place.operand_tile;
      }
    }
  }
  // At the end of a step, by all.
  __device__ void finish() const {
    if (blocks_ == 1) block_sync();
  }

 private:
  // A chunk is 16 bytes; four of the warp's rows make kChunks, so that it sends to kAtOnce blocks by one instruction.
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

  // Fills the operand of 8 sequences, `row` elements a row, with the results of the step before: calls put(to,
  // words) for its element and the kAtOnce neighbouring words that lie there. All 8 rows are on their way at the same
  // time. By all threads.
  template <int kAtOnce, class Put>
  __device__ void gather(Element* operand, int row, unsigned step, int first, Put&& put) const {
    const Word* const from = words_ + (static_cast<int>(step % 2) * turn_ + first * length_);
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
  __device__ void publish(unsigned step, int in_group, int piece, Make&& make) const {
    const int turn = static_cast<int>((step + 1) % 2) * turn_;
    store_relaxed(words_ + (own_ + turn + in_group * length_ + piece), make(step + 1));
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
