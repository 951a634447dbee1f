// The properties of a GPU that decisions and plans depend on, queried once for each GPU.
#pragma once

#include <cstdint>
#include <string>

namespace gru::cuda {

constexpr int kLargestCluster = 16;  // blocks; more than 8 where the GPU says so

struct Device {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t shared = 0;                      // bytes of shared memory that a block may have
  int clusters[kLargestCluster + 1] = {};  // by their number of blocks, each of which fills a multiprocessor: how many
                                           // clusters run at the same time
};

// The GPU of this number; negative: the current one.
const Device& device_at(int number);

// A GPU that this machine need not have. From compute capability 9.0 on it has clusters of up to 16 blocks, as an H100:
// its multiprocessors stand in groups of 18, of which 16 are usable, and no cluster spans two groups.
Device described_device(int major, int minor, int multiprocessors, int64_t shared);

}  // namespace gru::cuda
