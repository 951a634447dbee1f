// The operators as torch sees them: one GRU layer, one or two directions. Everything that knows torch is behind this
// header; everything below it (csrc/cpu, csrc/cuda) sees csrc/gru.h alone.
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

std::optional<DataType> data_type(at::ScalarType dtype);  // nothing for one that the kernels do not know
DataType checked_dtype(at::ScalarType dtype);             // the same, or a TypeError

// The arguments of a layer as they come.
struct Arguments {
  at::Tensor input;
  at::Tensor hx;                     // undefined: zeros
  at::ArrayRef<at::Tensor> weights;  // for each direction weight_ih, weight_hh and, with biases, bias_ih, bias_hh
  at::Tensor batch_sizes;            // undefined: not packed
  bool batch_first = false;
  bool recompute = false;  // forward keeps the states alone, backward computes the gates again
  bool cell = false;       // one step without a dimension of time: input [B, I], hx [B, H]
  int64_t directions = 0;  // 1 or 2; 0: as many as hx has
};

// How far, in elements, each further member of an ensemble lies from the one before; 0 for a tensor that all share.
struct MemberStrides {
  int64_t input = 0, hx = 0;
  c10::SmallVector<std::array<int64_t, 4>, 2> weights;  // of each direction weight_ih, weight_hh, bias_ih, bias_hh
};

// The arguments of a layer after every check: contiguous, one dtype, one device, sizes consistent.
struct Layer {
  struct Direction {
    at::Tensor weight_ih;  // [3H, I]
    at::Tensor weight_hh;  // [3H, H]
    at::Tensor bias_ih;    // [3H] or undefined
    at::Tensor bias_hh;    // [3H] or undefined
  };
  at::Tensor input;                           // [T, B, I], [B, T, I] (batch_first), [rows, I] (packed) or [B, I] (cell)
  at::Tensor hx;                              // [D, B, H] or [B, H] (cell)
  c10::SmallVector<Direction, 2> directions;  // D = 1 or 2; the second runs in reverse
  at::Tensor batch_sizes;                     // [T] int64 on the CPU, or undefined when not packed
  std::vector<int64_t> offsets;               // [T], filled when packed
  // Of an ensemble, layers of the same sizes side by side, the tensors above are those of its first member, and what is
  // computed has a first dimension more: the members.
  bool stacked = false;
  int64_t members = 1;
  MemberStrides strides;  // filled when stacked
  bool batch_first = false, cell = false;
  int64_t seq_len = 0, batch = 0, input_size = 0, hidden_size = 0, rows = 0;
  DataType dtype = DataType::Float32;

  Rows row_map() const;                                                    // points into this object
  Layer member(int64_t index) const;                                       // one of them as a layer of its own
  c10::SmallVector<int64_t, 4> sizes_of_all(at::IntArrayRef sizes) const;  // of a tensor that has `sizes` in one member

  // What its profiling range is called: "gru_forward_cluster bf16 T=100 B=8 I=80 H=512 D=1". Packed, B is the largest
  // batch of any step, and the rows of all steps follow; of an ensemble, its members follow. pass: "forward" or
  // "backward"; path: the kernel.
  std::string range_name(const char* pass, const char* path) const;
};

// What backward gives: undefined where it was not asked for. When stacked, of all members.
struct LayerGradients {
  at::Tensor input;  // as Layer::input
  at::Tensor hx;     // as Layer::hx
  c10::SmallVector<Layer::Direction, 2> directions;
};
// Which of them are wanted; directions[d] = {weight_ih, weight_hh, bias_ih, bias_hh}.
struct LayerNeeds {
  bool input = false, hx = false;
  c10::SmallVector<std::array<bool, 4>, 2> directions;
};

// The operators. weights: as in Arguments, and without hx their number and shapes tell D; the rest as below. Backward
// takes them without biases, too, where saved has more than the states.
using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
ForwardResult forward(const at::Tensor& input, const std::optional<at::Tensor>& hx,
                      const std::vector<at::Tensor>& weights, const std::optional<at::Tensor>& batch_sizes,
                      bool batch_first, bool save, bool recompute);
std::vector<at::Tensor> backward(const std::optional<at::Tensor>& grad_output,
                                 const std::optional<at::Tensor>& grad_h_n, const at::Tensor& input,
                                 const std::optional<at::Tensor>& hx, const std::vector<at::Tensor>& weights,
                                 const at::Tensor& saved, const std::optional<at::Tensor>& batch_sizes,
                                 bool batch_first, const std::vector<bool>& needs);

// The same of an ensemble of `members` layers at once, each with an input, an hx and weights of its own: those tensors
// have a first dimension more, [members, ...]; one that lacks it is shared by all. hx is needed, for it tells D.
// Results, saved and gradients all have that dimension, the gradients also of what is shared: they are each member's
// own.
ForwardResult forward_members(const at::Tensor& input, const at::Tensor& hx, const std::vector<at::Tensor>& weights,
                              const std::optional<at::Tensor>& batch_sizes, bool batch_first, int64_t members,
                              bool save, bool recompute);
std::vector<at::Tensor> backward_members(const std::optional<at::Tensor>& grad_output,
                                         const std::optional<at::Tensor>& grad_h_n, const at::Tensor& input,
                                         const at::Tensor& hx, const std::vector<at::Tensor>& weights,
                                         const at::Tensor& saved, const std::optional<at::Tensor>& batch_sizes,
                                         bool batch_first, int64_t members, const std::vector<bool>& needs);

// The same in parts, for arguments that did not come through torch's dispatcher. The first and the last raise an error
// that names the argument that does not fit, what it was and what was expected.
Layer checked_layer(const Arguments& arguments);
Layer checked_members(const Arguments& arguments, int64_t members);  // the same when stacked

// output: [..., D*H] like input; h_n [D, B, H], of a cell the same tensor as output; saved [D, rows, *] as csrc/gru.h
// says, or [0] when nothing is kept. When stacked all but [0] have the members before these.
enum class Keep { Nothing, States, All };
Keep kept_by(const Arguments& arguments);  // a call that is recorded
ForwardResult run_forward(const Layer& layer, Keep keep);

// grad_output and grad_h_n may be undefined, which means zero. saved may be shared by all members. needs: one flag for
// input, one for hx, one for each of weights. Returns the gradients asked for, in that order.
std::vector<at::Tensor> run_checked_backward(const Layer& layer, const at::Tensor& grad_output,
                                             const at::Tensor& grad_h_n, const at::Tensor& saved,
                                             const std::vector<bool>& needs);
std::vector<at::Tensor> run_backward(const Arguments& arguments, const at::Tensor& grad_output,
                                     const at::Tensor& grad_h_n, const at::Tensor& saved,
                                     const std::vector<bool>& needs);

// Memory for what a forward pass on the CPU keeps, and elements of a row of it where that is all.
at::Tensor empty_saved_cpu(at::IntArrayRef sizes, const at::TensorOptions& options);
int64_t saved_row_cpu(const Layer& layer);

// One device each. The tensors to be written are allocated by the caller; grad_output and grad_h_n may be undefined.
void forward_cpu(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved);
LayerGradients backward_cpu(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                            const at::Tensor& saved, const LayerNeeds& needs);
#ifdef GRU_EXT_WITH_CUDA
bool tf32_allowed();          // torch.backends.cuda.matmul.allow_tf32, or its like
bool library_tf32_allowed();  // torch.backends.cudnn.allow_tf32, or its like
int64_t saved_row_cuda(const Layer& layer);
void forward_cuda(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved);
LayerGradients backward_cuda(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                             const at::Tensor& saved, const LayerNeeds& needs);
#endif

}  // namespace gru
