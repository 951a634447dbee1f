// The forward pass with stationary weights (stationary.cuh tells how the work is divided and what is exchanged).
//
// A step of a warp: the input's gates of its cells are on their way from memory while it waits for h_(t-1) of all units
// and multiplies; then the leader does the cells. Bound: three latencies in a row, of the exchange, of the chain of
// k_tiles products and of the cell; for more than 8 sequences a group, the products of all its tiles.
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
struct ForwardPass {
  struct Direction {
    const Element* input_gates;  // [rows, 3H]
    const Element* weight_hh;    // [3H, H]
    const Element* bias_ih;      // [3H] or null
    const Element* bias_hh;      // [3H], null exactly when bias_ih is
    const Element* h0;           // [B, H]
    Element* output;             // [rows, H], row stride output_stride
    Element* h_n;                // [B, H]
    Element* saved;              // [rows, 5H], [rows, H] with states_only, or null
    bool reverse;
  } directions[2];
  const int32_t* batch_sizes;  // [T] or null
  int64_t rows, time_stride, batch_stride, output_stride;
  int seq_len, batch, hidden_size;
  int splits, blocks, group_batch, width;
  int tail;                // words of 16 bytes
  uint64_t* exchange;      // of a grid
  int64_t exchange_words;  // of a direction
  int exchange_length;     // words of a row
  bool paired, states_only;
};

// Shared memory, in this order: the tail of the weights, the operand ([2, group_batch, row] in a cluster, [8, row] in a
// grid), the state [tiles of sequences, unit tiles, 32, 4], the biases [units], the sums of splits, the barriers.
template <class Element>
struct ForwardShared {
  uint4* tail;
  Element* operands;
  float4* state;
  float4* biases;
  float* sums;
  uint64_t* barriers;

  __device__ ForwardShared(const ForwardPass<Element>& pass, const Place& place, int operand) {
    const int tiles = place.units / kUnitsOfTile;
    tail = reinterpret_cast<uint4*>(shared_memory());
    operands = reinterpret_cast<Element*>(tail + pass.tail);
    state = reinterpret_cast<float4*>(operands + operand);
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

template <class Element>
__device__ inline Element h0_at(const ForwardPass<Element>& pass, const Element* h0, int sequence, int unit) {
  const bool exists = sequence < pass.batch && unit < pass.hidden_size;
  return exists ? h0[static_cast<int64_t>(sequence) * pass.hidden_size + unit] : narrow<Element>(0.0f);
}

// Rows of the operand: h0 of every unit, and 0 where there is no unit or no sequence. By all threads.
template <class Element>
__device__ inline void load_h0(const ForwardPass<Element>& pass, const Element* h0, Element* operand, int rows,
                               int first_sequence) {
  const int row = padded_row(pass.width, sizeof(Element));
  for (int i = static_cast<int>(threadIdx.x); i < rows * row; i += static_cast<int>(blockDim.x)) {
    operand[i] = h0_at(pass, h0, first_sequence + i / row, i % row);
  }
}

// What the input gives to the cells of a lane, of which there are none from `active` sequences on.
template <class Element>
struct Inputs {
  Pair<Element> gates[2][3];  // [sequence][r, z, n]: two units
};
template <class Element>
__device__ inline Inputs<Element> load_inputs(const ForwardPass<Element>& pass, const Element* input_gates,
                                              Steps::Step step, int sequence, int unit) {
  Inputs<Element> inputs{};
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    if (sequence + b >= step.active) continue;
    const Element* const from =
        input_gates + (step.row + (sequence + b) * pass.batch_stride) * 3 * pass.hidden_size + unit;
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      inputs.gates[b][gate] = load_units(from + gate * pass.hidden_size, unit, pass.hidden_size, pass.paired);
    }
  }
  return inputs;
}

// What the cells of a lane give, as stored: two units a word.
template <class Element>
struct Outputs {
  Pair<Element> h[2], saved[2][5];  // [sequence]
};
// Updates the state, which is (sequence 0, unit 0), (1, 0), (0, 1), (1, 1), of the sequences in the step.
template <class Element>
__device__ inline Outputs<Element> do_cells(const float (&sums)[3][4], const Inputs<Element>& inputs,
                                            const float4* biases, float4& state, int sequence, int active) {
  const float4 before = state;
  float h[2][2] = {{before.x, before.z}, {before.y, before.w}};
  Outputs<Element> outputs;
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    Element values[5][2], rounded[2];
    const Pack<float, 2> r = unpack_pair<Element>(inputs.gates[b][0]), z = unpack_pair<Element>(inputs.gates[b][1]),
                         n = unpack_pair<Element>(inputs.gates[b][2]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 bias = biases[i];
      const float a_hn = sums[2][2 * i + b] + bias.w;
      const CellState<float> cell = cell_forward<CellMath<Element>, float>(r.value[i] + sums[0][2 * i + b] + bias.x,
                                                                           z.value[i] + sums[1][2 * i + b] + bias.y,
                                                                           n.value[i] + bias.z, a_hn, h[b][i]);
      values[0][i] = narrow<Element>(cell.r);
      values[1][i] = narrow<Element>(cell.z);
      values[2][i] = narrow<Element>(cell.n);
      values[3][i] = narrow<Element>(a_hn);
      values[4][i] = narrow<Element>(h[b][i]);
      if (sequence + b < active) h[b][i] = cell.h;
      rounded[i] = narrow<Element>(h[b][i]);
    }
    outputs.h[b] = pack_pair(rounded[0], rounded[1]);
#pragma unroll
    for (int value = 0; value < 5; ++value) outputs.saved[b][value] = pack_pair(values[value][0], values[value][1]);
  }
  state = make_float4(h[0][0], h[1][0], h[0][1], h[1][1]);
  return outputs;
}

// The gates of two units, element by element; what does not exist is not written.
template <class Element>
__device__ inline void store_gates(Element* address, const Pair<Element> (&gates)[kSavedValues], int unit,
                                   int hidden_size) {
#pragma unroll
  for (int gate = 0; gate < kSavedGates; ++gate) {
    Element pair[2];
    memcpy(pair, &gates[gate], sizeof pair);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (unit + i < hidden_size) address[kSavedGates * i + gate] = pair[i];
    }
  }
}

template <class Element>
__device__ inline void store_outputs(const ForwardPass<Element>& pass, Element* output, Element* saved,
                                     const Outputs<Element>& outputs, Steps::Step step, int sequence, int unit) {
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    if (sequence + b >= step.active) continue;
    const int64_t to = step.row + (sequence + b) * pass.batch_stride;
    store_units(output + to * pass.output_stride + unit, outputs.h[b], unit, pass.hidden_size, pass.paired);
    if (saved == nullptr) continue;
    if (pass.states_only) {
      store_units(saved + to * pass.hidden_size + unit, outputs.saved[b][4], unit, pass.hidden_size, pass.paired);
      continue;
    }
    Element* const kept = saved + to * kSavedValues * pass.hidden_size;
    store_gates(kept + kSavedGates * unit, outputs.saved[b], unit, pass.hidden_size);
    store_units(kept + kSavedGates * pass.hidden_size + unit, outputs.saved[b][kSavedGates], unit, pass.hidden_size,
                pass.paired);
  }
}

template <class Element, int kTiles, bool kGrid>
__global__ void __launch_bounds__(kMostThreads, 1) forward_stationary_kernel(const ForwardPass<Element> pass) {
  const Place place(pass.splits, pass.blocks);
  const auto& direction = pass.directions[blockIdx.y];
  const int hidden_size = pass.hidden_size, row = padded_row(pass.width, sizeof(Element)), unit = place.unit;
  const int tiles = pass.group_batch / kSequencesOfTile, first_sequence = place.group * pass.group_batch;
  const int operand = (kGrid ? kSequencesOfTile : pass.group_batch) * row;
  const ForwardShared<Element> shared(pass, place, kGrid ? operand : 2 * operand);
  const float4* const biases = shared.biases + (unit - place.rank * place.units);

  Product<Element, kTiles> product;
  product.load(shared.tail, shared.operands, direction.weight_hh, hidden_size, pass.splits, place);
  load_biases(direction.bias_ih, direction.bias_hh, hidden_size, shared.biases, place);
  if (place.leads()) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int sequence = first_sequence + tile * kSequencesOfTile + place.sequence;
      const auto at = [&](int b, int i) { return widen(h0_at(pass, direction.h0, sequence + b, unit + i)); };
      shared.state[place.state(tile)] = make_float4(at(0, 0), at(1, 0), at(0, 1), at(1, 1));
    }
  }
  const int brought = (pass.blocks - 1) * pass.group_batch * place.units * static_cast<int>(sizeof(Element));
  ClusterExchange cluster(shared.barriers, pass.blocks, brought);
  GridExchange grid(pass.exchange + blockIdx.y * pass.exchange_words, static_cast<int>(gridDim.x) / pass.blocks, tiles,
                    kSequencesOfTile, pass.exchange_length, place);
  if (!kGrid) {
    load_h0(pass, direction.h0, shared.operands, pass.group_batch, first_sequence);
    load_h0(pass, direction.h0, shared.operands + operand, pass.group_batch, first_sequence);  // its padding is needed
    cluster.start(place.units / kUnitsOfTile);
  }

  Steps steps(pass.batch_sizes, pass.seq_len, pass.rows, pass.time_stride, pass.batch, direction.reverse);
  for (int s = 0; s < pass.seq_len; ++s) {
    const Steps::Step step = steps.at(s);
    const bool last = s == pass.seq_len - 1;
    const Element* const now = shared.operands + (!kGrid && s % 2 != 0 ? operand : 0);
    Element* const next = shared.operands + (s % 2 != 0 ? 0 : operand);
    if (!kGrid && !last) cluster.expect(s);
    for (int tile = 0; tile < tiles; ++tile) {
      const int in_group = tile * kSequencesOfTile, sequence = first_sequence + in_group + place.sequence;
      Inputs<Element> inputs{};
      if (place.leads()) inputs = load_inputs(pass, direction.input_gates, step, sequence, unit);
      if (kGrid) {
        block_sync();  // all have read the tile before
        if (s == 0) {
          load_h0(pass, direction.h0, shared.operands, kSequencesOfTile, first_sequence + in_group);
        } else {
          grid.template gather<8>(shared.operands, row, s, tile);
        }
        block_sync();
      } else if (tile == 0) {
        cluster.wait(s);
      }
      float sums[3][4];
      const int wanted = step.active - first_sequence - in_group;
      product.template multiply<true>(sums, now + (kGrid ? 0 : in_group * row), row, 0, place, wanted);
      add_splits<12>(&sums[0][0], shared.sums, tile, pass.splits, place);
      if (!place.leads()) continue;

      const Outputs<Element> outputs =
          do_cells<Element>(sums, inputs, biases, shared.state[place.state(tile)], sequence, step.active);
      if (!last) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          if (kGrid) {
            grid.publish(outputs.h[b], s, tile, place.sequence + b, unit);
          } else {
            *reinterpret_cast<Pair<Element>*>(next + (in_group + place.sequence + b) * row + unit) = outputs.h[b];
          }
        }
        if (!kGrid) cluster.send(next + in_group * row + place.tile_unit, row, s, place);
        if (!kGrid && tile == tiles - 1) cluster.arrive(s, place);
      }
      store_outputs(pass, direction.output, direction.saved, outputs, step, sequence, unit);
    }
    if (!kGrid && !last) cluster.finish();
  }

  if (!place.leads()) return;
  for (int tile = 0; tile < tiles; ++tile) {
    const float4 h = shared.state[place.state(tile)];
    const int sequence = first_sequence + tile * kSequencesOfTile + place.sequence;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (sequence + b >= pass.batch) continue;
      const Pair<Element> rounded = pack_pair(narrow<Element>(b == 0 ? h.x : h.y), narrow<Element>(b == 0 ? h.z : h.w));
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
  pass.tail = static_cast<int>(tail_bytes(partition, sizeof(Element)) / sizeof(uint4));
  pass.exchange = sequence.exchange;
  pass.exchange_words = forward_exchange_words(partition, sizeof(Element));
  pass.exchange_length = exchange_length(partition, sizeof(Element));
  pass.paired = params->hidden_size % 2 == 0;
  pass.states_only = params->states_only;
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

int64_t forward_exchange_words(const Partition& partition, size_t element) {
  return exchange_words(partition, element, 1);
}

size_t forward_shared(const Partition& partition, size_t element) {
  const int rows = partition.grid ? kSequencesOfTile : 2 * partition.group_batch;
  const size_t operand = static_cast<size_t>(rows * padded_row(partition.width(), element)) * element;
  const size_t state = sizeof(float) * static_cast<size_t>(partition.group_batch * partition.units());
  const size_t biases = sizeof(float4) * static_cast<size_t>(partition.units());
  const size_t walking = operand + state + biases + splits_bytes(partition, 12) + 2 * sizeof(uint64_t);
  return tail_bytes(partition, element) + std::max(walking, stage_bytes(partition, element));
}

void forward_stationary(const Partition& partition, const ForwardParams* params, int directions,
                        const void* const* input_gates, const StationarySequence& sequence, cudaStream_t stream) {
  const ProfilerRange range("gru_ext forward_stationary");
  dispatch_stationary(params->dtype, partition, [&](auto element, auto tiles) {
    using Element = decltype(element);
    constexpr int kTiles = decltype(tiles)::value;
    const ForwardPass<Element> pass = arguments<Element>(partition, params, directions, input_gates, sequence);
    launch(partition.grid ? forward_stationary_kernel<Element, kTiles, true>
                          : forward_stationary_kernel<Element, kTiles, false>,
           launch_shape(partition, directions, forward_shared(partition, sizeof(Element))), stream, pass);
  });
  check_launch("forward_stationary");
}

}  // namespace gru::cuda
