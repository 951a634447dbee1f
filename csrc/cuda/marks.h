// What the kernels know of the rows of a layer with lengths or resets (Mark in ../gru.h), worked out on the GPU, so
// that the host never reads either. The functions enqueue on `stream` and never wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../gru.h"

namespace gru::cuda {

// Where marks come from, of each member of an ensemble; strides lead, in elements, from one to the next.
struct MarkSources {
  const int64_t* lengths = nullptr;  // [B]; below 0 counts as 0 and beyond T as T. null: all have T steps
  const bool* resets = nullptr;      // [rows]; null: none
  int64_t members = 1, lengths_stride = 0, resets_stride = 0;
};

// Writes marks, [members, rows], of rows that are not packed.
void write_marks(const Rows& rows, const MarkSources& sources, uint32_t* marks, cudaStream_t stream);

// The rows of a tensor: of each member `parts` times `rows` of them, `stride` bytes apart.
struct MarkedRows {
  void* first = nullptr;
  int64_t members = 1, parts = 1, rows = 0, stride = 0;
  int64_t bytes = 0;  // of a row those that are looked at: a multiple of 2, like the stride
};

// Zeros into the padding. marks: of each member [rows], marks_stride elements apart, the same for all its parts.
void clear_padding(const MarkedRows& rows, const uint32_t* marks, int64_t marks_stride, cudaStream_t stream);

}  // namespace gru::cuda
