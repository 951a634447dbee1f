#include "plan.h"

namespace gru::cuda {

const char* name(Kernel kernel) {
  switch (kernel) {
    case Kernel::Step:
      return "step";
  }
  return "unknown";
}

Plan plan(const Shape& shape) {
  Plan plan;
  plan.kernel = Kernel::Step;
  plan.reason = "it serves every shape, type and architecture; no kernel that keeps the weights on the chip exists yet";
  if (shape.seq_len == 1) plan.reason = "a single step has nothing to keep on the chip from one step to the next";
  return plan;
}

}  // namespace gru::cuda
