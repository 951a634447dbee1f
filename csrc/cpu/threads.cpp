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

// Whether somebody else is using the cores. Where threads meet at every step, each waits until the system gives its
// partner a core again: milliseconds, for a step of microseconds. Half as many threads then do the work sooner.
class Crowd {
 public:
  // A region of so many threads has taken so long, of which each has waited so long.
  void met(int threads, int64_t taken, int64_t lost) {
    if (lost * kShare < taken) {
      const int score = score_.load(std::memory_order_relaxed);
      if (score > 0) score_.store(score - 1, std::memory_order_relaxed);
      return;
    }
    const int score = score_.load(std::memory_order_relaxed) + 2;
    score_.store(score, std::memory_order_relaxed);
    if (score < kEnough) return;
    // Threads that are soon in the crowd's way again wait longer before the next attempt.
    const int64_t time = now(), hold = hold_.load(std::memory_order_relaxed);
    const bool again = time < until_.load(std::memory_order_relaxed) + hold;
    const int64_t next = again ? std::min(2 * hold, kLongest) : kShortest;
    hold_.store(next, std::memory_order_relaxed);
    until_.store(time + next, std::memory_order_relaxed);
    most_.store(std::max(1, threads / 2), std::memory_order_relaxed);
    score_.store(kEnough - 2, std::memory_order_relaxed);
  }
  int most() {
    const int most = most_.load(std::memory_order_relaxed);
    if (most < INT_MAX && now() > until_.load(std::memory_order_relaxed)) {
      most_.store(INT_MAX, std::memory_order_relaxed);
      return INT_MAX;
    }
    return most;
  }

 private:
  // A third of a region's time, in two regions of a few: a core that is taken away once does not count.
  static constexpr int64_t kShare = 3;
  static constexpr int kEnough = 4;
  static constexpr int64_t kShortest = 50'000'000, kLongest = 1'600'000'000;  // nanoseconds

  // Calls at the same time may lose one another's marks, which come again.
  std::atomic<int> score_{0}, most_{INT_MAX};
  std::atomic<int64_t> until_{0}, hold_{kShortest};
};
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
  if (threads > 1) threads = std::min(threads, crowd.most());
  if (threads > 1 && !forked.load(std::memory_order_relaxed) && !omp_in_parallel()) {
    const FloatingPoint callers = FloatingPoint::here();
    const int64_t begin = now(), before = waited.load(std::memory_order_relaxed);
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
    if (there > 1) crowd.met(there, now() - begin, (waited.load(std::memory_order_relaxed) - before) / (there - 1));
    return;
  }
#endif
  (void)threads;
  body(0, 1);
}

}  // namespace gru::cpu
