#include "peaks.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <thread>

#include "plan.h"
#include "threads.h"
#include "workspace.h"

namespace gru::cpu {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLeastRepeats = 3;
// Long beside the clock's grain and the threads' meeting, short beside the time another process takes a core away for.
constexpr double kRepeatSeconds = 1e-3;
constexpr size_t kLargePage = size_t{2} << 20;
// From here on advise_large_pages asks for large pages: a buffer of any size is part of such a block, so that no
// translation of addresses is timed.
constexpr size_t kLeastBlock = size_t{4} << 20;

// Does `rounds` rounds on the calling thread, one of `threads`; returns how much was done in them.
using Work = std::function<double(int thread, int threads, int64_t rounds)>;

// More threads than processors would take turns.
int usable(int threads) {
  const unsigned processors = std::thread::hardware_concurrency();  // 0: not known
  return processors == 0 ? threads : std::min(threads, static_cast<int>(processors));
}

// What all threads do in a second together. Every repeat is the same number of rounds on each thread, timed from before
// the first begins to after the last has ended: a disturbed repeat shows less than the machine can do, none more.
double best_rate(int threads, int milliseconds, const Work& work) {
  Barrier barrier;
  // Written by thread 0 between a repeat's end and the next one's beginning, read by the others after the latter.
  int64_t rounds = 1;
  bool done = false;
  double best = 0;
  parallel(usable(threads), [&](int thread, int count) {
    double all = 0;
    int repeats = 0;
    for (;;) {
      const Clock::time_point begin = Clock::now();
      barrier.wait(count);
      if (done) return;
      const double amount = work(thread, count, rounds);
      barrier.wait(count);
      if (thread != 0) continue;
      const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      if (seconds < kRepeatSeconds) {
        rounds *= 2;
        continue;
      }
      best = std::max(best, amount * count / seconds);
      all += seconds;
      done = ++repeats >= kLeastRepeats && all * 1e3 >= milliseconds;
    }
  });
  return best;
}

struct Free {
  void operator()(char* data) const { std::free(data); }
};

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

double operations_per_second(DataType dtype, int threads, int milliseconds) {
  const Target& in_use = target();
  return best_rate(threads, milliseconds,
                   [&](int, int, int64_t rounds) { return in_use.multiply_adds(dtype, rounds * 1024); });
}

double bytes_per_second(int64_t bytes, int threads, int milliseconds) {
  const Target& in_use = target();
  const size_t size = round_up(std::max(static_cast<size_t>(bytes), kLeastBlock), kLargePage);
  const std::unique_ptr<char, Free> block(static_cast<char*>(std::aligned_alloc(kLargePage, size)));
  if (!block) throw std::bad_alloc();
  advise_large_pages(block.get(), size);
  const int64_t units = bytes / kProbeBytes;
  const auto size_of_part = [=](int count) { return std::max<int64_t>(units / count, 1) * kProbeBytes; };
  // More threads than units read the last unit together.
  const auto part_of = [&](int thread, int count) {
    return block.get() + std::min(thread * size_of_part(count), (units - 1) * kProbeBytes);
  };
  // Memory that nobody has written is one page of zeros, read from the nearest cache however much of it there is. Each
  // thread writes its own, which then lies in the memory next to it.
  parallel(usable(threads), [&](int thread, int count) {
    if (thread >= units) return;
    std::fill_n(reinterpret_cast<float*>(part_of(thread, count)),
                static_cast<size_t>(size_of_part(count)) / sizeof(float), 1.0f);
  });
  return best_rate(threads, milliseconds, [&](int thread, int count, int64_t rounds) {
    const int64_t part = size_of_part(count);
    in_use.read_bytes(part_of(thread, count), part, rounds);
    return static_cast<double>(part) * static_cast<double>(rounds);
  });
}

}  // namespace gru::cpu
