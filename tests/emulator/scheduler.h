// A launch in progress: its threads, and who of them runs next.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "fibers.h"

namespace emulator {

// A CUDA thread.
struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  uint3 index{};
  unsigned number = 0;  // within the block
  bool ended = false;
  // What it waits for.
  const char* what = nullptr;
  Site site{};
  const Meeting* meeting = nullptr;
  std::function<bool()> ready;
  std::function<std::string()> state;
  // What it has under way.
  std::vector<std::vector<Copy>> copies{{}};
  int flags_asked = 0;
};

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

class Launch {
 public:
  Launch(const Shape& shape, const std::function<void()>& body, uint64_t seed, Stacks& stacks);
  ~Launch();
  std::string run();

  // Of the thread that runs.
  void main();
  [[noreturn]] void fail(const std::string& message, Site site);

  Thread* running = nullptr;
  std::vector<Thread*> runnable, asking;  // asking: those whose `ready` is to be asked
  std::vector<std::function<void()>> deliveries;
  Random random;

 private:
  // The blocks of a cluster and their threads.
  struct Group {
    Cluster cluster;
    std::vector<std::unique_ptr<Thread>> threads;
    unsigned slot = 0;  // whose stacks they have
  };
  struct Failure {};

  void start_group();
  void end_groups();
  void resume(Thread& thread);
  Thread* choose();
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

extern Launch* launch;  // the one in progress

}  // namespace emulator
