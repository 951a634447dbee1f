// Whether somebody else is using the cores. Where threads meet at every step, each waits until the system gives its
// partner a core again: milliseconds, for a step of microseconds. Half as many threads then do the work sooner.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace gru::cpu {

// All times in nanoseconds, by one clock.
class Crowd {
 public:
  // A region has taken from begin to end, of which each thread has waited so long.
  void met(int64_t begin, int64_t end, int64_t lost) {
    int score = score_.load(std::memory_order_relaxed);
    if (lost * kShare < end - begin) {
      if (score > 0) score_.store(score - 1, std::memory_order_relaxed);
      return;
    }
    if (begin > last_.exchange(end, std::memory_order_relaxed) + kForgotten) score = 0;
    if (score == 0) since_.store(begin, std::memory_order_relaxed);
    score = std::min(score + 2, kEnough);
    score_.store(score, std::memory_order_relaxed);
    if (score < kEnough || end - since_.load(std::memory_order_relaxed) < kLasting) return;
    // Threads that are soon in the crowd's way again wait longer before the next attempt.
    const int64_t hold = hold_.load(std::memory_order_relaxed);
    const bool again = end < until_.load(std::memory_order_relaxed) + hold;
    const int64_t next = again ? std::min(2 * hold, kLongest) : kShortest;
    hold_.store(next, std::memory_order_relaxed);
    until_.store(end + next, std::memory_order_relaxed);
    halved_.store(true, std::memory_order_relaxed);
    score_.store(0, std::memory_order_relaxed);
  }

  // Whether a region that begins now is to have half its threads.
  bool halves(int64_t begin) {
    if (!halved_.load(std::memory_order_relaxed)) return false;
    if (begin <= until_.load(std::memory_order_relaxed)) return true;
    halved_.store(false, std::memory_order_relaxed);
    return false;
  }

 private:
  // Half of a region's time, in two regions of a few: a core that is taken away once does not count, nor do threads
  // whose shares are unequal. Nor do threads that the system wakes on the same core, for as long as it takes to move
  // one of them: 12 ms where it was measured. What is long ago is forgotten.
  static constexpr int kShare = 2;
  static constexpr int kEnough = 4;
  static constexpr int64_t kLasting = 20'000'000, kForgotten = 100'000'000;
  static constexpr int64_t kShortest = 50'000'000, kLongest = 1'600'000'000;

  // Calls at the same time may lose one another's marks, which come again.
  std::atomic<int> score_{0};
  std::atomic<bool> halved_{false};
  std::atomic<int64_t> since_{0}, last_{0}, until_{0}, hold_{kShortest};  // since: when the score was last 0
};

}  // namespace gru::cpu
