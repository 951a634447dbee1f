// How our kernels run a shape on a GPU, how the work is divided, and why. The launch and the explanation shown to users
// read the same plan.
#pragma once

#include <optional>
#include <string>

#include "decision.h"
#include "stationary.h"

namespace gru::cuda {

using gru::Pass;

// How the blocks of a group, which share W_hh, exchange the state after each step.
enum class Exchange {
  Solo,     // one block holds all of W_hh
  Cluster,  // through the shared memory of a cluster
  Grid,     // through the L2 cache
};
Exchange exchange(const Partition& partition);
const char* name(Exchange exchange);  // "solo", ...

struct Plan {
  Kernel kernel = Kernel::Step;
  Partition partition;   // of a stationary kernel
  bool together = true;  // both directions in one launch
  std::string reason;    // one sentence, in words

  const char* path() const { return kernel == Kernel::Step ? name(kernel) : name(exchange(partition)); }
};

// By this kernel, or by the one that decide() names; where a stationary one cannot run the shape it is the step path,
// and the reason says why.
Plan plan(const Shape& shape, Pass pass, const Device& device, std::optional<Kernel> kernel = std::nullopt);

}  // namespace gru::cuda
