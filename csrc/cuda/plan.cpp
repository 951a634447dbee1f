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
  plan.reason = shape.seq_len == 1 ? "a single step has no weights to keep on the chip for the next one"
                                   : "the one CUDA path there is; it serves every shape, type and architecture";
  return plan;
}

}  // namespace gru::cuda
