// What this machine can do at most, measured with the loops of the target in use: arithmetic, and reading from the
// cache that holds so many bytes. The yardstick of `python -m gru_ext explain --floor`; no kernel asks for it.
#pragma once

#include <cstdint>

#include "../gru.h"

namespace gru::cpu {

// What the arguments may be; the binding checks them.
constexpr int64_t kLeastPeakBytes = 4096, kMostPeakBytes = int64_t{1} << 31;
constexpr int kMostPeakThreads = 1024, kMostPeakMilliseconds = 10000;

// Both run on `threads` threads at the same time, or on as many as the machine has processors when that is fewer, and
// return what all of them did together in a second, in the best of many short repeats. They take `milliseconds`, or
// as long as three repeats.

// Operations of multiply-adds, two each, on the operands that a product of this dtype has.
double operations_per_second(DataType dtype, int threads, int milliseconds);

// Bytes, each thread reading its own part of a buffer of `bytes` bytes over and over. Throws std::bad_alloc.
double bytes_per_second(int64_t bytes, int threads, int milliseconds);

}  // namespace gru::cpu
