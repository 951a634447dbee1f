// What a step of the kernels with stationary weights should take, from latencies and rates of an H100 (the .cpp says
// which). A yardstick for a measurement, and none itself: plan does not read it.
#pragma once

#include "plan.h"

namespace gru::cuda {

struct Expectation {
  double step_microseconds = 0;  // of this partition: its exchange, its chains of products, its cells
  double bound_microseconds =
      0;  // the same exchange and cells once, the products at the peak rate of the group's blocks
};

// Of a plan with stationary weights; {0, 0} of the step path.
Expectation expect(const Shape& shape, const Plan& plan, const Device& device);

}  // namespace gru::cuda
