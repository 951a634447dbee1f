// The forward pass with stationary weights (stationary.cuh tells how the work is divided and what is exchanged).
//
// A step of a warp: the input's gates of its cells have been on their way from memory since the step before; it waits
// for h_(t-1) of all units, multiplies, shares the sums out, does its cells, hands h on, and only then stores what
// memory alone waits for (at a reset its output before). Bound: latencies in a row, of the exchange, of the chain of
// k_tiles products, of handing sums over and of the cell; for more than 8 sequences a group, the products of all its
// tiles.
#include "stationary_walk.cuh"

namespace gru::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------------

template <class Element>
struct ForwardPass : StationaryPass {
  struct Direction {
    const Element* input_gates;  // [rows, 3, P]
    const Element* weight_hh;    // [3H, H]
    const Element* bias_ih;      // [3H] or null
    const Element* bias_hh;      // [3H], null exactly when bias_ih is
    const Element* h0;           // [B, H]
    Element* output;             // [rows, H], row stride output_stride
    Element* h_n;                // [B, H]
    Element* saved;              // what is kept of [rows]; if nothing is, any address
    Resets<Element> resets;
    bool reverse;
  } directions[2];
  int input_row, output_row, saved_row;  // bytes
  int kept;                              // values of a unit in saved: kSavedValues, 1 (h_(t-1)) or 0
  int kept_h;                            // elements before h_(t-1) in a row of saved
};

// Of a warp: the three gates.
constexpr int slot_bytes(size_t element) { return 3 * kUnitsOfLane * kWarpSize * static_cast<int>(element); }

// The cells of a lane: two units of a sequence of each tile.
template <class Element>
class ForwardCells {
 public:
  static constexpr int kOperands = 1, kValues = 3, kWordsAtOnce = 2, kSlot = slot_bytes(sizeof(Element));
  static constexpr bool kLooksBack = false;
  using Word = uint64_t;

  __device__ ForwardCells(const ForwardPass<Element>& pass, const Place& place)
      : pass_(pass),
        direction_(pass.directions[blockIdx.y]),
        unit_(place.unit),
        padded_size_(pass.padded_size),
        how_(how(pass)),
        biases_(unit_ - place.rank * place.units),
        input_{direction_.input_gates + unit_, pass.input_row},
        output_{direction_.output + unit_, hold(pass.output_row)},
        gates_{direction_.saved + kSavedGates * unit_, hold(pass.saved_row)},
        h_(pass.kept_h + unit_ - kSavedGates * unit_) {
    load_biases(place);
  }

  // h0 of the lane's units.
  __device__ float2 first_state(int sequence, int exist) const {
    return state_at(direction_.h0 + static_cast<int64_t>(sequence) * pass_.hidden_size, exist);
  }
  // Rows of the operand: h0 of every unit, and 0 where there is no unit or no sequence. By all threads.
  __device__ void first_operand(Element* operand, int rows, int first_sequence) const {
    for (int i = static_cast<int>(threadIdx.x); i < rows * pass_.row; i += static_cast<int>(blockDim.x)) {
      const int sequence = first_sequence + i / pass_.row, unit = i % pass_.row;
      const bool exists = sequence < pass_.batch && unit < pass_.hidden_size;
      operand[i] =
          exists ? direction_.h0[static_cast<int64_t>(sequence) * pass_.hidden_size + unit] : narrow<Element>(0.0f);
    }
  }

  __device__ static void total(float (&values)[3][4], const float (&sums)[3][4]) {
    memcpy(values, sums, sizeof values);
  }

  // The input's three gates of a row, on their way through shared memory, with their biases; the state's of n.
  struct Inputs {
    float gates[3][2], bias_hn[2];
  };
  __device__ void fetch(unsigned char* slot, int row, int exist, int lane) const {
    const Element* const from = input_.at(row);
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      PairRun<Element>::fetch(slot + gate * PairRun<Element>::kSlot, from + gate * padded_size_, exist > 0, lane);
    }
  }
  __device__ void take(Inputs& inputs, const unsigned char* slot, int lane) const {
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      PairRun<Element>::read(inputs.gates[gate], slot + gate * PairRun<Element>::kSlot, lane);
    }
    const auto* const biases = reinterpret_cast<const float4*>(shared_memory() + pass_.parts.biases) + biases_;
#pragma unroll
    for (int i = 0; i < kUnitsOfLane; ++i) {  // here, for this does not wait for the sums
      const float4 bias = biases[i];
      inputs.gates[0][i] += bias.x;
      inputs.gates[1][i] += bias.y;
      inputs.gates[2][i] += bias.z;
      inputs.bias_hn[i] = bias.w;
    }
  }

  // r, z, n and hn of either unit; h before and after.
  struct Outputs {
    float gates[kSavedGates * kUnitsOfLane];
    Pair<Element> before, results[1];
  };
  // Of the lane's units the first `exist` are in the step; the state of the others stays.
  __device__ Outputs compute(const float2 (&sums)[3], const Inputs& inputs, float2& state, int exist) const {
    Outputs outputs;
    const float r[2] = {sums[0].x, sums[0].y}, z[2] = {sums[1].x, sums[1].y}, hn[2] = {sums[2].x, sums[2].y};
    float h[2] = {state.x, state.y};
    outputs.before = pack_pair<Element>(state.x, state.y);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float a_hn = hn[i] + inputs.bias_hn[i];
      const CellState<float> cell = pass_.formula.template forward<CellMath<Element>, float>(
          inputs.gates[0][i] + r[i], inputs.gates[1][i] + z[i], inputs.gates[2][i], a_hn, h[i]);
      outputs.gates[kSavedGates * i] = cell.r;
      outputs.gates[kSavedGates * i + 1] = cell.z;
      outputs.gates[kSavedGates * i + 2] = cell.n;
      outputs.gates[kSavedGates * i + 3] = a_hn;
      if (i < exist) h[i] = cell.h;
    }
    state = make_float2(h[0], h[1]);
    outputs.results[0] = pack_pair<Element>(h[0], h[1]);
    return outputs;
  }
  __device__ uint32_t reset_mark() const { return direction_.resets.mark; }
  // Behind step number s: hands the reset state on in place of the cell's.
  __device__ void reset(Outputs& outputs, float2& state, int s, int sequence, int exist) const {
    const Resets<Element>& resets = direction_.resets;
    const int time = (direction_.reverse ? pass_.last_input - s : s) + resets.ahead;
    state = make_float2(0.0f, 0.0f);
    if (resets.state != nullptr) {
      state = state_at(resets.state + time * resets.time_stride + sequence * resets.batch_stride, exist);
    }
    outputs.results[0] = pack_pair<Element>(state.x, state.y);
  }
  __device__ void store_output(const Outputs& outputs, int row, int exist) const {
    if (exist > 0 && (how_ & kPaired) != 0) store_pair(output_.at(row), outputs.results[0]);
    if ((how_ & kPaired) == 0) store_units(output_.at(row), outputs.results[0], exist);
  }
  // is_reset: results holds the reset state, and the output has been stored already.
  __device__ void store(const Outputs& outputs, int row, int exist, bool is_reset) const {
    const bool exists = exist > 0;
    Element *const gates = gates_.at(row), *const h = gates + h_;
    if (exists && !is_reset && (how_ & kPaired) != 0) store_pair(output_.at(row), outputs.results[0]);
    if (exists && (how_ & kKeepsAll) != 0) GatesRun<Element>::store(gates, outputs.gates);
    if (exists && (how_ & kKeepsAll) != 0) store_pair(h, outputs.before);
    if ((how_ & kUsual) != 0) return;
    if (!is_reset && (how_ & kPaired) == 0) store_units(output_.at(row), outputs.results[0], exist);
    if ((how_ & kKeepsStates) != 0) store_units(h, outputs.before, exist);
  }

  __device__ static uint64_t word(const Pair<Element> (&results)[1], int piece, uint32_t number) {
    return static_cast<uint64_t>(number) << 32 | piece_of(results[0], piece);
  }
  __device__ void put(Element* to, const uint64_t (&words)[2]) const {
    *reinterpret_cast<uint2*>(to) = make_uint2(static_cast<uint32_t>(words[0]), static_cast<uint32_t>(words[1]));
  }

  __device__ void finish(float2 state, int sequence, int exist) const {
    store_units(direction_.h_n + static_cast<int64_t>(sequence) * pass_.hidden_size + unit_,
                pack_pair<Element>(state.x, state.y), exist);
  }

 private:
  // Of a row [H] of any alignment the lane's units, of which the first `exist` are there.
  __device__ float2 state_at(const Element* row, int exist) const {
    return make_float2(exist > 0 ? widen(row[unit_]) : 0.0f, exist > 1 ? widen(row[unit_ + 1]) : 0.0f);
  }

  // Of the block's units those of r and z, of both sides, and the two of n. By all threads, before the first step.
  __device__ void load_biases(const Place& place) {
    auto* const biases = reinterpret_cast<float4*>(shared_memory() + pass_.parts.biases);
    for (int i = static_cast<int>(threadIdx.x); i < place.units; i += static_cast<int>(blockDim.x)) {
      const int r = place.rank * place.units + i, z = r + pass_.hidden_size, n = z + pass_.hidden_size;
      biases[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (direction_.bias_ih == nullptr || r >= pass_.hidden_size) continue;
      biases[i] = make_float4(widen(direction_.bias_ih[r]) + widen(direction_.bias_hh[r]),
                              widen(direction_.bias_ih[z]) + widen(direction_.bias_hh[z]), widen(direction_.bias_ih[n]),
                              widen(direction_.bias_hh[n]));
    }
  }

  const ForwardPass<Element>& pass_;
  const typename ForwardPass<Element>::Direction& direction_;
  // How results are stored, in one register: output by pairs, what is kept, and whether there is nothing to store unit
  // by unit.
  enum How : int { kPaired = 1, kKeepsAll = 2, kKeepsStates = 4, kUsual = 8 };
  __device__ static int how(const ForwardPass<Element>& pass) {
    const int kept = pass.kept > 1 ? kKeepsAll : pass.kept == 1 ? kKeepsStates : 0;
    return kept | (pass.paired ? kPaired : 0) | (pass.paired && kept != kKeepsStates ? kUsual : 0);
  }

  int unit_, padded_size_, how_, biases_;
  Column<const Element> input_;
  Column<Element> output_, gates_;
  int h_;  // elements from the gates kept of a unit to the state kept
};

template <class Element, int kTiles, bool kGrid, int kSequences>
__global__ void __launch_bounds__(most_warps(kTiles, sizeof(Element)) * kWarpSize, 1)
    forward_stationary_kernel(const __grid_constant__ ForwardPass<Element> pass) {
  const Place place(pass, kSequences);
  const auto& direction = pass.directions[blockIdx.y];
  Product<Element, kTiles> product;
  product.load(shared_memory(), pass, direction.weight_hh, place);
  const ForwardCells<Element> cells(pass, place);
  walk_block<kGrid, kSequences>(pass, place, product, cells, direction.reverse, pass.last_input);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

SharedParts forward_parts(const Partition& partition, size_t element) {
  return shared_parts(partition, element, 1, slot_bytes(element), 3, true, stage_bytes(partition, element));
}

template <class Element>
ForwardPass<Element> arguments(const Partition& partition, const ForwardParams* params, int directions,
                               const void* const* input_gates, const StationarySequence& sequence) {
  ForwardPass<Element> pass{};
  fill<Element>(pass, partition, *params, sequence);
  pass.parts = forward_parts(partition, sizeof(Element));
  pass.exchange_words = forward_exchange_words(partition, sizeof(Element));
  pass.exchange_length = exchange_length(partition, sizeof(Element));
  pass.kept = params->saved == nullptr ? 0 : params->options.recompute ? 1 : static_cast<int>(kSavedValues);
  pass.kept_h = pass.kept > 1 ? kSavedGates * pass.padded_size : 0;
  constexpr int kBytes = static_cast<int>(sizeof(Element));
  pass.input_row = 3 * pass.padded_size * kBytes;
  pass.output_row = static_cast<int>(params->output_stride) * kBytes;
  pass.saved_row = pass.kept * (pass.kept > 1 ? pass.padded_size : pass.hidden_size) * kBytes;
  for (int d = 0; d < directions; ++d) {
    auto& direction = pass.directions[d];
    direction.input_gates = static_cast<const Element*>(input_gates[d]);
    direction.weight_hh = static_cast<const Element*>(params[d].weight_hh);
    direction.bias_ih = static_cast<const Element*>(params[d].bias_ih);
    direction.bias_hh = static_cast<const Element*>(params[d].bias_hh);
    direction.h0 = static_cast<const Element*>(params[d].h0);
    direction.output = static_cast<Element*>(params[d].output);
    direction.h_n = static_cast<Element*>(params[d].h_n);
    direction.saved = pass.kept > 0 ? static_cast<Element*>(params[d].saved) : direction.output;
    direction.resets = resets_of<Element>(params[d]);
    direction.reverse = params[d].reverse;
    pass.paired = pass.paired && packable(direction.output, params->output_stride, kUnitsOfLane);
  }
  return pass;
}

}  // namespace

int64_t forward_exchange_words(const Partition& partition, size_t element) {
  return exchange_words(partition, element, 1);
}

size_t forward_shared(const Partition& partition, size_t element) {
  return static_cast<size_t>(forward_parts(partition, element).end);
}

void forward_stationary(const Partition& partition, const ForwardParams* params, int directions,
                        const void* const* input_gates, const StationarySequence& sequence, cudaStream_t stream) {
  const ProfilerRange range("gru_ext forward_stationary");
  dispatch_stationary(params->dtype, partition, [&](auto element, auto tiles, auto grid, auto sequences) {
    using Element = decltype(element);
    const ForwardPass<Element> pass = arguments<Element>(partition, params, directions, input_gates, sequence);
    launch(forward_stationary_kernel<Element, tiles.value, grid.value != 0, sequences.value>,
           launch_shape(partition, directions, forward_shared(partition, sizeof(Element))), stream, pass);
  });
  check_launch("forward_stationary");
}

}  // namespace gru::cuda
