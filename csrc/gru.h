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

namespace cpu {
class Progress;
}

enum class DataType : int { Float32, Float64, BFloat16, Float16 };
enum class Pass { Forward, Backward };
// How weights lie: as torch has them, [3H, *], or packed ahead (csrc/cpu/packed.h) for a forward pass on the CPU.
enum class WeightFormat { Plain, Float32, BFloat16, Int8 };

// Values of each unit and step: kept for backward (r, z, n, hn = W_hn h + b_hn, h_(t-1)), and made by backward on CUDA
// (r*dn, dr, dz, dn). The state is kept although output holds it, for the user may change output in place before
// backward.
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
//
// Sequences with lengths of their own lie as the first or second says, with padding behind them. Rows of padding are
// not written, and what they hold never matters; the CPU does not read them. Where the host knows the lengths (the CPU)
// a pass counts its sequences from the longest to the shortest that has a step, `sequences` says which those are, and T
// is the longest one's. Pieces of sequences go the same way: `sequences` then says where their first rows lie, with
// batch_stride 1, and tensors of states have a row for each of these. Where the host does not know the lengths (CUDA)
// `marks` of LayerParams tells steps from padding.
struct Rows {
  int64_t seq_len = 0;                   // T >= 1
  int64_t batch = 0;                     // B >= 0, the largest batch of any step
  int64_t time_stride = 0;               // rows
  int64_t batch_stride = 0;              // rows
  const int64_t* offsets = nullptr;      // [T], host memory; null unless packed
  const int64_t* batch_sizes = nullptr;  // [T], host memory, never increasing; null: all steps have B sequences
  const int64_t* sequences = nullptr;    // [B], host memory; null: 0, 1, 2 ...

  int64_t batch_at(int64_t t) const { return batch_sizes ? batch_sizes[t] : batch; }
  // Where sequence b of the pass lies in tensors of states, [B, *].
  int64_t sequence(int64_t b) const { return sequences ? sequences[b] : b; }
  // Of step t, where sequence 0 of tensors [B, *] lies.
  int64_t first_row(int64_t t) const { return offsets ? offsets[t] : t * time_stride; }
  int64_t row(int64_t t, int64_t b) const { return first_row(t) + sequence(b) * batch_stride; }
  int64_t in_all() const {  // rows, without padding
    if (!batch_sizes) return seq_len * batch;
    int64_t sum = 0;
    for (int64_t t = 0; t < seq_len; ++t) sum += batch_sizes[t];
    return sum;
  }
  // Time of the pass's step number s; of s = T none of [0, T).
  int64_t time_of(int64_t step, bool reverse) const { return reverse ? seq_len - 1 - step : step; }
};

// A pointer marked "storage" has the element type `dtype`. "compute" means float for 16-bit types and float32, double
// for float64. Strides are in elements; the last dimension is always contiguous.
//
// On the CPU a pass is the whole pass. On CUDA it is the recurrence: the large products before it (W_ih x, which the
// launchers take as `input_gates`) and after it (from the gradients before the activations, which they write to
// `d_gates`) are those of NVIDIA's library, which is torch's to call. So are gradients and recompute, which on the CPU
// are csrc/cpu/gradients.h and recompute.h, on CUDA csrc/torch/layer_cuda_gradients.cpp and layer_cuda_recompute.cpp.

// How a layer runs, beside its tensors. Its numbers travel from Python in this order, as one list
// (gru_ext.ops.Options).
struct Options {
  static constexpr int64_t kAny = -1;  // plan decides

  int64_t directions = 1;     // 1 or 2; the second runs in reverse
  int64_t batch_first = 0;    // whether input and output are [B, T, *]
  int64_t recompute = 0;      // whether forward keeps the states alone; backward computes the gates again
  int64_t stationary = kAny;  // on CUDA, whether kernels that keep the weights on the chip run, where they can
  int64_t hidden_size = 0;    // H of packed weights, whose sizes do not say it; 0: they are plain
  int64_t input_size = 0;     // I, the same
};
using OptionField = int64_t Options::*;  // by a name of its own: what nvcc makes of the type warns in g++
struct OptionRange {
  const char* name;
  OptionField field;
  int64_t least, most;
};
constexpr OptionRange kOptions[] = {{"directions", &Options::directions, 1, 2},
                                    {"batch_first", &Options::batch_first, 0, 1},
                                    {"recompute", &Options::recompute, 0, 1},
                                    {"stationary", &Options::stationary, Options::kAny, 1},
                                    {"hidden_size", &Options::hidden_size, 0, int64_t{1} << 30},
                                    {"input_size", &Options::input_size, 0, int64_t{1} << 30}};

// What a row is to its sequence in a layer with lengths or resets, on CUDA: 0 or more of these, in either direction. 32
// bits, for a GPU copies no less on its own.
enum Mark : uint32_t {
  kPadding = 1,      // no step; else a step, and
  kResetBefore = 2,  // a reset lies between the step before it and this one,
  kResetAfter = 4,   // or between this one and the next
};

// The resets before a step; by the pass's sequences.
struct StepResets {
  const bool* of_batch = nullptr;  // of sequence b of the batch at b * stride; null: none
  int64_t count = 0;               // of the pass's sequences
  int64_t stride = 0;
  const int64_t* sequences = nullptr;  // as in Rows

  bool operator()(int64_t b) const {
    return of_batch && b < count && of_batch[(sequences ? sequences[b] : b) * stride];
  }
};

// What both passes read of a layer.
//
// A reset at (t, b) lies between the steps t - 1 and t of sequence b: the state that one of the two hands on to the
// other, forward from t - 1 to t and in reverse from t to t - 1, is replaced by the reset state, and its gradient goes
// there. A reset at step 0 so replaces forward's h0, and in reverse nothing; one in the padding nothing.
struct LayerParams {
  DataType dtype = DataType::Float32;
  Rows rows;
  int64_t input_size = 0;   // I >= 1
  int64_t hidden_size = 0;  // H >= 1
  bool reverse = false;     // forward runs from t = T-1 down to 0, and backward the other way
  Options options;

  const void* input = nullptr;                           // storage [rows, I], contiguous; not on CUDA
  const void* weight_ih = nullptr;                       // storage [3H, I], contiguous, or packed; not on CUDA
  const void* weight_hh = nullptr;                       // storage [3H, H], contiguous, or packed
  const void* bias_ih = nullptr;                         // storage [3H]; null: no biases
  const void* bias_hh = nullptr;                         // storage [3H]; null exactly when bias_ih is
  WeightFormat weights = WeightFormat::Plain;            // packed ones with Float32 as dtype
  const float *scale_ih = nullptr, *scale_hh = nullptr;  // of Int8 (csrc/cpu/packed.h)

  const bool* resets = nullptr;       // [rows]; null: none. Not on CUDA
  const uint32_t* marks = nullptr;    // [rows], on CUDA, in the GPU's memory; null: neither lengths nor resets
  const void* reset_state = nullptr;  // storage, [H] of (t, b) at t * reset_time_stride + b * reset_batch_stride; only
                                      // those at resets are read. null: zero
  int64_t reset_time_stride = 0, reset_batch_stride = 0;  // elements; b counts as in tensors [B, *]

  // Time of the reset, if there is one, of the state that the pass's step at time t takes.
  int64_t reset_time(int64_t t) const { return reverse ? t + 1 : t; }
  // Whether there is, of each of the pass's sequences.
  StepResets resets_before(int64_t t) const {
    const int64_t time = reset_time(t);
    if (!resets || time >= rows.seq_len) return {};
    return {resets + rows.first_row(time), rows.batch_at(time), rows.batch_stride, rows.sequences};
  }
  // Elements from reset_state to the state that replaces it. Not of pieces.
  int64_t reset_offset(int64_t t, int64_t b) const {
    return reset_time(t) * reset_time_stride + rows.sequence(b) * reset_batch_stride;
  }
  // The mark of a step behind which, as forward goes, the state is reset; and the time of that reset.
  Mark reset_mark() const { return reverse ? kResetBefore : kResetAfter; }
  int64_t time_of_reset_behind(int64_t t) const { return reverse ? t : t + 1; }
};

struct ForwardParams : LayerParams {
  const void* h0 = nullptr;  // storage [B, H], contiguous

  void* output = nullptr;     // storage [rows, H], row stride output_stride
  int64_t output_stride = 0;  // H, or 2H when both directions share the output
  void* h_n = nullptr;        // storage [B, H], contiguous
  void* saved = nullptr;      // storage [rows, what forward keeps], contiguous; null: inference

  // Of a layer that overlaps with others, on the CPU: how far it has come, and how far the one below, whose output it
  // reads. Null: it does not; the first has none below.
  cpu::Progress *progress = nullptr, *below = nullptr;
};

// Gradients of a pass; a null one is not wanted.
struct BackwardParams : LayerParams {
  const void* saved = nullptr;        // storage [rows, what forward kept], contiguous
  const void* grad_output = nullptr;  // storage [rows, H], row stride grad_output_stride; null: zero
  int64_t grad_output_stride = 0;
  const void* grad_h_n = nullptr;  // storage [B, H], contiguous; null: zero

  void* grad_h0 = nullptr;           // storage [B, H], contiguous
  void* grad_reset_state = nullptr;  // storage [rows, H], contiguous; written where a state is reset alone
  void* grad_input = nullptr;        // storage [rows, I], contiguous
  bool add_to_input = false;         // to what grad_input holds
  void* grad_weight_ih = nullptr;    // storage [3H, I], contiguous
  void* grad_weight_hh = nullptr;    // storage [3H, H], contiguous
  void* grad_bias_ih = nullptr;      // storage [3H]
  void* grad_bias_hh = nullptr;      // storage [3H]
};

}  // namespace gru
