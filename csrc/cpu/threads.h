// One parallel region a pass, and the barrier inside it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace gru::cpu {

// Threads of a region meet here. Spins, because a step of the recurrence takes microseconds; after a while it yields,
// because there may be more threads at work than cores, and where that happened it soon yields at once.
class Barrier {
 public:
  void wait(int threads);  // threads: how many meet, the same number from each

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int> patience_{kSpins};

  static constexpr int kSpins = 4000;
};

// Cores that this process may run on: more threads than these would wait for one another in turns.
int available_cores();

// Runs body(thread, threads) on `threads` threads of torch's own OpenMP pool, so that no second pool competes with it.
// Fewer may come (nested region, thread limit, after fork, or where threads have lately waited for cores that somebody
// else uses): body must take the number it is given as the truth. All round, and treat denormals, as the calling thread
// does.
void parallel(int threads, const std::function<void(int thread, int threads)>& body);

}  // namespace gru::cpu
