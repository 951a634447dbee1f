#include "plan.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace gru::cuda {
namespace {

constexpr int64_t kLargestBatch = INT32_MAX;  // groups, their sequences and rows are counted in 32 bits

int64_t divide_up(int64_t dividend, int64_t divisor) { return dividend / divisor + (dividend % divisor != 0); }

size_t element_size(DataType dtype) { return dtype == DataType::Float32 ? 4 : 2; }

int64_t shared_bytes(const Partition& partition, Pass pass, DataType dtype) {
  const size_t element = element_size(dtype);
  return static_cast<int64_t>(pass == Pass::Forward ? forward_shared(partition, element)
                                                    : backward_shared(partition, element));
}

// The lines of the table that hold a hidden size, smallest first. GRU_EXT_CUDA_TUNING replaces them, for measurements:
// the three numbers of a line and, if wanted, how many sequences a group has at least, separated by commas. A last word
// "cluster" or "grid" forces the exchange of groups of several blocks; alone it keeps the table's lines.
struct Tuned {
  std::vector<Tuning> lines;
  int64_t least_batch = 8, largest_hidden_size = 0;
  std::optional<Exchange> exchange;
};
Tuned tuned(const Shape& shape) {
  Tuned tuned;
  const int64_t hidden_size = shape.hidden_size;
  const size_t element = element_size(shape.dtype);
  const bool half = element == 2;
  const Tuning *first = std::begin(kTuningsOfHalf), *end = std::end(kTuningsOfHalf);
  if (!half) {
    first = shape.tf32 ? std::begin(kTuningsOfTf32) : std::begin(kTuningsOfFloat);
    end = shape.tf32 ? std::end(kTuningsOfTf32) : std::end(kTuningsOfFloat);
  }
  tuned.largest_hidden_size = end[-1].largest_hidden_size;
  const char* const value = std::getenv("GRU_EXT_CUDA_TUNING");
  const std::string variable = value == nullptr ? "" : value;
  std::string numbers = variable;
  for (const Exchange forced : {Exchange::Cluster, Exchange::Grid}) {
    const std::string word = name(forced), last = "," + word;
    if (variable == word) {
      numbers.clear();
    } else if (variable.size() > last.size() && variable.substr(variable.size() - last.size()) == last) {
      numbers.resize(variable.size() - last.size());
    } else {
      continue;
    }
    tuned.exchange = forced;
  }
  if (numbers.empty()) {
    std::copy_if(first, end, std::back_inserter(tuned.lines),
                 [&](const Tuning& tuning) { return hidden_size <= tuning.largest_hidden_size; });
    return tuned;
  }
  Tuning tuning{};
  long long least_batch = 8;
  char comma = ',';
  std::istringstream words(numbers);
  bool right = static_cast<bool>(words >> tuning.k_tiles >> comma >> tuning.splits >> comma >> tuning.warps);
  if (right && words.peek() == ',') right = static_cast<bool>(words >> comma >> least_batch);
  right = right && words.peek() == EOF && comma == ',';
  std::string all_tiles;
  bool has_kernel = false;
  for (int index = 0; tiles_of_warp(element, index) != 0; ++index) {
    all_tiles += (index == 0 ? "" : ", ") + std::to_string(tiles_of_warp(element, index));
    has_kernel = has_kernel || tuning.k_tiles == tiles_of_warp(element, index);
  }
  const int most = most_warps(tuning.k_tiles, element);
  right = right && has_kernel && tuning.splits >= 2 && tuning.warps > 0 && tuning.warps <= most &&
          tuning.warps % tuning.splits == 0 && least_batch > 0 && least_batch % 8 == 0 && least_batch <= 1024;
  right = right && (tuning.splits == 2 || !all_do_cells(tuning.k_tiles, element));
  if (!right || int64_t{16} * tuning.k_tiles * tuning.splits < hidden_size) {
    throw std::invalid_argument(
        "gru_ext: GRU_EXT_CUDA_TUNING is " + variable +
        "; expected k_tiles,splits,warps or k_tiles,splits,warps,sequences, then perhaps cluster or grid, or one of "
        "these words alone; with k_tiles among " +
        all_tiles +
        ", 2 splits or, but of a 16-bit type with up to 4 k_tiles, more, up to 8 warps, there 16, a multiple of "
        "splits, 16 * k_tiles * splits of at least hidden_size (" +
        std::to_string(hidden_size) + "), and sequences a multiple of 8 up to 1024");
  }
  tuned.lines = {tuning};
  tuned.least_batch = least_batch;
  return tuned;
}

Plan step_path(const std::string& why) {
  Plan plan;
  plan.reason = why;
  return plan;
}

// Gives a group as many sequences as it is to have, or as shared memory holds: whole tiles.
void fill_group(Partition& partition, int64_t sequences, const Shape& shape, Pass pass, const Device& device) {
  Partition larger = partition;
  partition.group_batch = larger.group_batch = 0;
  while (partition.group_batch < sequences) {
    larger.group_batch += larger.tile;
    if (shared_bytes(larger, pass, shape.dtype) > device.shared) return;
    partition.group_batch = larger.group_batch;
  }
}

// The division by one line of the table, or the step path and the reason why not.
Plan divide(const Shape& shape, Pass pass, const Device& device, const Tuned& tuned, const Tuning& tuning) {
  Plan plan;
  plan.kernel = Kernel::Stationary;
  Partition& partition = plan.partition;
  partition.k_tiles = tuning.k_tiles;
  partition.splits = tuning.splits;
  partition.warps = tuning.warps;
  partition.tf32 = shape.dtype == DataType::Float32 && shape.tf32;
  partition.blocks = static_cast<int>(divide_up(shape.hidden_size, partition.units()));
  const int clusters = partition.blocks <= kLargestCluster ? device.clusters[partition.blocks] : 0;
  partition.grid = partition.blocks > 1 && (tuned.exchange == Exchange::Grid || clusters == 0);
  if (partition.grid && !runs_in_grid(tuning.k_tiles, element_size(shape.dtype))) {
    return step_path("no kernel of " + std::to_string(tuning.k_tiles) +
                     " tiles exchanges through a grid, and the GPU has no cluster of so many blocks");
  }

  // As few sequences to a group as let all groups run at the same time, which those of a grid must; else no more than
  // shared memory holds.
  const int at_once = partition.grid ? device.multiprocessors / partition.blocks : clusters;
  plan.together = shape.directions <= at_once;
  if (partition.grid && at_once == 0) {
    return step_path("the weights need " + std::to_string(partition.blocks) + " multiprocessors, and the GPU has " +
                     std::to_string(device.multiprocessors));
  }
  const int64_t groups = std::max(1, at_once / (plan.together ? shape.directions : 1));
  const int64_t sequences = std::max(tuned.least_batch, divide_up(shape.batch, groups));
  const int64_t at_least = partition.grid || tuning.only_cluster ? sequences : 1;
  if (sequences > kSequencesOfTile) partition.tile = largest_tile(partition.k_tiles, element_size(shape.dtype));
  fill_group(partition, sequences, shape, pass, device);
  if (partition.group_batch < at_least) {
    partition.tile = kSequencesOfTile;
    fill_group(partition, sequences, shape, pass, device);
  }
  if (partition.group_batch < at_least) {
    return step_path("a block of this GPU has too little shared memory");
  }
  partition.groups = static_cast<int>(std::max<int64_t>(1, divide_up(shape.batch, partition.group_batch)));
  // With those of sequences that fill the last group up, and of the step behind the last.
  const int64_t with_padding = int64_t{partition.groups} * partition.group_batch;
  if (shape.seq_len >= kLargestBatch / with_padding)
    return step_path("rows are counted in 32 bits, and here are too many");
  return plan;
}

// The division by the first line that fits.
Plan divide(const Shape& shape, Pass pass, const Device& device) {
  if (shape.dtype == DataType::Float64) return step_path("no kernel keeps float64 weights on the chip");
  if (device.major < 8) return step_path("kernels that keep the weights on the chip need compute capability 8.0");
  if (shape.batch > kLargestBatch) return step_path("batch is above " + std::to_string(kLargestBatch));
  const Tuned by = tuned(shape);
  Plan plan = step_path("hidden_size is above " + std::to_string(by.largest_hidden_size) +
                        ", the largest whose weights fit on the chip");
  for (const Tuning& line : by.lines) {
    plan = divide(shape, pass, device, by, line);
    if (plan.kernel == Kernel::Stationary) break;
  }
  if (plan.kernel == Kernel::Stationary && by.exchange == Exchange::Cluster && plan.partition.grid) {
    return step_path("GRU_EXT_CUDA_TUNING asks for a cluster, and the shape is one for a grid");
  }
  return plan;
}

std::string words(const Partition& partition) {
  return "W_hh stays in the registers of " + std::to_string(partition.blocks) +
         (partition.blocks == 1 ? " block" : " blocks") + ", " + std::to_string(partition.groups) +
         (partition.groups == 1 ? " group" : " groups") + " of " + std::to_string(partition.group_batch) +
         " sequences" + (partition.tf32 ? ", products in TF32" : "");
}

}  // namespace

Exchange exchange(const Partition& partition) {
  if (partition.blocks == 1) return Exchange::Solo;
  return partition.grid ? Exchange::Grid : Exchange::Cluster;
}

const char* name(Exchange exchange) {
  switch (exchange) {
    case Exchange::Solo:
      return "solo";
    case Exchange::Cluster:
      return "cluster";
    case Exchange::Grid:
      return "grid";
  }
  return "unknown";
}

Plan plan(const Shape& shape, Pass pass, const Device& device, std::optional<Kernel> kernel) {
  const Decision decision = kernel ? Decision{Strategy::Kernels, *kernel, {}} : decide(shape, device);
  if (decision.strategy == Strategy::Library) {
    return step_path(
        "the path for every shape, type and architecture, where torch's own kernels, which were chosen, cannot");
  }
  if (decision.kernel == Kernel::Step) return step_path("asked for");
  Plan plan = divide(shape, pass, device);
  plan.reason = plan.kernel == Kernel::Step ? "stationary was asked for: " + plan.reason : words(plan.partition);
  return plan;
}

}  // namespace gru::cuda
