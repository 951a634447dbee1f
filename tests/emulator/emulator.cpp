// What the kernels' threads can do, and the start of a launch.
#include "emulator.h"

#include <cstring>
#include <mutex>

#include "scheduler.h"

namespace emulator {

// ---------------------------------------------------------------------------------------------------------------------
// What a thread can do
// ---------------------------------------------------------------------------------------------------------------------

Block& block() { return *launch->running->block; }
unsigned lane() { return launch->running->number % kWarp; }
Warp& warp() { return block().warps[launch->running->number / kWarp]; }
std::vector<std::vector<Copy>>& copy_groups() { return launch->running->copies; }
bool exited(const Block& block) { return block.exited == block.threads; }
bool drawn(unsigned of) { return launch->random.below(of) == 0; }
void later(std::function<void()> act) { launch->deliveries.push_back(std::move(act)); }
void fail(const std::string& message, Site site) { launch->fail(message, site); }

void finish(const Copy& copy) {
  std::memset(copy.to, 0, copy.bytes);
  std::memcpy(copy.to, copy.from, copy.valid);
}

bool in_shared(const Block& of, const void* pointer, size_t bytes) {
  const auto* const first = static_cast<const unsigned char*>(pointer);
  return first >= of.shared && first + bytes <= of.shared + of.shared_bytes;
}

void maybe_yield() {
  if (launch->running == nullptr || !drawn(2)) return;
  launch->runnable.push_back(launch->running);
  launch->running->fiber.leave();
}

void asked_flag() {
  if (launch->running == nullptr || ++launch->running->flags_asked % 64 != 0) return;
  launch->runnable.push_back(launch->running);
  launch->running->fiber.leave();
}

void wait_until(const char* what, std::function<bool()> ready, Site site, std::function<std::string()> state) {
  if (ready()) return;
  Thread& thread = *launch->running;
  thread.what = what;
  thread.site = site;
  thread.ready = std::move(ready);
  thread.state = std::move(state);
  launch->asking.push_back(&thread);
  launch->running->fiber.leave();
  thread.ready = nullptr;
  thread.state = nullptr;
  thread.what = nullptr;
}

void meet(Meeting& meeting, unsigned expected, bool waits, const char* what, Site site) {
  if (meeting.arrived == 0) meeting.expected = expected;
  if (meeting.expected != expected) {
    fail(std::string(what) + ": this thread expects " + std::to_string(expected) + " threads and the first to come " +
             std::to_string(meeting.expected),
         site);
  }
  Thread& thread = *launch->running;
  if (++meeting.arrived == expected) {
    meeting.arrived = 0;
    for (Thread* const other : meeting.waiting) launch->runnable.push_back(other);
    meeting.waiting.clear();
    maybe_yield();
    return;
  }
  if (!waits) return maybe_yield();
  meeting.waiting.push_back(&thread);
  thread.what = what;
  thread.site = site;
  thread.meeting = &meeting;
  launch->running->fiber.leave();
  thread.what = nullptr;
  thread.meeting = nullptr;
}

void meet_lanes(const char* operation, unsigned mask, void* argument, Together together, Site site) {
  Warp& own = warp();
  for (unsigned other = 0; other < kWarp; ++other) {
    if (own.lanes[other].thread == nullptr) mask &= ~(1u << other);  // the block ends within this warp
  }
  if ((mask >> lane() & 1) == 0) fail(std::string(operation) + ": the mask leaves out the calling lane", site);
  Warp::Lane& mine = own.lanes[lane()];
  mine.operation = operation;
  mine.mask = mask;
  mine.argument = argument;
  own.present |= 1u << lane();
  if ((own.present & mask) != mask) {
    mine.thread->what = operation;
    mine.thread->site = site;
    launch->running->fiber.leave();
    mine.thread->what = nullptr;
    return;
  }
  void* arguments[kWarp]{};
  for (unsigned other = 0; other < kWarp; ++other) {
    if ((mask >> other & 1) == 0) continue;
    const Warp::Lane& theirs = own.lanes[other];
    if (theirs.mask != mask || std::strcmp(theirs.operation, operation) != 0) {
      fail(std::string("lane ") + std::to_string(lane()) + " comes to " + operation + " and lane " +
               std::to_string(other) + " of its warp to " + theirs.operation +
               (theirs.mask != mask ? " with another mask" : ""),
           site);
    }
    arguments[other] = theirs.argument;
  }
  together(arguments, mask);
  own.present &= ~mask;
  for (unsigned other = 0; other < kWarp; ++other) {
    if ((mask >> other & 1) != 0 && other != lane()) launch->runnable.push_back(own.lanes[other].thread);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The host's side
// ---------------------------------------------------------------------------------------------------------------------

namespace {

uint64_t next_seed = 0;
std::mutex one_launch;

}  // namespace

void set_seed(uint64_t seed) { next_seed = seed; }

std::string run(const Shape& shape, const std::function<void()>& body) {
  static Stacks stacks;
  const std::lock_guard<std::mutex> alone(one_launch);
  Launch made(shape, body, next_seed, stacks);
  next_seed = next_seed * 6364136223846793005u + 1442695040888963407u;
  launch = &made;
  const std::string error = made.run();
  launch = nullptr;
  return error;
}

}  // namespace emulator
