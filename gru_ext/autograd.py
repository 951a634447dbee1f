"""Autograd of one layer: the operators of :mod:`gru_ext.ops` in the graph, and their second derivatives.

:class:`Layer` serves every call that is not direct: eager ones, those under ``torch.func`` transforms, and the operator
``gru_ext::forward`` itself, so that the graphs of torch.compile, torch.export and torch.jit.trace hold that alone, and
train. Direct calls are joined to the graph in C++ (``csrc/torch/direct.cpp``); those of their backward passes that
cannot be direct run the operator ``gru_ext::backward``, whose own gradient is that of :class:`Backward`.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from gru_ext import checks, ops, reference, transforms
from gru_ext.marks import untraced
from gru_ext.ops import Arguments

_FORWARD, _BACKWARD = ops.forward, ops.backward
_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
_BATCHED = torch._C._dispatch_key_parse("Batched")  # DispatchKey has no name for it


# Here and below: a compiled function that breaks its graph calls all this eagerly, and torch.compile, which cannot
# trace an autograd function's context, would take up the frames within.
class Layer(torch.autograd.Function):
    """One layer and both its directions, or an ensemble of layers, in autograd's graph.

    Results are those of ``gru_ext::forward``, of which the third is for the backward pass.
    """

    @staticmethod
    @untraced
    def forward(
        operator: Callable[..., tuple[Tensor, Tensor, Tensor]],
        arguments: Arguments,
        save: bool,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return operator(*arguments.replaced(tensors), save)

    @staticmethod
    @untraced
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, arguments, _, *tensors = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        _keep(ctx, arguments.replaced(tensors), output[2])  # not output, which the user may change in place

    @staticmethod
    @untraced
    def backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[3:]
        if (grad_output is None and grad_h_n is None) or not any(needs):
            return (None,) * (3 + len(needs))
        compiling = torch.compiler.is_compiling()
        differentiated = torch.is_grad_enabled() and not compiling
        arguments, saved = _kept(ctx, differentiated or _batched(grad_output) or _batched(grad_h_n))
        tensors = arguments.tensors
        if differentiated:
            results = Backward.apply(
                ops.backward, arguments.without_tensors, needs, grad_output, grad_h_n, saved, *tensors
            )
        else:
            if compiling and not arguments.recompute:
                # The values of biases are not read, and a graph that took them would keep them.
                roles = len(arguments.weights) // arguments.directions
                matrices = [weight for index, weight in enumerate(arguments.weights) if index % roles < 2]
                arguments = arguments._replace(weights=matrices)
            results = ops.backward(grad_output, grad_h_n, saved, list(needs), *arguments)
        return (None, None, None, *_spread(results, tensors, needs))

    @staticmethod
    @untraced
    def vmap(info: Any, in_dims: Any, *values: Any) -> Any:
        return transforms.forward_rule(Layer.apply, info.batch_size, in_dims, *values)


class Backward(torch.autograd.Function):
    """The backward pass of :class:`Layer`, itself differentiable: ``gru_ext::backward``.

    Each member of an ensemble has gradients of its own, also of what all share. There saved may be shared, too. Second
    and higher derivatives are those of :mod:`gru_ext.reference`.
    """

    @staticmethod
    @untraced
    def forward(
        operator: Callable[..., Sequence[Tensor]],
        arguments: Arguments,
        needs: Sequence[bool],
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        saved: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        return tuple(operator(grad_output, grad_h_n, saved, list(needs), *arguments.replaced(tensors)))

    @staticmethod
    @untraced
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, arguments, ctx.needs, grad_output, grad_h_n, _, *tensors = inputs
        ctx.arguments = arguments.with_shape_tensors((None, None, None))
        ctx.save_for_backward(*arguments.shape_tensors, grad_output, grad_h_n, *tensors)

    @staticmethod
    @untraced
    def backward(ctx: Any, *second: Tensor) -> tuple[Tensor | None, ...]:
        batch_sizes, lengths, resets, *differentiable = ctx.saved_tensors
        present = [tensor is not None for tensor in differentiable]
        arguments = ctx.arguments.with_shape_tensors((batch_sizes, lengths, resets))

        def gradients(shape_tensors: Sequence[Tensor | None], *tensors: Tensor) -> tuple[Tensor, ...]:
            grad_output, grad_h_n, *rest = _spread_out(tensors, present)
            return _by_reference(
                grad_output, grad_h_n, ctx.needs, arguments.with_shape_tensors(shape_tensors).replaced(rest)
            )

        function = gradients
        tensors = [tensor for tensor in differentiable if tensor is not None]
        if arguments.members is not None:
            alone = [0, 0, *arguments.replaced(differentiable[2:]).dims_of_layer()]
            pairs = zip(differentiable, alone, strict=True)
            stacked = tuple(0 if tensor.dim() > dims else None for tensor, dims in pairs if tensor is not None)
            of_shapes = zip(arguments.shape_tensors, arguments.dims_of_shapes(), strict=True)
            own = tuple(None if tensor is None or tensor.dim() <= dims else 0 for tensor, dims in of_shapes)
            function = torch.func.vmap(gradients, (own, *stacked))
        with torch.autocast(tensors[0].device.type, enabled=False):  # a backward pass within it would mix dtypes
            results = torch.func.vjp(partial(function, arguments.shape_tensors), *tensors)[1](second)
        grad_grad_output, grad_grad_h_n, *rest = _spread_out(results, present)
        return (None, None, None, grad_grad_output, grad_grad_h_n, None, *rest)

    @staticmethod
    @untraced
    def vmap(info: Any, in_dims: Any, *values: Any) -> Any:
        return transforms.backward_rule(Backward.apply, info.batch_size, in_dims, *values)


def record(
    operator: Callable[..., tuple[Tensor, Tensor, Tensor]], arguments: Arguments, save: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer by ``operator``, which is ``gru_ext::forward`` or what is below autograd of it, in autograd's graph."""
    tensors: Sequence[Tensor | None] = arguments.tensors
    rest = arguments.without_tensors
    if not torch.compiler.is_compiling():
        # As views: an assignment to a tensor's .data gives it other memory in silence, before the backward pass.
        tensors, of_shapes = (
            [None if tensor is None else tensor.view_as(tensor) for tensor in kind]
            for kind in (tensors, arguments.shape_tensors)
        )
        rest = rest.with_shape_tensors(of_shapes)
    results: tuple[Tensor, Tensor, Tensor] = Layer.apply(operator, rest, save, *tensors)
    return results


def needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call with these tensors is to be recorded for backward."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _keep(ctx: Any, arguments: Arguments, saved: Tensor) -> None:
    """Saves for backward what a layer was called with; :func:`_kept` gives it back.

    After a change in place autograd refuses a backward pass that was to read the old values. So it is here for what
    ``nn.GRU``'s own graph reads and for what our backward reads, but not for the rest. The direct calls keep the same
    in C++. What a graph of torch.compile keeps, that decides.
    """
    tensors = arguments.tensors
    read = [True] * len(tensors)
    if not torch.compiler.is_compiling() and not any(map(_wrapped, tensors)):
        read = _read(arguments)
    checked = (tensor if needed else None for tensor, needed in zip(tensors, read, strict=True))
    ctx.save_for_backward(*arguments.shape_tensors, saved, *checked)
    ctx.unread = [None if needed else tensor for tensor, needed in zip(tensors, read, strict=True)]
    ctx.versions = _versions(ctx.unread)
    ctx.arguments = arguments.without_tensors.with_shape_tensors((None, None, None))


def _wrapped(tensor: Tensor | None) -> bool:
    return tensor is not None and is_functorch_wrapped_tensor(tensor)


def _read(arguments: Arguments) -> list[bool]:
    """Which of ``arguments.tensors`` the graph of ``nn.GRU`` reads in backward, or our backward does."""
    input, hx, weights, batch_sizes, *_ = arguments
    roles = len(weights) // arguments.directions
    steps = input.size(-2 if arguments.batch_first else -3) if batch_sizes is None else batch_sizes.numel()
    of_role = (input.requires_grad, steps > 1 or (hx is not None and hx.requires_grad), False, False)
    return [
        arguments.recompute or any(weight.requires_grad for weight in weights[::roles]),
        *[any(weight.requires_grad for weight in weights[1::roles])] * 2,
        *(arguments.recompute or of_role[index % roles] for index in range(len(weights))),
    ]


def _kept(ctx: Any, all_read: bool) -> tuple[Arguments, Tensor]:
    """The arguments and saved of a forward pass, for a backward pass that reads what :func:`_read` says, or all."""
    batch_sizes, lengths, resets, saved, *read = ctx.saved_tensors
    if all_read and _versions(ctx.unread) != ctx.versions:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a "
            "backward pass that is itself to be differentiated reads all that the layer was called with"
        )
    tensors = [view if tensor is None else tensor for tensor, view in zip(read, ctx.unread, strict=True)]
    return ctx.arguments.replaced(tensors).with_shape_tensors((batch_sizes, lengths, resets)), saved


def _versions(tensors: Iterable[Tensor | None]) -> list[int]:
    return [0 if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors]


def _batched(tensor: Tensor | None) -> bool:
    """Whether this is many gradients to autograd's own vmap, which is not torch.func's and takes no rule of ours."""
    return tensor is not None and torch._C._dispatch_keys(tensor).has(_BATCHED)


def _spread_out(values: Iterable[Tensor], present: Iterable[bool]) -> Iterator[Tensor | None]:
    """The values at the places that are present, None at the others."""
    remaining = iter(values)
    return (next(remaining) if here else None for here in present)


def _spread(
    results: Iterable[Tensor], tensors: Sequence[Tensor | None], needs: Sequence[bool]
) -> Iterator[Tensor | None]:
    """A gradient for each of tensors, from those asked for; of what the members of an ensemble share, their sum."""
    for tensor, gradient in zip(tensors, _spread_out(results, needs), strict=True):
        shared = gradient is not None and tensor is not None and gradient.dim() > tensor.dim()
        yield gradient.sum(0) if shared and gradient is not None else gradient


def _by_reference(
    grad_output: Tensor | None, grad_h_n: Tensor | None, needs: Sequence[bool], arguments: Arguments
) -> tuple[Tensor, ...]:
    """What ``gru_ext::backward`` gives for a single layer, differentiable any number of times."""
    present = [tensor is not None for tensor in arguments.tensors]
    wanted = [result is not None for result in (grad_output, grad_h_n)]

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        layer = arguments.replaced(list(_spread_out(tensors, present)))
        if layer.hx is None:
            batch = checks.batch(layer.input, None, layer.batch_sizes, layer.batch_first)
            state = (layer.directions, batch, layer.weights[1].shape[-1])
            layer = layer._replace(hx=checks.zero_hx(layer.input, state))
        results = reference.gru_layer(layer)
        return tuple(result for result, here in zip(results, wanted, strict=True) if here)

    cotangents = tuple(gradient for gradient in (grad_output, grad_h_n) if gradient is not None)
    tensors = [tensor for tensor in arguments.tensors if tensor is not None]
    every = _spread_out(torch.func.vjp(forward, *tensors)[1](cotangents), present)
    return tuple(gradient for gradient, needed in zip(every, needs, strict=True) if needed and gradient is not None)


def _recorded_forward(keys: torch._C.DispatchKeySet, *values: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``gru_ext::forward`` with its gradient, whether or not the caller asks for what backward needs.

    So a graph that was captured without it (torch.export, torch.jit.trace) trains, and pays for it only then.
    """
    *fields, save = values
    arguments = Arguments(*fields)

    def below(*values: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            results: tuple[Tensor, Tensor, Tensor] = _FORWARD.redispatch(keys & _BELOW_AUTOGRAD, *values)
        return results

    if not needs_gradient(arguments.tensors):
        return below(*values)
    output, h_n, saved = record(below, arguments)
    return output, h_n, saved if save else arguments.input.new_empty(0)


def _recorded_backward(
    keys: torch._C.DispatchKeySet,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    saved: Tensor,
    needs: Sequence[bool],
    *values: Any,
) -> list[Tensor]:
    """``gru_ext::backward`` with its gradient."""

    def below(*values: Any) -> list[Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            results: list[Tensor] = _BACKWARD.redispatch(keys & _BELOW_AUTOGRAD, *values)
        return results

    arguments = Arguments(*values)
    if not any(needs) or not needs_gradient((grad_output, grad_h_n, *arguments.tensors)):
        return below(grad_output, grad_h_n, saved, needs, *values)
    rest = (grad_output, grad_h_n, saved, *arguments.tensors)
    return list(Backward.apply(below, arguments.without_tensors, tuple(needs), *rest))


def _batched_backward(
    grad_output: Tensor | None, grad_h_n: Tensor | None, saved: Tensor, needs: Sequence[bool], *values: Any
) -> list[Tensor]:
    """``gru_ext::backward`` of many gradients at once, as autograd's own vmap has them."""
    warnings.warn(
        "gru_ext has no kernel for batched gradients (is_grads_batched, vectorize): running the reference in plain "
        "PyTorch, which is slower; torch.func.vmap over torch.autograd.grad has kernels",
        stacklevel=2,
    )
    return list(_by_reference(grad_output, grad_h_n, needs, Arguments(*values)))


_LIBRARY = torch.library.Library("gru_ext", "IMPL")
_LIBRARY.impl("forward", _recorded_forward, "Autograd", with_keyset=True)
_LIBRARY.impl("backward", _recorded_backward, "Autograd", with_keyset=True)
_LIBRARY.impl("backward", _batched_backward, "Batched")
