// One parallel region a pass, and the barrier inside it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace gru::cpu {

// How a thread waits for another. Spins, because a step of the recurrence takes microseconds; after a while it yields,
// because there may be more threads at work than cores, and where that happened it soon yields at once.
class Patience {
 public:
  template <class Ready>
  int64_t wait(const Ready& ready);  // nanoseconds beyond its patience

 private:
  static constexpr int kSpins = 4000;
  std::atomic<int> spins_{kSpins};
};

// Threads of a region meet here.
class Barrier {
 public:
  void wait(int threads);  // threads: how many meet, the same number from each

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) Patience patience_;
};

// How many steps a layer has done, for the thread that takes the next layer.
class Progress {
 public:
  void reach(int64_t steps) { steps_.store(steps, std::memory_order_release); }
  void wait(int64_t steps);

 private:
  alignas(64) std::atomic<int64_t> steps_{0};
  alignas(64) Patience patience_;
};

// Cores that this process may run on: more threads than these would wait for one another in turns.
int available_cores();

// Runs body(thread, threads) on `threads` threads of torch's own OpenMP pool, so that no second pool competes with it.
// Fewer may come (nested region, thread limit, after fork, or where threads have lately waited for cores that somebody
// else uses): body must take the number it is given as the truth. All round, and treat denormals, as the calling thread
// does.
void parallel(int threads, const std::function<void(int thread, int threads)>& body);

}  // namespace gru::cpu
