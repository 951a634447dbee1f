"""The GRU as functions of tensors, differentiable: operators of :mod:`gru_ext.ops` joined to autograd.

A call of plain tensors outside of any graph is tried first: the direct functions of :mod:`gru_ext.ops` do the same as
the checks, the autograd function and the operators here in a fraction of the time. They give None for any call that
something else wants to see or that has an error in it; what is below then sees to it.

On CUDA torch's own kernels, :mod:`gru_ext.library`, run plain calls where ``plan`` has chosen them. Under
``torch.func`` transforms :mod:`gru_ext.transforms` calls the operators. Where there is no kernel (another device or
dtype) and where an operator cannot follow (forward-mode differentiation), the same layer runs in plain PyTorch,
:mod:`gru_ext.reference`, and a warning says so once.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function

from gru_ext import autocast, autograd, checks, ops, reference, transforms
from gru_ext.cuda import decision, library, wavefront
from gru_ext.marks import constant
from gru_ext.ops import Arguments, Options

_AS_USUAL = getattr(Tensor.__torch_function__, "__func__", None)
_SEES_NOTHING = torch._C._disabled_torch_function_impl


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
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """Stacked GRU layers, as :class:`torch.nn.GRU` computes them; the formula is in :mod:`gru_ext.reference`.

    T is seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions (2 when bidirectional, else 1). All
    tensors but batch_sizes, lengths and resets have one dtype, and all but batch_sizes one device. float32, float64,
    bfloat16 and float16 on the CPU (and on CUDA when built for it) run kernels; anything else runs the reference. Under
    ``torch.autocast`` for the input's device type, tensors of floating dtype other than float64 are cast to the
    autocast dtype; the results have the dtype that ``nn.GRU`` gives them, on the CPU float32 for a float32 state.

    Args:
        input: [T, B, I]; [B, T, I] when batch_first; packed [rows, I] when batch_sizes is given. T >= 1, B >= 0
        hx: [L*D, B, H], the state before the first step; None: zeros
        weights: for each layer and in it each direction weight_ih [3H, I] (I = D*H after the first layer),
            weight_hh [3H, H] and, when bias, bias_ih [3H], bias_hh [3H]. Gate order r, z, n
        dropout: probability of zeroing an output of every layer but the last, when training
        batch_sizes: [T] int64 on the CPU, never increasing, as in ``PackedSequence``; batch_first then has no effect
        lengths: [B], integers; resets: bool, [T, B], or [B, T] when batch_first; reset_state: [L*D, H], [L*D, B, H],
            [L*D, T, B, H], or [L*D, B, T, H] when batch_first. Of padded input; :class:`gru_ext.GRU` says what they do
        recompute: keep only the states for backward, H values a step, sequence and direction instead of 5 H, and
            compute the gates again there

    Returns:
        output [T, B, D*H], [B, T, D*H] or [rows, D*H]: the last layer's state after every step;
        h_n [L*D, B, H]: each layer's and direction's state after its last step

    Raises:
        ValueError: dtype of input unlike that of the weights; number of weights unlike the layers asked for
        RuntimeError: number of dimensions, size or device of input, hx or weights, dtype of hx; size, dtype or device
            of lengths, resets or reset_state; a length on the CPU that is not from 0 to T
    """
    directions = 2 if bidirectional else 1
    expected = num_layers * directions * (4 if bias else 2)
    if len(weights) != expected:
        raise ValueError(f"weights must hold {expected} tensors, got {len(weights)}")
    dropout = dropout if training else 0.0
    marked = lengths is not None or resets is not None or reset_state is not None
    if reset_state is not None or (lengths is not None and input.is_cuda):
        lengths, reset_state = as_kernels_take(input, weights[1].shape[-1], batch_first, lengths, reset_state)
    eager = is_eager()
    decided, needs_gradient = None, False
    if eager and ops.on_cuda(input) and not is_transformed():
        needs_gradient = autograd.needs_gradient((input, hx, reset_state, *weights))
        hidden_size = weights[1].shape[-1]
        decided = decision.decide_call(
            input, hidden_size, directions, num_layers, batch_first, batch_sizes, needs_gradient, recompute, marked
        )
    strategy, stationary = ("kernels", -1) if decided is None else (decided.strategy, decided.stationary)
    # Options, but its making would take as long as a kernel.
    options = (directions, batch_first, recompute, stationary, 0, 0)
    # On CUDA stacked layers may overlap, and between layers may be dropout.
    plain = eager and strategy == "kernels" and (num_layers == 1 or (dropout == 0 and not ops.on_cuda(input)))
    if plain:
        direct = ops.layer_direct(input, hx, weights, batch_sizes, lengths, resets, reset_state, options, num_layers)
        if direct is not None:
            return direct
    stack = Stack(
        input, hx, weights, lengths, resets, reset_state, num_layers, bias, bidirectional, batch_first, dropout,
        training, batch_sizes, recompute,
    )  # fmt: skip
    if strategy == "library":
        return _by_library(stack, needs_gradient)
    if eager:
        overriding, as_usual = _overriding((input, hx, lengths, resets, reset_state, *weights))
        if overriding and as_usual:
            input, hx, weights, *rest = stack
            named: dict[str, Any] = dict(zip(Stack._fields[3:], rest, strict=True))
            result: tuple[Tensor, Tensor] = handle_torch_function(gru, overriding, input, hx, weights, **named)
            return result
        if overriding:
            return by_layers(stack, layer=reference.gru_layer) if marked else _by_library(stack, needs_gradient)
    device_type = input.device.type
    if not autocast.enabled(device_type):
        return by_layers(stack, strategy, stationary)
    dtype = autocast.result_dtype(device_type, input, hx)
    input, hx, reset_state, weights = autocast.cast(input, hx, reset_state, weights, keep=eager)
    stack = stack._replace(input=input, hx=hx, reset_state=reset_state, weights=weights)
    if input.dtype != weights[0].dtype:  # which nn.GRU does not check under autocast, but trips over at the end
        stack.checked()
        checks.product(input, weights[0])
    with torch.autocast(device_type, enabled=False):
        results = None
        if plain:
            results = ops.layer_direct(
                input, hx, weights, batch_sizes, lengths, resets, reset_state, options, num_layers
            )
        if results is None:
            results = by_layers(stack, strategy, stationary)
    return results[0].to(dtype), results[1].to(dtype)


class Stack(NamedTuple):
    """What :func:`gru` was called with; dropout is 0 outside of training."""

    input: Tensor
    hx: Tensor | None
    weights: Sequence[Tensor]
    lengths: Tensor | None
    resets: Tensor | None
    reset_state: Tensor | None
    num_layers: int
    bias: bool
    bidirectional: bool
    batch_first: bool
    dropout: float
    training: bool
    batch_sizes: Tensor | None
    recompute: bool

    @property
    def states(self) -> int:
        """L*D."""
        return self.num_layers * (2 if self.bidirectional else 1)

    def checked(self) -> tuple["Stack", tuple[int, int, int] | None]:
        """After the checks of ``nn.GRU``, and the shape of hx if they had to know it. Packed input has no batch_first.

        Autocast checks dtypes itself, of what it has cast.
        """
        input, hx, weights, batch_sizes = self.input, self.hx, self.weights, self.batch_sizes
        batch_first = self.batch_first and batch_sizes is None
        checks.input_dtype(input, weights[0])
        shape = checks.layers(input, hx, weights, self.states, batch_sizes, batch_first)
        of_sequences = (self.lengths, self.resets, self.reset_state)
        if any(tensor is not None for tensor in of_sequences):
            checks.sequences(input, weights[1], self.states, batch_sizes, batch_first, *of_sequences)
        return self._replace(batch_first=batch_first), shape

    def with_hx(self, shape: tuple[int, int, int] | None) -> "Stack":
        """The same with zeros for an absent hx."""
        if self.hx is not None:
            return self
        batch = checks.batch(self.input, None, self.batch_sizes, self.batch_first)
        return self._replace(hx=checks.zero_hx(self.input, shape or (self.states, batch, self.weights[1].shape[-1])))


def _by_library(stack: Stack, needs_gradient: bool) -> tuple[Tensor, Tensor]:
    """By torch's own kernels."""
    checked, shape = stack.checked()
    if stack.hx is not None and not autocast.enabled(stack.input.device.type):
        checks.product(stack.hx, stack.weights[1])
    hx = checked.with_hx(shape).hx
    arguments = stack._replace(hx=hx)._asdict()
    for name in ("recompute", "lengths", "resets", "reset_state"):
        del arguments[name]  # which torch's kernels cannot do; a subclass of Tensor goes without the first
    return library.gru(**arguments, needs_gradient=needs_gradient)


def by_layers(
    stack: Stack,
    strategy: str = "kernels",
    stationary: int = -1,
    layer: Callable[[Arguments], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """By our kernels or the reference, layer by layer; or, where that was decided, in layers that overlap."""
    stack, shape = stack.checked()
    checks.product(stack.input, stack.weights[0])
    if stack.hx is not None:
        checks.product(stack.hx, stack.weights[1])
    layer = layer or _layer_function(stack.input, stack.weights)
    if layer is reference.gru_layer and stack.lengths is not None and not _in_graph():
        checks.lengths_in_range(stack.lengths, stack.input.size(1 if stack.batch_first else 0))
    if layer is reference.gru_layer or (stack.batch_sizes is not None and torch.compiler.is_compiling()):
        stack = stack.with_hx(shape)  # whose batch the operator's fake implementation could not tell of packed input
    directions = 2 if stack.bidirectional else 1
    # nn.GRU runs its layers time-first, and so draws its masks: from the same seed here come the same.
    turned = stack.batch_first and stack.dropout > 0 and stack.num_layers > 1
    output, resets, reset_state = stack.input, stack.resets, stack.reset_state
    if turned:
        output = output.transpose(0, 1)
        resets = None if resets is None else resets.transpose(0, 1)
        reset_state = None if reset_state is None else reset_state.transpose(1, 2)
    hx, batch_first = stack.hx, stack.batch_first and not turned
    per_layer = len(stack.weights) // stack.num_layers
    states, reset_states = (
        [of_all] * stack.num_layers if of_all is None or stack.num_layers == 1 else of_all.split(directions)
        for of_all in (hx, reset_state)
    )
    weights = [stack.weights[first : first + per_layer] for first in range(0, len(stack.weights), per_layer)]
    options = Options(directions, int(batch_first), int(stack.recompute), stationary)
    like = Arguments(output, hx, (), stack.batch_sizes, stack.lengths, resets, reset_state, options)
    layers = [
        like._replace(hx=state, weights=own, reset_state=own_reset)
        for state, own, own_reset in zip(states, weights, reset_states, strict=True)
    ]
    if strategy == "wavefront":
        output, h_n = wavefront.gru(layer, layers, stack.dropout)
        return output.transpose(0, 1).contiguous() if turned else output, h_n
    finals = []
    for index, arguments in enumerate(layers):
        if index > 0 and stack.dropout > 0:
            output = F.dropout(output, stack.dropout)
        output, final = layer(arguments._replace(input=output))
        finals.append(final)
    return output.transpose(0, 1).contiguous() if turned else output, torch.cat(finals) if finals[1:] else final


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reset: Tensor | None = None,
) -> Tensor:
    """One step of a GRU, as :class:`torch.nn.GRUCell` computes it. Dtypes, devices and autocast as for :func:`gru`.

    Args:
        input: [B, I]
        hx: [B, H]; None: zeros
        weight_ih: [3H, I]
        weight_hh: [3H, H]
        bias_ih, bias_hh: [3H]; both or neither
        reset: bool [B], true where hx is taken for zero

    Returns:
        h_t [B, H]

    Raises:
        ValueError: only one of the biases
        RuntimeError: number of dimensions, size, dtype or device of input, hx or reset
    """
    eager = is_eager()
    decided = None
    if (
        eager
        and ops.on_cuda(input)
        and not is_transformed()
        and input.dim() == 2
        and (bias_ih is None) == (bias_hh is None)
    ):
        needs_gradient = autograd.needs_gradient((input, hx, weight_ih, weight_hh, bias_ih, bias_hh))
        hidden_size = weight_hh.shape[-1]
        decided = decision.decide_call(
            input, hidden_size, 1, 1, False, None, needs_gradient, recompute=False, marked=reset is not None
        )
        if decided is not None and decided.strategy == "library":
            hx = checks.zero_hx(input, (input.size(0), hidden_size)) if hx is None else hx
            return library.gru_cell(input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    if eager:
        direct = ops.cell_direct(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, reset)
        if direct is not None:
            return direct

    if (bias_ih is None) != (bias_hh is None):
        raise ValueError("bias_ih and bias_hh must be given both or neither, got only one of them")
    weights = [weight for weight in (weight_ih, weight_hh, bias_ih, bias_hh) if weight is not None]
    if eager:
        overriding, as_usual = _overriding((input, hx, reset, *weights))
        if overriding and as_usual:
            result: Tensor = handle_torch_function(gru_cell, overriding, input, hx, *weights, reset=reset)
            return result
        if overriding:
            if hx is not None and reset is not None:
                hx = torch.where(reset.unsqueeze(-1), torch.zeros_like(hx), hx)
            hx = checks.zero_hx(input, (input.size(0), weight_hh.shape[-1])) if hx is None else hx
            return library.gru_cell(input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    device_type = input.device.type
    if autocast.enabled(device_type):
        dtype = autocast.result_dtype(device_type, input, hx)
        input, hx, _, weights = autocast.cast(input, hx, None, weights, keep=eager)
        with torch.autocast(device_type, enabled=False):
            return gru_cell(input, hx, *weights, reset=reset).to(dtype)

    if not _jit_tracing():  # torch.jit.trace would warn of every size looked at; the operator checks too
        checks.cell(input, hx, weight_ih, weight_hh, reset)
    layer = _layer_function(input, weights)
    options = Options(stationary=-1 if decided is None else decided.stationary)
    state = None if hx is None else hx.unsqueeze(0)
    if layer is reference.gru_layer and hx is None:
        state = checks.zero_hx(input, (1, input.size(0), weight_hh.shape[-1]))
    resets = None if reset is None else reset.unsqueeze(0)
    _, h_n = layer(Arguments(input.unsqueeze(0), state, weights, resets=resets, options=options))
    return h_n.squeeze(0)


def as_kernels_take(
    input: Tensor, hidden_size: int, batch_first: bool, lengths: Tensor | None, reset_state: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """lengths where the input is, and reset_state with a row for each step and sequence, without a copy."""
    checks.are_tensors(lengths=lengths, reset_state=reset_state)
    if lengths is not None and lengths.is_cpu and input.is_cuda:
        lengths = lengths.to(input.device, non_blocking=True)
    if reset_state is not None and reset_state.dim() in (2, 3) and input.dim() == 3:
        if reset_state.dim() == 3:
            reset_state = reset_state.unsqueeze(2 if batch_first else 1)
        else:
            reset_state = reset_state[:, None, None]
        expected = (*input.shape[:2], hidden_size)
        sizes = zip(reset_state.shape[1:], expected, strict=True)
        if all(size in (1, wanted) for size, wanted in sizes):
            reset_state = reset_state.expand(-1, *expected)
    return lengths, reset_state


def _in_graph() -> bool:
    """Whether a graph is in the making, where values are not at hand."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def is_eager() -> bool:
    """Whether this is neither a graph in the making nor under forward-mode differentiation.

    Only then are direct calls tried; what else stands against them they know themselves.
    """
    return not torch.compiler.is_compiling() and forward_ad._current_level < 0


def _jit_tracing() -> bool:
    """Whether torch.jit.trace follows this call."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()  # the latter breaks a graph of torch.compile


def _overriding(tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], bool]:
    """The tensors whose class wants to see every function of torch, and whether all treat it as torch.Tensor does.

    If so the kernels run, and the results are of the class; else it is shown what ``nn.GRU`` calls, ``torch.gru``.
    """
    overriding: list[Tensor] = []
    if not torch._C._is_torch_function_enabled():
        return overriding, True
    as_usual = True
    for tensor in tensors:
        function = getattr(type(tensor), "__torch_function__", _SEES_NOTHING)
        if tensor is None or type(tensor) is Tensor or function is _SEES_NOTHING:
            continue
        overriding.append(tensor)
        as_usual &= getattr(function, "__func__", None) is _AS_USUAL
    return overriding, as_usual


def _layer_function(input: Tensor, weights: Sequence[Tensor]) -> Callable[[Arguments], tuple[Tensor, Tensor]]:
    """What computes a layer here and now: the operator, or the reference (and then a warning, once for each reason)."""
    if not _jit_tracing() and 0 in (weights[0].shape[-1], weights[1].shape[-1]):
        return reference.gru_layer  # without a warning: there is next to nothing to compute
    device_type, dtype = input.device.type, input.dtype
    if not ops.has_kernel(device_type, dtype):
        _warn_once(f"gru_ext has no kernel for {dtype} on {device_type}")
        return reference.gru_layer
    if not is_transformed():
        return _operator_layer
    if is_eager() and transforms.serve():
        return _transformed_layer
    _warn_once("gru_ext has no kernel for forward-mode differentiation and for compiled torch.func transforms")
    return reference.gru_layer


def _transformed_layer(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """One layer by the kernels, under transforms that those can follow."""
    output, h_n, _ = autograd.record(ops.forward, arguments, save=transforms.recorded(arguments.tensors))
    return output, h_n


def _operator_layer(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """One layer by the kernels, recorded for backward only when something asks for a gradient."""
    if is_eager():
        direct = ops.layer_direct(*arguments[:8])
        if direct is not None:
            return direct
    in_graph = torch.compiler.is_compiling() or _jit_tracing()  # there the operator joins itself to autograd
    if not in_graph and autograd.needs_gradient(arguments.tensors):
        output, h_n, _ = autograd.record(ops.forward, arguments)
    else:
        output, h_n, _ = ops.forward(*arguments, False)
    return output, h_n


@constant
def is_transformed() -> bool:
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
