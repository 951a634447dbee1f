// What the kernels that keep the weights on the chip are passed for one group of sequences, and the cells of the step
// path for one step, in bfloat16, of one direction: benchmarks/step_path.py walks their machine code with it. Compiled
// with tests/emulator, which with GRU_EMULATOR_LAUNCHES writes the launches down instead of doing them, so the
// addresses need lead nowhere.
//
//     GRU_EMULATOR_LAUNCHES=FILE step_launches KERNEL HIDDEN_SIZE BATCH padded|packed forward|backward \
//         training|inference
//
// Prints as JSON how many tiles of columns a warp multiplies, three products each in a step for each tile of sequences,
// how many of those a group has, both 0 of a cell, and what the kernel finds in the GPU's memory: addresses and the
// 32-bit words there.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/plan.h"
#include "cuda/stationary.h"
#include "cuda/step.h"

namespace {

constexpr int64_t kSteps = 64;

// A place of its own for each tensor, as aligned as an allocation.
template <class Element>
Element* place(int number) {
  return reinterpret_cast<Element*>(uintptr_t{0x7f0000000000} + (uintptr_t(number) << 32));
}

// What the passes of both ways have in common.
template <class Params>
Params params(const gru::cuda::Shape& shape) {
  Params params;
  params.dtype = shape.dtype;
  params.rows.seq_len = shape.seq_len;
  params.rows.batch = params.rows.time_stride = shape.batch;
  params.rows.batch_stride = 1;
  params.input_size = params.hidden_size = shape.hidden_size;
  params.weight_hh = place<void>(1);
  params.bias_ih = place<void>(2);
  params.bias_hh = place<void>(3);
  return params;
}

gru::ForwardParams forward_params(const gru::cuda::Shape& shape) {
  auto pass = params<gru::ForwardParams>(shape);
  pass.h0 = place<void>(5);
  pass.output = place<void>(6);
  pass.output_stride = shape.hidden_size;
  pass.h_n = place<void>(7);
  pass.saved = shape.training ? place<void>(8) : nullptr;
  return pass;
}
gru::BackwardParams backward_params(const gru::cuda::Shape& shape) {
  auto pass = params<gru::BackwardParams>(shape);
  pass.saved = place<void>(5);
  pass.grad_output = place<void>(6);
  pass.grad_output_stride = gru::padded(shape.hidden_size, 2);
  pass.grad_h_n = place<void>(7);
  pass.grad_h0 = place<void>(9);
  return pass;
}

// As plan divides the work for this exchange, but with all sequences in one group.
gru::cuda::Plan in_one_group(const gru::cuda::Shape& shape, gru::Pass pass, const std::string& exchange) {
  const gru::cuda::Device device = gru::cuda::described_device(9, 0, 132, 232448);
  const auto planned = [&](const std::string& tuning) {
    setenv("GRU_EXT_CUDA_TUNING", tuning.c_str(), 1);
    return plan(shape, pass, device, gru::cuda::Kernel::Stationary);
  };
  const std::string word = exchange == "grid" ? "grid" : "cluster";
  const gru::cuda::Partition usual = planned(word).partition;
  std::string tuning;
  for (const int64_t number : {int64_t(usual.k_tiles), int64_t(usual.splits), int64_t(usual.warps), shape.batch}) {
    tuning += std::to_string(number) + ",";
  }
  return planned(tuning + word);
}

void launch_cell(const gru::cuda::Shape& shape, bool forward) {
  if (forward) {
    gru::cuda::ForwardStep step;
    step.time = 1;
    step.input_gates = place<void>(9);
    step.hidden_gates = place<void>(11);
    step.state = place<void>(12);
    forward_cell(forward_params(shape), step, nullptr);
  } else {
    gru::cuda::BackwardStep step;
    step.time = 1;
    step.carry = place<void>(11);
    step.product = place<void>(12);
    step.product_batch = shape.batch;
    step.d_gates = place<void>(8);
    backward_cell(backward_params(shape), step, nullptr);
  }
}

void launch_sequence(const gru::cuda::Shape& shape, bool forward, const gru::cuda::Partition& partition,
                     const int32_t* batch_sizes) {
  gru::cuda::StationarySequence sequence;
  sequence.rows = shape.seq_len * shape.batch;
  sequence.batch_sizes = batch_sizes;
  sequence.exchange = partition.grid ? place<uint64_t>(4) : nullptr;
  if (forward) {
    const gru::ForwardParams pass = forward_params(shape);
    const void* const input_gates = place<void>(9);
    forward_stationary(partition, &pass, 1, &input_gates, sequence, nullptr);
  } else {
    const gru::BackwardParams pass = backward_params(shape);
    void* const d_gates = place<void>(8);
    backward_stationary(partition, &pass, 1, &d_gates, sequence, nullptr);
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 7) return 2;
  const int64_t hidden_size = std::atoll(words[2]), batch = std::atoll(words[3]);
  const bool packed = words[4] == std::string("packed"), forward = words[5] == std::string("forward");
  const bool training = words[6] == std::string("training");
  const gru::cuda::Shape shape{gru::DataType::BFloat16, kSteps, batch, hidden_size, hidden_size, 1, packed, training};
  if (words[1] == std::string("step")) {
    launch_cell(shape, forward);
    std::printf("{\"k_tiles\": 0, \"tiles\": 0, \"memory\": []}\n");
    return 0;
  }

  const gru::cuda::Plan plan = in_one_group(shape, forward ? gru::Pass::Forward : gru::Pass::Backward, words[1]);
  const gru::cuda::Partition& partition = plan.partition;
  if (plan.path() != std::string(words[1]) || partition.group_batch != batch) {
    std::fprintf(stderr, "%s: %s\n", plan.path(), plan.reason.c_str());
    return 1;
  }
  const int32_t* const batch_sizes = packed ? place<int32_t>(10) : nullptr;
  launch_sequence(shape, forward, partition, batch_sizes);
  std::printf("{\"k_tiles\": %d, \"tiles\": %d, \"memory\": [", partition.k_tiles, partition.group_batch / 8);
  if (packed) {
    std::printf("[%llu, [%lld", static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(batch_sizes)),
                static_cast<long long>(batch));
    for (int64_t step = 1; step < kSteps; ++step) std::printf(", %lld", static_cast<long long>(batch));
    std::printf("]]");
  }
  std::printf("]}\n");
  return 0;
}
