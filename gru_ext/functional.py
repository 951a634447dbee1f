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

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from gru_ext import autograd, library, ops, reference, transforms, wavefront

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
    device type, tensors of floating dtype other than float64 are cast to the autocast dtype.

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
        needs_gradient = _needs_gradient(input, hx, weights)
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
    if num_layers == 1 and eager:
        direct = ops.layer_direct(input, hx, weights, batch_sizes, batch_first, bidirectional, recompute)
        if direct is not None:
            return direct

    device_type = input.device.type
    if _autocast_enabled(device_type):
        input, hx, weights = _autocast(device_type, input, hx, weights)
        with torch.autocast(device_type, enabled=False):
            return gru(
                input,
                hx,
                weights,
                num_layers=num_layers,
                bias=bias,
                bidirectional=bidirectional,
                batch_first=batch_first,
                dropout=dropout,
                training=training,
                batch_sizes=batch_sizes,
                recompute=recompute,
            )

    if batch_sizes is not None:
        batch_first = False
    _check_input(input, weights[0], batch_sizes, batch_first)
    if hx is not None or batch_sizes is not None:
        batch = _batch(input, hx, batch_sizes, batch_first)
        expected = (num_layers * directions, batch, weights[1].shape[-1])
        if hx is not None:
            _check_hx(hx, input, expected)
        elif torch.compiler.is_compiling():  # the operator's fake implementation could not tell the size of h_n
            hx = input.new_zeros(expected)

    layer = _layer_function(device_type, input.dtype, recompute)
    if num_layers == 1:
        return layer(input, hx, weights, batch_sizes, batch_first)

    dropout = dropout if training else 0.0
    # nn.GRU runs its layers time-first, and so draws its masks: from the same seed here come the same.
    turned = batch_first and dropout > 0
    if turned:
        input, batch_first = input.transpose(0, 1), False
    states: Sequence[Tensor | None] = (None,) * num_layers if hx is None else torch.split(hx, directions)
    layers = [weights[first : first + per_layer] for first in range(0, len(weights), per_layer)]
    if eager and ops.on_cuda(input) and not _transformed():
        needs_gradient = _needs_gradient(input, hx, weights)
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
        needs_gradient = _needs_gradient(input, hx, weights)
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
    device_type = input.device.type
    if _autocast_enabled(device_type):
        input, hx, weights = _autocast(device_type, input, hx, weights)
        with torch.autocast(device_type, enabled=False):
            return gru_cell(input, hx, *weights)

    if input.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {input.dim()}")
    if input.size(1) != weight_ih.shape[-1]:
        raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {weight_ih.shape[-1]}")
    if input.dtype != weight_ih.dtype:
        raise RuntimeError(f"input and weights must have the same dtype, got {input.dtype} and {weight_ih.dtype}")
    _check_device(input, weight_ih)
    if hx is not None:
        hidden_size = weight_hh.shape[-1]
        if hx.dim() != 2 or hx.size(1) != hidden_size:
            raise RuntimeError(
                f"hx has inconsistent hidden_size: expected shape {(input.size(0), hidden_size)}, got {tuple(hx.shape)}"
            )
        if hx.size(0) != input.size(0):
            raise RuntimeError(f"input batch size {input.size(0)} doesn't match hx batch size {hx.size(0)}")
        _check_hx_like_input(hx, input)
    layer = _layer_function(device_type, input.dtype, False)
    _, h_n = layer(input.unsqueeze(0), None if hx is None else hx.unsqueeze(0), weights, None, False)
    return h_n.squeeze(0)


def _may_be_direct() -> bool:
    """Whether to try the direct functions: not in a graph in the making, nor under forward-mode differentiation.

    What else stands against it they know themselves.
    """
    return not torch.compiler.is_compiling() and forward_ad._current_level < 0


def _autocast_enabled(device_type: str) -> bool:
    # Of a device type that knows no autocast, such as meta, is_autocast_enabled is not asked: it raises.
    return _knows_autocast(device_type) and torch.is_autocast_enabled(device_type)


@torch.compiler.assume_constant_result  # the torch.compile of torch 2.11 cannot trace the call within
def _knows_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


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


def _needs_gradient(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> bool:
    """Whether a call is to be recorded for backward."""
    return torch.is_grad_enabled() and (
        input.requires_grad or (hx is not None and hx.requires_grad) or any(weight.requires_grad for weight in weights)
    )


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
    if not _autocast_enabled(input.device.type):
        _check_input(input, weights[0], batch_sizes, batch_first)
    expected = (states, _batch(input, hx, batch_sizes, batch_first), weights[1].shape[-1])
    if hx is None:
        return input.new_zeros(expected)
    if not _autocast_enabled(input.device.type):
        _check_hx(hx, input, expected)
    return hx


def _check_input(input: Tensor, weight: Tensor, batch_sizes: Tensor | None, batch_first: bool) -> None:
    """Compares the input with the first layer's weight_ih. The operator checks the weights."""
    if input.dtype != weight.dtype:
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )
    shape = input.shape
    expected_dims = 3 if batch_sizes is None else 2
    if len(shape) != expected_dims:
        raise RuntimeError(f"input must have {expected_dims} dimensions, got {len(shape)}")
    input_size = weight.shape[-1]
    if shape[-1] != input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {shape[-1]}")
    _check_device(input, weight)
    if batch_sizes is not None:
        seq_len = batch_sizes.numel()
    else:
        seq_len = shape[1] if batch_first else shape[0]
    if seq_len == 0:
        raise RuntimeError(f"Expected sequence length to be larger than 0 in RNN, got input of shape {tuple(shape)}")


def _batch(input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None, batch_first: bool) -> int:
    """B. Of a packed input it stands in batch_sizes, which a graph in the making reads only where it must."""
    if batch_sizes is None:
        return input.shape[0] if batch_first else input.shape[1]
    if not torch.compiler.is_compiling():
        return int(batch_sizes[0])
    if hx is not None and hx.dim() == 3:
        return hx.shape[1]
    # item(), not int(), which torch.export would want to know at once.
    if torch.compiler.is_dynamo_compiling():
        with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):  # otherwise the next line breaks the graph
            batch: int = batch_sizes[0].item()  # type: ignore[assignment]
    else:
        batch = batch_sizes[0].item()  # type: ignore[assignment]
    torch._check(batch >= 0)
    return batch


def _check_device(input: Tensor, weight: Tensor) -> None:
    if input.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {input.device} and parameter tensor at {weight.device}"
        )


def _check_hx(hx: Tensor, input: Tensor, expected: tuple[int, int, int]) -> None:
    if hx.shape != expected:
        raise RuntimeError(f"Expected hidden size {expected} for hx, got {list(hx.shape)}")
    _check_hx_like_input(hx, input)


def _check_hx_like_input(hx: Tensor, input: Tensor) -> None:
    if hx.dtype != input.dtype:
        raise RuntimeError(f"input and hx must have the same dtype, got input {input.dtype} and hx {hx.dtype}")
    if hx.device != input.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, "
            f"found input tensor at {input.device} and hidden tensor hx at {hx.device}"
        )


def _layer_function(device_type: str, dtype: torch.dtype, recompute: bool) -> _LayerFunction:
    """What computes a layer here and now: the operator, or the reference (and then a warning, once for each reason)."""
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
        batch = _batch(input, None, batch_sizes, batch_first)
        hx = input.new_zeros((ops.directions_of(weights), batch, weights[1].shape[-1]))
    return reference.gru_layer(input, hx, weights, batch_sizes, batch_first)


@torch.compiler.assume_constant_result
def _transformed() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp, ...) or forward-mode differentiation surrounds this call.

    The operator would drop tangents in silence. While torch.compile traces it enters the same transforms, and guards
    the graph on them, so that the answer then is a constant of the graph.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


@torch.compiler.assume_constant_result  # traced, is_exporting() of torch 2.11 is True for torch.compile too
def _exporting() -> bool:
    return torch.compiler.is_exporting()


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
    recorded = _needs_gradient(input, hx, weights) and not _exporting()  # an exported graph has no backward pass
    if recorded and not torch.compiler.is_compiling():
        result: tuple[Tensor, Tensor] = autograd.Layer.apply(input, hx, batch_sizes, batch_first, recompute, *weights)
        return result
    output, h_n, _ = ops.forward(input, hx, weights, batch_sizes, batch_first, recorded, recompute)
    return output, h_n
