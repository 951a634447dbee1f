// One GRU layer, of one or two directions, as torch calls it. Whatever knows torch is in this folder; what is below it,
// csrc/cpu and csrc/cuda, knows csrc/gru.h alone.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "gru.h"

namespace gru {

namespace cpu {
struct Plan;
}

std::optional<DataType> data_type(at::ScalarType dtype);  // nothing for one that the kernels do not know
DataType checked_dtype(at::ScalarType dtype);             // the same, or a TypeError

// The arguments of a layer as they come.
struct Arguments {
  at::Tensor input;
  at::Tensor hx;           // undefined: zeros
  at::TensorList weights;  // of each direction weight_ih, weight_hh and, with biases, bias_ih, bias_hh; with packed
                           // weights of bytes also scale_ih, scale_hh
  at::Tensor batch_sizes;  // undefined: not packed
  at::Tensor lengths;      // [B], of each sequence; undefined: all have T steps
  at::Tensor resets;       // like input without its last dimension, true where a state is reset; undefined: nowhere
  at::Tensor reset_state;  // [D, ...], its other dimensions output's of one direction; undefined: zeros
  Options options;
  // An ensemble of so many layers of the same sizes. All tensors but batch_sizes then have a first dimension more, the
  // members; one that lacks it is shared by all. Results, saved and gradients all have it, the gradients also of what
  // is shared: they are each member's own.
  std::optional<int64_t> members;
  bool cell = false;  // one step without a dimension of time: input [B, I], hx [B, H]
};
Options checked_options(at::IntArrayRef numbers);

// A value for each weight of a direction.
enum Role : size_t { kWeightIh, kWeightHh, kBiasIh, kBiasHh, kRoles };
template <class Value>
using ByRole = std::array<Value, kRoles>;
using Weights = ByRole<at::Tensor>;        // [3H, I], [3H, H], [3H], [3H]; a bias may be undefined
using Scales = std::array<at::Tensor, 2>;  // of packed weights of bytes, weight_ih and weight_hh

// A value for each tensor that has a gradient.
template <class Value>
struct ByTensor {
  Value input{}, hx{}, reset_state{};
  c10::SmallVector<ByRole<Value>, 2> weights;  // of each direction
};
using Needs = ByTensor<bool>;            // whether the gradient is wanted
using Gradients = ByTensor<at::Tensor>;  // undefined where it is not

// The arguments of a layer after every check: contiguous, one dtype, one device, sizes consistent. Of an ensemble the
// tensors are those of its first member.
struct Layer {
  at::Tensor input;                      // [T, B, I], [B, T, I] (batch_first), [rows, I] (packed) or [B, I] (cell)
  at::Tensor hx;                         // [D, B, H] or [B, H] (cell)
  c10::SmallVector<Weights, 2> weights;  // of each direction
  c10::SmallVector<Scales, 2> scales;    // the same, where they are bytes
  WeightFormat format = WeightFormat::Plain;
  at::Tensor batch_sizes;        // [T] int64 on the CPU, or undefined when not packed
  at::Tensor lengths;            // [B]; on the CPU int64, and within 0 and T
  at::Tensor resets;             // bool, [rows]
  at::Tensor reset_state;        // [D, T, B, H], [D, B, T, H] (batch_first) or [D, rows, H], its rows anywhere
  std::vector<int64_t> offsets;  // [T], filled when packed
  Options options;
  bool cell = false;
  bool stacked = false;  // an ensemble, of so many members
  int64_t members = 1;
  ByTensor<int64_t> strides;  // of an ensemble: elements from one member to the next; 0 for what all share
  int64_t lengths_stride = 0, resets_stride = 0;  // the same
  int64_t seq_len = 0, batch = 0, input_size = 0, hidden_size = 0, rows = 0;
  DataType dtype = DataType::Float32;

  int64_t directions() const { return options.directions; }
  void fill(LayerParams& params, int64_t member, int64_t direction) const;  // points into this object
  Layer member(int64_t index) const;                                        // one of an ensemble as a layer of its own

  // Sizes of a tensor that has `sizes` in one member; of hx and h_n, of output and of what is saved in rows of `row`
  // elements, in one member.
  c10::SmallVector<int64_t, 6> sizes_of_all(at::IntArrayRef sizes) const;
  c10::SmallVector<int64_t, 3> state_sizes() const;
  c10::SmallVector<int64_t, 3> output_sizes() const;
  c10::SmallVector<int64_t, 4> reset_sizes() const;  // of reset_state
  c10::SmallVector<int64_t, 5> saved_sizes(int64_t row) const;

  // What its profiling range is called: "gru_forward_cluster bf16 T=100 B=8 I=80 H=512 D=1". Packed, B is the largest
  // batch of any step, and the rows of all steps follow; of an ensemble, its members follow. pass: "forward" or
  // "backward"; path: the kernel.
  std::string range_name(const char* pass, const char* path) const;

  // Lets go of input, hx, resets, reset_state, weights and scales; takes those of arguments, known to be like those
  // that were checked. Backward reads no hx, so that an absent one stays undefined there.
  void release();
  void take(const Arguments& arguments, Pass pass);
};

// The layer, or an error that names the argument that does not fit, what it was and what was expected.
Layer checked_layer(const Arguments& arguments);

// output: [..., D*H] like input; h_n [D, B, H], of a cell the same tensor as output; saved undefined unless save, else
// [D, ..., row], its dimensions in the middle those of input and its rows as csrc/gru.h says.
using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
ForwardResult run_forward(const Layer& layer, bool save);

// grad_output and grad_h_n may be undefined, which means zero. saved may be shared by all members. needs: one flag for
// input, hx, reset_state and each of weights; for biases also where the layer lacks them, which it may without
// recompute. Returns the gradients asked for, in that order.
std::vector<at::Tensor> run_backward(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                                     const at::Tensor& saved, const std::vector<bool>& needs);

// The element at this offset, to be written and to be read.
inline void* pointer_at(const at::Tensor& tensor, int64_t elements) {
  return static_cast<char*>(tensor.data_ptr()) + elements * tensor.element_size();
}
inline const void* const_pointer_at(const at::Tensor& tensor, int64_t elements) {
  return static_cast<const char*>(tensor.const_data_ptr()) + elements * tensor.element_size();
}
// The same of a tensor that may be undefined: then null.
inline const void* const_pointer_or_null(const at::Tensor& tensor, int64_t elements) {
  return tensor.defined() ? const_pointer_at(tensor, elements) : nullptr;
}

// Memory for what a forward pass on the CPU keeps, and elements of a row of it where that is all.
at::Tensor empty_saved_cpu(at::IntArrayRef sizes, const at::TensorOptions& options);
int64_t saved_row_cpu(const Layer& layer);

// One device each. The tensors to be written are allocated by the caller; grad_output and grad_h_n may be undefined.
void forward_cpu(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved);
// A stack: how its layers run when nothing is kept; and their passes, where they overlap. The input of each but the
// first is memory for the output of the one below; output is the last one's, h_n [L, B, H] that of all.
cpu::Plan stack_plan_cpu(const Layer& first, int64_t layers);
void forward_stack_cpu(c10::ArrayRef<Layer> layers, const cpu::Plan& plan, at::Tensor& output, at::Tensor& h_n);
Gradients backward_cpu(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                       const at::Tensor& saved, const Needs& needs);
// In a build with CUDA.
bool tf32_allowed();          // torch.backends.cuda.matmul.allow_tf32, or its like
bool library_tf32_allowed();  // torch.backends.cudnn.allow_tf32, or its like
int64_t saved_row_cuda(const Layer& layer);
void forward_cuda(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved);
Gradients backward_cuda(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                        const at::Tensor& saved, const Needs& needs);

}  // namespace gru
