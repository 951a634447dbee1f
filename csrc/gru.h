// The contract between the binding and the kernels: one parameter struct a pass, for one layer and one direction over
// the whole sequence. No torch header is needed to read, call or test a kernel.
//
//   r_t = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)            reset gate
//   z_t = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)            update gate
//   n_t = tanh   (W_in x_t + b_in + r_t * (W_hn h_(t-1) + b_hn))    candidate
//   h_t = (1 - z_t) * n_t + z_t * h_(t-1)
//
// This is torch.nn.GRU (Keras reset_after=True, ONNX linear_before_reset=1). Gate order in every [3H, ...] tensor is
// r, z, n, as in PyTorch. Sizes: T seq_len, B batch, I input_size, H hidden_size.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gru {

enum class DataType : int { Float32, Float64, BFloat16, Float16 };

// Values of each unit and step: kept for backward (r, z, n, hn = W_hn h + b_hn, h_(t-1)), and made by backward on CUDA
// (d_gates). The state is kept although output holds it, for the user may change output in place before backward.
constexpr int64_t kSavedValues = 5, kSavedGates = 4, kGateGradients = 4;

// H rounded up to 16 bytes of elements of `element` bytes: the most that a GPU's instruction moves.
constexpr int64_t padded(int64_t hidden_size, size_t element) {
  const auto at_once = static_cast<int64_t>(16 / element);
  return (hidden_size + at_once - 1) / at_once * at_once;
}

// What forward keeps of a row for backward:
//   states alone  h_(t-1) [H]
//   CPU           r | z | n | hn | h_(t-1), [H] each
//   CUDA          r, z, n and hn of each unit side by side, [P, 4], then h_(t-1) [P], P = padded(H). The first row
//                 begins at a multiple of 16 bytes. Padding holds anything: whoever reads it must not let it through

// Where the row of step t and sequence b lies. Every per-step tensor of a pass (input, output, saved, gradients) has
// the same number of rows in the same order and differs only in the length of a row.
//   time-major  [T, B, *]: row = t * B + b      (time_stride B, batch_stride 1)
//   batch-first [B, T, *]: row = b * T + t      (time_stride 1, batch_stride T)
//   packed      [rows, *]: row = offsets[t] + b (batch_stride 1), b < batch_sizes[t], as torch's PackedSequence
struct Rows {
  int64_t seq_len = 0;                   // T >= 1
  int64_t batch = 0;                     // B >= 0, the largest batch of any step
  int64_t time_stride = 0;               // rows
  int64_t batch_stride = 0;              // rows
  const int64_t* offsets = nullptr;      // [T], host memory; null unless packed
  const int64_t* batch_sizes = nullptr;  // [T], host memory, never increasing; null unless packed

  int64_t batch_at(int64_t t) const { return batch_sizes ? batch_sizes[t] : batch; }
  int64_t row(int64_t t, int64_t b) const { return (offsets ? offsets[t] : t * time_stride) + b * batch_stride; }
  // Time of the pass's step number s; outside [0, T) never asked for.
  int64_t time_of(int64_t step, bool reverse) const { return reverse ? seq_len - 1 - step : step; }
};

// A pointer marked "storage" has the element type `dtype`. "compute" means float for 16-bit types and float32, double
// for float64. Strides are in elements; the last dimension is always contiguous.
struct ForwardParams {
  DataType dtype = DataType::Float32;
  Rows rows;
  int64_t input_size = 0;   // I >= 1
  int64_t hidden_size = 0;  // H >= 1
  bool reverse = false;     // run from t = T-1 down to 0

  const void* input = nullptr;      // storage [rows, I], contiguous
  const void* h0 = nullptr;         // storage [B, H], contiguous
  const void* weight_ih = nullptr;  // storage [3H, I], contiguous
  const void* weight_hh = nullptr;  // storage [3H, H], contiguous
  const void* bias_ih = nullptr;    // storage [3H]; null: no biases
  const void* bias_hh = nullptr;    // storage [3H]; null exactly when bias_ih is

  void* output = nullptr;     // storage [rows, H], row stride output_stride
  int64_t output_stride = 0;  // H, or 2H when both directions share the output
  void* h_n = nullptr;        // storage [B, H], contiguous
  void* saved = nullptr;      // storage [rows, what forward keeps], contiguous; null: inference
  bool states_only = false;   // that is the states alone, and the gates are computed again for backward
};

// Gradients of a pass; a null one is not wanted.
struct BackwardParams {
  DataType dtype = DataType::Float32;
  Rows rows;
  int64_t input_size = 0;
  int64_t hidden_size = 0;
  bool reverse = false;  // the direction of the forward pass; backward walks the other way

  const void* input = nullptr;        // storage [rows, I], contiguous
  const void* weight_ih = nullptr;    // storage [3H, I], contiguous
  const void* weight_hh = nullptr;    // storage [3H, H], contiguous
  const void* bias_ih = nullptr;      // storage [3H]; null: no biases
  const void* bias_hh = nullptr;      // storage [3H]; null exactly when bias_ih is
  const void* saved = nullptr;        // storage [rows, what forward kept], contiguous
  bool states_only = false;           // CPU: that is the states alone
  const void* grad_output = nullptr;  // storage [rows, H], row stride grad_output_stride; null: zero
  int64_t grad_output_stride = 0;
  const void* grad_h_n = nullptr;  // storage [B, H], contiguous; null: zero

  void* grad_h0 = nullptr;  // storage [B, H], contiguous

  // CPU: the large products are part of the pass.
  void* grad_input = nullptr;      // storage [rows, I], contiguous
  bool add_to_input = false;       // to what grad_input holds
  void* grad_weight_ih = nullptr;  // storage [3H, I], contiguous
  void* grad_weight_hh = nullptr;  // storage [3H, H], contiguous
  void* grad_bias_ih = nullptr;    // storage [3H]
  void* grad_bias_hh = nullptr;    // storage [3H]

  // CUDA: the pass is the recurrence alone, and the large products follow from the gradients before the activations,
  // (r*dn | dr | dz | dn): columns [H, 4H) are those of W_ih x + b_ih, columns [0, 3H) those of W_hh h + b_hh in the
  // order n, r, z.
  void* d_gates = nullptr;  // storage [rows, 4H], contiguous
};

}  // namespace gru
