// The backward pass with stationary weights: the gradients before the activations of every step, and that of h0
// (stationary.cuh tells how the work is divided and what is exchanged).
//
// The same as forward with W_hh transposed: a warp's units are those of dLoss/dh_(t-1), its columns the units of each
// of the gates' gradients of step t (n, r, z: three operands where forward has one), of which all blocks get all.
#include <algorithm>

#include "../cell.h"
#include "launch.h"
#include "stationary.cuh"

namespace gru::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------------

template <class Element>
struct BackwardPass {
  struct Direction {
    const Element* weight_hh;    // [3H, H]
    const Element* saved;        // [rows, 5H]: r | z | n | hn | h_(t-1)
    const Element* grad_output;  // [rows, H], row stride grad_output_stride; or null
    const Element* grad_h_n;     // [B, H] or null
    Element* d_gates;            // [rows, 4H]: r*dn | dr | dz | dn
    Element* grad_h0;            // [B, H] or null
    bool reverse;
  } directions[2];
  const int32_t* batch_sizes;  // [T] or null
  int64_t rows, time_stride, batch_stride, grad_output_stride;
  int seq_len, batch, hidden_size;
  int splits, blocks, group_batch, width;
  int tail;  // words of 16 bytes
  bool paired;
};

// Shared memory, in this order: the tail of the weights, the operand [2, 3, group_batch, row], the state [tiles of
// sequences, unit tiles, 32, 4], the sums of splits, the barriers.
template <class Element>
struct BackwardShared {
  uint4* tail;
  Element* operands;
  float4* state;
  float* sums;
  uint64_t* barriers;

  __device__ BackwardShared(const BackwardPass<Element>& pass, const Place& place) {
    const int row = operand_row(pass.width), tiles = place.units / kUnitsOfTile;
    tail = reinterpret_cast<uint4*>(shared_memory());
    operands = reinterpret_cast<Element*>(tail + pass.tail);
    state = reinterpret_cast<float4*>(operands + 6 * pass.group_batch * row);
    sums = reinterpret_cast<float*>(state + pass.group_batch / kSequencesOfTile * tiles * kWarpSize);
    barriers = reinterpret_cast<uint64_t*>(sums + 2 * tiles * (pass.splits - 1) * 4 * kWarpSize);
  }
};

// The operand is 0, for before the first step there are no gradients of gates, and the state dLoss/dh_n.
template <class Element>
__device__ inline void load_state(const BackwardPass<Element>& pass, const Element* grad_h_n,
                                  const BackwardShared<Element>& shared, const Place& place) {
  const int row = operand_row(pass.width), hidden_size = pass.hidden_size;
  for (int i = static_cast<int>(threadIdx.x); i < 6 * pass.group_batch * row; i += static_cast<int>(blockDim.x)) {
    shared.operands[i] = narrow<Element>(0.0f);
  }
  if (!place.leads()) return;
  const auto at = [&](int sequence, int unit) {
    const bool exists = grad_h_n != nullptr && sequence < pass.batch && unit < hidden_size;
    return exists ? widen(grad_h_n[static_cast<int64_t>(sequence) * hidden_size + unit]) : 0.0f;
  };
  for (int tile = 0; tile < pass.group_batch / kSequencesOfTile; ++tile) {
    const int sequence = place.group * pass.group_batch + tile * kSequencesOfTile + place.sequence;
    shared.state[(tile * (place.units / kUnitsOfTile) + place.unit_tile) * kWarpSize + place.lane] =
        make_float4(at(sequence, place.unit), at(sequence + 1, place.unit), at(sequence, place.unit + 1),
                    at(sequence + 1, place.unit + 1));
  }
}

template <class Element, int kTiles>
__global__ void __launch_bounds__(kMostThreads, 1) backward_stationary_kernel(const BackwardPass<Element> pass) {
  const Place place(pass.splits, pass.blocks);
  const auto& direction = pass.directions[blockIdx.y];
  const BackwardShared<Element> shared(pass, place);
  const int hidden_size = pass.hidden_size, row = operand_row(pass.width), unit = place.unit;
  const int tiles = pass.group_batch / kSequencesOfTile, unit_tiles = place.units / kUnitsOfTile;
  const int first_sequence = place.group * pass.group_batch, gate_stride = pass.group_batch * row;
  const int operand = 3 * gate_stride;

  Weights<kTiles> weights;
  load_weights_transposed<Element, kTiles>(weights, shared.tail, shared.operands, direction.weight_hh, hidden_size,
                                           pass.splits, place);
  load_state(pass, direction.grad_h_n, shared, place);
  const int brought = (pass.blocks - 1) * 3 * pass.group_batch * place.units * static_cast<int>(sizeof(Element));
  Exchange exchange(shared.barriers, pass.blocks, static_cast<unsigned>(brought));
  exchange.start(unit_tiles);

  // One step more than the sequence has where dLoss/dh0 is wanted: the last product.
  const int count = pass.seq_len + (direction.grad_h0 != nullptr ? 1 : 0);
  Steps steps(pass.batch_sizes, pass.seq_len, pass.rows, pass.time_stride, pass.batch, !direction.reverse);
  for (int s = 0; s < count; ++s) {
    const bool beyond = s == pass.seq_len, last = s == count - 1;
    const Steps::Step step = beyond ? Steps::Step{0, 0} : steps.at(s);
    const Element* const now = shared.operands + (s % 2 != 0 ? operand : 0);
    Element* const next = shared.operands + (s % 2 != 0 ? 0 : operand);
    if (!last) exchange.expect(s);
    for (int tile = 0; tile < tiles; ++tile) {
      const int sequence = first_sequence + tile * kSequencesOfTile + place.sequence;
      uint32_t saved[2][5] = {}, grad_output[2] = {};
      if (place.leads()) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          if (sequence + b >= step.active) continue;
          const int64_t from = step.row + (sequence + b) * pass.batch_stride;
#pragma unroll
          for (int value = 0; value < 5; ++value) {
            saved[b][value] = load_units(direction.saved + (from * kSavedValues + value) * hidden_size + unit, unit,
                                         hidden_size, pass.paired);
          }
          if (direction.grad_output != nullptr) {
            grad_output[b] = load_units(direction.grad_output + from * pass.grad_output_stride + unit, unit,
                                        hidden_size, pass.paired);
          }
        }
      }
      if (tile == 0) exchange.wait(s);
      float sums[3][4];
      multiply<Element, kTiles, false>(sums, weights, now + tile * kSequencesOfTile * row, row, gate_stride, place);
      float product[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) product[i] = sums[0][i] + sums[1][i] + sums[2][i];
      add_splits<4>(product, shared.sums, tile, pass.splits, place);
      if (!place.leads()) continue;

      float4& state = shared.state[(tile * unit_tiles + place.unit_tile) * kWarpSize + place.lane];
      const float4 kept = state;
      float dh[2][2] = {{kept.x + product[0], kept.z + product[2]}, {kept.y + product[1], kept.w + product[3]}};
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        Element values[4][2];
        Pack<float, 2> of_step[5];
#pragma unroll
        for (int value = 0; value < 5; ++value) of_step[value] = unpack_pair<Element>(saved[b][value]);
        const Pack<float, 2> grad = unpack_pair<Element>(grad_output[b]);
        const bool active = sequence + b < step.active;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const CellGradient<float> cell =
              cell_backward<float>(dh[b][i] + grad.value[i], of_step[0].value[i], of_step[1].value[i],
                                   of_step[2].value[i], of_step[3].value[i], of_step[4].value[i], 1.0f);
          values[0][i] = narrow<Element>(active ? cell.dn_hidden : 0.0f);
          values[1][i] = narrow<Element>(active ? cell.dr : 0.0f);
          values[2][i] = narrow<Element>(active ? cell.dz : 0.0f);
          values[3][i] = narrow<Element>(active ? cell.dn : 0.0f);
          if (active) dh[b][i] = cell.carry;
        }
        if (last && beyond) continue;
        Element* const to_operand = next + (tile * kSequencesOfTile + place.sequence + b) * row + unit;
        Element* const to =
            direction.d_gates + (step.row + (sequence + b) * pass.batch_stride) * 4 * hidden_size + unit;
#pragma unroll
        for (int value = 0; value < 4; ++value) {
          const uint32_t word = pack_pair(values[value][0], values[value][1]);
          if (value < 3) *reinterpret_cast<uint32_t*>(to_operand + value * gate_stride) = word;
          if (active) store_units(to + value * hidden_size, word, unit, hidden_size, pass.paired);
        }
      }
      state = make_float4(dh[0][0], dh[1][0], dh[0][1], dh[1][1]);
      if (last) continue;
      for (int gate = 0; gate < 3; ++gate) {
        exchange.send(next + gate * gate_stride + tile * kSequencesOfTile * row + place.tile_unit, row, s,
                      kSequencesOfTile, place);
      }
    }
    if (!last) exchange.finish(s, place);
  }

  if (!place.leads() || direction.grad_h0 == nullptr) return;
  for (int tile = 0; tile < tiles; ++tile) {
    const float4 dh = shared.state[(tile * unit_tiles + place.unit_tile) * kWarpSize + place.lane];
    const int sequence = first_sequence + tile * kSequencesOfTile + place.sequence;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (sequence + b >= pass.batch) continue;
      const uint32_t rounded = pack_pair(narrow<Element>(b == 0 ? dh.x : dh.y), narrow<Element>(b == 0 ? dh.z : dh.w));
      Element* const to = direction.grad_h0 + static_cast<int64_t>(sequence + b) * hidden_size + unit;
      store_units(to, rounded, unit, hidden_size, pass.paired);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

template <class Element>
BackwardPass<Element> arguments(const Partition& partition, const BackwardParams* params, int directions,
                                const StationarySequence& sequence) {
  const Rows& rows = params->rows;
  BackwardPass<Element> pass{};
  pass.batch_sizes = sequence.batch_sizes;
  pass.seq_len = static_cast<int>(rows.seq_len);
  pass.rows = sequence.rows;
  pass.time_stride = rows.time_stride;
  pass.batch_stride = rows.batch_stride;
  pass.grad_output_stride = params->grad_output_stride;
  pass.batch = static_cast<int>(rows.batch);
  pass.hidden_size = static_cast<int>(params->hidden_size);
  pass.splits = partition.splits;
  pass.blocks = partition.blocks;
  pass.group_batch = partition.group_batch;
  pass.width = partition.width();
  pass.tail = static_cast<int>(tail_bytes(partition) / sizeof(uint4));
  pass.paired = params->hidden_size % 2 == 0;
  for (int d = 0; d < directions; ++d) {
    auto& direction = pass.directions[d];
    direction.weight_hh = static_cast<const Element*>(params[d].weight_hh);
    direction.saved = static_cast<const Element*>(params[d].saved);
    direction.grad_output = static_cast<const Element*>(params[d].grad_output);
    direction.grad_h_n = static_cast<const Element*>(params[d].grad_h_n);
    direction.d_gates = static_cast<Element*>(params[d].d_gates);
    direction.grad_h0 = static_cast<Element*>(params[d].grad_h0);
    direction.reverse = params[d].reverse;
    pass.paired = pass.paired && packable(direction.saved, 0, 2) &&
                  packable(direction.grad_output, pass.grad_output_stride, 2) && packable(direction.d_gates, 0, 2) &&
                  packable(direction.grad_h0, 0, 2);
  }
  return pass;
}

}  // namespace

size_t backward_shared(const Partition& partition, size_t element) {
  const size_t operand = 6 * static_cast<size_t>(partition.group_batch * operand_row(partition.width())) * element;
  const size_t state = sizeof(float) * static_cast<size_t>(partition.group_batch * partition.units());
  const size_t walking = operand + state + splits_bytes(partition, 4) + 2 * sizeof(uint64_t);
  return tail_bytes(partition) + std::max(walking, transposed_stage_bytes(partition, element));
}

void backward_stationary(const Partition& partition, const BackwardParams* params, int directions,
                         const StationarySequence& sequence, cudaStream_t stream) {
  const ProfilerRange range("gru_ext backward_stationary");
  dispatch_half(params->dtype, [&](auto element) {
    using Element = decltype(element);
    const BackwardPass<Element> pass = arguments<Element>(partition, params, directions, sequence);
    dispatch_tiles(partition.k_tiles, [&](auto tiles) {
      LaunchShape shape;
      shape.grid = dim3(static_cast<unsigned>(partition.groups * partition.blocks), static_cast<unsigned>(directions));
      shape.block = dim3(static_cast<unsigned>(partition.warps * kWarpSize));
      shape.shared = backward_shared(partition, sizeof(Element));
      shape.cluster = static_cast<unsigned>(partition.blocks);
      launch(backward_stationary_kernel<Element, decltype(tiles)::value>, shape, stream, pass);
    });
  });
  check_launch("backward_stationary");
}

}  // namespace gru::cuda
