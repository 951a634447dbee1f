// Scratch memory of a pass, aligned to a cache line, freed at its end.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace gru::cpu {

template <class T>
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(int64_t count) {
    // One cache line is the least, so that an empty workspace still has an address.
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 64 + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(data_); }

  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

}  // namespace gru::cpu
