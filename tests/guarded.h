// Memory that ends where a page begins that may not be touched.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

class GuardedBytes {
 public:
  explicit GuardedBytes(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    all_ = (bytes + page - 1) / page * page + page;
    base_ = mmap(nullptr, all_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char* const guard = static_cast<char*>(base_) + all_ - page;
    if (base_ == MAP_FAILED || mprotect(guard, page, PROT_NONE) != 0) {
      std::perror("a page to guard");
      std::exit(1);
    }
    data_ = guard - bytes;
  }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() { munmap(base_, all_); }

  char* data() const { return data_; }

 private:
  void* base_;
  size_t all_;
  char* data_;
};
