// Stands in for the CUDA runtime's header: what csrc/cuda and the tests call, on the emulated GPU. Launches are done
// when they return; their errors are found where CUDA's are, at the next call that asks.
#pragma once

#include <emulator/emulator.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDefault = 4 };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13
};
using cudaStream_t = struct emulated_stream*;

namespace emulator {

// An H100's.
constexpr unsigned kMultiprocessors = 132, kThreadsOfMultiprocessor = 2048;
constexpr size_t kSharedOfMultiprocessor = 228 << 10, kSharedOfBlock = 227 << 10, kSharedUnasked = 48 << 10;

struct Runtime {
  cudaError_t error = cudaSuccess;
  std::string text;
  std::map<const void*, size_t> shared_allowed;  // of kernels that asked for more
  std::map<const void*, bool> large_clusters_allowed;
};
inline Runtime runtime;

inline cudaError_t failed(cudaError_t error, const std::string& text) {
  runtime.error = error;
  runtime.text = text;
  return error;
}

inline unsigned resident_blocks(unsigned threads, size_t shared) {
  const size_t of_threads = kThreadsOfMultiprocessor / threads;
  const size_t of_shared = kSharedOfMultiprocessor / (shared + (1 << 10));  // each block takes 1 KiB more
  return static_cast<unsigned>(std::min({of_threads, of_shared, size_t{32}}));
}

}  // namespace emulator

inline cudaError_t cudaGetLastError() { return std::exchange(emulator::runtime.error, cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return emulator::runtime.error; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : emulator::runtime.text.c_str();
}

// Memory of the exact size, poisoned.
template <class Element>
cudaError_t cudaMalloc(Element** pointer, size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) {
    return emulator::failed(cudaErrorMemoryAllocation, "out of memory");
  }
  *pointer = static_cast<Element*>(std::memset(memory, emulator::kPoison, bytes));
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return emulator::runtime.error; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return emulator::runtime.error; }

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  const auto* const key = reinterpret_cast<const void*>(kernel);
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    emulator::runtime.large_clusters_allowed[key] = value != 0;
    return cudaSuccess;
  }
  if (value < 0 || static_cast<size_t>(value) > emulator::kSharedOfBlock) {
    return emulator::failed(cudaErrorInvalidValue, "a block cannot have so much shared memory");
  }
  emulator::runtime.shared_allowed[key] = static_cast<size_t>(value);
  return cudaSuccess;
}

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
struct cudaDeviceProp {
  char name[256];
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "emulated H100");
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = static_cast<int>(emulator::kMultiprocessors);
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(emulator::kSharedOfBlock);
      return cudaSuccess;
  }
  return emulator::failed(cudaErrorInvalidValue, "no such attribute");
}

// ---------------------------------------------------------------------------------------------------------------------
// Launches
// ---------------------------------------------------------------------------------------------------------------------

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace emulator {

// What CUDA refuses before it starts anything.
inline std::string refused(const Shape& shape, const void* kernel) {
  const unsigned threads = shape.block.x * shape.block.y * shape.block.z;
  const uint64_t blocks = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  const auto entry = runtime.shared_allowed.find(kernel);
  const size_t allowed = entry == runtime.shared_allowed.end() ? kSharedUnasked : entry->second;
  if (threads == 0 || threads > 1024) return "a block has 1 to 1024 threads";
  if (blocks == 0 || shape.grid.x > 0x7fffffffu || shape.grid.y > 65535 || shape.grid.z > 65535) {
    return "the grid is empty or too large";
  }
  if (shape.shared > allowed) return "more shared memory than cudaFuncSetAttribute has allowed for this kernel";
  if (shape.cluster == 0 || shape.grid.x % shape.cluster != 0) return "the grid is not made of whole clusters";
  if (shape.cluster > (runtime.large_clusters_allowed[kernel] ? 16 : 8)) return "the cluster is too large";
  if (shape.cooperative && blocks > uint64_t{kMultiprocessors} * resident_blocks(threads, shape.shared)) {
    return "more blocks than can be resident together";
  }
  return "";
}

// What a GPU's kernel is passed: the parameters one after the other, each at a multiple of its alignment.
template <class... Parameters>
std::vector<unsigned char> parameter_bytes(const Parameters&... parameters) {
  std::vector<unsigned char> bytes;
  const auto append = [&bytes](const auto& parameter) {
    constexpr size_t kAlignment = alignof(std::decay_t<decltype(parameter)>);
    const size_t offset = (bytes.size() + kAlignment - 1) / kAlignment * kAlignment;
    bytes.resize(offset + sizeof parameter);
    std::memcpy(bytes.data() + offset, &parameter, sizeof parameter);
  };
  (append(parameters), ...);
  return bytes;
}

// Appends a line of JSON: the launch, the kernel's address and, as hexadecimal digits, its parameters.
inline void write_launch(const char* file, const Shape& shape, const void* kernel,
                         const std::vector<unsigned char>& parameters) {
  std::ofstream to(file, std::ios::app);
  const auto write_size = [&to](const char* name, const dim3& size) {
    to << '"' << name << "\": [" << size.x << ", " << size.y << ", " << size.z << "], ";
  };
  to << '{';
  write_size("grid", shape.grid);
  write_size("block", shape.block);
  to << "\"cluster\": " << shape.cluster << ", \"cooperative\": " << (shape.cooperative ? "true" : "false")
     << ", \"shared\": " << shape.shared << ", \"kernel\": " << reinterpret_cast<uintptr_t>(kernel)
     << ", \"parameters\": \"" << std::hex << std::setfill('0');
  for (const unsigned char byte : parameters) to << std::setw(2) << static_cast<unsigned>(byte);
  to << "\"}\n";
}

}  // namespace emulator

// By the groups of multiprocessors that an H100 has, for blocks of which each takes one whole.
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, void (*kernel)(Parameters...),
                                           const cudaLaunchConfig_t* config) {
  emulator::Shape shape{config->gridDim, config->blockDim, config->dynamicSmemBytes};
  for (unsigned i = 0; i < config->numAttrs; ++i) shape.cluster = config->attrs[i].val.clusterDim.x;
  const std::string reason = emulator::refused(shape, reinterpret_cast<const void*>(kernel));
  if (!reason.empty()) return emulator::failed(cudaErrorInvalidConfiguration, reason);
  *count = 0;
  for (const unsigned multiprocessors : {16u, 16u, 16u, 16u, 18u, 18u, 18u, 14u}) {
    *count += static_cast<int>(multiprocessors / shape.cluster);
  }
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  emulator::Shape shape{config->gridDim, config->blockDim, config->dynamicSmemBytes};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) shape.cooperative = attribute.val.cooperative != 0;
    if (attribute.id == cudaLaunchAttributeClusterDimension) shape.cluster = attribute.val.clusterDim.x;
  }
  const std::string reason = emulator::refused(shape, reinterpret_cast<const void*>(kernel));
  if (!reason.empty()) return emulator::failed(cudaErrorInvalidConfiguration, reason);
  // Asked for what a launch would be, the emulated GPU runs nothing: the pointers may lead nowhere.
  if (const char* const file = std::getenv("GRU_EMULATOR_LAUNCHES")) {
    emulator::write_launch(file, shape, reinterpret_cast<const void*>(kernel),
                           emulator::parameter_bytes<Parameters...>(arguments...));
    return cudaSuccess;
  }
  const std::string error = emulator::run(shape, [&] { kernel(arguments...); });
  return error.empty() ? cudaSuccess : emulator::failed(cudaErrorLaunchFailure, error);
}

// ---------------------------------------------------------------------------------------------------------------------
// Events, by the CPU's clock: so that programs which time themselves run. The times say nothing of a GPU
// ---------------------------------------------------------------------------------------------------------------------

using cudaEvent_t = std::chrono::steady_clock::time_point*;
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new std::chrono::steady_clock::time_point();
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t = nullptr) {
  *event = std::chrono::steady_clock::now();
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return emulator::runtime.error; }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(*end - *begin).count();
  return cudaSuccess;
}

// A multiprocessor of 1 GHz.
inline long long clock64() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

// ---------------------------------------------------------------------------------------------------------------------
// Occupancy
// ---------------------------------------------------------------------------------------------------------------------

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int threads, size_t shared) {
  *blocks = static_cast<int>(emulator::resident_blocks(static_cast<unsigned>(threads), shared));
  return cudaSuccess;
}

// As if the multiprocessors of a GPU were not grouped: a real one has room for fewer.
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel*, const cudaLaunchConfig_t* config) {
  unsigned size = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) size = config->attrs[i].val.clusterDim.x;
  }
  const unsigned threads = config->blockDim.x * config->blockDim.y * config->blockDim.z;
  const unsigned blocks = emulator::kMultiprocessors * emulator::resident_blocks(threads, config->dynamicSmemBytes);
  *clusters = static_cast<int>(blocks / size);
  return cudaSuccess;
}
