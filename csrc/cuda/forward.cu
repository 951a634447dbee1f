// The cell of a forward step: gates, candidate and new state of every sequence of the step, in one kernel.
#include <algorithm>

#include "../cell.h"
#include "cell_math.h"
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
struct ForwardCell {
  uint32_t batch, hidden_size;
  const Storage* input_gates;  // [batch, 3H]
  int64_t input_gates_stride;
  const Storage* hidden_gates;  // [batch, 3H], contiguous
  const Storage* bias_ih;       // [3H] or null
  const Storage* bias_hh;       // [3H], null exactly when bias_ih is
  Compute<Storage>* state;      // [batch, H], contiguous
  Storage* h_n;                 // [batch, H], contiguous; null when state is h_n
  Storage* output;              // [batch, H]
  int64_t output_stride;
  Storage* saved;  // [batch, *] as gru.h says, or null
  int64_t saved_stride;
  int64_t saved_state;    // where h_(t-1) begins in a row of it; 0: it is all that is kept
  const uint32_t* marks;  // [batch] or null
  int64_t marks_stride;
  const Storage* reset_state;  // [batch, H], of a reset behind the step; null: zero
  int64_t reset_stride;
  uint32_t reset_mark;
  ForwardMembers members;
  CellFormula formula;

  __host__ __device__ ForwardCell member(int64_t index) const {
    ForwardCell cell = *this;
    cell.input_gates += index * members.input_gates;
    cell.hidden_gates += index * members.hidden_gates;
    cell.bias_ih = further(bias_ih, index * members.bias_ih);
    cell.bias_hh = further(bias_hh, index * members.bias_hh);
    cell.state += index * members.state;
    cell.h_n = further(h_n, index * members.h_n);
    cell.output += index * members.output;
    cell.saved = further(saved, index * members.saved);
    cell.marks = further(marks, index * members.marks);
    cell.reset_state = further(reset_state, index * members.reset_state);
    return cell;
  }
};

// All loads come first, so that their latencies are one; hence a kernel of its own without biases.
template <class Storage, int kWidth, bool kBiases>
__global__ void __launch_bounds__(kCellThreads, kCellBlocks) forward_cell_kernel(const ForwardCell<Storage> cells) {
  using Value = Compute<Storage>;
  ForwardCell<Storage> cell = cells;
  if (blockIdx.z != 0) cell = cells.member(blockIdx.z);
  const auto [b, unit] = cell_place<kWidth>();
  if (b >= cell.batch || unit >= cell.hidden_size) return;
  const int64_t hidden_size = cell.hidden_size, row = b * hidden_size;

  const Storage* const from_input = cell.input_gates + b * cell.input_gates_stride + unit;
  const Storage* const from_hidden = cell.hidden_gates + 3 * row + unit;
  Value* const state = cell.state + row + unit;
  Pack<Storage, kWidth> input[3], hidden[3], bias_ih[3], bias_hh[3];
#pragma unroll
  for (int gate = 0; gate < 3; ++gate) {
    input[gate] = load<kWidth>(from_input + gate * hidden_size);
    hidden[gate] = load<kWidth>(from_hidden + gate * hidden_size);
    if constexpr (kBiases) {
      bias_ih[gate] = load<kWidth>(cell.bias_ih + gate * hidden_size + unit);
      bias_hh[gate] = load<kWidth>(cell.bias_hh + gate * hidden_size + unit);
    }
  }
  auto h = load<kWidth>(state);
  const uint32_t mark = cell.marks != nullptr ? cell.marks[b * cell.marks_stride] : 0;
  if ((mark & kPadding) != 0) return;

  SavedGates<kWidth, Storage> gates;
  Pack<Storage, kWidth> previous, rounded;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const auto biased = [i](const auto& gates, const auto& bias) {
      return kBiases ? widen(gates.value[i]) + widen(bias.value[i]) : widen(gates.value[i]);
    };
    const auto sum = [&](int gate) {
      const Value sum = widen(input[gate].value[i]) + widen(hidden[gate].value[i]);
      return kBiases ? sum + biased(bias_ih[gate], bias_hh[gate]) : sum;
    };
    const Value a_hn = biased(hidden[2], bias_hh[2]);
    const CellState<Value> now = cell.formula.template forward<CellMath<Storage>, Value>(
        sum(0), sum(1), biased(input[2], bias_ih[2]), a_hn, h.value[i]);
    previous.value[i] = narrow<Storage>(h.value[i]);
    h.value[i] = now.h;
    rounded.value[i] = narrow<Storage>(now.h);
    gates.at(i, 0) = narrow<Storage>(now.r);
    gates.at(i, 1) = narrow<Storage>(now.z);
    gates.at(i, 2) = narrow<Storage>(now.n);
    gates.at(i, 3) = narrow<Storage>(a_hn);
  }

  store<kWidth>(cell.output + b * cell.output_stride + unit, rounded);
  if ((mark & cell.reset_mark) != 0) {
    rounded = Pack<Storage, kWidth>{};
    if (cell.reset_state != nullptr) {  // of any alignment
#pragma unroll
      for (int i = 0; i < kWidth; ++i) rounded.value[i] = cell.reset_state[b * cell.reset_stride + unit + i];
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) h.value[i] = widen(rounded.value[i]);
  }
  store<kWidth>(state, h);
  if (cell.h_n != nullptr) store<kWidth>(cell.h_n + row + unit, rounded);
  if (cell.saved == nullptr) return;
  Storage* const saved = cell.saved + b * cell.saved_stride;
  if (cell.saved_state != 0) store_gates<kWidth>(saved + kSavedGates * unit, gates);
  store<kWidth>(saved + cell.saved_state + unit, previous);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <class Storage>
ForwardCell<Storage> forward_arguments(const ForwardParams& params, const ForwardStep& step) {
  const int64_t hidden_size = params.hidden_size;
  const int64_t row = params.rows.row(step.time, 0), stride = params.rows.batch_stride;
  ForwardCell<Storage> cell{};
  cell.batch = cell_size(params.rows.batch_at(step.time));
  cell.hidden_size = cell_size(hidden_size);
  cell.input_gates = static_cast<const Storage*>(step.input_gates) + row * 3 * hidden_size;
  cell.input_gates_stride = stride * 3 * hidden_size;
  cell.hidden_gates = static_cast<const Storage*>(step.hidden_gates);
  cell.bias_ih = static_cast<const Storage*>(params.bias_ih);
  cell.bias_hh = static_cast<const Storage*>(params.bias_hh);
  cell.state = static_cast<Compute<Storage>*>(step.state);
  cell.h_n = step.state == params.h_n ? nullptr : static_cast<Storage*>(params.h_n);
  cell.output = static_cast<Storage*>(params.output) + row * params.output_stride;
  cell.output_stride = stride * params.output_stride;
  if (params.saved != nullptr) {
    const int64_t units = padded(hidden_size, sizeof(Storage));
    const int64_t saved_row = params.options.recompute ? hidden_size : kSavedValues * units;
    cell.saved = static_cast<Storage*>(params.saved) + row * saved_row;
    cell.saved_stride = stride * saved_row;
    cell.saved_state = params.options.recompute ? 0 : kSavedGates * units;
  }
  cell.marks = params.marks == nullptr ? nullptr : params.marks + row;
  cell.marks_stride = stride;
  cell.reset_mark = params.reset_mark();
  const int64_t reset = params.time_of_reset_behind(step.time);
  if (params.reset_state != nullptr && reset < params.rows.seq_len) {
    cell.reset_state = static_cast<const Storage*>(params.reset_state) + reset * params.reset_time_stride;
    cell.reset_stride = params.reset_batch_stride;
  }
  cell.formula = CellFormula(params.options);
  cell.members = step.members;
  return cell;
}

template <class Storage>
bool wide(const ForwardCell<Storage>& cell) {
  constexpr int kWidth = kWide<Storage>;
  const ForwardMembers& members = cell.members;
  for (const int64_t stride : {members.input_gates, members.hidden_gates, members.bias_ih, members.bias_hh,
                               members.state, members.h_n, members.output, members.saved}) {
    if (stride % kWidth != 0) return false;
  }
  return cell.hidden_size % kWidth == 0 && packable(cell.input_gates, cell.input_gates_stride, kWidth) &&
         packable(cell.hidden_gates, 0, kWidth) && packable(cell.bias_ih, 0, kWidth) &&
         packable(cell.bias_hh, 0, kWidth) && packable(cell.state, 0, kWidth) && packable(cell.h_n, 0, kWidth) &&
         packable(cell.output, cell.output_stride, kWidth) && packable(cell.saved, cell.saved_stride, kWidth);
}

template <class Storage>
auto forward_kernel(bool is_wide, bool has_biases) {
  constexpr int kWidth = kWide<Storage>;
  if (has_biases) return is_wide ? forward_cell_kernel<Storage, kWidth, true> : forward_cell_kernel<Storage, 1, true>;
  return is_wide ? forward_cell_kernel<Storage, kWidth, false> : forward_cell_kernel<Storage, 1, false>;
}

}  // namespace

void forward_cell(const ForwardParams& params, const ForwardStep& step, cudaStream_t stream) {
  const ProfilerRange range("gru_ext forward_cell");
  dispatch(params.dtype, [&](auto element) {
    using Storage = decltype(element);
    const ForwardCell<Storage> cell = forward_arguments<Storage>(params, step);
    if (cell.batch == 0) return;
    const bool is_wide = wide(cell);
    CellGrid cells = cell_grid(cell.batch, cell.hidden_size, is_wide ? kWide<Storage> : 1);
    for (int64_t first = 0; first < cell.members.count; first += kMembersAtOnce) {
      cells.grid.z = static_cast<unsigned>(std::min(kMembersAtOnce, cell.members.count - first));
      launch(forward_kernel<Storage>(is_wide, cell.bias_ih != nullptr), {cells.grid, cells.block}, stream,
             cell.member(first));
    }
  });
  check_launch("forward_cell");
}

}  // namespace gru::cuda
