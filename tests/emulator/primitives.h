// The operations of csrc/cuda/primitives.h on the emulated GPU: the same names and signatures, and what the PTX manual
// says of each. What the manual leaves undefined is an error here: an address that is not aligned or not in shared
// memory, lanes that do not come together, a barrier that was not initialised or gets too many arrivals, a block that
// is reached into after its exit.
#pragma once

#include <cmath>
#include <cstring>

#include "checks.h"
#include "lanes.h"
#include "mbarrier.h"

namespace gru::cuda {

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory and barriers of a block
// ---------------------------------------------------------------------------------------------------------------------

inline unsigned char* shared_memory() { return emulator::block().shared; }

inline void block_sync(EMULATOR_SITE) {
  emulator::Block& block = emulator::block();
  emulator::meet(block.barriers[0], block.threads, true, "block_sync", site);
}

inline void barrier_sync(int barrier, int threads, EMULATOR_SITE) {
  if (barrier < 1 || barrier > 15 || threads % kWarpSize != 0) emulator::fail("barrier_sync: no such barrier", site);
  emulator::meet(emulator::block().barriers[barrier], static_cast<unsigned>(threads), true, "barrier_sync", site);
}

// ---------------------------------------------------------------------------------------------------------------------
// Within a warp
// ---------------------------------------------------------------------------------------------------------------------

inline void warp_sync(unsigned mask = kAllLanes, EMULATOR_SITE) {
  emulator::meet_lanes("warp_sync", mask, nullptr, [](void* const(&)[emulator::kWarp], unsigned) {}, site);
}

template <class Value>
Value shuffle(Value value, int lane, unsigned mask = kAllLanes, EMULATOR_SITE) {
  return emulated::exchange("shuffle", value, static_cast<unsigned>(lane) % kWarpSize, mask, site);
}
template <class Value>
Value shuffle_xor(Value value, int bits, unsigned mask = kAllLanes, EMULATOR_SITE) {
  const unsigned source = emulator::lane() ^ static_cast<unsigned>(bits);
  return emulated::exchange("shuffle_xor", value, source < kWarpSize ? source : emulator::lane(), mask, site);
}

// ---------------------------------------------------------------------------------------------------------------------
// Copies that run on their own: done at once, or not before they are waited for
// ---------------------------------------------------------------------------------------------------------------------

template <int kBytes>
void copy_async(void* shared, const void* global, int valid = kBytes, EMULATOR_SITE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulated::check_shared(shared, kBytes, "cp.async", site);
  emulated::check_aligned(shared, kBytes, "cp.async", site);
  emulated::check_aligned(global, kBytes, "cp.async", site);
  if (valid < 0 || valid > kBytes) emulator::fail("cp.async: more valid bytes than are copied", site);
  const emulator::Copy copy{shared, global, kBytes, static_cast<size_t>(valid)};
  if (emulator::drawn(2)) {
    emulator::finish(copy);
  } else {
    std::memset(shared, emulator::kPoison, kBytes);
    emulator::copy_groups().back().push_back(copy);
  }
}
inline void copy_async_commit() { emulator::copy_groups().emplace_back(); }
template <int kPending>
void copy_async_wait() {
  auto& groups = emulator::copy_groups();  // the last is not ended yet
  while (groups.size() > kPending + 1) {
    for (const emulator::Copy& copy : groups.front()) emulator::finish(copy);
    groups.erase(groups.begin());
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensor cores
// ---------------------------------------------------------------------------------------------------------------------

template <class Element>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_SITE) {
  emulated::MultiplyAdd operands{d, a, b};
  emulator::meet_lanes("mma", kAllLanes, &operands, emulated::multiply_add_lanes<Element>, site);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_SITE) {
  emulated::MultiplyAdd operands{d, a, b};
  emulator::meet_lanes("mma tf32", kAllLanes, &operands, emulated::multiply_add_lanes<float>, site);
}

inline uint32_t to_tf32(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  if (std::isnan(value)) return 0x7fffffffu;
  if (!std::isinf(value)) word += 0x1000u;  // half of the last bit that stays, and carries as it should
  return word & 0xffffe000u;
}

inline void load_matrices(uint32_t (&words)[4], const void* row, EMULATOR_SITE) {
  emulated::load_matrices(row, words, false, site);
}
inline void load_matrices_transposed(uint32_t (&words)[4], const void* row, EMULATOR_SITE) {
  emulated::load_matrices(row, words, true, site);
}

inline uint32_t opaque(uint32_t value) { return value; }
inline int64_t wide_product(int first, int second) { return static_cast<int64_t>(first) * second; }

inline float exp2_approximate(float value) { return std::exp2(value); }
inline float reciprocal_approximate(float value) {
  return std::abs(value) < 0x1p-126f ? std::copysign(INFINITY, value) : 1.0f / value;
}
// As far off as the processor's may be: towards 0 or away from it, by what the value's last bits happen to be.
inline float tanh_approximate(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const float exact = std::tanh(value), off = exact * ((bits & 1) != 0 ? 0x1p-11f : -0x1p-11f);
  return std::abs(exact + off) > 1.0f ? exact : exact + off;
}

// ---------------------------------------------------------------------------------------------------------------------
// Clusters
// ---------------------------------------------------------------------------------------------------------------------

inline void cluster_sync(EMULATOR_SITE) {
  emulator::Cluster& cluster = *emulator::block().cluster;
  const unsigned phase = cluster.phase;
  if (++cluster.arrived == emulator::block().threads * cluster.blocks.size()) {
    cluster.arrived = 0;
    ++cluster.phase;
  }
  emulator::maybe_yield();
  emulator::wait_until("cluster_sync", [&cluster, phase] { return cluster.phase != phase; }, site);
}

struct ClusterPointer {
  emulator::Block* block;
  unsigned char* address;
};

inline ClusterPointer cluster_pointer(const void* shared, unsigned rank, EMULATOR_SITE) {
  emulator::Block& own = emulator::block();
  if (rank >= own.cluster->blocks.size()) emulator::fail("mapa: the cluster has no block of this rank", site);
  emulated::check_shared(shared, 0, "mapa", site);
  emulator::Block& there = own.cluster->blocks[rank];
  return {&there, there.shared + (static_cast<const unsigned char*>(shared) - own.shared)};
}

// ---------------------------------------------------------------------------------------------------------------------
// Barriers in shared memory
// ---------------------------------------------------------------------------------------------------------------------

inline void mbarrier_init(uint64_t* barrier, unsigned arrivals, EMULATOR_SITE) {
  emulated::check_shared(barrier, 8, "mbarrier.init", site);
  emulated::Barrier(barrier, "mbarrier.init", site).init(arrivals);
}
inline void mbarrier_init_fence() {}

inline void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes, EMULATOR_SITE) {
  emulated::check_shared(barrier, 8, "mbarrier.arrive.expect_tx", site);
  emulated::Barrier(barrier, "mbarrier.arrive.expect_tx", site).change(1, bytes);
  emulator::maybe_yield();
}

inline void mbarrier_wait(uint64_t* barrier, unsigned parity, EMULATOR_SITE) {
  emulated::check_shared(barrier, 8, "mbarrier.try_wait", site);
  emulator::wait_until(
      "mbarrier_wait", [=] { return emulated::Barrier(barrier, "mbarrier.try_wait", site).phase() != parity; }, site,
      [=] { return emulated::Barrier(barrier, "mbarrier.try_wait", site).state(); });
}

template <class Value>
void store_async(ClusterPointer to, Value value, ClusterPointer barrier, EMULATOR_SITE) {
  static_assert(sizeof(Value) == 4 || sizeof(Value) == 8 || sizeof(Value) == 16);
  if (to.block != barrier.block) emulator::fail("st.async: the barrier is in another block than the data", site);
  emulator::later([=] {
    emulated::check_there(*to.block, to.address, sizeof value, "st.async", site);
    emulated::check_there(*barrier.block, barrier.address, 8, "st.async", site);
    std::memcpy(to.address, &value, sizeof value);
    emulated::Barrier(reinterpret_cast<uint64_t*>(barrier.address), "st.async", site)
        .change(0, -static_cast<int64_t>(sizeof value));
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Words in global memory
// ---------------------------------------------------------------------------------------------------------------------

template <class Word>
Word load_relaxed(const Word* word, EMULATOR_SITE) {
  emulated::check_aligned(word, sizeof(Word), "ld.relaxed", site);
  emulator::asked_flag();
  return *word;
}
inline void load_relaxed(uint64_t (&words)[2], const uint64_t* first, EMULATOR_SITE) {
  emulated::check_aligned(first, 16, "ld.relaxed", site);
  words[0] = load_relaxed(first, site);
  words[1] = load_relaxed(first + 1, site);
}
template <class Word>
void store_relaxed(Word* word, Word value, EMULATOR_SITE) {
  emulated::check_aligned(word, sizeof(Word), "st.relaxed", site);
  emulator::maybe_yield();
  *word = value;
  emulator::maybe_yield();
}

template <class Predicate>
void spin_until(const char* awaited, Predicate&& predicate, EMULATOR_SITE) {
  emulator::wait_until(awaited, predicate, site);
}

}  // namespace gru::cuda
