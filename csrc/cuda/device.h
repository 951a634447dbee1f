// What is asked of a GPU before a plan is made: once for each, since the answers stay the same.
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
  int clusters[kLargestCluster + 1] = {};  // by their blocks, each of which fills a multiprocessor: how many clusters
                                           // run at the same time. Of one block as many as there are multiprocessors
};

// The GPU of this number; negative: the one that is current.
const Device& device_at(int number);

// A GPU that is not there to be asked, from compute capability 9.0 on with clusters of up to 16 blocks: its
// multiprocessors stand in groups of 18, of each of which 16 are there, and no cluster spans two, as in an H100.
Device described_device(int major, int minor, int multiprocessors, int64_t shared);

}  // namespace gru::cuda
