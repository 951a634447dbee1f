// A GPU made of fibers, on which the kernels of csrc/cuda run on a CPU.
//
// Each CUDA thread is a fiber: a stack of its own, run by one thread of the CPU, that gives way only where a CUDA
// thread may have to wait (a barrier, an exchange in a warp, a flag). All blocks of a launch are alive at once, as far
// as a GPU promises it: those of a cluster and those of a cooperative launch always, others as many as the seed says.
// Who runs next is drawn from the seed as well, so a missing barrier gives wrong numbers under some seed, and the same
// ones again. What runs on its own on a GPU, a copy or a store into another block, takes place at some later point that
// the seed draws, the last one allowed included.
//
// When no thread can go on the launch ends with a report of what each block waits for. Memory that nothing wrote holds
// NaN. Shared memory is a malloc of the exact size, so that a build with AddressSanitizer catches what lies outside.
//
// It shows that indexing, barriers and arithmetic are right. It does not show speed, nor a missing fence: here every
// thread sees every store at once.
//
// primitives.h builds the operations of csrc/cuda/primitives.h on what is declared here, and include/ stands in for the
// headers of the CUDA toolkit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "types.h"

namespace emulator {

constexpr unsigned kWarp = 32;
constexpr int kPoison = 0xff;  // as bytes of any floating-point type: NaN

// Where in the kernel a thread stands. The functions below take it from their caller by default.
struct Site {
  const char* file;
  int line;
};
#define EMULATOR_SITE ::emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

struct Thread;

// Threads that wait until `expected` of them have come.
struct Meeting {
  unsigned expected = 0, arrived = 0;
  std::vector<Thread*> waiting;
};

// What each lane of a warp brings to an operation of the whole warp, until all have come.
struct Warp {
  struct Lane {
    Thread* thread = nullptr;
    const char* operation = nullptr;
    unsigned mask = 0;
    void* argument = nullptr;
  };
  Lane lanes[kWarp];
  unsigned present = 0;  // a bit a lane
  unsigned importance = 0;
};

struct Cluster;
struct Block {
  uint3 index{};
  unsigned rank = 0;  // within its cluster
  Cluster* cluster = nullptr;
  unsigned threads = 0, exited = 0;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  Meeting barriers[16];  // 0 is __syncthreads
  std::vector<Warp> warps;
};

struct Cluster {
  std::vector<Block> blocks;
  unsigned arrived = 0, phase = 0;  // of the cluster's barrier
};

// A copy from global to shared memory that a thread has started.
struct Copy {
  void* to;
  const void* from;
  size_t bytes, valid;
};

void finish(const Copy& copy);

// The thread that is running.
Block& block();
unsigned lane();
Warp& warp();
std::vector<std::vector<Copy>>& copy_groups();  // its groups of copies, the one not yet ended last

// Gives way for good: the launch ends, and `message` is its error.
[[noreturn]] void fail(const std::string& message, Site site);

// Gives way if the seed says so.
void maybe_yield();
// Waits until `ready`, which is asked whenever something may have changed. A report of a deadlock says `what` and,
// then, the `state` of it.
void wait_until(const char* what, std::function<bool()> ready, Site site, std::function<std::string()> state = {});
// A thread that asks for a flag over and over in a loop of its own must give way now and then.
void asked_flag();

// Comes to a meeting of `expected` threads and, if `waits`, stays until all have come.
void meet(Meeting& meeting, unsigned expected, bool waits, const char* what, Site site);
// Comes together with all lanes of `mask`. The last one does `together` with everyone's argument, which lies on their
// stacks; then all go on.
using Together = void (*)(void* const (&arguments)[kWarp], unsigned mask);
void meet_lanes(const char* operation, unsigned mask, void* argument, Together together, Site site);

// Whether every thread of it has exited.
bool exited(const Block& block);
// Has `act` done at some later time, before the launch ends.
void later(std::function<void()> act);
// Whether the seed says so; chance 1 in `of`.
bool drawn(unsigned of);

// Whether [pointer, pointer + bytes) is in the block's shared memory.
bool in_shared(const Block& of, const void* pointer, size_t bytes);

// ---------------------------------------------------------------------------------------------------------------------
// The host's side
// ---------------------------------------------------------------------------------------------------------------------

void set_seed(uint64_t seed);  // of the launches that follow; each launch draws anew

struct Shape {
  dim3 grid, block;
  size_t shared = 0;
  unsigned cluster = 1;  // blocks, along x
  bool cooperative = false;
};
// Runs body() in every thread of the launch. The error's text, or nothing.
std::string run(const Shape& shape, const std::function<void()>& body);

}  // namespace emulator
