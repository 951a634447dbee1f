// Scratch memory of a pass, aligned to a cache line; and advice on large fresh memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gru::cpu {

// Scratch is handed back to its thread, not to the system, as long as the thread holds no more than this: memory fresh
// from the system costs a page fault and a clearing for every page, on short sequences more than the pass itself.
constexpr size_t kKeptBytes = size_t{64} << 20;

void* take_scratch(size_t bytes);             // throws std::bad_alloc; contents are whatever was there
void give_scratch(void* data, size_t bytes);  // on the thread that took it, with the size it was asked for

// Memory of many megabytes comes fresh from the system each time: ask for large pages, of which there are fewer to
// fault in. Only advice: nothing depends on it being followed.
void advise_large_pages(void* data, size_t bytes);

// `count` values of T, alive as long as this object.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t count)
      : bytes_(static_cast<size_t>(count) * sizeof(T)), data_(static_cast<T*>(take_scratch(bytes_))) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { give_scratch(data_, bytes_); }

  T* data() const { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

}  // namespace gru::cpu
