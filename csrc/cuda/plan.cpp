#include "plan.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace gru::cuda {
namespace {

// Every tunable of the kernels with stationary weights, by the largest hidden size that a line serves: tiles of 16
// columns in a warp's registers, warps that share the columns of 16 units, warps of a block. (tiles * splits * 16
// columns must hold the hidden size.) More splits: shorter chains of products and more blocks, hence more exchange.
struct Tuning {
  int64_t largest_hidden_size;
  int k_tiles, splits, warps;
};
constexpr Tuning kTunings[] = {
    {64, 4, 1, 4}, {128, 8, 1, 8}, {256, 8, 2, 8}, {384, 12, 2, 8}, {512, 16, 2, 8},
};
constexpr int kLargestCluster = 16;
// Of clusters of more than one block fewer fit than multiprocessors over blocks: those are grouped, and the groups not
// multiples of every size.
constexpr double kUsableByClusters = 0.9;

int64_t divide_up(int64_t dividend, int64_t divisor) { return (dividend + divisor - 1) / divisor; }

bool is_half(DataType dtype) { return dtype == DataType::BFloat16 || dtype == DataType::Float16; }

int64_t shared_bytes(const Partition& partition, Pass pass) {
  constexpr size_t kElement = 2;
  return static_cast<int64_t>(pass == Pass::Forward ? forward_shared(partition, kElement)
                                                    : backward_shared(partition, kElement));
}

// The division for a shape, and in `why_not` the reason where there is none.
Partition divide(const Shape& shape, Pass pass, const Device& device, std::string& why_not) {
  Partition partition;
  if (!is_half(shape.dtype)) {
    why_not = "kernels that keep the weights on the chip take bfloat16 and float16";
    return partition;
  }
  const Tuning* const found = std::find_if(std::begin(kTunings), std::end(kTunings), [&](const Tuning& tuning) {
    return shape.hidden_size <= tuning.largest_hidden_size;
  });
  if (found == std::end(kTunings)) {
    why_not = "hidden_size is above " + std::to_string(std::end(kTunings)[-1].largest_hidden_size) +
              ", the largest whose weights fit into a cluster";
    return partition;
  }
  partition.k_tiles = found->k_tiles;
  partition.splits = found->splits;
  partition.warps = found->warps;
  partition.blocks = static_cast<int>(divide_up(shape.hidden_size, partition.units()));
  if (partition.blocks > kLargestCluster || device.major < (partition.blocks > 1 ? 9 : 8)) {
    why_not = partition.blocks > 1 ? "clusters of blocks need compute capability 9.0"
                                   : "tensor cores for bfloat16 need compute capability 8.0";
    return partition;
  }
  // As few sequences to a group as let all groups run at the same time, and no more than shared memory holds.
  const double usable = device.multiprocessors * (partition.blocks > 1 ? kUsableByClusters : 1.0);
  const auto together = std::max<int64_t>(1, static_cast<int64_t>(usable) / (partition.blocks * shape.directions));
  const int64_t tiles = std::max<int64_t>(1, divide_up(divide_up(shape.batch, 8), together));
  partition.group_batch = 8;
  if (shared_bytes(partition, pass) > device.shared) {
    why_not = "a block of this GPU has too little shared memory";
    return partition;
  }
  for (int64_t tile = 2; tile <= tiles; ++tile) {
    Partition larger = partition;
    larger.group_batch = static_cast<int>(8 * tile);
    if (shared_bytes(larger, pass) > device.shared) break;
    partition = larger;
  }
  partition.groups = static_cast<int>(std::max<int64_t>(1, divide_up(shape.batch, partition.group_batch)));
  return partition;
}

std::string words(const Partition& partition) {
  return "W_hh stays in the registers of " + std::to_string(partition.blocks) +
         (partition.blocks == 1 ? " block" : " blocks") + ", " + std::to_string(partition.groups) +
         (partition.groups == 1 ? " group" : " groups") + " of " + std::to_string(partition.group_batch) + " sequences";
}

}  // namespace

const char* name(Kernel kernel) {
  switch (kernel) {
    case Kernel::Step:
      return "step";
    case Kernel::Solo:
      return "solo";
    case Kernel::Cluster:
      return "cluster";
  }
  return "unknown";
}

Device current_device() {
  int number = 0, shared = 0;
  Device device;
  const bool found =
      cudaGetDevice(&number) == cudaSuccess &&
      cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, number) == cudaSuccess &&
      cudaDeviceGetAttribute(&device.minor, cudaDevAttrComputeCapabilityMinor, number) == cudaSuccess &&
      cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, number) == cudaSuccess &&
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, number) == cudaSuccess;
  if (!found) throw std::runtime_error("gru_ext: the CUDA runtime does not describe the current device");
  device.shared = shared;
  return device;
}

Plan plan(const Shape& shape, Pass pass, const Device& device) {
  Plan plan;
  const char* const asked = std::getenv("GRU_EXT_CUDA_KERNEL");
  if (asked == nullptr || *asked == '\0' || std::strcmp(asked, "step") == 0) {
    plan.reason =
        "the path that serves every shape, type and architecture; kernels that keep the weights on the chip run "
        "where GRU_EXT_CUDA_KERNEL asks for them";
    return plan;
  }
  if (std::strcmp(asked, "solo") != 0 && std::strcmp(asked, "cluster") != 0) {
    throw std::invalid_argument(std::string("gru_ext: GRU_EXT_CUDA_KERNEL is ") + asked +
                                "; expected step, solo or cluster");
  }
  std::string why_not;
  const Partition partition = divide(shape, pass, device, why_not);
  const Kernel kernel = partition.blocks > 1 ? Kernel::Cluster : Kernel::Solo;
  if (why_not.empty() && kernel == Kernel::Cluster && std::strcmp(asked, "solo") == 0) {
    why_not = "the weights do not fit into one block";
  }
  if (!why_not.empty()) {
    plan.reason = std::string(asked) + " was asked for: " + why_not;
    return plan;
  }
  plan.kernel = kernel;
  plan.partition = partition;
  plan.reason = words(partition);
  return plan;
}

}  // namespace gru::cuda
