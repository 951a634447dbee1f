"""One layer under ``torch.func``: vmap, grad, vjp, jacrev and what they compose to, by the kernels.

Two autograd functions, of which the second is the first one's backward pass, each with a rule for vmap. Where all
members of a vmap share the weights they become sequences of one larger batch. Where they do not, or where each wants a
gradient of the weights of its own, or where they are packed, they become an ensemble: one call of
``gru_ext::forward_members`` or ``gru_ext::backward_members``. A vmap around that makes either of them larger.
Second derivatives are those of :mod:`gru_ext.reference`. Forward-mode differentiation is not for these functions.

The rules for vmap of ``gru_ext::backward`` and ``gru_ext::backward_members`` serve the vmap of a
``torch.autograd.grad`` whose forward pass was outside.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_unwrapped,
    is_functorch_wrapped_tensor,
    is_gradtrackingtensor,
)
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from gru_ext import autograd, ops, reference
from gru_ext.folding import Dims, fold, shape, stack, unfold, unstack


def serve() -> bool:
    """Whether :func:`layer` can serve the transforms around this call: vmap and reverse-mode ones, in any order."""
    return all(one.key() in (TransformType.Vmap, TransformType.Grad) for one in retrieve_all_functorch_interpreters())


# Here and below: a compiled function that breaks its graph calls all this eagerly, and torch.compile, which cannot
# trace an autograd function's context, would take up the frames within.
@torch.compiler.disable
def layer(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """One layer; arguments and results as for :func:`gru_ext.reference.gru_layer`, but hx may be absent.

    With recompute only the states are kept for backward, which computes the gates again.
    """
    if hx is None:
        hx = ops.zero_hx(input, weights, batch_sizes, batch_first)
    save = _recorded((input, hx, *weights))
    # As views: an assignment to a tensor's .data gives it other memory in silence, before the backward pass.
    input, hx, *weights = (tensor.view_as(tensor) for tensor in (input, hx, *weights))
    output, h_n, _ = Forward.apply(input, hx, batch_sizes, batch_first, None, save, recompute, *weights)
    return output, h_n


class Forward(torch.autograd.Function):
    """``gru_ext::forward`` or, of so many members, ``forward_members``; the third result is for the backward pass.

    Where save is set it has its rows apart, as input has them: [D, T, B, *], or [D, B, T, *] when batch_first.
    """

    @staticmethod
    @torch.compiler.disable
    def forward(
        input: Tensor,
        hx: Tensor,
        batch_sizes: Tensor | None,
        batch_first: bool,
        members: int | None,
        save: bool,
        recompute: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = (input, hx, weights, batch_sizes, batch_first)
        if members is None:
            output, h_n, saved = ops.forward(*given, save, recompute)
        else:
            output, h_n, saved = ops.forward_members(*given, members, save, recompute)
        return output, h_n, _rows_apart(saved, input, batch_sizes)

    @staticmethod
    @torch.compiler.disable
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        input, hx, batch_sizes, ctx.batch_first, ctx.members, _, _, *weights = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, hx, batch_sizes, output[2], *weights)

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        input, hx, batch_sizes, saved, *weights = ctx.saved_tensors
        needs = (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[7:])
        if (grad_output is None and grad_h_n is None) or not any(needs):
            return (None,) * (7 + len(weights))
        given = (grad_output, grad_h_n, input, hx, saved, batch_sizes)
        results = Backward.apply(*given, ctx.batch_first, ctx.members, needs, *weights)
        grad_input, grad_hx, *grad_weights = _gradients(results, (input, hx, *weights), needs)
        return grad_input, grad_hx, None, None, None, None, None, *grad_weights

    @staticmethod
    @torch.compiler.disable
    def vmap(
        info: Any,
        in_dims: Dims,
        input: Tensor,
        hx: Tensor,
        batch_sizes: Tensor | None,
        batch_first: bool,
        members: int | None,
        save: bool,
        recompute: bool,
        *weights: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        of_input, of_hx, of_sizes, _, _, _, _, *of_weights = in_dims
        size = info.batch_size
        _check_shared(of_sizes)
        if batch_sizes is None and all(dim is None for dim in of_weights):
            rows = -3 if batch_first else -2
            larger = (fold(input, of_input, rows, size), fold(hx, of_hx, -2, size))
            results = Forward.apply(*larger, None, batch_first, members, save, recompute, *weights)
            apart, dims = unfold(results if save else results[:2], (rows, -2, rows), size, shape(hx, of_hx)[-2])
        else:
            every = _stacked((input, hx, *weights), (of_input, of_hx, *of_weights), batch_sizes, size, members)
            together = size if members is None else size * members
            results = Forward.apply(*every[:2], batch_sizes, batch_first, together, save, recompute, *every[2:])
            apart, dims = unstack(results if save else results[:2], size, members)
        return (apart, dims) if save else ((*apart, results[2]), (*dims, None))


class Backward(torch.autograd.Function):
    """The backward pass of :class:`Forward`: the gradients whose flag in needs is set, of (input, hx, *weights).

    Each member of an ensemble has gradients of its own, also of what all share. There saved may be shared, too.
    """

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
        members: int | None,
        needs: tuple[bool, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        if batch_sizes is None:
            saved = saved.flatten(-3, -2)
        given = (grad_output, grad_h_n, input, hx, weights, saved, batch_sizes, batch_first)
        if members is None:
            return tuple(ops.backward(*given, list(needs)))
        return tuple(ops.backward_members(*given, members, list(needs)))

    @staticmethod
    @torch.compiler.disable
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        grad_output, grad_h_n, input, hx, _, batch_sizes, ctx.batch_first, ctx.members, ctx.needs, *weights = inputs
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

        function = gradients
        if ctx.members is not None:
            alone = ops.dims_of_member(hx.size(-3), len(weights), batch_sizes is not None)
            every = zip((input, hx, *weights), alone, strict=True)
            stacked = (0 if one.dim() > dims else None for one, dims in every)
            function = torch.func.vmap(gradients, (*(0 for _ in given), *stacked))
        with torch.autocast(input.device.type, enabled=False):  # a backward pass within it would mix dtypes
            found = iter(torch.func.vjp(function, *given, input, hx, *weights)[1](second))
        grad_grads = [None if one is None else next(found) for one in (grad_output, grad_h_n)]
        of_input, of_hx, *of_weights = found
        return (*grad_grads, of_input, of_hx, None, None, None, None, None, *of_weights)

    @staticmethod
    @torch.compiler.disable
    def vmap(info: Any, in_dims: Dims, *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _backward_of_members(Backward.apply, info.batch_size, in_dims, *given)


def _backward_of_members(
    function: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: Dims,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor,
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    members: int | None,
    needs: tuple[bool, ...],
    *weights: Tensor,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule for vmap of function, which is :class:`Backward`, or its forward where autograd is not to see it."""
    of_output, of_h_n, of_input, of_hx, of_saved, of_sizes, _, _, _, *of_weights = in_dims
    _check_shared(of_sizes)
    if batch_sizes is None and all(dim is None for dim in of_weights) and not any(needs[2:]):
        rows = -3 if batch_first else -2
        results = function(
            None if grad_output is None else fold(grad_output, of_output, rows, size),
            None if grad_h_n is None else fold(grad_h_n, of_h_n, -2, size),
            fold(input, of_input, rows, size),
            fold(hx, of_hx, -2, size),
            fold(saved, of_saved, rows, size),
            None,
            batch_first,
            members,
            needs,
            *weights,
        )
        wanted = (dim for dim, needed in zip((rows, -2), needs, strict=False) if needed)
        return unfold(results, wanted, size, shape(hx, of_hx)[-2])

    def own(tensor: Tensor | None, dim: int | None, dims: int) -> Tensor | None:
        """Each member's, where all have the same, too."""
        if tensor is None:
            return None
        if dim is None:
            tensor, dim = tensor.expand(size, *tensor.shape), 0
        return stack(tensor, dim, size, members, dims)

    steps = 3 if batch_sizes is None else 2
    every = _stacked((input, hx, *weights), (of_input, of_hx, *of_weights), batch_sizes, size, members)
    results = function(
        own(grad_output, of_output, steps),
        own(grad_h_n, of_h_n, 3),
        *every[:2],
        stack(saved, of_saved, size, members, steps + 1),
        batch_sizes,
        batch_first,
        size if members is None else size * members,
        needs,
        *every[2:],
    )
    return unstack(results, size, members)


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
    """Of the operator, whose hx may be absent."""
    if hx is None:
        of_input, of_weights = in_dims[2], in_dims[4] or (None,) * len(weights)
        alone = [
            one.new_empty(shape(one, dim)) for one, dim in zip((input, *weights), (of_input, *of_weights), strict=True)
        ]
        hx = ops.zero_hx(alone[0], alone[1:], batch_sizes, batch_first)
    given = (grad_output, grad_h_n, input, hx, weights, saved, batch_sizes, batch_first)
    return _operator_vmap(info.batch_size, in_dims[:7], *given, None, needs)


@torch.library.register_vmap("gru_ext::backward_members")
@torch.compiler.disable
def _backward_members_vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[list[Tensor], list[int]]:
    """The same of an ensemble, which then is one of more members."""
    return _operator_vmap(info.batch_size, in_dims[:7], *given)


def _operator_vmap(
    size: int,
    in_dims: Sequence[Any],
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    members: int | None,
    needs: Sequence[bool],
) -> tuple[list[Tensor], list[int]]:
    """The rule for vmap of an operator, whose weights are one argument and whose saved has its rows together."""
    of_output, of_h_n, of_input, of_hx, of_weights, of_saved, of_sizes = in_dims
    if of_saved is not None:
        saved, of_saved = saved.movedim(of_saved, 0), 0
    dims = (of_output, of_h_n, of_input, of_hx, of_saved, of_sizes, None, None, None)
    results, out_dims = _backward_of_members(
        Backward.forward,
        size,
        (*dims, *(of_weights or (None,) * len(weights))),
        grad_output,
        grad_h_n,
        input,
        hx,
        saved if batch_sizes is not None else saved.unflatten(-2, shape(input, of_input)[-3:-1]),
        batch_sizes,
        batch_first,
        members,
        tuple(needs),
        *weights,
    )
    return list(results), list(out_dims)


def _keep_members(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """What the backward pass of ``gru_ext::forward_members`` needs."""
    input, hx, weights, batch_sizes, batch_first, ctx.members, *_ = inputs
    autograd.keep(ctx, input, hx, weights, batch_sizes, batch_first, output[2])


def _members_backward(
    ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    """The gradient of ``gru_ext::forward_members``, called with save."""
    input, hx, weights, saved, batch_sizes = autograd.kept(ctx, grad_output, grad_h_n)
    assert hx is not None
    needs_input, needs_hx, needs_weights, *others = ctx.needs_input_grad
    needs = (needs_input, needs_hx, *needs_weights)
    results: Iterable[Tensor] = ()
    if grad_output is None and grad_h_n is None:
        needs = (False,) * len(needs)
    elif torch.is_grad_enabled() and not torch.compiler.is_compiling():
        given = (grad_output, grad_h_n, input, hx, _rows_apart(saved, input, batch_sizes), batch_sizes)
        results = Backward.apply(*given, ctx.batch_first, ctx.members, needs, *weights)
    else:
        results = ops.backward_members(
            grad_output, grad_h_n, input, hx, weights, saved, batch_sizes, ctx.batch_first, ctx.members, list(needs)
        )
    grad_input, grad_hx, *grad_weights = _gradients(results, (input, hx, *weights), needs)
    return grad_input, grad_hx, grad_weights, *(None for _ in others)


torch.library.register_autograd("gru_ext::forward_members", _members_backward, setup_context=_keep_members)


def _recorded(tensors: Iterable[Tensor]) -> bool:
    """Whether a transform around this call, or autograd around all of them, may ask for a gradient of it."""
    differentiated = torch.is_grad_enabled() or any(
        one.key() == TransformType.Grad for one in retrieve_all_functorch_interpreters()
    )
    for tensor in tensors:
        while is_functorch_wrapped_tensor(tensor):
            if is_gradtrackingtensor(tensor):
                return True
            tensor = get_unwrapped(tensor)
        if differentiated and tensor.requires_grad:
            return True
    return False


def _check_shared(dim_of_sizes: int | None) -> None:
    if dim_of_sizes is not None:
        raise RuntimeError("batch_sizes must be the same for all members of a vmap: they say how the input is packed")


def _rows_apart(saved: Tensor, input: Tensor, batch_sizes: Tensor | None) -> Tensor:
    """[..., D, rows, *] with the rows as input has them; what is packed, or nothing, as it is."""
    return saved if batch_sizes is not None or saved.dim() == 1 else saved.unflatten(-2, input.shape[-3:-1])


def _gradients(results: Iterable[Tensor], tensors: Sequence[Tensor], needs: Sequence[bool]) -> Iterator[Tensor | None]:
    """One for each of tensors, from those asked for; of what the members of an ensemble share the sum of theirs."""
    found = iter(results)
    for tensor, needed in zip(tensors, needs, strict=True):
        gradient = next(found) if needed else None
        yield gradient.sum(0) if gradient is not None and gradient.dim() > tensor.dim() else gradient


def _stacked(
    tensors: Sequence[Tensor], dims: Dims, batch_sizes: Tensor | None, size: int, members: int | None
) -> list[Tensor]:
    """Input, hx and weights as those of an ensemble of all members."""
    directions = shape(tensors[1], dims[1])[-3]
    alone = ops.dims_of_member(directions, len(tensors) - 2, batch_sizes is not None)
    return [stack(one, dim, size, members, wanted) for one, dim, wanted in zip(tensors, dims, alone, strict=True)]
