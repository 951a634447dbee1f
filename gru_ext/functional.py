"""The GRU as functions of tensors, differentiable: operators of :mod:`gru_ext.ops` joined to autograd.

A call of plain tensors outside of any graph is tried first: the direct functions of :mod:`gru_ext.ops` do the same as
the checks, the autograd function and the operators here in a fraction of the time. They give None for any call that
something else wants to see or that has an error in it; what is below then sees to it.

On CUDA torch's own kernels, :mod:`gru_ext.library`, run plain calls where ``plan`` has chosen them. Under
``torch.func`` transforms :mod:`gru_ext.transforms` calls the operators. Where there is no kernel (another device or
dtype) and where an operator cannot follow (forward-mode differentiation), the same layer runs in plain PyTorch,
:mod:`gru_ext.reference`, and a warning says so once.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function

from gru_ext import autograd, checks, library, ops, reference, transforms, wavefront

_AS_USUAL = getattr(Tensor.__torch_function__, "__func__", None)
_SEES_NOTHING = torch._C._disabled_torch_function_impl
_LayerFunction = Callable[[Tensor, Tensor | None, Sequence[Tensor], Tensor | None, bool], tuple[Tensor, Tensor]]


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """Stacked GRU layers, as :class:`torch.nn.GRU` computes them; the formula is in :mod:`gru_ext.reference`.

    T is seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions (2 when bidirectional, else 1). All
    tensors but batch_sizes have one dtype and one device. float32, float64, bfloat16 and float16 on the CPU (and on
    CUDA when built for it) run kernels; anything else runs the reference. Under ``torch.autocast`` for the input's
    device type, tensors of floating dtype other than float64 are cast to the autocast dtype; the results have the dtype
    that ``nn.GRU`` gives them, on the CPU float32 for a float32 state.

    Args:
        input: [T, B, I]; [B, T, I] when batch_first; packed [rows, I] when batch_sizes is given. T >= 1, B >= 0
        hx: [L*D, B, H], the state before the first step; None: zeros
        weights: for each layer and in it each direction weight_ih [3H, I] (I = D*H after the first layer),
            weight_hh [3H, H] and, when bias, bias_ih [3H], bias_hh [3H]. Gate order r, z, n
        dropout: probability of zeroing an output of every layer but the last, when training
        batch_sizes: [T] int64 on the CPU, never increasing, as in ``PackedSequence``; batch_first then has no effect
        recompute: keep only the states for backward, H values a step, sequence and direction instead of 5 H, and
            compute the gates again there

    Returns:
        output [T, B, D*H], [B, T, D*H] or [rows, D*H]: the last layer's state after every step;
        h_n [L*D, B, H]: each layer's and direction's state after its last step

    Raises:
        ValueError: dtype of input unlike that of the weights; number of weights unlike the layers asked for
        RuntimeError: number of dimensions, size or device of input, hx or weights, dtype of hx
    """
    directions = 2 if bidirectional else 1
    per_layer = directions * (4 if bias else 2)
    if len(weights) != num_layers * per_layer:
        raise ValueError(f"weights must hold {num_layers * per_layer} tensors, got {len(weights)}")
    eager = _may_be_direct()
    if eager and ops.on_cuda(input) and not _transformed():
        needs_gradient = autograd.needs_gradient(input, hx, weights)
        if library.runs(input, weights[1].shape[-1], directions, batch_first, batch_sizes, needs_gradient, recompute):
            return library.gru(
                input,
                _checked_hx(input, hx, weights, num_layers * directions, batch_sizes, batch_first),
                weights,
                num_layers=num_layers,
                bias=bias,
                bidirectional=bidirectional,
                batch_first=batch_first,
                dropout=dropout,
                training=training,
                needs_gradient=needs_gradient,
                batch_sizes=batch_sizes,
            )
    dropout = dropout if training else 0.0
    if eager and (num_layers == 1 or (dropout == 0 and not ops.on_cuda(input))):  # on CUDA they may overlap
        direct = _direct(input, hx, weights, batch_sizes, batch_first, bidirectional, recompute, num_layers)
        if direct is not None:
            return direct

    options: dict[str, Any] = {
        "num_layers": num_layers,
        "bias": bias,
        "bidirectional": bidirectional,
        "batch_first": batch_first,
        "dropout": dropout,
        "training": training,
        "batch_sizes": batch_sizes,
    }
    if eager:
        asking, as_usual = _overriding((input, hx, *weights))
        if asking and as_usual:
            result: tuple[Tensor, Tensor] = handle_torch_function(
                gru, asking, input, hx, weights, **options, recompute=recompute
            )
            return result
        if asking:
            hx = _checked_hx(input, hx, weights, num_layers * directions, batch_sizes, batch_first)
            return library.gru(input, hx, weights, **options, needs_gradient=False)

    device_type = input.device.type
    if _autocast_enabled(device_type):
        dtype = _autocast_result(device_type, input, hx)
        input, hx, weights = _autocast(device_type, input, hx, weights)
        if input.dtype != weights[0].dtype:  # no check of nn.GRU's under autocast, so told after them
            checks.layers(input, hx, weights, num_layers * directions, batch_sizes, batch_first and batch_sizes is None)
            checks.product(input, weights[0])
        with torch.autocast(device_type, enabled=False):
            output, h_n = gru(input, hx, weights, **options, recompute=recompute)
        return output.to(dtype), h_n.to(dtype)

    if batch_sizes is not None:
        batch_first = False
    checks.input_dtype(input, weights[0])
    expected = checks.layers(input, hx, weights, num_layers * directions, batch_sizes, batch_first)
    checks.product(input, weights[0])
    if hx is not None:
        checks.product(hx, weights[1])
    elif expected is not None and torch.compiler.is_compiling():
        hx = input.new_zeros(expected)  # the operator's fake implementation could not tell the size of h_n

    layer = _layer_function(device_type, input.dtype, weights, recompute)
    if num_layers == 1:
        return layer(input, hx, weights, batch_sizes, batch_first)

    # nn.GRU runs its layers time-first, and so draws its masks: from the same seed here come the same.
    turned = batch_first and dropout > 0
    if turned:
        input, batch_first = input.transpose(0, 1), False
    states: Sequence[Tensor | None] = (None,) * num_layers if hx is None else torch.split(hx, directions)
    layers = [weights[first : first + per_layer] for first in range(0, len(weights), per_layer)]
    if eager and ops.on_cuda(input) and not _transformed():
        needs_gradient = autograd.needs_gradient(input, hx, weights)
        if wavefront.runs(input, weights[1].shape[-1], directions, batch_first, batch_sizes, needs_gradient):
            output, h_n = wavefront.gru(layer, input, states, layers, batch_first, dropout)
            return output.transpose(0, 1).contiguous() if turned else output, h_n
    finals = []
    for index, of_layer in enumerate(layers):
        if index > 0 and dropout > 0:
            input = F.dropout(input, dropout)
        input, final = layer(input, states[index], of_layer, batch_sizes, batch_first)
        finals.append(final)
    return input.transpose(0, 1).contiguous() if turned else input, torch.cat(finals)


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """One step of a GRU, as :class:`torch.nn.GRUCell` computes it. Dtypes, devices and autocast as for :func:`gru`.

    Args:
        input: [B, I]
        hx: [B, H]; None: zeros
        weight_ih: [3H, I]
        weight_hh: [3H, H]
        bias_ih, bias_hh: [3H]; both or neither

    Returns:
        h_t [B, H]

    Raises:
        ValueError: only one of the biases
        RuntimeError: number of dimensions, size, dtype or device of input or hx
    """
    eager = _may_be_direct()
    if eager and ops.on_cuda(input) and not _transformed() and (bias_ih is None) == (bias_hh is None):
        weights = [weight for weight in (weight_ih, weight_hh, bias_ih, bias_hh) if weight is not None]
        needs_gradient = autograd.needs_gradient(input, hx, weights)
        if input.dim() == 2 and library.runs(input, weight_hh.shape[-1], 1, False, None, needs_gradient):
            hx = input.new_zeros((input.size(0), weight_hh.shape[-1])) if hx is None else hx
            return library.gru_cell(input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    if eager:
        direct = ops.cell_direct(input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
        if direct is not None:
            return direct

    if (bias_ih is None) != (bias_hh is None):
        raise ValueError("bias_ih and bias_hh must be given both or neither, got only one of them")
    weights = [weight for weight in (weight_ih, weight_hh, bias_ih, bias_hh) if weight is not None]
    if eager:
        asking, as_usual = _overriding((input, hx, *weights))
        if asking and as_usual:
            result: Tensor = handle_torch_function(gru_cell, asking, input, hx, *weights)
            return result
        if asking:
            if hx is None:
                hx = torch.zeros(input.size(0), weight_hh.shape[-1], dtype=input.dtype, device=input.device)
            return library.gru_cell(input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    device_type = input.device.type
    if _autocast_enabled(device_type):
        dtype = _autocast_result(device_type, input, hx)
        input, hx, weights = _autocast(device_type, input, hx, weights)
        with torch.autocast(device_type, enabled=False):
            return gru_cell(input, hx, *weights).to(dtype)

    if not _jit_tracing():  # torch.jit.trace would warn of every size looked at; the operator checks too
        checks.cell(input, hx, weight_ih, weight_hh)
    layer = _layer_function(device_type, input.dtype, weights, False)
    _, h_n = layer(input.unsqueeze(0), None if hx is None else hx.unsqueeze(0), weights, None, False)
    return h_n.squeeze(0)


def _may_be_direct() -> bool:
    """Whether to try the direct functions: not in a graph in the making, nor under forward-mode differentiation.

    What else stands against it they know themselves.
    """
    return not torch.compiler.is_compiling() and forward_ad._current_level < 0


def _jit_tracing() -> bool:
    """Whether torch.jit.trace follows this call."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()  # the latter breaks a graph of torch.compile


def _overriding(tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], bool]:
    """The tensors whose class wants to see every function of torch, and whether all treat it as torch.Tensor does.

    If so the kernels run, and the results are of the class; else it is shown what ``nn.GRU`` calls, ``torch.gru``.
    """
    asking: list[Tensor] = []
    if not torch._C._is_torch_function_enabled():
        return asking, True
    as_usual = True
    for tensor in tensors:
        function = getattr(type(tensor), "__torch_function__", _SEES_NOTHING)
        if tensor is None or type(tensor) is Tensor or function is _SEES_NOTHING:
            continue
        asking.append(tensor)
        as_usual &= getattr(function, "__func__", None) is _AS_USUAL
    return asking, as_usual


def _direct(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    bidirectional: bool,
    recompute: bool,
    num_layers: int,
) -> tuple[Tensor, Tensor] | None:
    """All layers by direct calls, without dropout; None where one cannot be, such as for what is an error."""
    if num_layers == 1:
        return ops.layer_direct(input, hx, weights, batch_sizes, batch_first, bidirectional, recompute)
    directions, per_layer = (2 if bidirectional else 1), len(weights) // num_layers
    if hx is not None and (hx.dim() != 3 or hx.shape[0] != num_layers * directions):
        return None
    finals = []
    for index in range(num_layers):
        state = None if hx is None else hx.narrow(0, index * directions, directions)
        of_layer = weights[index * per_layer : (index + 1) * per_layer]
        direct = ops.layer_direct(input, state, of_layer, batch_sizes, batch_first, bidirectional, recompute)
        if direct is None:
            return None
        input, final = direct
        finals.append(final)
    return input, torch.cat(finals)


def _autocast_enabled(device_type: str) -> bool:
    # Of a device type that knows no autocast, such as meta, is_autocast_enabled is not asked: it raises.
    return _knows_autocast(device_type) and torch.is_autocast_enabled(device_type)


@torch.compiler.assume_constant_result  # the torch.compile of torch 2.11 cannot trace the call within
def _knows_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def _autocast_result(device_type: str, input: Tensor, hx: Tensor | None) -> torch.dtype:
    """The dtype of what ``nn.GRU`` returns under autocast: on the CPU the wider one of its products and the state's."""
    dtype = torch.get_autocast_dtype(device_type)
    state = input.dtype if hx is None else hx.dtype
    return torch.promote_types(dtype, state) if device_type == "cpu" or state == torch.float64 else dtype


def _autocast(
    device_type: str, input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The arguments in the autocast dtype; like autocast itself this leaves float64 and whatever is not floating.

    Parameters are cast once for all calls within the outermost autocast block, unless they change in it.
    """
    dtype = torch.get_autocast_dtype(device_type)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    kept: Sequence[Tensor | None] = ops.kept_casts(weights) if _may_be_direct() else (None,) * len(weights)
    casts = [cast(weight) if known is None else known for weight, known in zip(weights, kept, strict=True)]
    return cast(input), None if hx is None else cast(hx), casts


def _checked_hx(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    states: int,
    batch_sizes: Tensor | None,
    batch_first: bool,
) -> Tensor:
    """hx, or zeros, for as many states, after the checks of :func:`gru`. Autocast does its own, of what it has cast."""
    batch_first = batch_first and batch_sizes is None
    checks.input_dtype(input, weights[0])
    expected = checks.layers(input, hx, weights, states, batch_sizes, batch_first)
    if hx is None:
        expected = expected or (states, checks.batch(input, None, batch_sizes, batch_first), weights[1].shape[-1])
        return torch.zeros(expected, dtype=input.dtype, device=input.device)
    if not _autocast_enabled(input.device.type):
        checks.product(hx, weights[1])
    return hx


def _layer_function(device_type: str, dtype: torch.dtype, weights: Sequence[Tensor], recompute: bool) -> _LayerFunction:
    """What computes a layer here and now: the operator, or the reference (and then a warning, once for each reason)."""
    if not _jit_tracing() and 0 in (weights[0].shape[-1], weights[1].shape[-1]):
        return _reference_layer  # without a warning: there is next to nothing to compute
    if not ops.has_kernel(device_type, dtype):
        _warn_once(f"gru_ext has no kernel for {dtype} on {device_type}")
        return _reference_layer
    if _transformed():
        if _may_be_direct() and transforms.serve():
            return functools.partial(transforms.layer, recompute=recompute)
        _warn_once("gru_ext has no kernel for forward-mode differentiation and for compiled torch.func transforms")
        return _reference_layer
    return functools.partial(_layer, recompute=recompute)


def _reference_layer(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, batch_first: bool
) -> tuple[Tensor, Tensor]:
    """One layer in plain PyTorch."""
    if hx is None:
        batch = checks.batch(input, None, batch_sizes, batch_first)
        hx = input.new_zeros((ops.directions_of(weights), batch, weights[1].shape[-1]))
    return reference.gru_layer(input, hx, weights, batch_sizes, batch_first)


@torch.compiler.assume_constant_result
def _transformed() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp, ...) or forward-mode differentiation surrounds this call.

    The operator would drop tangents in silence. While torch.compile traces it enters the same transforms, and guards
    the graph on them, so that the answer then is a constant of the graph.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


_warned: set[str] = set()


def _warn_once(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"{reason}: running the reference in plain PyTorch, which is slower", stacklevel=4)


def _layer(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """One layer by the kernels, recorded for backward only when something asks for a gradient."""
    if _may_be_direct():
        bidirectional = ops.directions_of(weights) == 2
        direct = ops.layer_direct(input, hx, weights, batch_sizes, batch_first, bidirectional, recompute)
        if direct is not None:
            return direct
    in_graph = torch.compiler.is_compiling() or _jit_tracing()  # there the operator joins itself to autograd
    if not in_graph and autograd.needs_gradient(input, hx, weights):
        result: tuple[Tensor, Tensor] = autograd.Layer.apply(
            ops.forward, input, hx, batch_sizes, batch_first, recompute, *weights
        )
        return result
    output, h_n, _ = ops.forward(input, hx, weights, batch_sizes, batch_first, False, recompute)
    return output, h_n
