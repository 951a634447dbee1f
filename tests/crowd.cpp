// crowd.h by a clock of its own: prints what is wrong, a line each.
#include "cpu/crowd.h"

#include <cstdio>

namespace {

constexpr int64_t kMillisecond = 1'000'000;

// A process whose regions of four threads take so many milliseconds each, of which each thread waits so many.
struct Process {
  gru::cpu::Crowd crowd;
  int64_t time = 1000 * kMillisecond;

  void call(int64_t taken, int64_t lost, int times = 1) {
    for (; times > 0; --times) {
      const int64_t end = time + taken * kMillisecond;
      crowd.met(4, time, end, lost * kMillisecond);
      time = end;
    }
  }
  int threads_after(int64_t milliseconds = 0) { return crowd.most_threads(time += milliseconds * kMillisecond); }
};

void expect(const char* what, int threads, int expected) {
  if (threads != expected) std::printf("%s: %d threads, expected %d\n", what, threads, expected);
}

}  // namespace

int main() {
  Process alone;
  alone.call(1, 0, 100);
  expect("nobody waits", alone.threads_after(), INT_MAX);

  Process woken;  // on one core, where they share it for 12 ms
  woken.call(4, 3);
  woken.call(8, 7);
  woken.call(1, 0, 50);
  woken.call(4, 3);
  woken.call(8, 7);
  expect("threads wake on one core", woken.threads_after(), INT_MAX);

  Process interrupted;
  interrupted.call(40, 39);
  expect("one long region", interrupted.threads_after(), INT_MAX);

  Process disturbed;
  for (int i = 0; i < 100; ++i) {
    disturbed.call(8, 7);
    disturbed.call(1, 0, 3);
  }
  expect("one region of four waits", disturbed.threads_after(), INT_MAX);

  Process beside;
  beside.call(8, 7, 2);
  expect("16 ms beside another", beside.threads_after(), INT_MAX);
  beside.call(8, 7);
  expect("24 ms beside another", beside.threads_after(), 2);
  expect("held", beside.threads_after(49), 2);
  expect("tried again", beside.threads_after(2), INT_MAX);
  beside.call(8, 7, 3);
  expect("in vain", beside.threads_after(), 2);
  expect("held for longer", beside.threads_after(99), 2);
  expect("and tried again", beside.threads_after(2), INT_MAX);
  beside.call(1, 0, 1000);
  beside.call(8, 7, 3);
  expect("after a time alone", beside.threads_after(49), 2);
  expect("held as at first", beside.threads_after(2), INT_MAX);
}
