// The first time a fiber runs the C library prepares its stack; from then on the change is the compiler's own setjmp,
// which costs a few instructions and no system call.
#include "fibers.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

// The lower end of a stack, which a fiber should never reach.
constexpr size_t kMarked = 256;
constexpr char kMark = 0x5a;

void* home[5];  // registers of the thread's own stack, while a fiber runs
void (*entry_of_all)() = nullptr;

__attribute__((noinline, no_sanitize_address)) void jump(void** registers) { __builtin_longjmp(registers, 1); }

// AddressSanitizer is told of each change; stack null: to the thread's own.
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

void first_call() {
  after_change(nullptr);
  entry_of_all();
  std::abort();
}

}  // namespace

char* Stacks::get(unsigned number) {
  if (memory_ == nullptr) {
    void* const mapped =
        mmap(nullptr, kStack * kMostFibers, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
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

bool Stacks::overrun(const char* stack) {
  return std::any_of(stack, stack + kMarked, [](char byte) { return byte != kMark; });
}

void Fiber::prepare(char* stack, void (*entry)()) {
  stack_ = stack;
  entry_of_all = entry;
  getcontext(&first_);
  first_.uc_stack.ss_sp = stack;
  first_.uc_stack.ss_size = kStack;
  first_.uc_link = nullptr;
  makecontext(&first_, first_call, 0);
}

__attribute__((noinline)) void Fiber::resume() {
  void* left = nullptr;
  before_change(&left, stack_);
  if (__builtin_setjmp(home) == 0) {
    if (started_) jump(registers_);
    started_ = true;
    setcontext(&first_);
  }
  after_change(left);
}

__attribute__((noinline)) void Fiber::leave(bool for_good) {
  before_change(for_good ? nullptr : &sanitizer_, nullptr);
  if (__builtin_setjmp(registers_) == 0) jump(home);
  after_change(sanitizer_);
}

}  // namespace emulator
