// Where the passes spend their time, by phase and thread: what `python -m gru_ext profile` shows. The clock is compiled
// into every kernel and off unless set_phase_clock(true) was called; off it costs a branch a phase, none of which lies
// within a loop over columns. No result depends on it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "../gru.h"

namespace gru::cpu {

using gru::Pass;
constexpr int kPasses = 2;

enum class Phase {
  Packing,     // rearranging W_ih and W_hh, and the state before the first step
  Projection,  // the inputs' product with W_ih
  Product,     // the product with W_hh, step by step
  Gates,       // what a step does with its sums: gates and state, or the gradients before the activations
  Waiting,     // for the other threads
  Gradients,   // backward's large products: gradients of the input, the weights and the biases, and their operands
  Recompute,   // backward's gates, where forward kept the states alone
};
constexpr int kPhases = 7;
const char* name(Phase phase);  // in lower case

// Switches the clock for the passes that begin from now on, in every thread. On, it begins at zero.
void set_phase_clock(bool on);
inline std::atomic<bool> phase_clock_on{false};

// What the clock has counted. A direction of a layer is a call. seconds: from a call's begin to its end, as the thread
// that made it sees them; thread_seconds: the same, each call's times the threads that it had. phases: of each thread
// that took part, and whatever of its thread_seconds is in none of them went into waking and joining threads and into
// memory.
struct PassTimes {
  int64_t calls = 0;
  double seconds = 0, thread_seconds = 0;
  std::vector<std::array<double, kPhases>> phases;
};
// Of passes that have ended. Safe beside running ones.
std::array<PassTimes, kPasses> phase_times();

// A thread's way through a pass.
class PhaseClock {
 public:
  PhaseClock(Pass pass, Phase first) : on_(phase_clock_on.load(std::memory_order_relaxed)) {
    if (on_) start(pass, first);
  }
  PhaseClock(const PhaseClock&) = delete;
  PhaseClock& operator=(const PhaseClock&) = delete;
  ~PhaseClock() {
    if (on_) stop();
  }

  void enter(Phase next) {
    if (__builtin_expect(on_, false)) turn(next);
  }

 private:
  void start(Pass pass, Phase first);
  void turn(Phase next);
  void stop();

  const bool on_;
  Pass pass_;  // the rest is set only when on
  Phase phase_;
  int64_t since_;
  std::array<int64_t, kPhases> nanoseconds_;
};

// A pass as a whole, on the thread that makes the call.
class PassTimer {
 public:
  PassTimer(Pass pass, int threads) : on_(phase_clock_on.load(std::memory_order_relaxed)) {
    if (on_) start(pass, threads);
  }
  PassTimer(const PassTimer&) = delete;
  PassTimer& operator=(const PassTimer&) = delete;
  ~PassTimer() {
    if (on_) stop();
  }

 private:
  void start(Pass pass, int threads);
  void stop();

  const bool on_;
  Pass pass_;  // the rest is set only when on
  int threads_;
  int64_t begin_;
};

}  // namespace gru::cpu
