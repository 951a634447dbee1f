// Where our kernels were measured to be faster than torch's. Generated, never edited:
// benchmarks/measured_table.py has the rule.
#pragma once

#include <vector>

#include "choice.h"

namespace gru::cuda {

// clang-format off
// No GPU has been measured yet.
inline std::vector<Measured> measured_table() {
  return {
  };
}
// clang-format on

}  // namespace gru::cuda
