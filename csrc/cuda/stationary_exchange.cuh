// How the blocks of a group hand round what a step gave (stationary.cuh).
#pragma once

#include "stationary.cuh"

namespace gru::cuda {

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
    if (blocks_ == 1 || step == 0) return;
    mbarrier_wait(barriers_ + step % 2, static_cast<unsigned>((step - 1) / 2 % 2));
    warp_sync();  // what follows is done by whole warps
  }
  // Sends 8 rows of the warp's 16 units, `row` elements apart, which the warp has written to its own block, to the same
  // place in all others. By a leader.
  template <class Element>
  __device__ void send(const Element* first, int row, int step, const Place& place) {
    constexpr int kInRow = kUnitsOfTile * static_cast<int>(sizeof(Element)) / 16, kElements = kUnitsOfTile / kInRow;
    constexpr int kChunks = kSequencesOfTile * kInRow;  // of 16 bytes
    if (blocks_ == 1) return;
    warp_sync();
    for (int chunk = place.lane; chunk < kChunks * (blocks_ - 1); chunk += kWarpSize) {
      const int other = chunk / kChunks, part = chunk % kChunks;
      const unsigned rank = static_cast<unsigned>(other + (other >= place.rank ? 1 : 0));
      const Element* const from = first + part / kInRow * row + part % kInRow * kElements;
      store_async(cluster_pointer(from, rank), *reinterpret_cast<const uint4*>(from),
                  cluster_pointer(barriers_ + (step + 1) % 2, rank));
    }
  }
  // All the warp's results of the step are in its own block and on their way. By a leader.
  __device__ void arrive(int step, const Place& place) {
    if (blocks_ == 1) return;
    warp_sync();
    if (place.lane == 0) mbarrier_arrive(barriers_ + (step + 1) % 2);
  }
  // At the end of a step, by all.
  __device__ void finish() {
    if (blocks_ == 1) block_sync();
  }

 private:
  uint64_t* barriers_;
  int blocks_;
  int bytes_;
};

// words [2, groups, tiles of sequences, rows, words of a row]: a word is 4 bytes of data and the step, rows are 8 for
// each operand; 0 before the launch.
class GridExchange {
 public:
  __device__ GridExchange(uint64_t* words, int groups, int tiles, int rows, int length, const Place& place)
      : words_(words + static_cast<int64_t>(place.group) * tiles * rows * length),
        turn_(static_cast<int64_t>(groups) * tiles * rows * length),
        rows_(rows),
        length_(length) {}
  // Fills the operand, `row` elements a row, with the results of the step before, kAtOnce words a thread at the same
  // time. By all threads.
  template <int kAtOnce, class Element>
  __device__ void gather(Element* operand, int row, int step, int tile) {
    constexpr int kElements = 4 / static_cast<int>(sizeof(Element));
    const uint64_t* const from = words_ + step % 2 * turn_ + static_cast<int64_t>(tile) * rows_ * length_;
    const int count = rows_ * length_, threads = static_cast<int>(blockDim.x);
    for (int first = static_cast<int>(threadIdx.x); first < count; first += kAtOnce * threads) {
      uint64_t found[kAtOnce];
      spin_until("words of the grid: the step's results from its other blocks", [&] {
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
        *reinterpret_cast<uint32_t*>(operand + word / length_ * row + word % length_ * kElements) =
            static_cast<uint32_t>(found[i]);
      }
    }
  }
  // The lane's result of the step for two units.
  __device__ void publish(uint32_t pair, int step, int tile, int row, int unit) {
    put(pair, step, tile, row, unit / 2);
  }
  __device__ void publish(uint2 pair, int step, int tile, int row, int unit) {
    put(pair.x, step, tile, row, unit);
    put(pair.y, step, tile, row, unit + 1);
  }

 private:
  __device__ void put(uint32_t data, int step, int tile, int row, int word) {
    uint64_t* const to = words_ + (step + 1) % 2 * turn_ + (static_cast<int64_t>(tile) * rows_ + row) * length_;
    store_relaxed(to + word, static_cast<uint64_t>(step + 1) << 32 | data);
  }

  uint64_t* words_;
  int64_t turn_;
  int rows_, length_;
};

inline int exchange_length(const Partition& partition, size_t element) {
  return partition.blocks * partition.units() * static_cast<int>(element) / 4;
}
inline int64_t exchange_words(const Partition& partition, size_t element, int operands) {
  if (!partition.grid) return 0;
  return int64_t{2} * partition.groups * operands * partition.group_batch * exchange_length(partition, element);
}

}  // namespace gru::cuda
