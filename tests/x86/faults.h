// Faults to plant in the model, one a run: the tests must notice each. And what the model says where the processor
// would fault.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace x86_model {

enum Fault {
  kNone,
  kDropLastWord,
  kDropLastRow,
  kReadPastRow,
  kMixRows,
  kNoRelease,
  kSwapHalves,
  kDropLastRun,
  kUpperHalves,
  kMixLanes,
  kSignedBytes
};
inline Fault fault = kNone;

[[noreturn]] inline void misuse(const char* instruction, const char* what) {
  std::fprintf(stderr, "x86_model: %s: %s\n", instruction, what);
  std::abort();
}

}  // namespace x86_model
