// Which CUDA kernel runs for a shape, by what was chosen (choice.h), how its work is divided, and why. The launch and
// the explanation shown to users read the same plan.
#pragma once

#include <string>

#include "choice.h"
#include "stationary.h"

namespace gru::cuda {

enum class Kernel {
  Step,     // a library matrix product and one fused cell kernel for each time step
  Solo,     // W_hh stays in the registers of one block, for the whole sequence
  Cluster,  // W_hh stays in the registers of a cluster of blocks, which exchange through their shared memory
  Grid,     // W_hh stays in the registers of many blocks, which exchange through the L2 cache
};

enum class Pass { Forward, Backward };

struct Plan {
  Kernel kernel = Kernel::Step;
  Partition partition;   // of the kernels with stationary weights
  bool together = true;  // both directions in one launch
  std::string reason;    // one sentence, in words
};

// "step", ...: the name used in profiles and explanations.
const char* name(Kernel kernel);

// The kernel among ours: the one chosen; where that cannot run the shape, or the library was chosen and yet this is
// asked for, as in a compiled graph, the step path, and the reason says so.
Plan plan(const Shape& shape, Pass pass, const Device& device);

}  // namespace gru::cuda
