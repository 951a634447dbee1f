#include "workspace.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gru::cpu {

namespace {

constexpr size_t kGrain = 4096;  // sizes are rounded up to this, so that nearly equal calls meet the same block
constexpr size_t kBlocks = 64;   // kept for a thread
constexpr size_t kLargeBytes = size_t{4} << 20;

size_t rounded(size_t bytes) { return (bytes + kGrain) / kGrain * kGrain; }  // never 0

struct Kept {
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

// Blocks of all threads, oldest first. Never destroyed: a tensor may outlive this module's statics. Nobody waits for
// the mutex: in a forked child it may stay locked for ever.
struct KeptBlocks {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;

  KeptBlocks() { blocks.reserve(kBlocks + 1); }  // give_block runs in destructors and must not throw
};
KeptBlocks& kept_blocks() {
  static KeptBlocks* const blocks = new KeptBlocks;
  return *blocks;
}

void* allocate(size_t size) {
  void* const data = std::aligned_alloc(kLineBytes, size);
  if (!data) throw std::bad_alloc();
  advise_large_pages(data, size);
  return data;
}

}  // namespace

void* take_scratch(size_t bytes) {
  const size_t size = rounded(bytes);
  if (void* data = kept.take(size)) return data;
  return allocate(size);
}

void give_scratch(void* data, size_t bytes) {
  if (data) kept.keep(data, rounded(bytes));
}

Block take_block(size_t bytes) {
  const size_t size = rounded(bytes);
  KeptBlocks& kept = kept_blocks();
  if (const std::unique_lock<std::mutex> lock(kept.mutex, std::try_to_lock); lock) {
    // The smallest that fits and is not much too large: lengths of sequences vary from batch to batch.
    auto best = kept.blocks.end();
    for (auto block = kept.blocks.begin(); block != kept.blocks.end(); ++block)
      if (block->bytes >= size && block->bytes <= size + size / 4 &&
          (best == kept.blocks.end() || block->bytes < best->bytes))
        best = block;
    if (best != kept.blocks.end()) {
      const Block block = *best;
      kept.blocks.erase(best);
      kept.bytes -= block.bytes;
      return block;
    }
  }
  return {allocate(size), size};
}

void give_block(Block block) {
  KeptBlocks& kept = kept_blocks();
  const std::unique_lock<std::mutex> lock(kept.mutex, std::try_to_lock);
  if (!lock) return std::free(block.data);
  kept.blocks.push_back(block);
  kept.bytes += block.bytes;
  while (kept.bytes > kKeptBlockBytes || kept.blocks.size() > kBlocks) {
    std::free(kept.blocks.front().data);
    kept.bytes -= kept.blocks.front().bytes;
    kept.blocks.erase(kept.blocks.begin());
  }
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
