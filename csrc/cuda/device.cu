#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "device.h"
#include "launch.h"

namespace gru::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------------

// Never launched: the question is how many clusters of it would run at the same time.
__global__ void __launch_bounds__(256, 1) filling_kernel() {}

// ---------------------------------------------------------------------------------------------------------------------
// Questions
// ---------------------------------------------------------------------------------------------------------------------

// Clusters of `blocks` blocks with all the shared memory that a block may have; 0 where there are none so large.
int clusters_of(int blocks, int64_t shared) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(256);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, filling_kernel, &config) == cudaSuccess) return count;
  (void)cudaGetLastError();  // the answer is that there are none, and no launch after this is to blame
  return 0;
}

Device query(int number) {
  int shared = 0;
  cudaDeviceProp properties;
  Device device;
  const bool answered =
      cudaGetDeviceProperties(&properties, number) == cudaSuccess &&
      cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, number) == cudaSuccess &&
      cudaDeviceGetAttribute(&device.minor, cudaDevAttrComputeCapabilityMinor, number) == cudaSuccess &&
      cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, number) == cudaSuccess &&
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, number) == cudaSuccess;
  if (!answered) {
    throw std::runtime_error("gru_ext: the CUDA runtime does not describe device " + std::to_string(number));
  }
  device.name = properties.name;
  device.shared = shared;
  device.clusters[1] = device.multiprocessors;
  if (device.major < 9) return device;
  int current = number;  // the questions below are answered for the current device
  cudaGetDevice(&current);
  cudaSetDevice(number);
  cudaFuncSetAttribute(filling_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  cudaFuncSetAttribute(filling_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  (void)cudaGetLastError();  // a GPU that has no such attribute has no such clusters
  for (int blocks = 2; blocks <= kLargestCluster; ++blocks) device.clusters[blocks] = clusters_of(blocks, shared);
  cudaSetDevice(current);
  return device;
}

}  // namespace

const Device& device_at(int number) {
  static std::mutex mutex;
  static std::map<int, Device> known;  // whose elements stay where they are
  if (number < 0 && cudaGetDevice(&number) != cudaSuccess) {
    throw std::runtime_error("gru_ext: the CUDA runtime does not name the current device");
  }
  const std::lock_guard<std::mutex> lock(mutex);
  const auto entry = known.find(number);
  return entry != known.end() ? entry->second : known.emplace(number, query(number)).first->second;
}

Device described_device(int major, int minor, int multiprocessors, int64_t shared) {
  constexpr int kOfGroup = 16, kPlacesOfGroup = 18;
  Device device;
  device.major = major;
  device.minor = minor;
  device.multiprocessors = device.clusters[1] = multiprocessors;
  device.shared = shared;
  for (int blocks = 2; major >= 9 && blocks <= kLargestCluster; ++blocks) {
    device.clusters[blocks] = multiprocessors / kPlacesOfGroup * (kOfGroup / blocks);
  }
  return device;
}

}  // namespace gru::cuda
