"""Autograd of one layer: the operators of :mod:`gru_ext.ops` joined to the graph, and their second derivatives.

Calls that went forward directly are joined to the graph in C++ (``csrc/ops_direct.cpp``); those of their backward
passes that cannot be direct come here as well. The operator ``gru_ext::forward`` joins itself to the graph, so that
the graphs of torch.compile, torch.export and torch.jit.trace hold it alone, and train.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gru_ext import ops, reference

_FORWARD = ops.forward
_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
_BATCHED = torch._C._dispatch_key_parse("Batched")  # DispatchKey has no name for it


class Layer(torch.autograd.Function):
    """One layer and both its directions in autograd's graph.

    Its backward runs the compiled backward. Asked for a gradient of the gradient (create_graph=True), it differentiates
    the reference instead, which is differentiable any number of times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        operator: Callable[..., tuple[Tensor, Tensor, Tensor]],
        input: Tensor,
        hx: Tensor | None,
        batch_sizes: Tensor | None,
        batch_first: bool,
        recompute: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        output, h_n, saved = operator(input, hx, weights, batch_sizes, batch_first, True, recompute)
        # not output, which the user may change in place
        keep(ctx, input, hx, weights, batch_sizes, batch_first, saved)
        return output, h_n

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = [needed for index, needed in enumerate(ctx.needs_input_grad) if index not in (0, 3, 4, 5)]
        wanted = iter(_backward(grad_output, grad_h_n, *kept(ctx, grad_output, grad_h_n), ctx.batch_first, needs))
        grad_input, grad_hx, *grad_weights = (next(wanted) if needed else None for needed in needs)
        return None, grad_input, grad_hx, None, None, None, *grad_weights


def keep(
    ctx: Any,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    saved: Tensor,
) -> None:
    """Saves for backward what a layer, or an ensemble of them, was called with; :func:`kept` gives it back.

    Each as a view, for an assignment to a tensor's .data gives it other memory in silence. After a change in place
    autograd refuses a backward pass that was to read the old values. So it is here for what ``nn.GRU``'s own graph
    reads and for what our backward reads, but not for the rest. The direct calls keep the same in C++.
    """
    ctx.set_materialize_grads(False)
    ctx.batch_first = batch_first
    tensors: list[Tensor | None] = [input, hx, *weights]
    read = [True] * len(tensors)
    if not torch.compiler.is_compiling():  # what a graph keeps, torch.compile decides
        read = _read(input, hx, weights, batch_sizes, batch_first, recompute=saved.size(-1) == weights[1].size(-1))
        tensors = [None if tensor is None else _view(tensor) for tensor in tensors]
    checked = (tensor if needed else None for tensor, needed in zip(tensors, read, strict=True))
    ctx.save_for_backward(batch_sizes, saved, *checked)
    ctx.unread = [None if needed else tensor for tensor, needed in zip(tensors, read, strict=True)]
    ctx.versions = _versions(ctx.unread)


def _view(tensor: Tensor) -> Tensor:
    """The same memory and versions, with the same place in autograd's graph."""
    if not tensor.requires_grad:
        return tensor.detach()
    # An operator's forward pass runs below autograd, which would not see the view.
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    above = torch._C._ForceDispatchKeyGuard(included, excluded & torch._C._after_autograd_keyset)
    with above, torch.enable_grad():
        return tensor.view_as(tensor)


def _read(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    recompute: bool,
) -> list[bool]:
    """Which of (input, hx, *weights) the graph of ``nn.GRU`` reads in backward, or our backward does."""
    each = len(weights) // (ops.directions_of(weights) if hx is None else hx.size(-3))
    steps = input.size(-2 if batch_first else -3) if batch_sizes is None else batch_sizes.numel()
    of_role = (input.requires_grad, steps > 1 or (hx is not None and hx.requires_grad), False, False)
    return [
        recompute or any(weight.requires_grad for weight in weights[::each]),
        any(weight.requires_grad for weight in weights[1::each]),
        *(recompute or of_role[index % each] for index in range(len(weights))),
    ]


def kept(
    ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
) -> tuple[Tensor, Tensor | None, list[Tensor], Tensor, Tensor | None]:
    """Input, hx, weights, saved and batch_sizes of a forward pass, after the checks for these gradients of it."""
    batch_sizes, saved, *read = ctx.saved_tensors
    if _differentiated(grad_output, grad_h_n) and _versions(ctx.unread) != ctx.versions:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a "
            "backward pass that is itself to be differentiated reads all that the layer was called with"
        )
    input, hx, *weights = (view if tensor is None else tensor for tensor, view in zip(read, ctx.unread, strict=True))
    return input, hx, weights, saved, batch_sizes


def _versions(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors]


def _differentiated(grad_output: Tensor | None, grad_h_n: Tensor | None) -> bool:
    """Whether a backward pass needs a graph of its own: it is to be differentiated, or comes many at a time."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or any(_batched_by_autograd(gradient) for gradient in (grad_output, grad_h_n))


def _recorded_forward(
    keys: torch._C.DispatchKeySet,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    save: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``gru_ext::forward`` with its gradient, whether or not the caller asks for what backward needs.

    So a graph that was captured without it (torch.export, torch.jit.trace) trains, and pays for it only then.
    """
    of_backward: list[Tensor] = []

    def below(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            results: tuple[Tensor, Tensor, Tensor] = _FORWARD.redispatch(keys & _BELOW_AUTOGRAD, *arguments)
        of_backward.append(results[2])
        return results

    if not needs_gradient(input, hx, weights):
        return below(input, hx, weights, batch_sizes, batch_first, save, recompute)
    output, h_n = Layer.apply(below, input, hx, batch_sizes, batch_first, recompute, *weights)
    return output, h_n, of_backward[0] if save else input.new_empty(0)


_LIBRARY = torch.library.Library("gru_ext", "IMPL")
_LIBRARY.impl("forward", _recorded_forward, "Autograd", with_keyset=True)


def needs_gradient(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> bool:
    """Whether a call is to be recorded for backward."""
    return torch.is_grad_enabled() and (
        input.requires_grad or (hx is not None and hx.requires_grad) or any(weight.requires_grad for weight in weights)
    )


def _backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    needs: Sequence[bool],
) -> Sequence[Tensor | None]:
    """The gradients whose flag in needs is set, in the order (input, hx, *weights); None is zero."""
    if grad_output is None and grad_h_n is None:
        return [None] * sum(needs)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _differentiable_backward(grad_output, grad_h_n, input, hx, weights, batch_sizes, batch_first, needs)
    if not torch.compiler.is_compiling() and any(_batched_by_autograd(one) for one in (grad_output, grad_h_n)):
        warnings.warn(
            "gru_ext has no kernel for batched gradients (is_grads_batched, vectorize): running the reference in plain "
            "PyTorch, which is slower; torch.func.vmap over torch.autograd.grad has kernels",
            stacklevel=2,
        )
        with torch.enable_grad():
            return _differentiable_backward(
                grad_output, grad_h_n, input, hx, weights, batch_sizes, batch_first, needs, create_graph=False
            )
    if torch.compiler.is_compiling() and saved.size(-1) != weights[1].size(-1):
        # The values of biases are not read, and a graph that took them would keep them.
        weights = [weight for weight in weights if weight.dim() == 2]
    gradients: list[Tensor] = ops.backward(
        grad_output, grad_h_n, input, hx, weights, saved, batch_sizes, batch_first, needs
    )
    return gradients


def _batched_by_autograd(tensor: Tensor | None) -> bool:
    """Whether this is many gradients to autograd's own vmap, which is not torch.func's and takes no rule of ours."""
    return tensor is not None and torch._C._dispatch_keys(tensor).has(_BATCHED)


def _differentiable_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    needs: Sequence[bool],
    create_graph: bool = True,
) -> Sequence[Tensor | None]:
    """The same gradients as ``gru_ext::backward``, with create_graph themselves part of the graph."""
    if hx is None:
        hx = ops.zero_hx(input, weights, batch_sizes, batch_first)
    # A view of each argument: tied weights are one tensor, yet each place needs a gradient of its own.
    arguments = [argument.view_as(argument) for argument in (input, hx, *weights)]
    with torch.autocast(input.device.type, enabled=False):  # a backward pass within it would mix dtypes
        output, h_n = reference.gru_layer(arguments[0], arguments[1], arguments[2:], batch_sizes, batch_first)
        given = [(out, grad) for out, grad in ((output, grad_output), (h_n, grad_h_n)) if grad is not None]
        return torch.autograd.grad(
            [out for out, _ in given],
            [argument for argument, needed in zip(arguments, needs, strict=True) if needed],
            [grad for _, grad in given],
            create_graph=create_graph,
            allow_unused=True,
        )


def _general_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    needs: Sequence[bool],
) -> Sequence[Tensor | None]:
    """:func:`_backward` for a call that went forward directly, which may be a cell's."""
    cell = batch_sizes is None and input.dim() == 2
    if cell:
        input = input.unsqueeze(0)
        hx = None if hx is None else hx.unsqueeze(0)
        grad_output = None if grad_output is None else grad_output.unsqueeze(0)
    gradients = _backward(grad_output, grad_h_n, input, hx, weights, saved, batch_sizes, batch_first, needs)
    if not cell:
        return gradients
    # Those of input and hx, which come first.
    count = sum(needs[:2])
    states = [None if gradient is None else gradient.squeeze(0) for gradient in gradients[:count]]
    return [*states, *gradients[count:]]


ops.set_general_backward(_general_backward)
