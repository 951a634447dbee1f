#include "workspace.h"

#include <cstdlib>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gru::cpu {

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kGrain = 4096;  // sizes are rounded up to this, so that nearly equal calls meet the same block
constexpr size_t kBlocks = 64;   // kept for a thread
constexpr size_t kLargeBytes = size_t{4} << 20;

size_t rounded(size_t bytes) { return (bytes + kGrain) / kGrain * kGrain; }  // never 0

struct Kept {
  struct Block {
    void* data;
    size_t bytes;
  };
  std::vector<Block> blocks;
  size_t bytes = 0;

  Kept() { blocks.reserve(kBlocks + 1); }  // keep() runs in destructors and must not throw
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  ~Kept() {
    for (const Block& block : blocks) std::free(block.data);
  }

  // The block of exactly this size, or null.
  void* take(size_t wanted) {
    for (size_t i = blocks.size(); i-- > 0;) {
      if (blocks[i].bytes != wanted) continue;
      void* const data = blocks[i].data;
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
      bytes -= wanted;
      return data;
    }
    return nullptr;
  }

  void keep(void* data, size_t size) {
    blocks.push_back({data, size});
    bytes += size;
    while (bytes > kKeptBytes || blocks.size() > kBlocks) {  // the oldest go first
      std::free(blocks.front().data);
      bytes -= blocks.front().bytes;
      blocks.erase(blocks.begin());
    }
  }
};

thread_local Kept kept;

}  // namespace

void* take_scratch(size_t bytes) {
  const size_t size = rounded(bytes);
  if (void* data = kept.take(size)) return data;
  void* const data = std::aligned_alloc(kAlignment, size);
  if (!data) throw std::bad_alloc();
  advise_large_pages(data, size);
  return data;
}

void give_scratch(void* data, size_t bytes) {
  if (data) kept.keep(data, rounded(bytes));
}

void advise_large_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kLargeBytes) return;
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) & ~(kLargePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kLargePage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace gru::cpu
