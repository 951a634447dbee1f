// What the programs in this folder share: memory, and the time of a step as the difference of two launches.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "cuda/launch.h"

namespace benchmarks {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Memory on the GPU, zeroed.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    check(cudaMalloc(&data_, bytes));
    zero();
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void zero() {
    if (bytes_ != 0) check(cudaMemset(data_, 0, bytes_));
  }
  // Null where it has no bytes.
  unsigned char* data() { return data_; }
  template <class Element>
  Element* at(size_t byte) {
    return reinterpret_cast<Element*>(data_ + byte);
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* data_ = nullptr;
  size_t bytes_;
};

class Event {
 public:
  Event() { check(cudaEventCreate(&event)); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t event{};
};

// Milliseconds until what `start` enqueues is done.
template <class Start>
float milliseconds(Start&& start) {
  const Event begin, end;
  check(cudaEventRecord(begin.event));
  start();
  gru::cuda::check_launch("benchmark");
  check(cudaEventRecord(end.event));
  check(cudaEventSynchronize(end.event));
  float taken = 0;
  check(cudaEventElapsedTime(&taken, begin.event, end.event));
  return taken;
}

// Of a launch that is timed beside one with so many more steps, and how often both are.
struct Lengths {
  int few, more, repeats;
};

// Median microseconds of a step: what start(few + more) takes longer than start(few), so that the price of a launch
// cancels. prepare() comes before each and is not timed.
template <class Prepare, class Start>
float step_microseconds(const Lengths& lengths, Prepare&& prepare, Start&& start) {
  const auto taken = [&](int steps) {
    prepare();
    return milliseconds([&] { start(steps); });
  };
  taken(lengths.few + lengths.more);
  std::vector<float> times;
  for (int repeat = 0; repeat < lengths.repeats; ++repeat) {
    const float few = taken(lengths.few);
    times.push_back((taken(lengths.few + lengths.more) - few) * 1e3f / static_cast<float>(lengths.more));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace benchmarks
