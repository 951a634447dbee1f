// Scratch memory of a pass, aligned to a cache line; and advice on large fresh memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gru::cpu {

constexpr size_t kLineBytes = 64;  // of a cache

// Scratch is handed back to its thread, not to the system, as long as the thread holds no more than this: memory fresh
// from the system costs a page fault and a clearing for every page, on short sequences more than the pass itself.
constexpr size_t kKeptBytes = size_t{64} << 20;

void* take_scratch(size_t bytes);             // throws std::bad_alloc; contents are whatever was there
void give_scratch(void* data, size_t bytes);  // on the thread that took it, with the size it was asked for

// Large memory that lives from a forward pass to its backward pass, for any thread to take and to give back. Like
// scratch it is kept when given back, up to this many bytes for the whole process: the next training step needs as
// much.
constexpr size_t kKeptBlockBytes = size_t{256} << 20;
constexpr size_t kBlockBytes = size_t{4} << 20;  // smaller memory is not worth a block

struct Block {
  void* data;
  size_t bytes;
};
Block take_block(size_t bytes);  // of at least so many bytes; throws std::bad_alloc
void give_block(Block block);

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
