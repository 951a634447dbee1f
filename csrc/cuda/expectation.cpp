#include "expectation.h"

#include <algorithm>
#include <cmath>

namespace gru::cuda {
namespace {

// Cycles. What others have measured on an H100: a product on the tensor cores, m16n8k16, gives its result after 25 and
// runs at 63 % of the peak rate at most; another block's shared memory answers after 180, the far half of the L2 cache
// after 414. From these, guesses (benchmarks/NOTES.md, "weights that stay on the chip"): an exchange within a cluster
// is a store there, a barrier's arrival, a wait, and more stores the more blocks there are; one through the L2 cache is
// a store, a poll that finds it, and gathering.
constexpr double kProductLatency = 25, kProductShare = 0.63;
constexpr double kClusterExchange = 300, kClusterExchangeOfBlock = 25, kGridExchange = 1200;
// A barrier of a block; the sums of the warps that share columns, added up; the functions of a cell, one after the
// other.
constexpr double kBarrier = 40, kAdding = 60, kCellOfHalf = 150, kCellOfFloat = 300;
// Multiply-adds a cycle of a multiprocessor, which has four quarters.
constexpr double kPeakOfHalf = 2048, kPeakOfTf32 = 1024, kPeakOfFloat = 128;

}  // namespace

Expectation expect(const Shape& shape, const Plan& plan, const Device& device) {
  if (plan.kernel == Kernel::Step) return {};
  const Partition& partition = plan.partition;
  const bool tensor_cores = shape.dtype != DataType::Float32 || partition.tf32;
  const double peak = shape.dtype != DataType::Float32 ? kPeakOfHalf : partition.tf32 ? kPeakOfTf32 : kPeakOfFloat;
  const double cell = shape.dtype == DataType::Float32 ? kCellOfFloat : kCellOfHalf;
  const double exchange = plan.kernel == Kernel::Solo   ? kBarrier
                          : plan.kernel == Kernel::Grid ? kGridExchange
                                                        : kClusterExchange + kClusterExchangeOfBlock * partition.blocks;

  // Of 8 sequences, in both passes. Warps of a quarter take turns; a gate's products follow one another.
  // Plain multiply-adds are done for the sequences there are, of up to 2.
  const double sequences = !tensor_cores && shape.batch <= 2 ? 2 : 8;
  const double multiply_adds = 3.0 * 16 * 16 * partition.k_tiles * sequences;  // of a warp
  const double warps_of_quarter = std::ceil(partition.warps / 4.0);
  const double issue = multiply_adds * warps_of_quarter / (peak / 4 * (tensor_cores ? kProductShare : 1.0));
  const double chain = tensor_cores ? kProductLatency * partition.k_tiles * (partition.tf32 ? 2 : 1) : 0;
  const double adding = partition.splits > 1 ? kAdding : 0;
  const double tiles = partition.group_batch / 8;

  const double hidden_size = static_cast<double>(shape.hidden_size);
  const double of_group =
      3 * hidden_size * hidden_size * std::min<double>(partition.group_batch, static_cast<double>(shape.batch));
  const double cycles = exchange + tiles * (std::max(issue, chain) + adding + cell);
  const double bound = exchange + of_group / (partition.blocks * peak) + cell;
  return {cycles / device.gigahertz * 1e-3, bound / device.gigahertz * 1e-3};
}

}  // namespace gru::cuda
