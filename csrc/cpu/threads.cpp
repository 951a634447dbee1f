#include "threads.h"

#include <sched.h>

#include <algorithm>
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

void Barrier::wait(int threads) {
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  const int patience = patience_.load(std::memory_order_relaxed);
  int spins = 0;
  for (; round_.load(std::memory_order_acquire) == round; ++spins) {
    if (spins < patience)
      pause();
    else
      sched_yield();  // not a sleep: two threads that wake one another may share a core and leave another idle
  }
  // Lost where another thread stores at the same time, which has met the same delay.
  const int next = spins > patience ? patience / 4 : std::min(kSpins, patience + kSpins / 16);
  if (next != patience) patience_.store(next, std::memory_order_relaxed);
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
  if (threads > 1 && !forked.load(std::memory_order_relaxed) && !omp_in_parallel()) {
    const FloatingPoint callers = FloatingPoint::here();
#pragma omp parallel num_threads(threads)
    {
      const FloatingPoint own = FloatingPoint::here();
      const int thread = omp_get_thread_num();
      if (thread > 0) callers.use();
      body(thread, omp_get_num_threads());
      if (thread > 0) own.use();
    }
    return;
  }
#endif
  (void)threads;
  body(0, 1);
}

}  // namespace gru::cpu
