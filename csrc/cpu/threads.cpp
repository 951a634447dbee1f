#include "threads.h"

#include <sched.h>

#include <algorithm>
#include <climits>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

namespace gru::cpu {

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Sleeping, not yielding: a thread that wakes soon gets its core back from another process, one that yields waits until
// that process's slice of time is over.
void sleep_while(std::atomic<uint32_t>& value, uint32_t expected) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
#else
  (void)value;
  (void)expected;
  sched_yield();
#endif
}
void wake(std::atomic<uint32_t>& value) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)value;
#endif
}

#ifdef _OPENMP
// A forked child inherits the parent's idea of the OpenMP pool but none of its threads: a parallel region would wait
// for them for ever. The child therefore runs alone.
std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

}  // namespace

void Barrier::wait(int threads) {
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
    arrived_.store(0, std::memory_order_relaxed);
    // In one order with a sleeper's announcement and its look at the round: one of the two sees the other.
    round_.store(round + 1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) wake(round_);
    return;
  }
  const int patience = patience_.load(std::memory_order_relaxed);
  int spins = 0;
  for (; round_.load(std::memory_order_acquire) == round && spins < patience; ++spins) pause();
  const bool slept = round_.load(std::memory_order_acquire) == round;
  if (slept) {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (round_.load(std::memory_order_seq_cst) == round) sleep_while(round_, round);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }
  // Lost where another thread stores at the same time, which has met the same delay.
  const int next = slept ? patience / 4 : std::min(kSpins, patience + kSpins / 16);
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
#pragma omp parallel num_threads(threads)
    body(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  (void)threads;
  body(0, 1);
}

}  // namespace gru::cpu
