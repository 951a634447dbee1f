// Scratch memory of a pass, aligned to a cache line, freed at its end; and advice on large fresh memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gru::cpu {

// Memory of this size comes fresh from the system each time, and a fault for each 4 KiB page of it costs as much as the
// recurrence's own traffic: ask for large pages. Only advice: nothing depends on it being followed.
inline void advise_large_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) & ~(kLargePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kLargePage - 1);
  if (end > begin + kLargePage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

template <class T>
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(int64_t count) {
    // One cache line is the least, so that an empty workspace still has an address.
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 64 + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
    advise_large_pages(data_, bytes);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(data_); }

  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

}  // namespace gru::cpu
