// Which CUDA kernel runs for a shape, how its work is divided, and why. The launch and the explanation shown to users
// read the same plan.
#pragma once

#include <cstdint>
#include <string>

#include "../gru.h"
#include "device.h"
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
  bool packed = false, training = false;
  bool tf32 = false;  // of float32: whether products may round to TF32
};

// What runs a layer, in the words of the environment variable GRU_EXT_CUDA_KERNEL: "library", torch's own kernels,
// which the caller runs; or our kernels: "step", "solo", "cluster", "grid"; "stationary", whichever of the last three
// fits; or "wavefront", the same with stacked layers that overlap, for which the caller cares. The environment variable
// decides; else the choice for the nearest batch, no more than twice or less than half of the shape's, among those made
// for its dtype, hidden size, directions, packed, training and tf32; else it is the library: ours have not been
// measured on a GPU. Unknown words in the variable: std::invalid_argument.
std::string chosen(const Shape& shape);

// A choice from a measurement on this machine, for chosen. Kept until the process ends or they are forgotten; any
// thread may make one. std::invalid_argument: an unknown word.
struct Choice {
  Shape shape;
  std::string word;
};
void choose(const Choice& choice);
void forget_choices();

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
