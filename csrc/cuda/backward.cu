// The cell of a backward step: the gradients before the activations of every sequence of the step, in one kernel.
#include <algorithm>

#include "../cell.h"
#include "element.h"
#include "launch.h"
#include "step.h"

namespace gru::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

// Pointers stand at the row of (time, sequence 0); strides, in elements, lead from one sequence to the next.
template <class Storage>
struct BackwardCell {
  uint32_t batch, product_batch, hidden_size;
  const Storage* saved;  // [batch, *] as gru.h says
  int64_t saved_stride;
  int64_t saved_state;         // where h_(t-1) begins in a row of it
  const Storage* grad_output;  // [batch, H] or null
  int64_t grad_output_stride;
  Compute<Storage>* carry;  // [batch, H], contiguous
  const Storage* product;   // [product_batch, H], contiguous
  Storage* d_gates;         // [batch, 4H]: r*dn | dr | dz | dn
  int64_t d_gates_stride;
  const uint32_t* marks;  // [batch] or null
  int64_t marks_stride;
  Storage* grad_reset_state;  // [batch, H], of a reset behind the step, or null
  int64_t grad_reset_stride;
  uint32_t reset_mark;
  BackwardMembers members;
  CellFormula formula;

  __host__ __device__ BackwardCell member(int64_t index) const {
    BackwardCell cell = *this;
    cell.saved += index * members.saved;
    cell.grad_output = further(grad_output, index * members.grad_output);
    cell.carry += index * members.carry;
    cell.product += index * members.product;
    cell.d_gates += index * members.d_gates;
    cell.marks = further(marks, index * members.marks);
    cell.grad_reset_state = further(grad_reset_state, index * members.grad_reset_state);
    return cell;
  }
};

template <class Storage, int kWidth>
__global__ void __launch_bounds__(kCellThreads, kCellBlocks) backward_cell_kernel(const BackwardCell<Storage> cells) {
  using Value = Compute<Storage>;
  BackwardCell<Storage> cell = cells;
  if (blockIdx.z != 0) cell = cells.member(blockIdx.z);
  const auto [b, unit] = cell_place<kWidth>();
  if (b >= cell.batch || unit >= cell.hidden_size) return;
  const int64_t hidden_size = cell.hidden_size, at = b * hidden_size + unit;

  const Storage* const saved = cell.saved + b * cell.saved_stride;
  auto gates = load_gates<kWidth>(saved + kSavedGates * unit);
  const auto h = load<kWidth>(saved + cell.saved_state + unit);
  auto dh = load<kWidth>(cell.carry + at);
  const uint32_t mark = cell.marks != nullptr ? cell.marks[b * cell.marks_stride] : 0;
  if (b < cell.product_batch) {
    const auto product = load<kWidth>(cell.product + at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) dh.value[i] += widen(product.value[i]);
  }
  if ((mark & kPadding) != 0) {  // in reverse it is behind the steps
    store<kWidth>(cell.carry + at, dh);
    return;
  }
  if ((mark & cell.reset_mark) != 0) {
    if (cell.grad_reset_state != nullptr) {
      Pack<Storage, kWidth> rounded;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) rounded.value[i] = narrow<Storage>(dh.value[i]);
      store<kWidth>(cell.grad_reset_state + b * cell.grad_reset_stride + unit, rounded);
    }
    dh = {};
  }
  if (cell.grad_output != nullptr) {
    const auto grad = load<kWidth>(cell.grad_output + b * cell.grad_output_stride + unit);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) dh.value[i] += widen(grad.value[i]);
  }

  Pack<Storage, kWidth> dn_hidden, dr, dz, dn;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const CellGradient<Value> gradient = cell.formula.template backward<Value>(
        dh.value[i], widen(gates.at(i, 0)), widen(gates.at(i, 1)), widen(gates.at(i, 2)), widen(gates.at(i, 3)),
        widen(h.value[i]), Value(1));
    dn_hidden.value[i] = narrow<Storage>(gradient.dn_hidden);
    dr.value[i] = narrow<Storage>(gradient.dr);
    dz.value[i] = narrow<Storage>(gradient.dz);
    dn.value[i] = narrow<Storage>(gradient.dn);
    dh.value[i] = gradient.carry;
  }

  store<kWidth>(cell.carry + at, dh);
  Storage* const d_gates = cell.d_gates + b * cell.d_gates_stride + unit;
  store<kWidth>(d_gates, dn_hidden);
  store<kWidth>(d_gates + hidden_size, dr);
  store<kWidth>(d_gates + 2 * hidden_size, dz);
  store<kWidth>(d_gates + 3 * hidden_size, dn);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <class Storage>
BackwardCell<Storage> backward_arguments(const BackwardParams& params, const BackwardStep& step) {
  const Rows& rows = params.rows;
  const int64_t hidden_size = params.hidden_size;
  const int64_t row = rows.row(step.time, 0), stride = rows.batch_stride;
  BackwardCell<Storage> cell{};
  cell.batch = cell_size(rows.batch_at(step.time));
  cell.product_batch = cell_size(step.product_batch);
  cell.hidden_size = cell_size(hidden_size);
  const int64_t units = padded(hidden_size, sizeof(Storage));
  cell.saved = static_cast<const Storage*>(params.saved) + row * kSavedValues * units;
  cell.saved_stride = stride * kSavedValues * units;
  cell.saved_state = kSavedGates * units;
  if (params.grad_output != nullptr) {
    cell.grad_output = static_cast<const Storage*>(params.grad_output) + row * params.grad_output_stride;
    cell.grad_output_stride = stride * params.grad_output_stride;
  }
  cell.carry = static_cast<Compute<Storage>*>(step.carry);
  cell.product = static_cast<const Storage*>(step.product);
  cell.d_gates = static_cast<Storage*>(step.d_gates) + row * kGateGradients * hidden_size;
  cell.d_gates_stride = stride * kGateGradients * hidden_size;
  cell.marks = params.marks == nullptr ? nullptr : params.marks + row;
  cell.marks_stride = stride;
  cell.reset_mark = params.reset_mark();
  const int64_t reset = params.time_of_reset_behind(step.time);
  if (params.grad_reset_state != nullptr && reset < rows.seq_len) {
    cell.grad_reset_state = static_cast<Storage*>(params.grad_reset_state) + rows.row(reset, 0) * hidden_size;
    cell.grad_reset_stride = stride * hidden_size;
  }
  cell.formula = CellFormula(params.options);
  cell.members = step.members;
  return cell;
}

template <class Storage>
bool wide(const BackwardCell<Storage>& cell) {
  constexpr int kWidth = kWide<Storage>;
  const BackwardMembers& members = cell.members;
  for (const int64_t stride :
       {members.grad_output, members.carry, members.product, members.d_gates, members.grad_reset_state}) {
    if (stride % kWidth != 0) return false;
  }
  return cell.hidden_size % kWidth == 0 && packable(cell.grad_output, cell.grad_output_stride, kWidth) &&
         packable(cell.carry, 0, kWidth) && packable(cell.product, 0, kWidth) &&
         packable(cell.d_gates, cell.d_gates_stride, kWidth) &&
         packable(cell.grad_reset_state, cell.grad_reset_stride, kWidth);
}

}  // namespace

void backward_cell(const BackwardParams& params, const BackwardStep& step, cudaStream_t stream) {
  const ProfilerRange range("gru_ext backward_cell");
  dispatch(params.dtype, [&](auto element) {
    using Storage = decltype(element);
    const BackwardCell<Storage> cell = backward_arguments<Storage>(params, step);
    if (cell.batch == 0) return;
    const bool is_wide = wide(cell);
    CellGrid cells = cell_grid(cell.batch, cell.hidden_size, is_wide ? kWide<Storage> : 1);
    for (int64_t first = 0; first < cell.members.count; first += kMembersAtOnce) {
      cells.grid.z = static_cast<unsigned>(std::min(kMembersAtOnce, cell.members.count - first));
      launch(is_wide ? backward_cell_kernel<Storage, kWide<Storage>> : backward_cell_kernel<Storage, 1>,
             {cells.grid, cells.block}, stream, cell.member(first));
    }
  });
  check_launch("backward_cell");
}

}  // namespace gru::cuda
