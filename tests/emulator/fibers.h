// Stacks, and how the one thread of the CPU changes between them.
#pragma once

#include <ucontext.h>

#include <cstddef>

namespace emulator {

constexpr size_t kStack = 128 << 10;
constexpr unsigned kMostFibers = 1 << 16;

// Memory for stacks, kept from launch to launch: pages that were never touched cost nothing.
class Stacks {
 public:
  char* get(unsigned number);              // number < kMostFibers
  static bool overrun(const char* stack);  // whether a fiber has come near to the end of its stack

 private:
  char* memory_ = nullptr;
};

// A stack and the registers of what runs on it, while it does not run.
class Fiber {
 public:
  // The first resume calls entry() on the stack; it must not return.
  void prepare(char* stack, void (*entry)());
  // Runs it until it leaves. By the thread's own stack alone.
  void resume();
  // Goes back to where it was resumed; the last time for good. By the fiber itself.
  void leave(bool for_good = false);
  const char* stack() const { return stack_; }

 private:
  char* stack_ = nullptr;
  ucontext_t first_{};
  void* registers_[5]{};
  bool started_ = false;
  void* sanitizer_ = nullptr;  // what AddressSanitizer keeps of the stack that is left
};

}  // namespace emulator
