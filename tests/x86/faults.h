// Faults to plant in the model, one a run: the tests must notice each.
#pragma once

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
  kMixLanes
};
inline Fault fault = kNone;

}  // namespace x86_model
