// What the processor asks of an address, as errors that say what is wrong with it.
#pragma once

#include <cstdint>
#include <string>

#include "emulator.h"

namespace gru::cuda::emulated {

// A shared address of the calling block, as the processor asks for it.
inline void check_shared(const void* pointer, size_t bytes, const char* operation, emulator::Site site) {
  if (!emulator::in_shared(emulator::block(), pointer, bytes)) {
    emulator::fail(std::string(operation) + ": the address is not in this block's shared memory", site);
  }
}
inline void check_aligned(const void* pointer, size_t bytes, const char* operation, emulator::Site site) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    emulator::fail(std::string(operation) + ": the address is not a multiple of " + std::to_string(bytes), site);
  }
}

// An address in the shared memory of `block`, checked when it is used.
inline void check_there(const emulator::Block& block, const void* pointer, size_t bytes, const char* operation,
                        emulator::Site site) {
  if (emulator::exited(block)) {
    emulator::fail(std::string(operation) + ": block " + std::to_string(block.rank) + " of the cluster has exited",
                   site);
  }
  if (!emulator::in_shared(block, pointer, bytes)) {
    emulator::fail(std::string(operation) + ": the address is outside the shared memory of block " +
                       std::to_string(block.rank) + " of the cluster",
                   site);
  }
  check_aligned(pointer, bytes, operation, site);
}

}  // namespace gru::cuda::emulated
