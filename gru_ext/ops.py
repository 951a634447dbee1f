"""The compiled functions: as operators of torch, in the namespace ``gru_ext``, and as they are.

An operator, unlike a bare function, is one node of a graph for ``torch.compile`` and ``torch.export``: it never breaks
the graph, and its fake implementation below tells the shapes without computing. Its gradient is that of
:mod:`gru_ext.autograd`. The compiled library registers the operators itself (``csrc/torch/library.cpp``), so that a
process without this package can run them: ``torch.ops.load_library(gru_ext.ops.LIBRARY)``.

``layer_direct`` and ``cell_direct`` are for calls that nothing else wants to see: no mode, tracer, profiler or
autocast, plain tensors only. They leave out the dispatcher and are joined to autograd in C++, and give None for any
other call. ``gru_ext/_C.pyi`` documents all of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

from gru_ext import _C

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEVICE_TYPES = ("cpu", "cuda") if _C.build_info()["with_cuda"] else ("cpu",)
_WITH_KERNEL = frozenset((device_type, dtype) for device_type in DEVICE_TYPES for dtype in DTYPES)

LIBRARY = _C.__file__

forward = torch.ops.gru_ext.forward.default
backward = torch.ops.gru_ext.backward.default
layer_direct = _C.layer_direct
cell_direct = _C.cell_direct
kept_casts = _C.kept_casts
_C.set_unseeing_mode(DeviceContext)  # torch.set_default_device: it only adds a device to calls that make tensors


class Options(NamedTuple):
    """How a layer runs, beside its tensors: the numbers of ``gru::Options`` (csrc/gru.h), in its order.

    Attributes:
        directions: D, 1 or 2
        batch_first: 1: input and output are [B, T, ...]
        recompute: 1: forward keeps the states alone, from which backward computes the gates again
        stationary: on CUDA, 1: kernels that keep the weights on the chip run, where they can; 0: kernels that go step
            by step; -1: plan decides
        hidden_size, input_size: H and I where the weights are packed (:mod:`gru_ext.frozen`), for their sizes do not
            say them; 0: they are plain
    """

    directions: int = 1
    batch_first: int = 0
    recompute: int = 0
    stationary: int = -1
    hidden_size: int = 0
    input_size: int = 0


class Arguments(NamedTuple):
    """What a layer is called with, in the order of the operators.

    ``ops.forward(*arguments, save)`` gives output, h_n and saved, ``ops.backward(grad_output, grad_h_n, saved, needs,
    *arguments)`` the gradients of :attr:`tensors` whose flag in needs is set.

    Attributes:
        input: [T, B, I]; [B, T, I] when batch_first; packed [rows, I] when batch_sizes is given
        hx: [D, B, H]; None: zeros
        weights: for each direction weight_ih [3H, I], weight_hh [3H, H] and, with biases, bias_ih [3H], bias_hh [3H];
            or packed, for a forward pass on the CPU
        batch_sizes: [T] int64 on the CPU, never increasing; None: not packed
        lengths: [B], integers, of each sequence of padded input, on the input's device; None: all have T steps
        resets: bool, like input without its last dimension, true where the state before a step is to be reset_state
            instead; in reverse, the state after it before the step before. None: nowhere
        reset_state: [D, T, B, H]; [D, B, T, H] when batch_first. Only what is at resets is read. None: zeros
        options: :class:`Options`, or a list of its numbers
        members: of an ensemble of such layers, side by side. All tensors but batch_sizes then have that many members as
            their first dimension; one that lacks it is shared by all. None: a single layer
    """

    input: Tensor
    hx: Tensor | None
    weights: Sequence[Tensor]
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None
    reset_state: Tensor | None = None
    options: Sequence[int] = Options()
    members: int | None = None

    @property
    def directions(self) -> int:
        """D."""
        return self.options[0]

    @property
    def batch_first(self) -> bool:
        """Whether input and output are [B, T, ...]."""
        return bool(self.options[1])

    @property
    def recompute(self) -> bool:
        """Whether forward keeps the states alone."""
        return bool(self.options[2])

    @property
    def hidden_size(self) -> int | torch.SymInt:
        """H."""
        return self.options[4] or self.weights[1].shape[-1]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those that have a gradient: (input, hx, reset_state, *weights)."""
        return (self.input, self.hx, self.reset_state, *self.weights)

    def replaced(self, tensors: Sequence[Any]) -> "Arguments":
        """The same with other tensors, in the order of :attr:`tensors`."""
        input, hx, reset_state, *weights = tensors
        return self._replace(input=input, hx=hx, reset_state=reset_state, weights=weights)

    @property
    def without_tensors(self) -> "Arguments":
        """The rest, for a function of torch's that takes tensors one by one; :meth:`replaced` puts them back."""
        return self.replaced((None, None, None))

    @property
    def shape_tensors(self) -> tuple[Tensor | None, ...]:
        """Those that have no gradient: (batch_sizes, lengths, resets)."""
        return (self.batch_sizes, self.lengths, self.resets)

    def with_shape_tensors(self, tensors: Sequence[Tensor | None]) -> "Arguments":
        """The same with others, in the order of :attr:`shape_tensors`."""
        batch_sizes, lengths, resets = tensors
        return self._replace(batch_sizes=batch_sizes, lengths=lengths, resets=resets)

    def dims_of_layer(self) -> list[int]:
        """How many dimensions each of :attr:`tensors` has in a single layer; stacked in an ensemble, one more."""
        roles = max(1, len(self.weights) // self.directions)
        of_weights = (2 if index % roles < 2 else 1 for index in range(len(self.weights)))
        steps = 3 if self.batch_sizes is None else 2
        return [steps, 3, steps + 1, *of_weights]

    def dims_of_shapes(self) -> tuple[int, int, int]:
        """How many dimensions each of :attr:`shape_tensors` has in a single layer."""
        return 1, 1, 2


def on_cuda(input: Tensor) -> bool:
    """Whether a tensor is on a GPU that this build has kernels for."""
    return input.is_cuda and "cuda" in DEVICE_TYPES


def has_kernel(device_type: str, dtype: torch.dtype) -> bool:
    """Whether a kernel was compiled for tensors of this dtype on a device of this type."""
    return (device_type, dtype) in _WITH_KERNEL


def saved_row(
    hidden_size: int | torch.SymInt, dtype: torch.dtype, device_type: str, recompute: bool
) -> int | torch.SymInt:
    """Elements of a row of what forward keeps for backward, as csrc/gru.h says."""
    if recompute:
        return hidden_size
    if device_type == "cuda":
        at_once = 16 // dtype.itemsize
        hidden_size = (hidden_size + at_once - 1) // at_once * at_once
    return 5 * hidden_size


@torch.library.register_fake("gru_ext::forward")
def _forward_fake(*values: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, save = values
    arguments = Arguments(*fields)
    input, hx, weights = arguments.input, arguments.hx, arguments.weights
    # One stray meta tensor among real ones brings the whole call here.
    others = {name: getattr(arguments, name) for name in ("hx", "lengths", "resets", "reset_state")}
    for name, tensor in (*others.items(), *((f"weights[{index}]", weight) for index, weight in enumerate(weights))):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"{name} is on {tensor.device}; expected {input.device}, where input is")
    steps = input.shape[-arguments.dims_of_layer()[0] : -1]
    hidden_size = arguments.hidden_size
    batch: int | torch.SymInt
    if hx is not None:
        batch = hx.shape[-2]
    elif arguments.batch_sizes is not None:
        batch = torch.library.get_ctx().new_dynamic_size(min=0)
    else:
        batch = steps[0 if arguments.batch_first else 1]
    members = () if arguments.members is None else (arguments.members,)
    output = input.new_empty((*members, *steps, arguments.directions * hidden_size))
    h_n = input.new_empty((*members, arguments.directions, batch, hidden_size))
    row = saved_row(hidden_size, input.dtype, input.device.type, arguments.recompute)
    saved = input.new_empty((*members, arguments.directions, *steps, row) if save else (0,))
    return output, h_n, saved


@torch.library.register_fake("gru_ext::backward")
def _backward_fake(
    grad_output: Tensor | None, grad_h_n: Tensor | None, saved: Tensor, needs: Sequence[bool], *values: Any
) -> list[Tensor]:
    arguments = Arguments(*values)
    input, hx, weights, directions = arguments.input, arguments.hx, arguments.weights, arguments.directions
    each, roles = len(weights) // directions, (len(needs) - 3) // directions
    steps = input.shape[-arguments.dims_of_layer()[0] :]
    hidden_size = weights[1].shape[-1]
    shapes = [steps, () if hx is None else hx.shape[-3:], (directions, *steps[:-1], hidden_size)]
    for first in range(0, len(weights), each):
        weight_ih, weight_hh = (weight.shape[-2:] for weight in weights[first : first + 2])
        shapes += [
            weight_ih,
            weight_hh,
            *(weight_hh[:1] for _ in range(roles - 2)),
        ]  # biases may themselves be left out
    members = () if arguments.members is None else (arguments.members,)
    return [input.new_empty((*members, *shape)) for shape, needed in zip(shapes, needs, strict=True) if needed]
