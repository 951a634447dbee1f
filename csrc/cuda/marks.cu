// The marks of the rows of a layer with lengths or resets, and zeros for those that are padding.
#include <algorithm>

#include "launch.h"
#include "marks.h"

namespace gru::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

struct Marking {
  MarkSources sources;
  int64_t seq_len, batch, time_stride, batch_stride, rows;
};

// A thread marks every so many rows.
__global__ void write_marks_kernel(const Marking marking, uint32_t* marks) {
  const MarkSources& from = marking.sources;
  const int64_t at_once = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < from.members * marking.rows; i += at_once) {
    const int64_t member = i / marking.rows, row = i % marking.rows;
    const int64_t time = row / marking.time_stride % marking.seq_len;
    const int64_t sequence = row / marking.batch_stride % marking.batch;
    const int64_t length =
        from.lengths != nullptr ? from.lengths[member * from.lengths_stride + sequence] : marking.seq_len;
    uint32_t mark = 0;
    if (time >= length) {
      mark = kPadding;
    } else if (from.resets != nullptr) {
      const bool* const resets = from.resets + member * from.resets_stride + row;
      const bool is_last = time + 1 >= length || time + 1 == marking.seq_len;
      mark = (time > 0 && resets[0] ? kResetBefore : 0u) | (!is_last && resets[marking.time_stride] ? kResetAfter : 0u);
    }
    marks[i] = mark;
  }
}

// A warp, which is a row of threads, clears every so many rows.
template <class Word>
__global__ void clear_padding_kernel(const MarkedRows rows, const uint32_t* marks, int64_t marks_stride) {
  const int64_t at_once = int64_t{gridDim.x} * blockDim.y, of_member = rows.parts * rows.rows;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; i < rows.members * of_member; i += at_once) {
    if ((marks[i / of_member * marks_stride + i % rows.rows] & kPadding) == 0) continue;
    Word* const row = reinterpret_cast<Word*>(static_cast<char*>(rows.first) + i * rows.stride);
    const int64_t words = rows.bytes / static_cast<int64_t>(sizeof(Word));
    for (int64_t word = threadIdx.x; word < words; word += blockDim.x) row[word] = Word{};
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

// Blocks enough for any GPU, whose threads take the rest in turn.
unsigned blocks_for(int64_t count, int64_t of_block) {
  constexpr int64_t kMost = 4096;
  return static_cast<unsigned>(std::clamp<int64_t>((count + of_block - 1) / of_block, 1, kMost));
}

}  // namespace

void write_marks(const Rows& rows, const MarkSources& sources, uint32_t* marks, cudaStream_t stream) {
  const ProfilerRange range("gru_ext write_marks");
  constexpr unsigned kThreads = 128;
  const Marking marking{sources,          rows.seq_len,      rows.batch,
                        rows.time_stride, rows.batch_stride, rows.seq_len * rows.batch};
  launch(write_marks_kernel, {blocks_for(sources.members * marking.rows, kThreads), kThreads}, stream, marking, marks);
  check_launch("write_marks");
}

void clear_padding(const MarkedRows& rows, const uint32_t* marks, int64_t marks_stride, cudaStream_t stream) {
  const ProfilerRange range("gru_ext clear_padding");
  constexpr unsigned kLanes = 32, kWarps = 8;
  const auto aligned = reinterpret_cast<uintptr_t>(rows.first) | static_cast<uintptr_t>(rows.stride | rows.bytes);
  launch(aligned % sizeof(uint4) == 0 ? clear_padding_kernel<uint4> : clear_padding_kernel<uint16_t>,
         {blocks_for(rows.members * rows.parts * rows.rows, kWarps), dim3(kLanes, kWarps)}, stream, rows, marks,
         marks_stride);
  check_launch("clear_padding");
}

}  // namespace gru::cuda
