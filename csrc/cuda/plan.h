// Which CUDA kernel runs for a shape, and why. The launch and the explanation shown to users read the same plan.
#pragma once

#include <cstdint>
#include <string>

#include "../gru.h"

namespace gru::cuda {

enum class Kernel {
  Step,  // a library matrix product and one fused cell kernel for each time step
};

// One layer and direction.
struct Shape {
  DataType dtype = DataType::Float32;
  int64_t seq_len = 0, batch = 0, input_size = 0, hidden_size = 0;
  bool training = false;  // whether a backward pass will follow
};

struct Plan {
  Kernel kernel = Kernel::Step;
  std::string reason;  // one sentence, in words
};

// "step", ...: the name used in profiles and explanations.
const char* name(Kernel kernel);

Plan plan(const Shape& shape);

}  // namespace gru::cuda
