"""The compiled functions: as operators of torch, in the namespace ``gru_ext``, and as they are.

An operator, unlike a bare function, is one node of a graph for ``torch.compile`` and ``torch.export``: it never breaks
the graph, and its fake implementation below tells the shapes without computing. Its gradient is that of
:mod:`gru_ext.autograd`; of an ensemble's operators, that of :mod:`gru_ext.transforms`. The compiled library registers
them itself (``csrc/library.cpp``), so that a process without this package can run them:
``torch.ops.load_library(gru_ext.ops.LIBRARY)``.

``layer_direct`` and ``cell_direct`` are for the calls that nothing else wants to see: no mode, tracer, profiler or
autocast, plain tensors only. They leave out the dispatcher and are joined to autograd in C++, and give None for any
other call. ``gru_ext/_C.pyi`` documents all of them.
"""

import math
from collections.abc import Sequence

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
forward_members = torch.ops.gru_ext.forward_members.default
backward_members = torch.ops.gru_ext.backward_members.default
layer_direct = _C.layer_direct
cell_direct = _C.cell_direct
kept_casts = _C.kept_casts
set_general_backward = _C.set_general_backward
_C.set_unseeing_mode(DeviceContext)  # torch.set_default_device: it only adds a device to calls that make tensors
if _C.build_info()["with_cuda"]:
    begin_cuda_trial = _C.begin_cuda_trial
    choose_cuda_kernel = _C.choose_cuda_kernel
    cuda_chosen = _C.cuda_chosen
    cuda_gpu = _C.cuda_gpu
    cuda_source = _C.cuda_source
    cuda_tf32 = _C.cuda_tf32
    end_cuda_trial = _C.end_cuda_trial


def on_cuda(input: Tensor) -> bool:
    """Whether a tensor is on a GPU that this build has kernels for."""
    return input.is_cuda and "cuda" in DEVICE_TYPES


def directions_of(weights: Sequence[Tensor]) -> int:
    """D of a layer's weights: two without biases are as many as one with them, but of other shapes."""
    if len(weights) == 4:
        return 2 if weights[2].dim() == 2 else 1
    return len(weights) // 4 if len(weights) > 2 else 1


def zero_hx(input: Tensor, weights: Sequence[Tensor], batch_sizes: Tensor | None, batch_first: bool) -> Tensor:
    """What an absent hx stands for, [D, B, H]; arguments as for the operators."""
    batch = input.size(0 if batch_first else 1) if batch_sizes is None else int(batch_sizes[0])
    return input.new_zeros((directions_of(weights), batch, weights[1].size(1)))


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


def has_kernel(device_type: str, dtype: torch.dtype) -> bool:
    """Whether a kernel was compiled for tensors of this dtype on a device of this type."""
    return (device_type, dtype) in _WITH_KERNEL


def _check_devices(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> None:
    """One stray meta tensor among real ones brings the whole call to the fake implementation."""
    for name, tensor in (("hx", hx), *((f"weights[{index}]", weight) for index, weight in enumerate(weights))):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"{name} is on {tensor.device}; expected {input.device}, where input is")


@torch.library.register_fake("gru_ext::forward")
def _forward_fake(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    save: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(input, hx, weights)
    if hx is not None:
        states: Sequence[int | torch.SymInt] = hx.shape
    else:
        packed = batch_sizes is not None
        batch = torch.library.get_ctx().new_dynamic_size(min=0) if packed else input.size(0 if batch_first else 1)
        states = (directions_of(weights), batch, weights[1].size(1))
    directions, _, hidden_size = states
    rows = input.size(0) if batch_sizes is not None else input.size(0) * input.size(1)
    output = input.new_empty((*input.shape[:-1], directions * hidden_size))
    h_n = input.new_empty(states)
    row = saved_row(hidden_size, input.dtype, input.device.type, recompute)
    saved = input.new_empty((directions, rows, row) if save else (0,))
    return output, h_n, saved


@torch.library.register_fake("gru_ext::backward")
def _backward_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    directions = directions_of(weights)
    each, flags = len(weights) // directions, (len(needs) - 2) // directions
    shapes = [input.shape, input.shape if hx is None else hx.shape]  # there is no gradient of an absent hx
    for first in range(0, len(weights), each):
        weight_ih, weight_hh = weights[first : first + 2]
        biases = [weight_hh.shape[:1]] * (flags - 2)  # which may themselves be left out
        shapes += [weight_ih.shape, weight_hh.shape, *biases]
    return [input.new_empty(shape) for shape, needed in zip(shapes, needs, strict=True) if needed]


def dims_of_member(directions: int, weights: int, packed: bool) -> list[int]:
    """How many dimensions input, hx and each of so many weights have in one layer; stacked in an ensemble, one more."""
    each = max(1, weights // max(1, directions))
    return [2 if packed else 3, 3, *(2 if index % each < 2 else 1 for index in range(weights))]


@torch.library.register_fake("gru_ext::forward_members")
def _forward_members_fake(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    members: int,
    save: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(input, hx, weights)
    directions, _, hidden_size = states = hx.shape[-3:]
    steps = input.shape[-3:-1] if batch_sizes is None else input.shape[-2:-1]
    output = input.new_empty((members, *steps, directions * hidden_size))
    row = saved_row(hidden_size, input.dtype, input.device.type, recompute)
    saved = input.new_empty((members, directions, math.prod(steps), row) if save else (0,))
    return output, input.new_empty((members, *states)), saved


@torch.library.register_fake("gru_ext::backward_members")
def _backward_members_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    members: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    alone = dims_of_member(int(hx.shape[-3]), len(weights), batch_sizes is not None)
    every = zip((input, hx, *weights), alone, needs, strict=True)
    return [tensor.new_empty((members, *tensor.shape[-dims:])) for tensor, dims, needed in every if needed]
