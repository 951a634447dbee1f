// The backward pass with stationary weights: the gradients before the activations of every step, and that of h0
// (stationary.cuh tells how the work is divided and what is exchanged).
//
// The same as forward with W_hh transposed: a warp's units are those of dLoss/dh_(t-1), its columns the units of each
// of the gates' gradients of step t (n, r, z: three operands where forward has one), of which all blocks get all.
#include <algorithm>

#include "../cell.h"
#include "stationary_exchange.cuh"
#include "stationary_product.cuh"

namespace gru::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------------

template <class Element>
struct BackwardPass {
  struct Direction {
    const Element* weight_hh;    // [3H, H]
    const Element* saved;        // [rows, 5H]
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
  int tail;                // words of 16 bytes
  uint64_t* exchange;      // of a grid
  int64_t exchange_words;  // of a direction
  int exchange_length;     // words of a row
  bool paired;
};

// Shared memory, in this order: the tail of the weights, the operand ([2, 3, group_batch, row] in a cluster, [3, 8,
// row] in a grid), the state [tiles of sequences, unit tiles, 32, 4], the sums of splits, the barriers.
template <class Element>
struct BackwardShared {
  uint4* tail;
  Element* operands;
  float4* state;
  float* sums;
  uint64_t* barriers;

  __device__ BackwardShared(const BackwardPass<Element>& pass, const Place& place, int operand) {
    const int tiles = place.units / kUnitsOfTile;
    tail = reinterpret_cast<uint4*>(shared_memory());
    operands = reinterpret_cast<Element*>(tail + pass.tail);
    state = reinterpret_cast<float4*>(operands + operand);
    sums = reinterpret_cast<float*>(state + pass.group_batch / kSequencesOfTile * tiles * kWarpSize);
    barriers = reinterpret_cast<uint64_t*>(sums + 2 * tiles * (pass.splits - 1) * 4 * kWarpSize);
  }
};

// The gates of two units, element by element; what does not exist reads as 0.
template <class Element>
__device__ inline void load_gates(const Element* address, Pair<Element> (&gates)[kSavedValues], int unit,
                                  int hidden_size) {
#pragma unroll
  for (int gate = 0; gate < kSavedGates; ++gate) {
    const auto at = [&](int i) {
      return unit + i < hidden_size ? address[kSavedGates * i + gate] : narrow<Element>(0.0f);
    };
    gates[gate] = pack_pair(at(0), at(1));
  }
}

// What forward kept of the cells of a lane, and dLoss/doutput; two units a word, 0 from `active` sequences on.
template <class Element>
struct Inputs {
  Pair<Element> saved[2][5], grad_output[2];  // [sequence]
};
template <class Element>
__device__ inline Inputs<Element> load_inputs(const BackwardPass<Element>& pass, const Element* saved,
                                              const Element* grad_output, Steps::Step step, int sequence, int unit) {
  Inputs<Element> inputs{};
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    if (sequence + b >= step.active) continue;
    const int64_t from = step.row + (sequence + b) * pass.batch_stride;
    const Element* const kept = saved + from * kSavedValues * pass.hidden_size;
    load_gates(kept + kSavedGates * unit, inputs.saved[b], unit, pass.hidden_size);
    inputs.saved[b][kSavedGates] =
        load_units(kept + kSavedGates * pass.hidden_size + unit, unit, pass.hidden_size, pass.paired);
    if (grad_output == nullptr) continue;
    inputs.grad_output[b] =
        load_units(grad_output + from * pass.grad_output_stride + unit, unit, pass.hidden_size, pass.paired);
  }
  return inputs;
}

// The gradients before the activations of the cells of a lane, as stored; two units a word, 0 from `active` sequences
// on.
template <class Element>
struct Outputs {
  Pair<Element> gates[2][4];  // [sequence][r*dn, dr, dz, dn]
};
// Updates the state: from dLoss/dh of the step after to what of dLoss/dh of this step does not pass through W_hh.
// product is what does, of the step after.
template <class Element>
__device__ inline Outputs<Element> do_cells(const float (&product)[4], const Inputs<Element>& inputs, float4& state,
                                            int sequence, int active) {
  const float4 before = state;
  float dh[2][2] = {{before.x + product[0], before.z + product[2]}, {before.y + product[1], before.w + product[3]}};
  Outputs<Element> outputs;
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    Element values[4][2];
    Pack<float, 2> saved[5];
#pragma unroll
    for (int value = 0; value < 5; ++value) saved[value] = unpack_pair<Element>(inputs.saved[b][value]);
    const Pack<float, 2> grad = unpack_pair<Element>(inputs.grad_output[b]);
    const bool in_step = sequence + b < active;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const CellGradient<float> cell =
          cell_backward<float>(dh[b][i] + grad.value[i], saved[0].value[i], saved[1].value[i], saved[2].value[i],
                               saved[3].value[i], saved[4].value[i], 1.0f);
      values[0][i] = narrow<Element>(in_step ? cell.dn_hidden : 0.0f);
      values[1][i] = narrow<Element>(in_step ? cell.dr : 0.0f);
      values[2][i] = narrow<Element>(in_step ? cell.dz : 0.0f);
      values[3][i] = narrow<Element>(in_step ? cell.dn : 0.0f);
      if (in_step) dh[b][i] = cell.carry;
    }
#pragma unroll
    for (int value = 0; value < 4; ++value) outputs.gates[b][value] = pack_pair(values[value][0], values[value][1]);
  }
  state = make_float4(dh[0][0], dh[1][0], dh[0][1], dh[1][1]);
  return outputs;
}

template <class Element, int kTiles, bool kGrid>
__global__ void __launch_bounds__(kMostThreads, 1) backward_stationary_kernel(const BackwardPass<Element> pass) {
  const Place place(pass.splits, pass.blocks);
  const auto& direction = pass.directions[blockIdx.y];
  const int hidden_size = pass.hidden_size, row = padded_row(pass.width, sizeof(Element)), unit = place.unit;
  const int tiles = pass.group_batch / kSequencesOfTile, first_sequence = place.group * pass.group_batch;
  const int gate_stride = (kGrid ? kSequencesOfTile : pass.group_batch) * row, operand = 3 * gate_stride;
  const BackwardShared<Element> shared(pass, place, kGrid ? operand : 2 * operand);

  Product<Element, kTiles> product;
  product.load_transposed(shared.tail, shared.operands, direction.weight_hh, hidden_size, pass.splits, place);
  if (place.leads()) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int sequence = first_sequence + tile * kSequencesOfTile + place.sequence;
      const auto at = [&](int b, int i) {
        const bool exists = direction.grad_h_n != nullptr && sequence + b < pass.batch && unit + i < hidden_size;
        return exists ? widen(direction.grad_h_n[static_cast<int64_t>(sequence + b) * hidden_size + unit + i]) : 0.0f;
      };
      shared.state[place.state(tile)] = make_float4(at(0, 0), at(1, 0), at(0, 1), at(1, 1));
    }
  }
  // Before the first step there are no gradients of gates: 0, as is the padding in every step.
  for (int i = static_cast<int>(threadIdx.x); i < (kGrid ? 1 : 2) * operand; i += static_cast<int>(blockDim.x)) {
    shared.operands[i] = narrow<Element>(0.0f);
  }
  const int brought = (pass.blocks - 1) * 3 * pass.group_batch * place.units * static_cast<int>(sizeof(Element));
  ClusterExchange cluster(shared.barriers, pass.blocks, brought);
  GridExchange grid(pass.exchange + blockIdx.y * pass.exchange_words, static_cast<int>(gridDim.x) / pass.blocks, tiles,
                    3 * kSequencesOfTile, pass.exchange_length, place);
  if (!kGrid) cluster.start(place.units / kUnitsOfTile);

  // One step more than the sequence has where dLoss/dh0 is wanted: the last product.
  const int count = pass.seq_len + (direction.grad_h0 != nullptr ? 1 : 0);
  Steps steps(pass.batch_sizes, pass.seq_len, pass.rows, pass.time_stride, pass.batch, !direction.reverse);
  int active_before = 0;  // sequences of the step before, whose gradients are multiplied
  for (int s = 0; s < count; ++s) {
    const bool last = s == count - 1;
    const Steps::Step step = s == pass.seq_len ? Steps::Step{0, 0} : steps.at(s);
    const Element* const now = shared.operands + (!kGrid && s % 2 != 0 ? operand : 0);
    Element* const next = shared.operands + (s % 2 != 0 ? 0 : operand);
    if (!kGrid && !last) cluster.expect(s);
    for (int tile = 0; tile < tiles; ++tile) {
      const int in_group = tile * kSequencesOfTile, sequence = first_sequence + in_group + place.sequence;
      Inputs<Element> inputs{};
      if (place.leads()) {
        inputs = load_inputs(pass, direction.saved, direction.grad_output, step, sequence, unit);
      }
      if (kGrid) {
        block_sync();  // all have read the tile before
        if (s > 0) grid.template gather<6>(shared.operands, row, s, tile);
        block_sync();
      } else if (tile == 0) {
        cluster.wait(s);
      }
      float sums[3][4], total[4];
      const int wanted = (step.active > active_before ? step.active : active_before) - first_sequence - in_group;
      product.template multiply<false>(sums, now + (kGrid ? 0 : in_group * row), row, gate_stride, place, wanted);
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i] = sums[0][i] + sums[1][i] + sums[2][i];
      add_splits<4>(total, shared.sums, tile, pass.splits, place);
      if (!place.leads()) continue;

      const Outputs<Element> outputs =
          do_cells<Element>(total, inputs, shared.state[place.state(tile)], sequence, step.active);
      if (!last) {
#pragma unroll
        for (int gate = 0; gate < 3; ++gate) {
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            const int in_tile = place.sequence + b;
            if (kGrid) {
              grid.publish(outputs.gates[b][gate], s, tile, gate * kSequencesOfTile + in_tile, unit);
            } else {
              Element* const to = next + gate * gate_stride + (in_group + in_tile) * row + unit;
              *reinterpret_cast<Pair<Element>*>(to) = outputs.gates[b][gate];
            }
          }
          if (!kGrid) cluster.send(next + gate * gate_stride + in_group * row + place.tile_unit, row, s, place);
        }
        if (!kGrid && tile == tiles - 1) cluster.arrive(s, place);
      }
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        if (sequence + b >= step.active) continue;
        Element* const to =
            direction.d_gates + (step.row + (sequence + b) * pass.batch_stride) * kGateGradients * hidden_size + unit;
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          store_units(to + gate * hidden_size, outputs.gates[b][gate], unit, hidden_size, pass.paired);
        }
      }
    }
    active_before = step.active;
    if (!kGrid && !last) cluster.finish();
  }

  if (!place.leads() || direction.grad_h0 == nullptr) return;
  for (int tile = 0; tile < tiles; ++tile) {
    const float4 dh = shared.state[place.state(tile)];
    const int sequence = first_sequence + tile * kSequencesOfTile + place.sequence;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (sequence + b >= pass.batch) continue;
      const Pair<Element> rounded =
          pack_pair(narrow<Element>(b == 0 ? dh.x : dh.y), narrow<Element>(b == 0 ? dh.z : dh.w));
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
  pass.tail = static_cast<int>(tail_bytes(partition, sizeof(Element)) / sizeof(uint4));
  pass.exchange = sequence.exchange;
  pass.exchange_words = backward_exchange_words(partition, sizeof(Element));
  pass.exchange_length = exchange_length(partition, sizeof(Element));
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

int64_t backward_exchange_words(const Partition& partition, size_t element) {
  return exchange_words(partition, element, 3);
}

size_t backward_shared(const Partition& partition, size_t element) {
  const int rows = 3 * (partition.grid ? kSequencesOfTile : 2 * partition.group_batch);
  const size_t operand = static_cast<size_t>(rows * padded_row(partition.width(), element)) * element;
  const size_t state = sizeof(float) * static_cast<size_t>(partition.group_batch * partition.units());
  const size_t walking = operand + state + splits_bytes(partition, 4) + 2 * sizeof(uint64_t);
  return tail_bytes(partition, element) + std::max(walking, transposed_stage_bytes(partition, element));
}

void backward_stationary(const Partition& partition, const BackwardParams* params, int directions,
                         const StationarySequence& sequence, cudaStream_t stream) {
  const ProfilerRange range("gru_ext backward_stationary");
  dispatch_stationary(params->dtype, partition, [&](auto element, auto tiles) {
    using Element = decltype(element);
    constexpr int kTiles = decltype(tiles)::value;
    const BackwardPass<Element> pass = arguments<Element>(partition, params, directions, sequence);
    launch(partition.grid ? backward_stationary_kernel<Element, kTiles, true>
                          : backward_stationary_kernel<Element, kTiles, false>,
           launch_shape(partition, directions, backward_shared(partition, sizeof(Element))), stream, pass);
  });
  check_launch("backward_stationary");
}

}  // namespace gru::cuda
