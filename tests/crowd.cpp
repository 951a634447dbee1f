// crowd.h by a clock of its own: prints what is wrong, a line each.
#include "cpu/crowd.h"

#include <cstdio>

namespace {

constexpr int64_t kMillisecond = 1'000'000;

// A process whose regions take so many milliseconds each, of which each thread waits so many.
struct Process {
  gru::cpu::Crowd crowd;
  int64_t time = 1000 * kMillisecond;

  void call(int64_t taken, int64_t lost, int times = 1) {
    for (; times > 0; --times) {
      const int64_t end = time + taken * kMillisecond;
      crowd.met(time, end, lost * kMillisecond);
      time = end;
    }
  }
  bool halved_after(int64_t milliseconds = 0) { return crowd.halves(time += milliseconds * kMillisecond); }
};

void expect(const char* what, bool halved, bool expected) {
  if (halved != expected) std::printf("%s: %s\n", what, halved ? "half the threads" : "all threads");
}

}  // namespace

int main() {
  Process alone;
  alone.call(1, 0, 100);
  expect("nobody waits", alone.halved_after(), false);

  Process woken;  // on one core, where they share it for 12 ms
  woken.call(4, 3);
  woken.call(8, 7);
  woken.call(1, 0, 50);
  woken.call(4, 3);
  woken.call(8, 7);
  expect("threads wake on one core", woken.halved_after(), false);

  Process interrupted;
  interrupted.call(40, 39);
  expect("one long region", interrupted.halved_after(), false);

  Process disturbed;
  for (int i = 0; i < 100; ++i) {
    disturbed.call(8, 7);
    disturbed.call(1, 0, 3);
  }
  expect("one region of four waits", disturbed.halved_after(), false);

  Process unequal;
  unequal.call(21, 10, 20);
  expect("shares of one and two", unequal.halved_after(), false);

  Process seldom;
  for (int i = 0; i < 10; ++i) {
    seldom.call(8, 7);
    expect("once in a while", seldom.halved_after(1000), false);
  }

  Process beside;
  beside.call(8, 7, 2);
  expect("16 ms beside another", beside.halved_after(), false);
  beside.call(8, 7);
  expect("24 ms beside another", beside.halved_after(), true);
  expect("held", beside.halved_after(49), true);
  expect("tried again", beside.halved_after(2), false);
  beside.call(8, 7, 3);
  expect("in vain", beside.halved_after(), true);
  expect("held for longer", beside.halved_after(99), true);
  expect("and tried again", beside.halved_after(2), false);
  beside.call(1, 0, 1000);
  beside.call(8, 7, 3);
  expect("after a time alone", beside.halved_after(49), true);
  expect("held as at first", beside.halved_after(2), false);
}
