// The operators as torch sees them: one GRU layer, one or two directions. Everything that knows torch is behind this
// header; everything below it (csrc/cpu, csrc/cuda) sees csrc/gru.h alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "gru.h"

namespace gru {

DataType checked_dtype(at::ScalarType dtype);  // TypeError for one that the kernels do not know

const char* name(DataType dtype);  // "float32", ... as in torch

// The arguments of a layer after every check: contiguous, one dtype, one device, sizes consistent.
struct Layer {
  struct Direction {
    at::Tensor weight_ih;  // [3H, I]
    at::Tensor weight_hh;  // [3H, H]
    at::Tensor bias_ih;    // [3H] or undefined
    at::Tensor bias_hh;    // [3H] or undefined
  };
  at::Tensor input;                   // [T, B, I], [B, T, I] (batch_first) or [rows, I] (packed)
  at::Tensor hx;                      // [D, B, H]
  std::vector<Direction> directions;  // D = 1 or 2; the second runs in reverse
  at::Tensor batch_sizes;             // [T] int64 on the CPU, or undefined when not packed
  std::vector<int64_t> offsets;       // [T], filled when packed
  bool batch_first = false;
  int64_t seq_len = 0, batch = 0, input_size = 0, hidden_size = 0, rows = 0;
  DataType dtype = DataType::Float32;

  Rows row_map() const;  // points into this object
};

// What backward gives: undefined where it was not asked for.
struct LayerGradients {
  at::Tensor input;  // as Layer::input
  at::Tensor hx;     // as Layer::hx
  std::vector<Layer::Direction> directions;
};
// Which of them are wanted; directions[d] = {weight_ih, weight_hh, bias_ih, bias_hh}.
struct LayerNeeds {
  bool input = false, hx = false;
  std::vector<std::array<bool, 4>> directions;
};

// output: [..., D*H] like input; h_n [D, B, H]; saved [D, rows, 5H], or [0] when save is false.
using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// weights: for each direction weight_ih, weight_hh and, with biases, bias_ih, bias_hh. D is hx.size(0).
ForwardResult forward(const at::Tensor& input, const at::Tensor& hx, const std::vector<at::Tensor>& weights,
                      const std::optional<at::Tensor>& batch_sizes, bool batch_first, bool save);

// needs: one flag for input, one for hx, one for each of weights. Returns the gradients asked for, in that order.
std::vector<at::Tensor> backward(const std::optional<at::Tensor>& grad_output,
                                 const std::optional<at::Tensor>& grad_h_n, const at::Tensor& input,
                                 const at::Tensor& hx, const std::vector<at::Tensor>& weights, const at::Tensor& saved,
                                 const std::optional<at::Tensor>& batch_sizes, bool batch_first,
                                 const std::vector<bool>& needs);

// One device each. The tensors to be written are allocated by the caller; grad_output and grad_h_n may be undefined.
void forward_cpu(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved);
LayerGradients backward_cpu(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                            const at::Tensor& saved, const LayerNeeds& needs);
#ifdef GRU_EXT_WITH_CUDA
void forward_cuda(const Layer& layer, at::Tensor& output, at::Tensor& h_n, at::Tensor& saved);
LayerGradients backward_cuda(const Layer& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                             const at::Tensor& saved, const LayerNeeds& needs);
#endif

}  // namespace gru
