#include "scheduler.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <tuple>

namespace emulator {

Launch* launch = nullptr;

namespace {

constexpr std::chrono::seconds kLongest{120};

void thread_main() { launch->main(); }

bool exited(const Cluster& cluster) {
  return std::all_of(cluster.blocks.begin(), cluster.blocks.end(),
                     [](const Block& block) { return emulator::exited(block); });
}

}  // namespace

Launch::Launch(const Shape& shape, const std::function<void()>& body, uint64_t seed, Stacks& stacks)
    : random(seed),
      shape_(shape),
      body_(body),
      stacks_(stacks),
      threads_(shape.block.x * shape.block.y * shape.block.z),
      clusters_(shape.grid.x * shape.grid.y * shape.grid.z / shape.cluster),
      skewed_(random.below(2) == 0) {
  // A GPU promises to run the blocks of a cooperative launch together, and no others.
  const bool together = shape.cooperative || random.below(2) == 0;
  const unsigned most = kMostFibers / (threads_ * shape.cluster);
  resident_ = std::min(together ? clusters_ : 1 + random.below(clusters_), most);
  for (unsigned slot = resident_; slot > 0; --slot) free_slots_.push_back(slot - 1);
  blockDim = shape.block;
  gridDim = shape.grid;
}

Launch::~Launch() {
  for (const auto& group : groups_) {
    for (Block& block : group->cluster.blocks) std::free(block.shared);
  }
}

void Launch::start_group() {
  auto group = std::make_unique<Group>();
  group->slot = free_slots_.back();
  free_slots_.pop_back();
  Cluster& cluster = group->cluster;
  cluster.blocks.resize(shape_.cluster);
  for (unsigned rank = 0; rank < shape_.cluster; ++rank) {
    Block& block = cluster.blocks[rank];
    const unsigned of_grid = started_ * shape_.cluster + rank;
    block.index = {of_grid % shape_.grid.x, of_grid / shape_.grid.x % shape_.grid.y,
                   of_grid / shape_.grid.x / shape_.grid.y};
    block.rank = rank;
    block.cluster = &cluster;
    block.threads = threads_;
    block.warps.resize((threads_ + kWarp - 1) / kWarp);
    block.shared_bytes = shape_.shared;
    if (shape_.shared > 0) {
      void* memory = nullptr;
      if (posix_memalign(&memory, 128, shape_.shared) != 0) std::abort();
      block.shared = static_cast<unsigned char*>(memory);
      std::memset(block.shared, kPoison, shape_.shared);
    }
    const unsigned importance = random.below(4);
    for (unsigned number = 0; number < threads_; ++number) {
      Warp& warp = block.warps[number / kWarp];
      if (number % kWarp == 0) warp.importance = importance * 4 + random.below(4);
      auto thread = std::make_unique<Thread>();
      thread->fiber.prepare(stacks_.get((group->slot * shape_.cluster + rank) * threads_ + number), thread_main);
      thread->block = &block;
      thread->number = number;
      thread->index = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
      warp.lanes[number % kWarp].thread = thread.get();
      runnable.push_back(thread.get());
      group->threads.push_back(std::move(thread));
    }
  }
  ++started_;
  groups_.push_back(std::move(group));
}

// A block's memory stays until the launch ends, so that whoever reaches for it too late is told.
void Launch::end_groups() {
  for (const auto& group : groups_) {
    if (group->threads.empty() || !exited(group->cluster)) continue;
    group->threads.clear();
    free_slots_.push_back(group->slot);
  }
  group_ended_ = false;
}

Thread* Launch::choose() {
  // Skewed: of a few drawn, one whose warp matters most, so that some run far ahead of the others.
  const auto importance = [](const Thread* thread) { return thread->block->warps[thread->number / kWarp].importance; };
  size_t best = random.below(runnable.size());
  for (int more = skewed_ ? 5 : 0; more > 0; --more) {
    const size_t other = random.below(runnable.size());
    if (importance(runnable[other]) > importance(runnable[best])) best = other;
  }
  Thread* const chosen = runnable[best];
  runnable[best] = runnable.back();
  runnable.pop_back();
  return chosen;
}

void Launch::ask() {
  const auto gone = std::remove_if(asking.begin(), asking.end(), [this](Thread* thread) {
    threadIdx = thread->index;  // the question may ask who asks
    blockIdx = thread->block->index;
    if (!thread->ready()) return false;
    runnable.push_back(thread);
    return true;
  });
  asking.erase(gone, asking.end());
}

std::string Launch::run() {
  const auto start = std::chrono::steady_clock::now();
  try {
    for (uint64_t turn = 1;; ++turn) {
      while (started_ < clusters_ && !free_slots_.empty()) start_group();
      if (!deliveries.empty() && (runnable.empty() || random.below(4) == 0)) {
        std::swap(deliveries[random.below(deliveries.size())], deliveries.back());
        const std::function<void()> act = std::move(deliveries.back());
        deliveries.pop_back();
        act();
      } else if (!asking.empty() && (runnable.empty() || random.below(64 + 4 * asking.size()) == 0)) {
        ask();
        if (runnable.empty() && deliveries.empty()) return "deadlock: no thread can go on" + waiting();
      } else if (!runnable.empty()) {
        resume(*choose());
        if (group_ended_) end_groups();
      } else if (started_ == clusters_ && free_slots_.size() == resident_) {
        return error_;
      } else {
        return "deadlock: no thread can go on" + waiting();
      }
      if (!error_.empty()) return error_;
      if (turn % 1024 == 0 && std::chrono::steady_clock::now() - start > kLongest) {
        return "no end in sight after " + std::to_string(kLongest.count()) + " seconds" + waiting();
      }
    }
  } catch (const Failure&) {
    return error_;
  }
}

void Launch::resume(Thread& thread) {
  running = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  thread.fiber.resume();
  running = nullptr;
}

void Launch::main() {
  body_();
  Thread& thread = *running;
  if (Stacks::overrun(thread.fiber.stack())) fail("a thread needs more stack than the emulator gives it", {"?", 0});
  thread.ended = true;
  ++thread.block->exited;
  group_ended_ |= exited(*thread.block->cluster);
  thread.fiber.leave(true);
}

void Launch::fail(const std::string& message, Site site) {
  std::ostringstream text;
  text << message << ", at " << site.file << ":" << site.line;
  if (running != nullptr) {
    const uint3 block = running->block->index;
    text << ", by thread " << running->number << " of block (" << block.x << ", " << block.y << ", " << block.z << ")";
  }
  error_ = text.str();
  if (running == nullptr) throw Failure();
  running->fiber.leave(true);
  std::abort();
}

// A line for each block and each thing that threads of it wait for.
std::string Launch::waiting() const {
  std::ostringstream text;
  size_t exited = 0;
  for (const auto& group : groups_) {
    if (group->threads.empty()) {
      exited += group->cluster.blocks.size();
      continue;
    }
    for (const Block& block : group->cluster.blocks) {
      std::map<std::tuple<std::string, int, std::string>, unsigned> waiting;
      for (const auto& thread : group->threads) {
        if (thread->block != &block || thread->ended || thread->what == nullptr) continue;
        std::string what = thread->what;
        if (thread->meeting != nullptr) {
          what += " (" + std::to_string(thread->meeting->arrived) + " of " + std::to_string(thread->meeting->expected) +
                  " have arrived)";
        }
        if (thread->state) what += " (" + thread->state() + ")";
        ++waiting[{thread->site.file, thread->site.line, what}];
      }
      text << "\n  block (" << block.index.x << ", " << block.index.y << ", " << block.index.z << "):";
      const char* separator = " ";
      for (const auto& [where, count] : waiting) {
        const auto& [file, line, what] = where;
        text << separator << count << " wait for " << what << " at " << file << ":" << line;
        separator = "; ";
      }
      if (block.exited > 0) text << separator << block.exited << " have exited";
    }
  }
  const size_t blocks = size_t{clusters_} * shape_.cluster, unstarted = blocks - size_t{started_} * shape_.cluster;
  text << "\n  of " << blocks << " blocks " << exited << " have exited and " << unstarted << " have not started";
  return text.str();
}

}  // namespace emulator
