// The layer as Python calls it outside of any graph: joined to autograd here, in C++, and past torch's dispatcher. At
// small sizes the way through torch.autograd.Function and the dispatcher takes several times as long as the kernels.
//
// The way is open only to a call that nothing else wants to see: no mode, transform, tracer, profiler or autocast is
// active, and every tensor is a plain one. Any other call is refused, and goes through the operators. So does any other
// backward pass: one that must itself be differentiable, or under a mode, or with tensors that are not plain.
#pragma once

#include <c10/core/SafePyObject.h>

#include "layer.h"

namespace gru {

// Whether this thread's calls may go past the dispatcher, and whether this tensor may.
bool direct_here();
bool direct(const at::Tensor& tensor);

// Whether a mode of torch's functions, which only Python can tell apart, may see the call; until it is set, each may.
using SeesCalls = bool (*)(const c10::SafePyObject& mode);
void set_sees_calls(SeesCalls sees);

// Nothing when the arguments do not fit or autocast would cast them, for the caller to take the other way and there
// learn why. Recorded for backward when grad mode is on and a tensor requires grad. Every tensor must be direct.
struct DirectResult {
  at::Tensor output;  // [..., D*H] like input
  at::Tensor h_n;     // [D, B, H]; of a cell the same as output
};
std::optional<DirectResult> forward_direct(const Arguments& arguments);
// The same of a stack, with hx, weights and h_n [L*D, B, H] of all layers, which may overlap when nothing is recorded.
std::optional<DirectResult> forward_direct(const Arguments& arguments, int64_t num_layers);

}  // namespace gru
