// The scheduler of the emulated GPU: fibers, who runs next, what becomes of a launch in which nobody can.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <tuple>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

struct Fiber {
  // The stack and the registers, while it does not run.
  char* stack = nullptr;
  ucontext_t entry{};
  void* registers[5]{};
  bool started = false, ended = false;
  [[maybe_unused]] void* left = nullptr;  // AddressSanitizer's
  // Who it is.
  Block* block = nullptr;
  uint3 index{};
  unsigned number = 0;  // within the block
  // What it waits for.
  const char* what = nullptr;
  Site site{};
  const Meeting* meeting = nullptr;
  std::function<bool()> ready;
  std::function<std::string()> state;
  // What it has under way.
  std::vector<std::vector<Copy>> copies{{}};
  unsigned cluster_phase = 0;
  int flags_asked = 0;
};

namespace {

constexpr size_t kStack = 128 << 10;
constexpr unsigned kMostFibers = 1 << 16;
constexpr std::chrono::seconds kLongest{120};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {  // splitmix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  unsigned below(size_t bound) { return static_cast<unsigned>(next() % bound); }

 private:
  uint64_t state_;
};

// Memory for stacks, kept from launch to launch: pages that were never touched cost nothing.
class Stacks {
 public:
  char* get(unsigned number) {
    if (memory_ == nullptr) {
      void* const mapped = mmap(nullptr, kStack * kMostFibers, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapped == MAP_FAILED) std::abort();
      memory_ = static_cast<char*>(mapped);
    }
    char* const stack = memory_ + kStack * number;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack, kStack);  // a launch that failed left its frames
#endif
    std::memset(stack, kMark, kMarked);
    return stack;
  }
  // Whether a fiber has come near to the end of its stack.
  static bool overrun(const char* stack) {
    return std::any_of(stack, stack + kMarked, [](char byte) { return byte != kMark; });
  }

 private:
  static constexpr size_t kMarked = 256;
  static constexpr char kMark = 0x5a;
  char* memory_ = nullptr;
};

class Launch {
 public:
  Launch(const Shape& shape, const std::function<void()>& body, uint64_t seed, Stacks& stacks);
  ~Launch();
  std::string run();

  // Of the fiber that runs.
  void main();
  [[noreturn]] void fail(const std::string& message, Site site);
  void leave();

  Fiber* running = nullptr;
  std::vector<Fiber*> runnable, asking;  // asking: those whose `ready` is to be asked
  std::vector<std::function<void()>> deliveries;
  Random random;

 private:
  // The blocks of a cluster and their threads.
  struct Group {
    Cluster cluster;
    std::vector<std::unique_ptr<Fiber>> fibers;
    unsigned slot = 0;  // whose stacks they have
  };
  struct Failure {};

  void start_group();
  void end_groups();
  void resume(Fiber& fiber);
  Fiber* choose();
  void ask();
  std::string waiting() const;

  const Shape shape_;
  const std::function<void()>& body_;
  Stacks& stacks_;
  const unsigned threads_, clusters_;
  bool skewed_;
  unsigned resident_ = 0;  // clusters that are alive at once
  unsigned started_ = 0;
  std::vector<std::unique_ptr<Group>> groups_;
  std::vector<unsigned> free_slots_;
  bool group_ended_ = false;
  void* registers_[5]{};
  std::string error_;
};

Launch* launch = nullptr;  // the one in progress

bool over(const Block& block) { return block.exited == block.threads; }

bool over(const Cluster& cluster) {
  return std::all_of(cluster.blocks.begin(), cluster.blocks.end(), [](const Block& block) { return over(block); });
}

// ---------------------------------------------------------------------------------------------------------------------
// Changing stacks. The first time a fiber runs the C library prepares its stack; from then on the compiler's own
// setjmp, which costs a few instructions and no system call.
// ---------------------------------------------------------------------------------------------------------------------

__attribute__((noinline, no_sanitize_address)) void jump(void** registers) { __builtin_longjmp(registers, 1); }

// AddressSanitizer is told of each change; stack null: back to the thread's own.
void before_change([[maybe_unused]] void** left, [[maybe_unused]] const void* stack) {
#if defined(__SANITIZE_ADDRESS__)
  static const void* own = nullptr;
  static size_t size = 0;
  if (own == nullptr) {
    pthread_attr_t attributes;
    void* lowest = nullptr;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &lowest, &size);
    pthread_attr_destroy(&attributes);
    own = lowest;
  }
  __sanitizer_start_switch_fiber(left, stack == nullptr ? own : stack, stack == nullptr ? size : kStack);
#endif
}
void after_change([[maybe_unused]] void* entered) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(entered, nullptr, nullptr);
#endif
}

void fiber_main() {
  after_change(nullptr);
  launch->main();
}

__attribute__((noinline)) void prepare(Fiber& fiber) {
  getcontext(&fiber.entry);
  fiber.entry.uc_stack.ss_sp = fiber.stack;
  fiber.entry.uc_stack.ss_size = kStack;
  fiber.entry.uc_link = nullptr;
  makecontext(&fiber.entry, fiber_main, 0);
}

__attribute__((noinline)) void Launch::resume(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.index;
  blockIdx = fiber.block->index;
  void* left = nullptr;
  before_change(&left, fiber.stack);
  if (__builtin_setjmp(registers_) == 0) {
    if (fiber.started) jump(fiber.registers);
    fiber.started = true;
    setcontext(&fiber.entry);
  }
  after_change(left);
  running = nullptr;
}

__attribute__((noinline)) void Launch::leave() {
  Fiber& fiber = *running;
  before_change(fiber.ended ? nullptr : &fiber.left, nullptr);
  if (__builtin_setjmp(fiber.registers) == 0) jump(registers_);
  after_change(fiber.left);
}

// ---------------------------------------------------------------------------------------------------------------------
// The launch
// ---------------------------------------------------------------------------------------------------------------------

Launch::Launch(const Shape& shape, const std::function<void()>& body, uint64_t seed, Stacks& stacks)
    : random(seed),
      shape_(shape),
      body_(body),
      stacks_(stacks),
      threads_(shape.block.x * shape.block.y * shape.block.z),
      clusters_(shape.grid.x * shape.grid.y * shape.grid.z / shape.cluster),
      skewed_(random.below(2) == 0) {
  // A GPU promises to run the blocks of a cooperative launch together, and no others.
  const bool together = shape.cooperative || random.below(2) == 0;
  const unsigned most = kMostFibers / (threads_ * shape.cluster);
  resident_ = std::min(together ? clusters_ : 1 + random.below(clusters_), most);
  for (unsigned slot = resident_; slot > 0; --slot) free_slots_.push_back(slot - 1);
  blockDim = shape.block;
  gridDim = shape.grid;
}

Launch::~Launch() {
  for (const auto& group : groups_) {
    for (Block& block : group->cluster.blocks) std::free(block.shared);
  }
}

void Launch::start_group() {
  auto group = std::make_unique<Group>();
  group->slot = free_slots_.back();
  free_slots_.pop_back();
  Cluster& cluster = group->cluster;
  cluster.blocks.resize(shape_.cluster);
  for (unsigned rank = 0; rank < shape_.cluster; ++rank) {
    Block& block = cluster.blocks[rank];
    const unsigned number = started_ * shape_.cluster + rank;
    block.index = {number % shape_.grid.x, number / shape_.grid.x % shape_.grid.y,
                   number / shape_.grid.x / shape_.grid.y};
    block.rank = rank;
    block.cluster = &cluster;
    block.threads = threads_;
    block.warps.resize((threads_ + kWarp - 1) / kWarp);
    block.shared_bytes = shape_.shared;
    if (shape_.shared > 0) {
      void* memory = nullptr;
      if (posix_memalign(&memory, 128, shape_.shared) != 0) std::abort();
      block.shared = static_cast<unsigned char*>(memory);
      std::memset(block.shared, kPoison, shape_.shared);
    }
    const unsigned importance = random.below(4);
    for (unsigned thread = 0; thread < threads_; ++thread) {
      if (thread % kWarp == 0) block.warps[thread / kWarp].importance = importance * 4 + random.below(4);
      auto fiber = std::make_unique<Fiber>();
      fiber->stack = stacks_.get((group->slot * shape_.cluster + rank) * threads_ + thread);
      fiber->block = &block;
      fiber->number = thread;
      fiber->index = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
      prepare(*fiber);
      block.warps[thread / kWarp].lanes[thread % kWarp].fiber = fiber.get();
      runnable.push_back(fiber.get());
      group->fibers.push_back(std::move(fiber));
    }
  }
  ++started_;
  groups_.push_back(std::move(group));
}

// A block's memory stays until the launch ends, so that whoever reaches for it too late is told.
void Launch::end_groups() {
  for (const auto& group : groups_) {
    if (group->fibers.empty() || !over(group->cluster)) continue;
    group->fibers.clear();
    free_slots_.push_back(group->slot);
  }
  group_ended_ = false;
}

Fiber* Launch::choose() {
  // Skewed: of a few drawn, one whose warp matters most, so that some run far ahead of the others.
  const auto importance = [](const Fiber* fiber) { return fiber->block->warps[fiber->number / kWarp].importance; };
  size_t best = random.below(runnable.size());
  for (int more = skewed_ ? 5 : 0; more > 0; --more) {
    const size_t other = random.below(runnable.size());
    if (importance(runnable[other]) > importance(runnable[best])) best = other;
  }
  Fiber* const chosen = runnable[best];
  runnable[best] = runnable.back();
  runnable.pop_back();
  return chosen;
}

void Launch::ask() {
  const auto gone = std::remove_if(asking.begin(), asking.end(), [this](Fiber* fiber) {
    if (!fiber->ready()) return false;
    runnable.push_back(fiber);
    return true;
  });
  asking.erase(gone, asking.end());
}

std::string Launch::run() {
  const auto start = std::chrono::steady_clock::now();
  try {
    for (uint64_t turn = 1;; ++turn) {
      while (started_ < clusters_ && !free_slots_.empty()) start_group();
      if (!deliveries.empty() && (runnable.empty() || random.below(4) == 0)) {
        std::swap(deliveries[random.below(deliveries.size())], deliveries.back());
        const std::function<void()> act = std::move(deliveries.back());
        deliveries.pop_back();
        act();
      } else if (!asking.empty() && (runnable.empty() || random.below(64) == 0)) {
        ask();
        if (runnable.empty() && deliveries.empty()) return "deadlock: no thread can go on" + waiting();
      } else if (!runnable.empty()) {
        resume(*choose());
        if (group_ended_) end_groups();
      } else if (started_ == clusters_ && free_slots_.size() == resident_) {
        return error_;
      } else {
        return "deadlock: no thread can go on" + waiting();
      }
      if (!error_.empty()) return error_;
      if (turn % 1024 == 0 && std::chrono::steady_clock::now() - start > kLongest) {
        return "no end in sight after " + std::to_string(kLongest.count()) + " seconds" + waiting();
      }
    }
  } catch (const Failure&) {
    return error_;
  }
}

void Launch::main() {
  body_();
  Fiber& fiber = *running;
  if (Stacks::overrun(fiber.stack)) fail("a thread needs more stack than the emulator gives it", {"?", 0});
  fiber.ended = true;
  ++fiber.block->exited;
  group_ended_ |= over(*fiber.block->cluster);
  leave();
  std::abort();  // nobody resumes a fiber that has ended
}

void Launch::fail(const std::string& message, Site site) {
  std::ostringstream text;
  text << message << ", at " << site.file << ":" << site.line;
  if (running != nullptr) {
    const uint3 block = running->block->index;
    text << ", by thread " << running->number << " of block (" << block.x << ", " << block.y << ", " << block.z << ")";
  }
  error_ = text.str();
  if (running == nullptr) throw Failure();
  leave();
  std::abort();
}

// A line for each block and each thing that threads of it wait for.
std::string Launch::waiting() const {
  std::ostringstream text;
  size_t exited = 0;
  for (const auto& group : groups_) {
    if (group->fibers.empty()) {
      exited += group->cluster.blocks.size();
      continue;
    }
    for (const Block& block : group->cluster.blocks) {
      std::map<std::tuple<std::string, int, std::string>, unsigned> threads;
      for (const auto& fiber : group->fibers) {
        if (fiber->block != &block || fiber->ended || fiber->what == nullptr) continue;
        std::string what = fiber->what;
        if (fiber->meeting != nullptr) {
          what += " (" + std::to_string(fiber->meeting->arrived) + " of " + std::to_string(fiber->meeting->expected) +
                  " have arrived)";
        }
        if (fiber->state) what += " (" + fiber->state() + ")";
        ++threads[{fiber->site.file, fiber->site.line, what}];
      }
      text << "\n  block (" << block.index.x << ", " << block.index.y << ", " << block.index.z << "):";
      const char* separator = " ";
      for (const auto& [where, count] : threads) {
        const auto& [file, line, what] = where;
        text << separator << count << " wait for " << what << " at " << file << ":" << line;
        separator = "; ";
      }
      if (block.exited > 0) text << separator << block.exited << " have exited";
    }
  }
  const size_t blocks = size_t{clusters_} * shape_.cluster, waiting = blocks - size_t{started_} * shape_.cluster;
  text << "\n  of " << blocks << " blocks " << exited << " have exited and " << waiting << " have not started";
  return text.str();
}

uint64_t next_seed = 0;
std::mutex one_launch;

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// What a thread can do
// ---------------------------------------------------------------------------------------------------------------------

Block& block() { return *launch->running->block; }
unsigned lane() { return launch->running->number % kWarp; }
Warp& warp() { return block().warps[launch->running->number / kWarp]; }
std::vector<std::vector<Copy>>& copy_groups() { return launch->running->copies; }
unsigned& cluster_phase() { return launch->running->cluster_phase; }
bool exited(const Block& block) { return over(block); }
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
  launch->leave();
}

void asked_flag() {
  if (launch->running == nullptr || ++launch->running->flags_asked % 64 != 0) return;
  launch->runnable.push_back(launch->running);
  launch->leave();
}

void wait_until(const char* what, std::function<bool()> ready, Site site, std::function<std::string()> state) {
  if (ready()) return;
  Fiber& fiber = *launch->running;
  fiber.what = what;
  fiber.site = site;
  fiber.ready = std::move(ready);
  fiber.state = std::move(state);
  launch->asking.push_back(&fiber);
  launch->leave();
  fiber.ready = nullptr;
  fiber.state = nullptr;
  fiber.what = nullptr;
}

void meet(Meeting& meeting, unsigned expected, bool waits, const char* what, Site site) {
  if (meeting.arrived == 0) meeting.expected = expected;
  if (meeting.expected != expected) {
    fail(std::string(what) + ": this thread expects " + std::to_string(expected) + " threads and the first to come " +
             std::to_string(meeting.expected),
         site);
  }
  Fiber& fiber = *launch->running;
  if (++meeting.arrived == expected) {
    meeting.arrived = 0;
    for (Fiber* const other : meeting.waiting) launch->runnable.push_back(other);
    meeting.waiting.clear();
    maybe_yield();
    return;
  }
  if (!waits) return maybe_yield();
  meeting.waiting.push_back(&fiber);
  fiber.what = what;
  fiber.site = site;
  fiber.meeting = &meeting;
  launch->leave();
  fiber.what = nullptr;
  fiber.meeting = nullptr;
}

void meet_lanes(const char* operation, unsigned mask, void* argument, Together together, Site site) {
  Warp& own = warp();
  for (unsigned other = 0; other < kWarp; ++other) {
    if (own.lanes[other].fiber == nullptr) mask &= ~(1u << other);  // the block ends within this warp
  }
  if ((mask >> lane() & 1) == 0) fail(std::string(operation) + ": the mask leaves out the calling lane", site);
  Warp::Lane& mine = own.lanes[lane()];
  mine.operation = operation;
  mine.mask = mask;
  mine.argument = argument;
  own.present |= 1u << lane();
  if ((own.present & mask) != mask) {
    mine.fiber->what = operation;
    mine.fiber->site = site;
    launch->leave();
    mine.fiber->what = nullptr;
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
    if ((mask >> other & 1) != 0 && other != lane()) launch->runnable.push_back(own.lanes[other].fiber);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The host's side
// ---------------------------------------------------------------------------------------------------------------------

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
