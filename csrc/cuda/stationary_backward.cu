// The backward pass with stationary weights (stationary.cuh tells how the work is divided and what is exchanged).
//
// The same as forward with W_hh transposed: a warp's units are those of dLoss/dh_(t-1), its columns the units of each
// of the gates' gradients of step t (n, r, z: three operands where forward has one), of which all blocks get all.
#include "stationary_walk.cuh"

namespace gru::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------------

template <class Element>
struct BackwardPass : StationaryPass {
  struct Direction {
    const Element* weight_hh;    // [3H, H]
    const Element* saved;        // what forward kept of [rows]
    const Element* grad_output;  // [rows, H], row stride grad_output_stride; if there is none, any address
    const Element* grad_h_n;     // [B, H] or null
    Element* d_gates;            // [rows, 4H]: r*dn | dr | dz | dn
    Element* grad_h0;            // [B, H] or null
    Element* grad_reset_state;   // [rows, H] or null
    Resets<Element> resets;
    bool reverse;
  } directions[2];
  int saved_row, grad_output_row, d_gates_row;  // bytes
  int has_grad_output;                          // 0 or 1
};

// Of a warp: what forward kept, and dLoss/doutput.
constexpr int slot_bytes(size_t element) {
  return static_cast<int>(kSavedValues + 1) * kUnitsOfLane * kWarpSize * static_cast<int>(element);
}

// The cells of a lane: two units of a sequence of each tile.
template <class Element>
class BackwardCells {
 public:
  static constexpr int kOperands = 3, kValues = 1, kWordsAtOnce = 1;
  static constexpr int kSlot = slot_bytes(sizeof(Element));
  static constexpr bool kLooksBack = true;
  using Word = uint4;

  __device__ BackwardCells(const BackwardPass<Element>& pass, const Place& place)
      : pass_(pass),
        direction_(pass.directions[blockIdx.y]),
        unit_(place.unit),
        hidden_size_(pass.hidden_size),
        h_(kSavedGates * (pass.padded_size - unit_) + unit_),
        paired_(pass.paired),
        has_grad_output_(pass.has_grad_output != 0),
        gates_{direction_.saved + kSavedGates * unit_, hold(pass.saved_row)},
        grad_output_{direction_.grad_output + unit_, pass.grad_output_row},
        d_gates_{direction_.d_gates + unit_, pass.d_gates_row} {}

  // dLoss/dh_n of the lane's units.
  __device__ float2 first_state(int sequence, int exist) const {
    if (direction_.grad_h_n == nullptr) return make_float2(0.0f, 0.0f);
    const Element* const from = direction_.grad_h_n + static_cast<int64_t>(sequence) * pass_.hidden_size + unit_;
    return make_float2(exist > 0 ? widen(from[0]) : 0.0f, exist > 1 ? widen(from[1]) : 0.0f);
  }
  // Before the first step there are no gradients of gates: 0, as is the padding in every step. By all threads.
  __device__ void first_operand(Element* operand, int /* rows */, int /* first_sequence */) const {
    const int count = kOperands * pass_.parts.operand_next;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      operand[i] = narrow<Element>(0.0f);
    }
  }

  template <int kSums>
  __device__ static void total(float (&values)[1][4], const float (&sums)[kSums][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[0][i] = sums[0][i];
#pragma unroll
      for (int sum = 1; sum < kSums; ++sum) values[0][i] += sums[sum][i];
    }
  }

  // What forward kept of a row, r, z, n and hn of either unit and h, and dLoss/doutput, on their way through shared
  // memory.
  struct Inputs {
    float gates[kSavedGates * kUnitsOfLane], h[2], grad_output[2];
  };
  __device__ void fetch(unsigned char* slot, int row, int exist, int lane) const {
    const bool exists = exist > 0;
    const Element* const gates = gates_.at(row);
    GatesRun<Element>::fetch(slot, gates, exists, lane);
    slot += GatesRun<Element>::kSlot;
    PairRun<Element>::fetch(slot, gates + h_, exists, lane);
    slot += PairRun<Element>::kSlot;
    PairRun<Element>::fetch(slot, grad_output_.at(row), exists && has_grad_output_, lane);
  }
  __device__ void take(Inputs& inputs, const unsigned char* slot, int lane) const {
    GatesRun<Element>::read(inputs.gates, slot, lane);
    PairRun<Element>::read(inputs.h, slot + GatesRun<Element>::kSlot, lane);
    PairRun<Element>::read(inputs.grad_output, slot + GatesRun<Element>::kSlot + PairRun<Element>::kSlot, lane);
  }

  __device__ uint32_t reset_mark() const { return direction_.resets.mark; }
  // Before the step at `row`: what reaches it from the step after belongs to the reset state.
  __device__ void reset(float2 (&sums)[1], float2& state, int row, int exist) const {
    if (direction_.grad_reset_state != nullptr) {
      const int64_t to = row + direction_.resets.ahead * pass_.time_stride;
      store_units(direction_.grad_reset_state + to * hidden_size_ + unit_,
                  pack_pair<Element>(state.x + sums[0].x, state.y + sums[0].y), exist);
    }
    state = sums[0] = make_float2(0.0f, 0.0f);
  }

  // The gradients before the activations, r*dn, dr, dz, dn of both units.
  struct Outputs {
    Pair<Element> results[3], dn;
  };
  // Updates the state: from dLoss/dh of the step after to what of dLoss/dh of this step does not pass through W_hh.
  // sums: what does, of the step after. Of the lane's units the first `exist` are in the step; the gradients of the
  // others are 0.
  __device__ Outputs compute(const float2 (&sums)[1], const Inputs& inputs, float2& state, int exist) const {
    float gradients[kGateGradients][2];
    float dh[2] = {state.x + sums[0].x, state.y + sums[0].y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* const gates = inputs.gates + kSavedGates * i;
      const CellGradient<float> cell = pass_.formula.template backward<float>(
          dh[i] + inputs.grad_output[i], gates[0], gates[1], gates[2], gates[3], inputs.h[i], 1.0f);
      const float values[kGateGradients] = {cell.dn_hidden, cell.dr, cell.dz, cell.dn};
#pragma unroll
      for (int gate = 0; gate < kGateGradients; ++gate) gradients[gate][i] = i < exist ? values[gate] : 0.0f;
      if (i < exist) dh[i] = cell.carry;
    }
    state = make_float2(dh[0], dh[1]);
    const auto pair = [&](int gate) { return pack_pair<Element>(gradients[gate][0], gradients[gate][1]); };
    return {{pair(0), pair(1), pair(2)}, pair(3)};
  }
  __device__ void store(const Outputs& outputs, int row, int exist, bool /* is_reset */) const {
    Element* const to = d_gates_.at(row);
    const Pair<Element> pairs[kGateGradients] = {outputs.results[0], outputs.results[1], outputs.results[2],
                                                 outputs.dn};
#pragma unroll
    for (int gate = 0; gate < kGateGradients; ++gate) {
      if (exist > 0 && paired_) store_pair(to + gate * hidden_size_, pairs[gate]);
    }
    if (paired_) return;
#pragma unroll
    for (int gate = 0; gate < kGateGradients; ++gate) store_units(to + gate * hidden_size_, pairs[gate], exist);
  }

  __device__ static uint4 word(const Pair<Element> (&results)[3], int piece, uint32_t number) {
    return make_uint4(piece_of(results[0], piece), piece_of(results[1], piece), piece_of(results[2], piece), number);
  }
  __device__ void put(Element* to, const uint4 (&words)[1]) const {
    *reinterpret_cast<uint32_t*>(to) = words[0].x;
    *reinterpret_cast<uint32_t*>(to + pass_.parts.operand_next) = words[0].y;
    *reinterpret_cast<uint32_t*>(to + 2 * pass_.parts.operand_next) = words[0].z;
  }

  __device__ void finish(float2 state, int sequence, int exist) const {
    if (direction_.grad_h0 == nullptr) return;
    store_units(direction_.grad_h0 + static_cast<int64_t>(sequence) * pass_.hidden_size + unit_,
                pack_pair<Element>(state.x, state.y), exist);
  }

 private:
  const BackwardPass<Element>& pass_;
  const typename BackwardPass<Element>::Direction& direction_;
  int unit_, hidden_size_, h_;  // h_: elements from the gates to h
  bool paired_, has_grad_output_;
  Column<const Element> gates_, grad_output_;
  Column<Element> d_gates_;
};

template <class Element, int kTiles, bool kGrid, int kSequences>
__global__ void __launch_bounds__(most_warps(kTiles, sizeof(Element)) * kWarpSize, 1)
    backward_stationary_kernel(const __grid_constant__ BackwardPass<Element> pass) {
  const Place place(pass, kSequences);
  const auto& direction = pass.directions[blockIdx.y];
  Product<Element, kTiles> product;
  product.load_transposed(shared_memory(), pass, direction.weight_hh, place);
  // One step more than the sequence has where dLoss/dh0 is wanted: the last product.
  const int last_step = pass.last_input + (direction.grad_h0 != nullptr ? 1 : 0);
  const BackwardCells<Element> cells(pass, place);
  walk_block<kGrid, kSequences>(pass, place, product, cells, !direction.reverse, last_step);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

SharedParts backward_parts(const Partition& partition, size_t element) {
  return shared_parts(partition, element, 3, slot_bytes(element), 1, false, transposed_stage_bytes(partition, element));
}

template <class Element>
BackwardPass<Element> arguments(const Partition& partition, const BackwardParams* params, int directions,
                                void* const* d_gates, const StationarySequence& sequence) {
  BackwardPass<Element> pass{};
  fill<Element>(pass, partition, *params, sequence);
  pass.parts = backward_parts(partition, sizeof(Element));
  pass.exchange_words = backward_exchange_words(partition, sizeof(Element));
  pass.exchange_length = exchange_length(partition, sizeof(Element));
  constexpr int kBytes = static_cast<int>(sizeof(Element));
  pass.saved_row = static_cast<int>(kSavedValues) * pass.padded_size * kBytes;
  pass.has_grad_output = params->grad_output != nullptr ? 1 : 0;  // of both directions or of none
  pass.grad_output_row = pass.has_grad_output != 0 ? static_cast<int>(params->grad_output_stride) * kBytes : 0;
  pass.d_gates_row = static_cast<int>(kGateGradients) * pass.hidden_size * kBytes;
  for (int d = 0; d < directions; ++d) {
    auto& direction = pass.directions[d];
    direction.weight_hh = static_cast<const Element*>(params[d].weight_hh);
    direction.saved = static_cast<const Element*>(params[d].saved);
    direction.grad_output =
        pass.has_grad_output != 0 ? static_cast<const Element*>(params[d].grad_output) : direction.saved;
    direction.grad_h_n = static_cast<const Element*>(params[d].grad_h_n);
    direction.d_gates = static_cast<Element*>(d_gates[d]);
    direction.grad_h0 = static_cast<Element*>(params[d].grad_h0);
    direction.grad_reset_state = static_cast<Element*>(params[d].grad_reset_state);
    direction.resets = resets_of<Element>(params[d]);
    direction.reverse = params[d].reverse;
    pass.paired = pass.paired && packable(direction.d_gates, 0, kUnitsOfLane);
  }
  return pass;
}

}  // namespace

int64_t backward_exchange_words(const Partition& partition, size_t element) {
  return exchange_words(partition, element, 2);
}

size_t backward_shared(const Partition& partition, size_t element) {
  return static_cast<size_t>(backward_parts(partition, element).end);
}

void backward_stationary(const Partition& partition, const BackwardParams* params, int directions, void* const* d_gates,
                         const StationarySequence& sequence, cudaStream_t stream) {
  const ProfilerRange range("gru_ext backward_stationary");
  dispatch_stationary(params->dtype, partition, [&](auto element, auto tiles, auto grid, auto sequences) {
    using Element = decltype(element);
    const BackwardPass<Element> pass = arguments<Element>(partition, params, directions, d_gates, sequence);
    launch(backward_stationary_kernel<Element, tiles.value, grid.value != 0, sequences.value>,
           launch_shape(partition, directions, backward_shared(partition, sizeof(Element))), stream, pass);
  });
  check_launch("backward_stationary");
}

}  // namespace gru::cuda
