#include "threads.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <climits>
#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#if !defined(__x86_64__)
#include <cfenv>
#endif
#endif

#include "crowd.h"

namespace gru::cpu {

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// What threads have waited beyond their patience, in nanoseconds, all of them together since the process began.
std::atomic<int64_t> waited{0};

Crowd crowd;

#ifdef _OPENMP
// A forked child inherits the parent's idea of the OpenMP pool but none of its threads: a parallel region would wait
// for them for ever. The child therefore runs alone.
std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

// How a thread rounds, and whether it takes denormals for zero: each thread of the pool has its own, and results must
// not depend on which of them computes. On x86 the register of the vector units alone, for the whole environment, with
// that of the old units, takes 20 times as long to read and set.
class FloatingPoint {
 public:
  static FloatingPoint here() {
    FloatingPoint state;
#if defined(__x86_64__)
    state.state_ = __builtin_ia32_stmxcsr();
#else
    std::fegetenv(&state.state_);
#endif
    return state;
  }
  void use() const {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(state_);
#else
    std::fesetenv(&state_);
#endif
  }

 private:
#if defined(__x86_64__)
  unsigned state_;
#else
  std::fenv_t state_;
#endif
};
#endif

}  // namespace

template <class Ready>
int64_t Patience::wait(const Ready& ready) {
  const int patience = spins_.load(std::memory_order_relaxed);
  int64_t beyond = 0;
  for (int spins = 0; spins < patience && !ready(); ++spins) pause();
  int next = std::min(kSpins, patience + kSpins / 16);
  if (!ready()) {
    const int64_t begin = now();
    // Not a sleep: two threads that wake one another may share a core and leave another idle.
    while (!ready()) sched_yield();
    beyond = now() - begin;
    next = patience / 4;
  }
  // Lost where another thread stores at the same time, which has met the same delay.
  if (next != patience) spins_.store(next, std::memory_order_relaxed);
  return beyond;
}

void Barrier::wait(int threads) {
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  const int64_t beyond = patience_.wait([this, round] { return round_.load(std::memory_order_acquire) != round; });
  if (beyond > 0) waited.fetch_add(beyond, std::memory_order_relaxed);
}

void Progress::wait(int64_t steps) {
  const auto there = [this, steps] { return steps_.load(std::memory_order_acquire) >= steps; };
  // Not counted as waiting for somebody else's cores: the layer below may simply have more to do.
  if (!there()) patience_.wait(there);
}

int available_cores() {
#if defined(__linux__)
  cpu_set_t cores;
  // Fails where the machine has more cores than the set has room for: then there are enough.
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
#endif
  return INT_MAX;
}

void parallel(int threads, const std::function<void(int, int)>& body) {
#ifdef _OPENMP
  const int64_t begin = threads > 1 ? now() : 0;
  if (threads > 1 && crowd.halves(begin)) threads /= 2;
  if (threads > 1 && !forked.load(std::memory_order_relaxed) && !omp_in_parallel()) {
    const FloatingPoint callers = FloatingPoint::here();
    const int64_t before = waited.load(std::memory_order_relaxed);
    int there = 1;
#pragma omp parallel num_threads(threads)
    {
      const FloatingPoint own = FloatingPoint::here();
      const int thread = omp_get_thread_num();
      if (thread > 0) callers.use();
      if (thread == 0) there = omp_get_num_threads();
      body(thread, omp_get_num_threads());
      if (thread > 0) own.use();
    }
    if (there > 1) crowd.met(begin, now(), (waited.load(std::memory_order_relaxed) - before) / (there - 1));
    return;
  }
#endif
  (void)threads;
  body(0, 1);
}

}  // namespace gru::cpu
