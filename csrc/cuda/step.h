// The step path: for each time step one library matrix product, made by the caller, and one cell kernel from here. The
// functions enqueue on `stream` and never wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../gru.h"

namespace gru::cuda {

// Of an ensemble one launch takes the step of every member: how many there are, and how far, in elements, each one's
// part of a tensor lies from the one before it. 0: shared by all.
struct ForwardMembers {
  int64_t count = 1;
  int64_t input_gates = 0, hidden_gates = 0, bias_ih = 0, bias_hh = 0, state = 0, h_n = 0, output = 0, saved = 0,
          marks = 0, reset_state = 0;
};
struct BackwardMembers {
  int64_t count = 1;
  int64_t saved = 0, grad_output = 0, carry = 0, product = 0, d_gates = 0, marks = 0, grad_reset_state = 0;
};

// What a forward step works on beside ForwardParams, of which the cell uses neither input, h0 nor the weights.
// ForwardParams::h_n holds h_(t-1) of every sequence before the step and h_t of those in it after: sequences outside
// the step keep their value, so that after the last step it is h_n for packed sequences too, and for those with
// lengths. Where a reset is behind the step it holds the reset state after it.
struct ForwardStep {
  int64_t time = 0;
  const void* input_gates = nullptr;   // storage [rows, 3H], contiguous: W_ih x, without bias
  const void* hidden_gates = nullptr;  // storage [batch at time, 3H], contiguous: W_hh h_(t-1), without bias
  void* state = nullptr;               // compute [B, H], contiguous: h unrounded, used like h_n. May be h_n itself
                                       // where storage is compute
  ForwardMembers members;              // all sizes above and in ForwardParams are those of one
};

// Writes output and, unless null, saved at step.time; updates h_n and state.
void forward_cell(const ForwardParams& params, const ForwardStep& step, cudaStream_t stream);

// What a backward step works on beside BackwardParams, of which the cell uses neither weight_hh, grad_h_n nor grad_h0.
struct BackwardStep {
  int64_t time = 0;
  // dLoss/dh_t of sequence b, without grad_output, is carry[b] + product[b], or carry[b] alone from b = product_batch
  // on.
  void* carry = nullptr;          // compute [B, H], contiguous: updated to dh_t * z_t
  const void* product = nullptr;  // storage [B, H], contiguous: (r*dn | dr | dz) W_hh of the step after this in time
  int64_t product_batch = 0;      // 0 at the first step
  // storage [rows, 4H], contiguous: (r*dn | dr | dz | dn). Columns [H, 4H) are the gradients of W_ih x + b_ih, columns
  // [0, 3H) those of W_hh h + b_hh in the order n, r, z.
  void* d_gates = nullptr;
  BackwardMembers members;  // all sizes above and in BackwardParams are those of one
};

// Writes d_gates at step.time, but not of padding, where it must hold 0 for the product; updates carry. Where a reset
// is behind the step, what carry and product bring goes to grad_reset_state and no further.
void backward_cell(const BackwardParams& params, const BackwardStep& step, cudaStream_t stream);

}  // namespace gru::cuda
