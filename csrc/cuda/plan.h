// Which CUDA kernel runs for a shape, how its work is divided, and why. The launch and the explanation shown to users
// read the same plan.
#pragma once

#include <cstdint>
#include <string>

#include "../gru.h"
#include "stationary.h"

namespace gru::cuda {

enum class Kernel {
  Step,     // a library matrix product and one fused cell kernel for each time step
  Solo,     // W_hh stays in the registers of one block, for the whole sequence
  Cluster,  // W_hh stays in the registers of a cluster of blocks, which exchange through their shared memory
  Grid,     // W_hh stays in the registers of many blocks, which exchange through the L2 cache
};

enum class Pass { Forward, Backward };

// One layer, of one or two directions.
struct Shape {
  DataType dtype = DataType::Float32;
  int64_t seq_len = 0, batch = 0, input_size = 0, hidden_size = 0;
  int directions = 1;
};

// What a plan must know of the GPU.
struct Device {
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t shared = 0;  // bytes of shared memory that a block may have
};

struct Plan {
  Kernel kernel = Kernel::Step;
  Partition partition;   // of the kernels with stationary weights
  bool together = true;  // both directions in one launch
  std::string reason;    // one sentence, in words
};

// "step", ...: the name used in profiles and explanations.
const char* name(Kernel kernel);

// The GPU that is current; the runtime keeps what is asked for here, so that asking costs little.
Device current_device();

// The environment variable GRU_EXT_CUDA_KERNEL, a name of the above, asks for a kernel; where that cannot run the
// shape, the step path does, and the reason says so. Without it the step path runs: the others have not been measured
// on a GPU.
Plan plan(const Shape& shape, Pass pass, const Device& device);

}  // namespace gru::cuda
