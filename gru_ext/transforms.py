"""What the vmap of ``torch.func`` makes of a layer, forward and backward; :mod:`gru_ext.autograd` does all else.

Where all members of a vmap share the weights they become sequences of one larger batch. Where they do not, or where
each wants a gradient of the weights of its own, or where they are packed, they become an ensemble, one call of the
operator with ``members``. A vmap around that makes either of them larger.

The rule for ``gru_ext::backward`` serves the vmap of a ``torch.autograd.grad`` whose forward pass was outside.
Forward-mode differentiation is not for these functions.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_unwrapped, is_functorch_wrapped_tensor, is_gradtrackingtensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from gru_ext import ops
from gru_ext.folding import Dims, fold, shape, stack, unfold, unstack
from gru_ext.marks import untraced
from gru_ext.ops import Arguments


def serve() -> bool:
    """Whether the transforms around this call are vmap and reverse-mode ones, in any order."""
    served = (TransformType.Vmap, TransformType.Grad)
    return all(interpreter.key() in served for interpreter in retrieve_all_functorch_interpreters())


@untraced
def recorded(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a transform around this call, or autograd around all of them, may ask for a gradient of it."""
    differentiated = torch.is_grad_enabled() or any(
        interpreter.key() == TransformType.Grad for interpreter in retrieve_all_functorch_interpreters()
    )
    for tensor in tensors:
        while tensor is not None and is_functorch_wrapped_tensor(tensor):
            if is_gradtrackingtensor(tensor):
                return True
            tensor = get_unwrapped(tensor)
        if differentiated and tensor is not None and tensor.requires_grad:
            return True
    return False


def forward_rule(
    function: Callable[..., Any],
    size: int,
    in_dims: Any,
    operator: Any,
    arguments: Arguments,
    save: bool,
    *tensors: Tensor | None,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The rule for vmap of ``function``, which takes the arguments of :class:`gru_ext.autograd.Layer`."""
    _, dims_of_arguments, _, *dims = in_dims
    _check_shared(dims_of_arguments.batch_sizes)
    input, hx, reset_state, *weights = tensors
    if arguments.batch_sizes is None and input is not None and all(dim is None for dim in dims[3:]):
        rows = -3 if arguments.batch_first else -2
        states = (fold(hx, dims[1], -2, size), fold(reset_state, dims[2], rows, size))
        larger = _larger(arguments, dims_of_arguments, size)
        results = function(operator, larger, save, fold(input, dims[0], rows, size), *states, *weights)
        batch = shape(input, dims[0])[rows]
        apart, out_dims = unfold(results if save else results[:2], (rows, -2, rows), size, batch)
    else:
        ensemble = _ensemble(arguments, dims_of_arguments, size)
        results = function(operator, ensemble, save, *_stacked(arguments.replaced(tensors), dims, size))
        apart, out_dims = unstack(results if save else results[:2], size, arguments.members)
    return (apart, out_dims) if save else ((*apart, results[2]), (*out_dims, None))


def backward_rule(
    function: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: Any,
    operator: Any,
    arguments: Arguments,
    needs: tuple[bool, ...],
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    saved: Tensor,
    *tensors: Tensor | None,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule for vmap of ``function``, which takes the arguments of :class:`gru_ext.autograd.Backward`."""
    _, dims_of_arguments, _, of_output, of_h_n, of_saved, *dims = in_dims
    _check_shared(dims_of_arguments.batch_sizes)
    input, hx, reset_state, *weights = tensors
    packed, members = arguments.batch_sizes is not None, arguments.members
    if not packed and input is not None and all(dim is None for dim in dims[3:]) and not any(needs[3:]):
        rows = -3 if arguments.batch_first else -2
        results = function(
            operator,
            _larger(arguments, dims_of_arguments, size),
            needs,
            fold(grad_output, of_output, rows, size),
            fold(grad_h_n, of_h_n, -2, size),
            fold(saved, of_saved, rows, size),
            fold(input, dims[0], rows, size),
            fold(hx, dims[1], -2, size),
            fold(reset_state, dims[2], rows, size),
            *weights,
        )
        wanted = (dim for dim, needed in zip((rows, -2, rows), needs, strict=False) if needed)
        return unfold(results, wanted, size, shape(input, dims[0])[rows])

    def own(tensor: Tensor | None, dim: int | None, dims: int) -> Tensor | None:
        """Each member's, where all have the same, too."""
        if tensor is None:
            return None
        if dim is None:
            tensor, dim = tensor.expand(size, *tensor.shape), 0
        return stack(tensor, dim, size, members, dims)

    steps = 2 if packed else 3
    results = function(
        operator,
        _ensemble(arguments, dims_of_arguments, size),
        needs,
        own(grad_output, of_output, steps),
        own(grad_h_n, of_h_n, 3),
        stack(saved, of_saved, size, members, steps + 1),
        *_stacked(arguments.replaced(tensors), dims, size),
    )
    return unstack(results, size, members)


@torch.library.register_vmap("gru_ext::backward")
@untraced
def _backward_vmap(
    info: Any,
    in_dims: Sequence[Any],
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    saved: Tensor,
    needs: Sequence[bool],
    *values: Any,
) -> tuple[list[Tensor], list[int]]:
    """The operator takes the weights as one argument; what is below is as for an autograd function."""
    arguments = Arguments(*values)
    of_output, of_h_n, of_saved, _, of_input, of_hx, of_weights, of_sizes, of_lengths, of_resets, of_reset_state, *_ = (
        in_dims
    )

    def function(_: Any, arguments: Arguments, needs: Sequence[bool], *values: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(ops.backward(*values[:3], list(needs), *arguments.replaced(values[3:])))

    of_weights = of_weights or (None,) * len(arguments.weights)
    dims = (of_output, of_h_n, of_saved, of_input, of_hx, of_reset_state, *of_weights)
    of_arguments = arguments.without_tensors.with_shape_tensors((of_sizes, of_lengths, of_resets))
    in_dims = (None, of_arguments, None, *dims)
    results, out_dims = backward_rule(
        function, info.batch_size, in_dims, None, arguments.without_tensors, tuple(needs), grad_output, grad_h_n, saved,
        *arguments.tensors,
    )  # fmt: skip
    return list(results), list(out_dims)


def _check_shared(dim_of_sizes: int | None) -> None:
    if dim_of_sizes is not None:
        raise RuntimeError("batch_sizes must be the same for all members of a vmap: they say how the input is packed")


def _larger(arguments: Arguments, dims: Arguments, size: int) -> Arguments:
    """Of a batch that has the sequences of all members."""
    lengths = fold(arguments.lengths, dims.lengths, -1, size)  # type: ignore[arg-type]  # a dimension, for the tensor
    batch_dim = -2 if arguments.batch_first else -1
    resets = fold(arguments.resets, dims.resets, batch_dim, size)  # type: ignore[arg-type]
    return arguments._replace(lengths=lengths, resets=resets)


def _ensemble(arguments: Arguments, dims: Arguments, size: int) -> Arguments:
    """Of the members of the vmap, and of those that the ensemble has already, if it is one."""
    members = arguments.members
    triples = zip(arguments.shape_tensors, dims.shape_tensors, arguments.dims_of_shapes(), strict=True)
    stacked = [stack(tensor, dim, size, members, of_layer) for tensor, dim, of_layer in triples]  # type: ignore[arg-type]
    return arguments.with_shape_tensors(stacked)._replace(members=size if members is None else size * members)


def _stacked(arguments: Arguments, dims: Dims, size: int) -> list[Tensor | None]:
    """Input, hx and weights as those of an ensemble of all members."""
    triples = zip(arguments.tensors, dims, arguments.dims_of_layer(), strict=True)
    return [stack(tensor, dim, size, arguments.members, dims_of_layer) for tensor, dim, dims_of_layer in triples]
