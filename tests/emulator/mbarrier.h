// A barrier in shared memory: one word, opaque to the kernel, that counts arrivals and bytes. See mbarrier in the PTX
// manual.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "checks.h"

namespace gru::cuda::emulated {

struct BarrierWord {
  uint64_t mark : 12, phase : 1, pending : 15, arrivals : 15;
  int64_t bytes : 21;
};
static_assert(sizeof(BarrierWord) == sizeof(uint64_t));
constexpr unsigned kMark = 0x6b5;

class Barrier {
 public:
  Barrier(uint64_t* place, const char* operation, emulator::Site site)
      : place_(place), operation_(operation), site_(site) {
    check_aligned(place, 8, operation, site);
    std::memcpy(&word_, place, sizeof word_);
  }
  void init(unsigned arrivals) {
    if (arrivals == 0 || arrivals >= 1u << 15) fail("the number of arrivals is out of range");
    word_ = {kMark, 0, arrivals, arrivals, 0};
    write();
  }
  unsigned phase() {
    check();
    return word_.phase;
  }
  std::string state() const {
    return "phase " + std::to_string(word_.phase) + " lacks " + std::to_string(word_.pending) + " arrivals and " +
           std::to_string(word_.bytes) + " bytes";
  }
  void change(unsigned arrivals, int64_t bytes) {
    check();
    if (arrivals > word_.pending) fail("more arrivals than the barrier was initialised for");
    if (std::abs(word_.bytes + bytes) >= 1 << 20) fail("more bytes than a barrier can count");
    word_.pending -= arrivals;
    word_.bytes += bytes;
    if (word_.pending == 0 && word_.bytes == 0) {
      word_.pending = word_.arrivals;
      word_.phase ^= 1;
    }
    write();
  }

 private:
  [[noreturn]] void fail(const char* message) { emulator::fail(std::string(operation_) + ": " + message, site_); }
  void check() {
    if (word_.mark != kMark) fail("the barrier was not initialised");
  }
  void write() { std::memcpy(place_, &word_, sizeof word_); }

  uint64_t* place_;
  const char* operation_;
  emulator::Site site_;
  BarrierWord word_{};
};

}  // namespace gru::cuda::emulated
