"""Models frozen for inference on a CPU: :func:`freeze`.

Weights that never change need not be rearranged at each call, and need not be kept in 32 bits: at a batch of one,
reading them is most of what a step costs. A frozen GRU holds them as the kernels read them, once and nowhere else.

- float32: what the GRU computes
- bfloat16: what it computes with its weights rounded to bfloat16; all else stays float32
- int8: each row of a weight is about ``scale * q`` with whole numbers q within -127 and 127, scale = max |row| / 127.
  The input and the state are quantised the same way, each sequence at each step; sums are exact, gates are float32
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gru_ext import _C, autocast, checks, functional, ops
from gru_ext.modules import GRU, GRUCell
from gru_ext.ops import Arguments, Options
from gru_ext.packed_weights import FORMATS, MOST_BYTE_COLUMNS, pack, pack_scale, quantize, unpack, unpack_scale
from gru_ext.replacement import reason_to_leave

_SOURCES: tuple[type[nn.Module], ...] = (nn.GRU, GRU, nn.GRUCell, GRUCell)


class _PlainWeight(NamedTuple):
    """What the checks of a call ask of a weight that is not packed."""

    shape: tuple[int, ...]
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def type(self) -> str:
        """As ``Tensor.type`` gives it."""
        return "torch.FloatTensor"


class Frozen(nn.Module):
    """What a frozen GRU and a frozen cell share: buffers in place of Parameters, of the same names.

    A matrix is packed; biases stay as they are; int8 weights have a scale beside them, ``scale_ih_l0`` to
    ``weight_ih_l0``. ``state_dict`` holds each as [3H, K] in its dtype, and the scale as [3H], whatever the machine.
    """

    hidden_size: int
    weights: str
    _columns: dict[str, int]  # of each weight
    _packed: list[Tensor]  # as the kernels take them

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Of the weights."""
        return FORMATS[self.weights]

    def _hold(self, values: dict[str, Tensor]) -> None:
        """Take weights, biases and scales as ``state_dict`` has them; float32 weights become what is to be held."""
        lanes, held = _C.cpu_lanes(), dict(self._buffers)  # all or nothing
        for name, value in values.items():
            if name.startswith("bias"):
                held[name] = value.detach().float().clone()
            if name not in self._columns:
                continue
            scale = values.get(_scale_of(name))
            if self.weights == "int8" and (value.dtype != torch.int8 or scale is None):
                value, scale = quantize(value.float())
            weight = value.detach().to(self.frozen_dtype)
            held[name] = pack(weight, lanes)
            if self.weights == "int8":
                if bool((weight == -128).any()) or scale is None:
                    raise ValueError(f"{name} holds -128; expected -127 to 127")
                held[_scale_of(name)] = pack_scale(scale.detach().float(), weight, lanes)
        self._buffers.update(held)
        self._collect()

    def _plain(self) -> dict[str, Tensor]:
        """Weights, biases and scales as ``state_dict`` has them."""
        values: dict[str, Tensor] = {}
        for name, buffer in self._buffers.items():
            if buffer is None or name.startswith("scale"):
                continue
            values[name] = unpack(buffer, self.hidden_size, self._columns[name]) if name in self._columns else buffer
            if self.weights == "int8" and name in self._columns:
                scale = self._buffers[_scale_of(name)]
                assert scale is not None
                values[_scale_of(name)] = unpack_scale(scale, self.hidden_size)
        return values

    def _collect(self) -> None:
        """Lists the tensors of :attr:`_packed`."""
        raise NotImplementedError

    def weight_bytes(self) -> list[int]:
        """Of each layer what its weights, biases and scales take."""
        layers = getattr(self, "num_layers", 1)
        each = len(self._packed) // layers
        sizes = [tensor.nbytes for tensor in self._packed]
        return [sum(sizes[first : first + each]) for first in range(0, len(sizes), each)]

    def train(self, mode: bool = True) -> "Frozen":
        """Only evaluation mode.

        Raises:
            RuntimeError: mode is true
        """
        if mode:
            raise RuntimeError(
                f"{type(self).__name__} cannot be trained: its weights are packed for inference. "
                "Train the model that it was frozen from, and freeze that again"
            )
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frozen":
        moved = {name: fn(buffer) for name, buffer in self._buffers.items() if buffer is not None}
        for name, tensor in moved.items():
            before = self._buffers[name]
            assert before is not None
            if tensor.device != before.device or tensor.dtype not in (before.dtype, torch.float32):
                raise RuntimeError(
                    f"{type(self).__name__} computes in float32 on the CPU: {name} cannot become {tensor.dtype} on "
                    f"{tensor.device}. Move or cast the model that it was frozen from, and freeze that again"
                )
            if tensor.dtype == before.dtype:  # float() leaves bfloat16 weights alone
                self._buffers[name] = tensor
        self._collect()
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_packed"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        name = next(iter(self._columns))
        packed = self._buffers[name]
        if packed is not None and packed.size(3) != _C.cpu_lanes():  # pickled on another machine
            self._hold(self._plain())
        self._collect()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: value for name, value in self._plain().items()})

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = self._plain()
        values = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        fits = {name: value for name, value in values.items() if name in own}
        if strict:
            unexpected_keys += [prefix + name for name in values if name not in own]
            of_floats = [_scale_of(name) for name, value in fits.items() if value.is_floating_point()]
            missing_keys += [prefix + name for name in own if name not in fits and name not in of_floats]
        wrong = {name: value for name, value in fits.items() if value.shape != own[name].shape}
        for name, value in wrong.items():
            error_msgs.append(
                f"size mismatch for {prefix}{name}: {list(value.shape)}, expected {list(own[name].shape)}"
            )
        if not wrong:
            self._hold({**own, **fits} if self.weights != "int8" else _without_old_scales(own, fits))


def _scale_of(name: str) -> str:
    return name.replace("weight", "scale")


def _without_old_scales(own: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both, without the scales of weights that were replaced by others that have none."""
    replaced = {_scale_of(name) for name in new if name.startswith("weight")}
    return {**{name: value for name, value in own.items() if name not in replaced}, **new}


class FrozenGRU(Frozen, GRU):
    """A :class:`gru_ext.GRU` for inference alone; :func:`freeze` makes it.

    It is called as :class:`gru_ext.GRU` is, with float32 input on the CPU, and gives what that gives, to the accuracy
    of its weights.

    Attributes:
        weights: "float32", "bfloat16" or "int8"

    Raises:
        RuntimeError: as :class:`gru_ext.GRU`; the call would have to be recorded for backward; ``train()``
    """

    def _collect(self) -> None:
        self._packed = []
        for names in self._all_weights:
            scales = [_scale_of(name) for name in names[:2] if self.weights == "int8"]
            self._packed += [tensor for name in (*names, *scales) if (tensor := self._buffers[name]) is not None]

    def _init_flat_weights(self) -> None:
        """There are none."""

    def flatten_parameters(self) -> None:
        """There are none."""

    def extra_repr(self) -> str:
        """The arguments that are not the default, and the weights."""
        return f"{super().extra_repr()}, weights={self.weights}"

    def _run(
        self,
        input: Tensor,
        hx: Tensor | None,
        batch_sizes: Tensor | None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if reset_state is not None:
            _, reset_state = functional.as_kernels_take(input, self.hidden_size, self.batch_first, None, reset_state)
        options = (2 if self.bidirectional else 1, self.batch_first, 0, -1, self.hidden_size, self.input_size)
        if torch.is_grad_enabled():
            _no_gradient(self, input, hx, reset_state)
        if functional.is_eager():
            direct = ops.layer_direct(
                input, hx, self._packed, batch_sizes, lengths, resets, reset_state, options, self.num_layers
            )
            if direct is not None:
                return direct
        _no_transform()
        input, hx, reset_state = _in_float32(input, hx, reset_state)
        widths = [self.input_size, *[options[0] * self.hidden_size] * (self.num_layers - 1)]
        rows, states = 3 * self.hidden_size, (3 * self.hidden_size, self.hidden_size)
        plain: list[Any] = [
            _PlainWeight(shape) for width in widths for _ in range(options[0]) for shape in ((rows, width), states)
        ]
        stack = functional.Stack(
            input, hx, plain, lengths, resets, reset_state, self.num_layers, False, self.bidirectional,
            self.batch_first, 0.0, False, batch_sizes, False,
        )  # fmt: skip
        with _without_autocast():
            return functional.by_layers(stack, layer=_operator(self._packed, widths, self.hidden_size))


class FrozenGRUCell(Frozen, GRUCell):
    """A :class:`gru_ext.GRUCell` for inference alone, as :class:`FrozenGRU` is to :class:`gru_ext.GRU`."""

    def _collect(self) -> None:
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "scale_ih", "scale_hh"]
        self._packed = [tensor for name in names if (tensor := self._buffers.get(name)) is not None]

    def extra_repr(self) -> str:
        """The arguments that are not the default, and the weights."""
        return f"{super().extra_repr()}, weights={self.weights}"

    def _step(self, input: Tensor, hx: Tensor | None, reset: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            _no_gradient(self, input, hx)
        if functional.is_eager():
            held: Any = self._buffers
            direct = ops.cell_direct(
                input, hx, held["weight_ih"], held["weight_hh"], held["bias_ih"], held["bias_hh"], reset,
                held.get("scale_ih"), held.get("scale_hh"), self.hidden_size, self.input_size,
            )  # fmt: skip
            if direct is not None:
                return direct
        _no_transform()
        input, hx, _ = _in_float32(input, hx)
        rows = 3 * self.hidden_size
        weight_ih: Any = _PlainWeight((rows, self.input_size))
        weight_hh: Any = _PlainWeight((rows, self.hidden_size))
        checks.cell(input, hx, weight_ih, weight_hh, reset)
        state = None if hx is None else hx.unsqueeze(0)
        resets = None if reset is None else reset.unsqueeze(0)
        arguments = Arguments(input.unsqueeze(0), state, (), resets=resets, options=Options())
        with _without_autocast():
            _, h_n = _operator(self._packed, [self.input_size], self.hidden_size)(arguments)
        return h_n.squeeze(0)


def _operator(
    packed: Sequence[Tensor], widths: Sequence[int], hidden_size: int
) -> Callable[[Arguments], tuple[Tensor, Tensor]]:
    """What runs the layers, one at each call, by their packed weights; widths: the input_size of each."""
    each = len(packed) // len(widths)
    layers = iter([(list(packed[each * i : each * (i + 1)]), width) for i, width in enumerate(widths)])

    def layer(arguments: Arguments) -> tuple[Tensor, Tensor]:
        weights, width = next(layers)
        options = Options(*arguments.options)._replace(hidden_size=hidden_size, input_size=width)
        output, h_n, _ = ops.forward(*arguments._replace(weights=weights, options=options), False)
        return output, h_n

    return layer


def _no_gradient(module: nn.Module, *tensors: Tensor | None) -> None:
    if any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            f"{type(module).__name__} has no backward pass, and its input requires a gradient: call it under "
            "torch.inference_mode() or torch.no_grad(), or train the model that it was frozen from"
        )


def _no_transform() -> None:
    if functional.is_transformed():
        raise RuntimeError("frozen GRUs know no torch.func transforms and no forward-mode differentiation")


def _in_float32(*tensors: Tensor | None) -> list[Any]:
    """Under autocast all in float32, which a frozen GRU computes in; otherwise as they are."""
    if not autocast.enabled("cpu"):
        return [*tensors, None][:3]
    return [None if tensor is None else tensor.float() for tensor in (*tensors, None)][:3]


def _without_autocast() -> AbstractContextManager[Any]:
    """Nothing where there is none, for torch.export makes a graph of its own of what is within."""
    return torch.autocast("cpu", enabled=False) if autocast.enabled("cpu") else nullcontext()


def freeze(model: nn.Module, weights: str = "float32", *, layers: Sequence[str] | None = None) -> nn.Module:
    """A copy of a model for inference on the CPU, whose GRUs hold their weights packed ahead.

    The copy is in evaluation mode, and none of its Parameters requires a gradient. Its ``nn.GRU``, ``nn.GRUCell``,
    :class:`gru_ext.GRU` and :class:`gru_ext.GRUCell` become :class:`FrozenGRU` and :class:`FrozenGRUCell`; a module
    used in two places stays shared. Their weights are nowhere else, and never change: threads, forked processes and
    those of ``torch.multiprocessing`` share them. Subclasses and modules whose ``forward`` was overridden are left as
    they are, with a warning.

    Args:
        model: any module; its GRUs are float32, on the CPU
        weights: "float32", "bfloat16" (half the bytes) or "int8" (about a quarter); :mod:`gru_ext.frozen` says what
            each computes
        layers: names of the GRUs to freeze, as ``model.named_modules()`` has them ("" is the model itself); None: all

    Returns:
        the copy; of a model that is itself a GRU, the frozen GRU

    Raises:
        TypeError: model is not a module; layers is a string
        ValueError: weights is none of the three; layers names what is no GRU; there is nothing to freeze; a GRU is not
            float32 on the CPU, has weights that hooks compute (pruned, weight_norm), or a weight that is not finite or
            has more than 65,536 columns, for int8

    Examples::

        >>> frozen = gru_ext.freeze(model, weights="int8")
        >>> with torch.inference_mode():
        ...     output, h_n = frozen(torch.randn(1, 1, 256))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if weights not in FORMATS:
        raise ValueError(f"weights must be one of {', '.join(FORMATS)}, got {weights!r}")
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names, got {layers!r}")
    candidates = dict(_candidates(model))
    chosen = [name for name, _ in model.named_modules() if name in candidates] if layers is None else list(layers)
    unknown = [name for name in chosen if name not in candidates]
    if unknown:
        known = ", ".join(repr(name) for name in candidates) or "none"
        raise ValueError(f"layers names {unknown[0]!r}, which is no GRU of the model; its GRUs are: {known}")
    reasons = {
        name: reason_to_leave(candidates[name], source) for name in chosen for source in _source(candidates, name)
    }
    for name, reason in reasons.items():
        if reason is not None:
            warnings.warn(f"gru_ext.freeze leaves {name or 'the model'} as it is: {reason}", stacklevel=2)
    names = [name for name in chosen if reasons[name] is None]
    if not names:
        raise ValueError("there is nothing to freeze: the model has no nn.GRU, nn.GRUCell or gru_ext's own")
    for name in names:
        _check(name, candidates[name], weights)
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    for name in names:
        module = frozen.get_submodule(name)
        if not isinstance(module, Frozen):  # by another of its names
            _freeze(module, weights)
    return frozen


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those that stand in two places by both names."""
    modules = model.named_modules(remove_duplicate=False)
    return ((name, module) for name, module in modules if isinstance(module, _SOURCES))


def _source(candidates: dict[str, nn.Module], name: str) -> list[type[nn.Module]]:
    """The class that a module is, or derives from: ours before torch's."""
    sources: tuple[type[nn.Module], ...] = (GRU, GRUCell, nn.GRU, nn.GRUCell)
    return [source for source in sources if isinstance(candidates[name], source)][:1]


def _check(name: str, module: nn.Module, weights: str) -> None:
    where = name or "the model"
    for key in _names(module):
        hooked = key not in module._parameters and not parametrize.is_parametrized(module, key)
        if hooked:
            raise ValueError(
                f"{where}: {key} is computed by a hook, as pruning and weight_norm do; make that permanent first"
            )
        weight = getattr(module, key)
        if weight is None:
            continue
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise ValueError(
                f"{where}: {key} is {weight.dtype} on {weight.device}; freeze takes float32 on the CPU: "
                "model.float().cpu() first"
            )
        if weights == "int8" and weight.dim() == 2 and weight.size(1) > MOST_BYTE_COLUMNS:
            raise ValueError(f"{where}: {key} has {weight.size(1):,} columns, and int8 at most {MOST_BYTE_COLUMNS:,}")


def _names(module: nn.Module) -> list[str]:
    if isinstance(module, nn.RNNBase):
        return [name for names in module._all_weights for name in names]
    return ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


def _freeze(module: nn.Module, weights: str) -> None:
    """In place, so that hooks and whoever refers to it see it frozen."""
    names = _names(module)
    values: dict[str, Tensor | None] = {name: getattr(module, name) for name in names}
    for name in names:
        if parametrize.is_parametrized(module, name):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        delattr(module, name)
    module.__class__ = FrozenGRU if isinstance(module, nn.RNNBase) else FrozenGRUCell
    assert isinstance(module, Frozen)
    module.__dict__.update(_flat_weights_names=[], _flat_weights=[], _flat_weight_refs=[], weights=weights)
    module._columns = {
        name: value.size(1) for name, value in values.items() if value is not None and name.startswith("weight")
    }
    for name in values:
        module.register_buffer(name, None)
        if name in module._columns and weights == "int8":
            module.register_buffer(_scale_of(name), None)
    module._hold({name: value for name, value in values.items() if value is not None})
