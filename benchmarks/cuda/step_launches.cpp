// What the kernels that keep the weights on the chip are passed for 8 sequences, in bfloat16, padded, of one direction:
// benchmarks/step_path.py walks their machine code with it. Compiled with tests/emulator, which with
// GRU_EMULATOR_LAUNCHES writes the launches down instead of doing them, so the addresses need lead nowhere.
//
//     GRU_EMULATOR_LAUNCHES=FILE step_launches KERNEL HIDDEN_SIZE forward|backward training|inference
//
// Prints how many tiles of columns a warp multiplies, three products each in a step.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/plan.h"
#include "cuda/stationary.h"

namespace {

constexpr int64_t kSteps = 64, kBatch = 8;

// A place of its own for each tensor, as aligned as an allocation.
template <class Element>
Element* place(int number) {
  return reinterpret_cast<Element*>(uintptr_t{0x7f0000000000} + (uintptr_t(number) << 32));
}

// What the passes of both ways have in common.
template <class Params>
Params params(int64_t hidden_size) {
  Params params;
  params.dtype = gru::DataType::BFloat16;
  params.rows.seq_len = kSteps;
  params.rows.batch = params.rows.time_stride = kBatch;
  params.rows.batch_stride = 1;
  params.input_size = params.hidden_size = hidden_size;
  params.weight_hh = place<void>(1);
  params.bias_ih = place<void>(2);
  params.bias_hh = place<void>(3);
  return params;
}

}  // namespace

int main(int count, char** words) {
  if (count != 5) return 2;
  setenv("GRU_EXT_CUDA_KERNEL", words[1], 1);
  const int64_t hidden_size = std::atoll(words[2]);
  const bool forward = words[3] == std::string("forward"), training = words[4] == std::string("training");

  using namespace gru::cuda;
  const Shape shape{gru::DataType::BFloat16, kSteps, kBatch, hidden_size, hidden_size, 1, false, training};
  const Plan division = plan(shape, forward ? Pass::Forward : Pass::Backward, described_device(9, 0, 132, 232448));
  if (division.kernel == Kernel::Step) {
    std::fprintf(stderr, "%s\n", division.reason.c_str());
    return 1;
  }
  StationarySequence sequence;
  sequence.rows = kSteps * kBatch;
  sequence.exchange = division.partition.grid ? place<uint64_t>(4) : nullptr;
  if (forward) {
    auto pass = params<gru::ForwardParams>(hidden_size);
    pass.h0 = place<void>(5);
    pass.output = place<void>(6);
    pass.output_stride = hidden_size;
    pass.h_n = place<void>(7);
    pass.saved = training ? place<void>(8) : nullptr;
    const void* const input_gates = place<void>(9);
    forward_stationary(division.partition, &pass, 1, &input_gates, sequence, nullptr);
  } else {
    auto pass = params<gru::BackwardParams>(hidden_size);
    pass.saved = place<void>(5);
    pass.grad_output = place<void>(6);
    pass.grad_output_stride = hidden_size;
    pass.grad_h_n = place<void>(7);
    pass.d_gates = place<void>(8);
    pass.grad_h0 = place<void>(9);
    backward_stationary(division.partition, &pass, 1, sequence, nullptr);
  }
  std::printf("%d\n", division.partition.k_tiles);
  return 0;
}
