// The forward pass with stationary weights (stationary.cuh tells how the work is divided and what is exchanged).
//
// A step of a warp: the input's gates of its cells are on their way from memory while it waits for h_(t-1) of all units
// and multiplies; then the leader does the cells. Bound: three latencies in a row, of the exchange, of the chain of
// k_tiles products and of the cell; for more than 8 sequences a group, the products of all its tiles.
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
struct ForwardPass {
  struct Direction {
    const Element* input_gates;  // [rows, 3H]
    const Element* weight_hh;    // [3H, H]
    const Element* bias_ih;      // [3H] or null
    const Element* bias_hh;      // [3H], null exactly when bias_ih is
    const Element* h0;           // [B, H]
    Element* output;             // [rows, H], row stride output_stride
    Element* h_n;                // [B, H]
    Element* saved;              // [rows, 5H] or null
    bool reverse;
  } directions[2];
  const int32_t* batch_sizes;  // [T] or null
  int64_t rows, time_stride, batch_stride, output_stride;
  int seq_len, batch, hidden_size;
  int splits, blocks, group_batch, width;
  int tail;  // words of 16 bytes
  bool paired;
};

// Shared memory, in this order: the tail of the weights, the operand [2, group_batch, row], the state [tiles of
// sequences, unit tiles, 32, 4], the biases [units], the sums of splits, the barriers.
template <class Element>
struct ForwardShared {
  uint4* tail;
  Element* operands;
  float4* state;
  float4* biases;
  float* sums;
  uint64_t* barriers;

  __device__ ForwardShared(const ForwardPass<Element>& pass, const Place& place) {
    const int row = operand_row(pass.width), tiles = place.units / kUnitsOfTile;
    tail = reinterpret_cast<uint4*>(shared_memory());
    operands = reinterpret_cast<Element*>(tail + pass.tail);
    state = reinterpret_cast<float4*>(operands + 2 * pass.group_batch * row);
    biases = state + pass.group_batch / kSequencesOfTile * tiles * kWarpSize;
    sums = reinterpret_cast<float*>(biases + place.units);
    barriers = reinterpret_cast<uint64_t*>(sums + 2 * tiles * (pass.splits - 1) * 12 * kWarpSize);
  }
};

// Of each unit: those of the reset gate and of the update gate summed up, and the candidate's two.
template <class Element>
__device__ inline void load_biases(const Element* bias_ih, const Element* bias_hh, int hidden_size, float4* biases,
                                   const Place& place) {
  for (int i = static_cast<int>(threadIdx.x); i < place.units; i += static_cast<int>(blockDim.x)) {
    const int r = place.rank * place.units + i, z = r + hidden_size, n = z + hidden_size;
    biases[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (bias_ih == nullptr || r >= hidden_size) continue;
    biases[i] = make_float4(widen(bias_ih[r]) + widen(bias_hh[r]), widen(bias_ih[z]) + widen(bias_hh[z]),
                            widen(bias_ih[n]), widen(bias_hh[n]));
  }
}

// The operand holds h0 of every unit, and 0 where there is no unit or no sequence; the state the block's own part.
template <class Element>
__device__ inline void load_h0(const ForwardPass<Element>& pass, const Element* h0,
                               const ForwardShared<Element>& shared, const Place& place) {
  const int row = operand_row(pass.width), first = place.group * pass.group_batch, hidden_size = pass.hidden_size;
  const auto at = [&](int sequence, int unit) {
    const bool exists = sequence < pass.batch && unit < hidden_size;
    return exists ? h0[static_cast<int64_t>(sequence) * hidden_size + unit] : narrow<Element>(0.0f);
  };
  for (int i = static_cast<int>(threadIdx.x); i < pass.group_batch * row; i += static_cast<int>(blockDim.x)) {
    shared.operands[i] = at(first + i / row, i % row);
    shared.operands[pass.group_batch * row + i] = narrow<Element>(0.0f);
  }
  if (!place.leads()) return;
  for (int tile = 0; tile < pass.group_batch / kSequencesOfTile; ++tile) {
    const int sequence = first + tile * kSequencesOfTile + place.sequence;
    shared.state[(tile * (place.units / kUnitsOfTile) + place.unit_tile) * kWarpSize + place.lane] =
        make_float4(widen(at(sequence, place.unit)), widen(at(sequence + 1, place.unit)),
                    widen(at(sequence, place.unit + 1)), widen(at(sequence + 1, place.unit + 1)));
  }
}

template <class Element, int kTiles>
__global__ void __launch_bounds__(kMostThreads, 1) forward_stationary_kernel(const ForwardPass<Element> pass) {
  const Place place(pass.splits, pass.blocks);
  const auto& direction = pass.directions[blockIdx.y];
  const ForwardShared<Element> shared(pass, place);
  const int hidden_size = pass.hidden_size, row = operand_row(pass.width), unit = place.unit;
  const int tiles = pass.group_batch / kSequencesOfTile, unit_tiles = place.units / kUnitsOfTile;
  const int first_sequence = place.group * pass.group_batch, operand = pass.group_batch * row;

  Weights<kTiles> weights;
  load_weights<Element, kTiles>(weights, shared.tail, shared.operands, direction.weight_hh, hidden_size, pass.splits,
                                place);
  load_biases(direction.bias_ih, direction.bias_hh, hidden_size, shared.biases, place);
  load_h0(pass, direction.h0, shared, place);
  const int brought = (pass.blocks - 1) * pass.group_batch * place.units * static_cast<int>(sizeof(Element));
  Exchange exchange(shared.barriers, pass.blocks, static_cast<unsigned>(brought));
  exchange.start(unit_tiles);

  Steps steps(pass.batch_sizes, pass.seq_len, pass.rows, pass.time_stride, pass.batch, direction.reverse);
  for (int s = 0; s < pass.seq_len; ++s) {
    const Steps::Step step = steps.at(s);
    const bool last = s == pass.seq_len - 1;
    const Element* const now = shared.operands + (s % 2 != 0 ? operand : 0);
    Element* const next = shared.operands + (s % 2 != 0 ? 0 : operand);
    if (!last) exchange.expect(s);
    for (int tile = 0; tile < tiles; ++tile) {
      const int sequence = first_sequence + tile * kSequencesOfTile + place.sequence;
      uint32_t inputs[2][3] = {};
      if (place.leads()) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          if (sequence + b >= step.active) continue;
          const Element* const from =
              direction.input_gates + (step.row + (sequence + b) * pass.batch_stride) * 3 * hidden_size + unit;
#pragma unroll
          for (int gate = 0; gate < 3; ++gate) {
            inputs[b][gate] = load_units(from + gate * hidden_size, unit, hidden_size, pass.paired);
          }
        }
      }
      if (tile == 0) exchange.wait(s);
      float sums[3][4];
      multiply<Element, kTiles, true>(sums, weights, now + tile * kSequencesOfTile * row, row, 0, place);
      add_splits<12>(&sums[0][0], shared.sums, tile, pass.splits, place);
      if (!place.leads()) continue;

      float4& state = shared.state[(tile * unit_tiles + place.unit_tile) * kWarpSize + place.lane];
      const float4 kept = state;
      float h[2][2] = {{kept.x, kept.z}, {kept.y, kept.w}};  // [sequence][unit]
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        Element values[5][2];
        const Pack<float, 2> input_r = unpack_pair<Element>(inputs[b][0]), input_z = unpack_pair<Element>(inputs[b][1]),
                             input_n = unpack_pair<Element>(inputs[b][2]);
        const bool active = sequence + b < step.active;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float4 bias = shared.biases[unit - place.rank * place.units + i];
          const float a_hn = sums[2][2 * i + b] + bias.w;
          const CellState<float> cell = cell_forward<Math, float>(input_r.value[i] + sums[0][2 * i + b] + bias.x,
                                                                  input_z.value[i] + sums[1][2 * i + b] + bias.y,
                                                                  input_n.value[i] + bias.z, a_hn, h[b][i]);
          values[0][i] = narrow<Element>(cell.r);
          values[1][i] = narrow<Element>(cell.z);
          values[2][i] = narrow<Element>(cell.n);
          values[3][i] = narrow<Element>(a_hn);
          values[4][i] = narrow<Element>(h[b][i]);
          if (active) h[b][i] = cell.h;
        }
        const uint32_t rounded = pack_pair(narrow<Element>(h[b][0]), narrow<Element>(h[b][1]));
        const int place_in_row = (tile * kSequencesOfTile + place.sequence + b) * row + unit;
        *reinterpret_cast<uint32_t*>(next + place_in_row) = rounded;
        if (!active) continue;
        const int64_t to = step.row + (sequence + b) * pass.batch_stride;
        store_units(direction.output + to * pass.output_stride + unit, rounded, unit, hidden_size, pass.paired);
        if (direction.saved == nullptr) continue;
        Element* const saved = direction.saved + to * kSavedValues * hidden_size + unit;
#pragma unroll
        for (int value = 0; value < 5; ++value) {
          store_units(saved + value * hidden_size, pack_pair(values[value][0], values[value][1]), unit, hidden_size,
                      pass.paired);
        }
      }
      state = make_float4(h[0][0], h[1][0], h[0][1], h[1][1]);
      if (!last) exchange.send(next + tile * kSequencesOfTile * row + place.tile_unit, row, s, kSequencesOfTile, place);
    }
    if (!last) exchange.finish(s, place);
  }

  if (!place.leads()) return;
  for (int tile = 0; tile < tiles; ++tile) {
    const float4 h = shared.state[(tile * unit_tiles + place.unit_tile) * kWarpSize + place.lane];
    const int sequence = first_sequence + tile * kSequencesOfTile + place.sequence;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (sequence + b >= pass.batch) continue;
      const uint32_t rounded = pack_pair(narrow<Element>(b == 0 ? h.x : h.y), narrow<Element>(b == 0 ? h.z : h.w));
      Element* const to = direction.h_n + static_cast<int64_t>(sequence + b) * hidden_size + unit;
      store_units(to, rounded, unit, hidden_size, pass.paired);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

template <class Element>
ForwardPass<Element> arguments(const Partition& partition, const ForwardParams* params, int directions,
                               const void* const* input_gates, const StationarySequence& sequence) {
  const Rows& rows = params->rows;
  ForwardPass<Element> pass{};
  pass.batch_sizes = sequence.batch_sizes;
  pass.seq_len = static_cast<int>(rows.seq_len);
  pass.rows = sequence.rows;
  pass.time_stride = rows.time_stride;
  pass.batch_stride = rows.batch_stride;
  pass.output_stride = params->output_stride;
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
    direction.input_gates = static_cast<const Element*>(input_gates[d]);
    direction.weight_hh = static_cast<const Element*>(params[d].weight_hh);
    direction.bias_ih = static_cast<const Element*>(params[d].bias_ih);
    direction.bias_hh = static_cast<const Element*>(params[d].bias_hh);
    direction.h0 = static_cast<const Element*>(params[d].h0);
    direction.output = static_cast<Element*>(params[d].output);
    direction.h_n = static_cast<Element*>(params[d].h_n);
    direction.saved = static_cast<Element*>(params[d].saved);
    direction.reverse = params[d].reverse;
    pass.paired = pass.paired && packable(direction.input_gates, 0, 2) &&
                  packable(direction.output, pass.output_stride, 2) && packable(direction.h_n, 0, 2) &&
                  packable(direction.saved, 0, 2);
  }
  return pass;
}

}  // namespace

size_t forward_shared(const Partition& partition, size_t element) {
  const size_t operand = 2 * static_cast<size_t>(partition.group_batch * operand_row(partition.width())) * element;
  const size_t state = sizeof(float) * static_cast<size_t>(partition.group_batch * partition.units());
  const size_t biases = sizeof(float4) * static_cast<size_t>(partition.units());
  const size_t walking = operand + state + biases + splits_bytes(partition, 12) + 2 * sizeof(uint64_t);
  return tail_bytes(partition) + std::max(walking, stage_bytes(partition, element));
}

void forward_stationary(const Partition& partition, const ForwardParams* params, int directions,
                        const void* const* input_gates, const StationarySequence& sequence, cudaStream_t stream) {
  const ProfilerRange range("gru_ext forward_stationary");
  dispatch_half(params->dtype, [&](auto element) {
    using Element = decltype(element);
    const ForwardPass<Element> pass = arguments<Element>(partition, params, directions, input_gates, sequence);
    dispatch_tiles(partition.k_tiles, [&](auto tiles) {
      LaunchShape shape;
      shape.grid = dim3(static_cast<unsigned>(partition.groups * partition.blocks), static_cast<unsigned>(directions));
      shape.block = dim3(static_cast<unsigned>(partition.warps * kWarpSize));
      shape.shared = forward_shared(partition, sizeof(Element));
      shape.cluster = static_cast<unsigned>(partition.blocks);
      launch(forward_stationary_kernel<Element, decltype(tiles)::value>, shape, stream, pass);
    });
  });
  check_launch("forward_stationary");
}

}  // namespace gru::cuda
