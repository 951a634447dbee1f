"""One layer under ``torch.func``: vmap, grad, vjp, jacrev and what they compose to, by the kernels.

Two autograd functions, of which the second is the first one's backward pass, each with a rule for vmap. Where all
members of a vmap share the weights they become sequences of one larger batch: one call of the kernels. Where they do
not, or where each wants a gradient of the weights of its own, the members run one after the other, a fused call each;
many small members of that kind run the reference instead, whose products take all of them at once.
Second derivatives are those of :mod:`gru_ext.reference`. Forward-mode differentiation is not for these functions.

The rule for vmap of ``gru_ext::backward`` serves the vmap of a ``torch.autograd.grad`` whose forward pass was outside.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_gradtrackingtensor,
    maybe_get_bdim,
    maybe_get_level,
)
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from gru_ext import ops, reference

Dims = Sequence[int | None]

# A member's own call costs about as much as three steps of the reference for all members, as long as a member's
# products are so few that the kernels gain nothing on them, and as long as all members' weights, which the reference
# reads at every step, stay in the cache (benchmarks/ensembles.py).
STEPS_A_CALL = 3
FEW_PRODUCTS = 1_000_000
BYTES_IN_CACHE = 16 << 20


def serve() -> bool:
    """Whether :func:`layer` can serve the transforms around this call: vmap and reverse-mode ones, in any order."""
    kinds = (TransformType.Vmap, TransformType.Grad)
    return all(one.key() in kinds for one in retrieve_all_functorch_interpreters())


# Here and below: a compiled function that breaks its graph calls all this eagerly, and torch.compile, which cannot
# trace an autograd function's context, would take up the frames within.
@torch.compiler.disable
def layer(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, batch_first: bool
) -> tuple[Tensor, Tensor]:
    """One layer; arguments and results as for :func:`gru_ext.reference.gru_layer`, but hx may be absent."""
    if hx is None:
        hx = ops.zero_hx(input, weights, batch_sizes, batch_first)
    if _many_and_small(input, weights, hx.size(0), batch_sizes, batch_first):
        return reference.gru_layer(input, hx, weights, batch_sizes, batch_first)
    output, h_n, _ = Forward.apply(input, hx, batch_sizes, batch_first, *weights)
    return output, h_n


class Forward(torch.autograd.Function):
    """``gru_ext::forward``, with what its backward pass needs as a third result."""

    @staticmethod
    @torch.compiler.disable
    def forward(
        input: Tensor, hx: Tensor, batch_sizes: Tensor | None, batch_first: bool, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, h_n, saved = ops.forward(input, hx, weights, batch_sizes, batch_first, True)
        return output, h_n, saved

    @staticmethod
    @torch.compiler.disable
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        input, hx, batch_sizes, batch_first, *weights = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.batch_first = batch_first
        ctx.save_for_backward(input, hx, batch_sizes, output[2], *weights)

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        input, hx, batch_sizes, saved, *weights = ctx.saved_tensors
        needs = tuple(needed for index, needed in enumerate(ctx.needs_input_grad) if index not in (2, 3))
        if (grad_output is None and grad_h_n is None) or not any(needs):
            return (None,) * (4 + len(weights))
        given = (grad_output, grad_h_n, input, hx, saved, batch_sizes)
        wanted = iter(Backward.apply(*given, ctx.batch_first, needs, *weights))
        grad_input, grad_hx, *grad_weights = (next(wanted) if needed else None for needed in needs)
        return grad_input, grad_hx, None, None, *grad_weights

    @staticmethod
    @torch.compiler.disable
    def vmap(
        info: Any,
        in_dims: Dims,
        input: Tensor,
        hx: Tensor,
        batch_sizes: Tensor | None,
        batch_first: bool,
        *weights: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        members = info.batch_size
        given = (input, hx, batch_sizes, batch_first, *weights)
        if batch_sizes is not None or any(dim is not None for dim in in_dims[4:]):
            return _one_by_one(Forward.apply, members, in_dims, given)
        rows = 0 if batch_first else 1
        output, h_n, saved = Forward.apply(
            _fold(input, in_dims[0], rows, members), _fold(hx, in_dims[1], 1, members), None, batch_first, *weights
        )
        unfolded = (_unfold(output, rows, members), _unfold(h_n, 1, members))
        return (*unfolded, _unfold_rows(saved, output.shape, batch_first, members)), (rows, 1, 1)


class Backward(torch.autograd.Function):
    """``gru_ext::backward``: the gradients whose flag in needs is set, in the order (input, hx, *weights)."""

    @staticmethod
    @torch.compiler.disable
    def forward(
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        input: Tensor,
        hx: Tensor,
        saved: Tensor,
        batch_sizes: Tensor | None,
        batch_first: bool,
        needs: tuple[bool, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        return tuple(
            ops.backward(grad_output, grad_h_n, input, hx, weights, saved, batch_sizes, batch_first, list(needs))
        )

    @staticmethod
    @torch.compiler.disable
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        grad_output, grad_h_n, input, hx, _, batch_sizes, ctx.batch_first, ctx.needs, *weights = inputs
        ctx.save_for_backward(grad_output, grad_h_n, input, hx, batch_sizes, *weights)

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, *second: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, grad_h_n, input, hx, batch_sizes, *weights = ctx.saved_tensors
        given = [one for one in (grad_output, grad_h_n) if one is not None]

        def gradients(*arguments: Tensor) -> tuple[Tensor, ...]:
            def forward(input: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
                results = reference.gru_layer(input, hx, weights, batch_sizes, ctx.batch_first)
                pairs = zip(results, (grad_output, grad_h_n), strict=True)
                return tuple(result for result, grad in pairs if grad is not None)

            every = torch.func.vjp(forward, *arguments[len(given) :])[1](arguments[: len(given)])
            return tuple(one for one, needed in zip(every, ctx.needs, strict=True) if needed)

        with torch.autocast(input.device.type, enabled=False):  # a backward pass within it would mix dtypes
            found = iter(torch.func.vjp(gradients, *given, input, hx, *weights)[1](second))
        grad_grads = [None if one is None else next(found) for one in (grad_output, grad_h_n)]
        of_input, of_hx, *of_weights = found
        return (*grad_grads, of_input, of_hx, None, None, None, None, *of_weights)

    @staticmethod
    @torch.compiler.disable
    def vmap(info: Any, in_dims: Dims, *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _backward_of_members(Backward.apply, info.batch_size, in_dims, *given)


def _backward_of_members(
    function: Callable[..., tuple[Tensor, ...]],
    members: int,
    in_dims: Dims,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor,
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    needs: tuple[bool, ...],
    *weights: Tensor,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule for vmap of function, which is :class:`Backward`, or its forward where autograd is not to see it."""
    given = (grad_output, grad_h_n, input, hx, saved, batch_sizes, batch_first, needs, *weights)
    shared = batch_sizes is None and all(dim is None for dim in in_dims[8:]) and not any(needs[2:])
    if not shared:  # each member's gradient of the weights is its own
        return _one_by_one(function, members, in_dims, given)
    rows = 0 if batch_first else 1
    folded_input = _fold(input, in_dims[2], rows, members)
    results = function(
        None if grad_output is None else _fold(grad_output, in_dims[0], rows, members),
        None if grad_h_n is None else _fold(grad_h_n, in_dims[1], 1, members),
        folded_input,
        _fold(hx, in_dims[3], 1, members),
        _fold_rows(saved, in_dims[4], folded_input.shape, batch_first, members),
        None,
        batch_first,
        needs,
        *weights,
    )
    dims = tuple(dim for dim, needed in zip((rows, 1), needs, strict=False) if needed)
    return tuple(_unfold(one, dim, members) for one, dim in zip(results, dims, strict=True)), dims


@torch.library.register_vmap("gru_ext::backward")
@torch.compiler.disable
def _backward_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    needs: Sequence[bool],
) -> tuple[list[Tensor], list[int]]:
    """Of the operator, whose hx may be absent and whose weights are one argument."""
    of_output, of_h_n, of_input, of_hx, of_weights, of_saved, of_sizes, *_ = in_dims
    if hx is None:
        one = input if of_input is None else input.select(of_input, 0)
        weight_dims = of_weights or (None,) * len(weights)
        alone = [
            weight if dim is None else weight.select(dim, 0) for weight, dim in zip(weights, weight_dims, strict=True)
        ]
        hx = ops.zero_hx(one, alone, batch_sizes, batch_first)
    dims = (of_output, of_h_n, of_input, of_hx, of_saved, of_sizes, None, None, *(of_weights or (None,) * len(weights)))
    given: tuple[Any, ...] = (grad_output, grad_h_n, input, hx, saved, batch_sizes, batch_first, tuple(needs), *weights)
    results, out_dims = _backward_of_members(Backward.forward, info.batch_size, dims, *given)
    return list(results), list(out_dims)


def _many_and_small(
    input: Tensor, weights: Sequence[Tensor], directions: int, batch_sizes: Tensor | None, batch_first: bool
) -> bool:
    """Whether a call of the kernels for each member would be slower than the reference.

    There is one for each that has weights of its own, or that wants a gradient of the weights of its own: where the
    weights are differentiated within the vmap.
    """
    level = max(_gradient_level(weight) for weight in weights)
    members = max(_members(input, level), *(_members(weight) for weight in weights))
    if batch_sizes is not None:
        seq_len, rows = batch_sizes.numel(), input.size(0)
    else:
        seq_len, rows = input.size(1 if batch_first else 0), input.size(0) * input.size(1)
    weights_a_member = directions * (weights[0].numel() + weights[1].numel())
    return (
        members > STEPS_A_CALL * seq_len * directions
        and rows * weights_a_member < FEW_PRODUCTS
        and members * weights_a_member * input.element_size() < BYTES_IN_CACHE
    )


def _gradient_level(tensor: Tensor) -> float:
    """The innermost transform that differentiates this: the number of its level, or 0."""
    while is_functorch_wrapped_tensor(tensor):
        if is_gradtrackingtensor(tensor):
            return maybe_get_level(tensor)
        tensor = get_unwrapped(tensor)
    return 0


def _members(tensor: Tensor, below: float = math.inf) -> int:
    """How many tensors this is to the vmaps around it, those of levels below this."""
    members = 1
    while is_functorch_wrapped_tensor(tensor):
        inner = get_unwrapped(tensor)
        if is_batchedtensor(tensor) and maybe_get_level(tensor) < below:
            members *= inner.size(maybe_get_bdim(tensor))
        tensor = inner
    return members


def _one_by_one(
    function: Callable[..., tuple[Tensor, ...]], members: int, in_dims: Dims, given: Sequence[Any]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A call for each member of the vmap; the results stacked."""

    def of(member: int) -> Iterator[Any]:
        for one, dim in zip(given, in_dims, strict=True):
            yield one.select(dim, member) if isinstance(dim, int) else one

    every = [function(*of(member)) for member in range(members)]
    stacked = tuple(torch.stack(results) for results in zip(*every, strict=True))
    return stacked, (0,) * len(stacked)


def _fold(tensor: Tensor, dim: int | None, batch_dim: int, members: int) -> Tensor:
    """With the members, in dimension dim or all alike, as part of the batch: member by member."""
    if dim is None:
        tensor = tensor.unsqueeze(batch_dim).expand(*tensor.shape[:batch_dim], members, *tensor.shape[batch_dim:])
    else:
        tensor = tensor.movedim(dim, batch_dim)
    return tensor.flatten(batch_dim, batch_dim + 1)


def _unfold(tensor: Tensor, batch_dim: int, members: int) -> Tensor:
    """The members again a dimension of their own, before the batch's."""
    return tensor.unflatten(batch_dim, (members, tensor.size(batch_dim) // members))


def _unfold_rows(saved: Tensor, shape: torch.Size, batch_first: bool, members: int) -> Tensor:
    """From [D, rows, *] of the larger batch to [D, members, rows of one, *]; shape is that of its output."""
    if batch_first:  # rows go sequence by sequence
        return saved.unflatten(1, (members, saved.size(1) // members))
    return saved.unflatten(1, (shape[0], members, shape[1] // members)).transpose(1, 2).flatten(2, 3)


def _fold_rows(saved: Tensor, dim: int | None, shape: torch.Size, batch_first: bool, members: int) -> Tensor:
    """The other way round; shape is that of the larger batch's input."""
    if dim is None:
        saved = saved.unsqueeze(1).expand(saved.size(0), members, *saved.shape[1:])
    else:
        saved = saved.movedim(dim, 1)
    if batch_first:
        return saved.flatten(1, 2)
    return saved.unflatten(2, (shape[0], shape[1] // members)).transpose(1, 2).flatten(1, 3)
