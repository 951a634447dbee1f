"""What runs for a module and an input, and why: :func:`explain`. It queries the planner that runs at each call."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from gru_ext import _C, cost, ops, text
from gru_ext.cost import Limits, MatrixProduct
from gru_ext.cuda import decision, wavefront
from gru_ext.modules import GRU, GRUCell

_WHY_SPLIT = {
    "none": "there is too little work for more, or torch.get_num_threads() or the machine allows no more",
    "batch": "each thread takes some of the sequences and waits for no other",
    "hidden units": "each thread keeps the weights of its own hidden units and meets the others after every step",
    "directions": "each thread takes one of the two directions",
    "layers": "a step is too short for more than one, so layers overlap, each a few steps behind the one below",
}
_DIVISION = {
    "blocks": "blocks", "groups": "groups of them", "warps": "warps each", "shared_bytes": "shared bytes each",
}  # fmt: skip


class Peaks(Protocol):
    """The peak rates of a machine, such as those that :class:`gru_ext.measure.floor.Machine` measures."""

    def limits(
        self,
        pass_name: str,
        seq_len: int,
        rows: int,
        input_size: int,
        hidden_size: int,
        dtype: str,
        threads: int,
        directions: int,
        traffic_bytes: int,
    ) -> Limits:
        """Lower bounds of the time of a pass, "forward" or "backward", that moves so many bytes."""


@dataclass(frozen=True)
class PassPlan:
    """One pass of a layer.

    Attributes:
        name: "forward" or "backward"
        kernel: on the CPU the SIMD target; on CUDA "step", "solo", "cluster", "grid", or "library": torch's own
            kernels; "reference": plain PyTorch, for want of a kernel
        reason: why, and how the work is divided, in a sentence
        division: the same in numbers. CPU: threads, split, few_rows, narrow_weights. CUDA kernels that keep the
            weights on the chip: blocks (of a group, which holds W_hh), groups, group_batch (sequences of a group),
            tile (of them: whose product and cells a warp does at a time), warps, units, shared_bytes (of a block),
            directions_together
        products: (rows, columns, depth) of each matrix product, and how often it runs, for all directions together;
            when packed, later steps have fewer rows than the first, whose are given
        operations: of all products, two for a multiply-add
        read_bytes, written_bytes: of the tensors that the pass reads and writes, each counted once; None where torch's
            own kernels decide
        limits: what bounds the pass from below on this machine; None unless ``peaks`` were given, and on CUDA
        source: on CUDA who chose, to stand behind "chosen by": "GRU_EXT_CUDA_KERNEL"; "gru_ext.tune", with its date and
            what it gained; "measurements on" a GPU, with their folder and mean gain; or "default"; elsewhere empty
    """

    name: str
    kernel: str
    reason: str
    division: dict[str, Any] = field(default_factory=dict)
    products: tuple[MatrixProduct, ...] = ()
    operations: int = 0
    read_bytes: int | None = None
    written_bytes: int | None = None
    limits: Limits | None = None
    source: str = ""


@dataclass(frozen=True)
class LayerPlan:
    """One layer, all its directions.

    Attributes:
        input_size: I of this layer
        passes: forward and, when training, backward
        products: (rows, columns, depth) of each matrix product of the forward pass, and how often it runs
        operations: of all products of all passes, two for a multiply-add
        weight_bytes: of the layer's weights and biases
        input_bytes, output_bytes: of the layer's input and output
        saved_bytes: kept from forward to backward beside input and weights; None where torch's own kernels decide
    """

    input_size: int
    passes: tuple[PassPlan, ...]
    products: tuple[MatrixProduct, ...]
    operations: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    saved_bytes: int | None


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` gives; ``str()`` of it is for reading, ``to_dict()`` for ``json.dumps``.

    rich prints it as a table: ``rich.print(gru_ext.explain(...))``.

    Attributes:
        device, dtype: of the weights
        seq_len, batch, hidden_size, directions: T, B, H, D
        rows: T * B, or the sum of batch_sizes when packed
        training: whether it is for a call that is recorded for backward
        layers: one for each
    """

    device: str
    dtype: str
    seq_len: int
    batch: int
    rows: int
    hidden_size: int
    directions: int
    packed: bool
    training: bool
    layers: tuple[LayerPlan, ...]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text()

    def text(self, width: int = 120) -> str:
        """For reading: a few lines for each layer, none longer than ``width``."""
        lines = textwrap.wrap(_title(self), width, subsequent_indent="  ")
        if self.advice:
            lines += textwrap.wrap(self.advice, width, subsequent_indent="  ")
        return "\n".join([*lines, *(line for section in _sections(self) for line in section.lines(width))])

    def __rich__(self) -> Any:
        from rich.console import Group

        head = (_title(self), *([self.advice] if self.advice else []))
        return Group(*head, *(section.table() for section in _sections(self)))

    @property
    def advice(self) -> str:
        """What ``lengths=`` would save of packed input; empty for any other."""
        if not self.packed:
            return ""
        input_bytes, output_bytes = self.layers[0].input_bytes, self.layers[-1].output_bytes
        twice = ", and their gradients in backward" if self.training else ""
        host = ", a sort and a copy of the lengths to the host" if self.device == "cuda" else ""
        return (
            "lengths= takes padded input as it is, and saves what pack_padded_sequence and pad_packed_sequence copy, "
            f"{text.size(input_bytes)} of input and {text.size(output_bytes)} of output{twice}{host}, and the graph "
            "breaks of both under torch.compile"
        )


def explain(
    module: GRU | GRUCell,
    input: Tensor | PackedSequence | Sequence[int],
    *,
    lengths: Tensor | None = None,
    training: bool | None = None,
    peaks: Peaks | None = None,
) -> Explanation:
    """Which kernels run a call, how they divide the work, and what it costs. Nothing is run.

    It describes a plain eager call with the present settings: threads, SIMD target, environment variables, choices of
    :func:`gru_ext.tune`. Under ``torch.autocast`` pass the module in the dtype of the autocast.

    Args:
        module: a :class:`gru_ext.GRU` or :class:`gru_ext.GRUCell`
        input: as for calling it, or the shape alone. Its values, dtype and device are not looked at
        lengths: as for calling it; they are read
        training: whether the call is recorded for backward; None: whether gradients are enabled and one of the weights
            wants one, in eval mode too
        peaks: a :class:`gru_ext.measure.floor.Machine`, which measures the peak rates of this machine: then each pass
            on the CPU has its floor and what limits it

    Raises:
        TypeError: module is neither
        ValueError: input is of no shape for the module, or lengths do not fit it; on CUDA GRU_EXT_CUDA_KERNEL is not
            what it may be

    Examples::

        >>> gru = gru_ext.GRU(80, 256)
        >>> print(gru_ext.explain(gru, (100, 1, 80), training=False))
    """
    if not isinstance(module, (GRU, GRUCell)):
        raise TypeError(f"module must be a gru_ext.GRU or gru_ext.GRUCell, got {type(module).__name__}")
    seq_len, batch, rows = _sizes(module, input)
    if lengths is not None:
        if isinstance(module, GRUCell) or isinstance(input, PackedSequence) or lengths.numel() != batch:
            raise ValueError(f"lengths are those of a padded batch of {batch}, got {lengths.numel()}")
        steps = lengths.clamp(0, seq_len)
        seq_len, rows = max(1, int(steps.max())), int(steps.sum())
    weight = next(module.parameters())
    if training is None:
        training = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    layer = None if isinstance(module, GRUCell) else module
    call = _Call(
        weight.dtype,
        _device_type(weight),
        weight.get_device(),
        seq_len,
        batch,
        rows,
        module.input_size,
        module.hidden_size,
        2 if layer is not None and layer.bidirectional else 1,
        packed=isinstance(input, PackedSequence),
        training=training,
        recompute=layer is not None and layer.recompute,
        num_layers=1 if layer is None else layer.num_layers,
        cell=layer is None,
        marked=lengths is not None,
    )
    layers = []
    for number in range(call.num_layers):
        input_size = module.input_size if number == 0 else call.directions * call.hidden_size
        layers.append(_layer(call, input_size, module.bias, peaks))
    return Explanation(
        call.device_type,
        str(call.dtype).removeprefix("torch."),
        seq_len,
        batch,
        rows,
        call.hidden_size,
        call.directions,
        call.packed,
        training,
        tuple(layers),
    )


def _device_type(weight: Tensor) -> str:
    return weight.device.type


class _Call(NamedTuple):
    """What is explained; input_size is that of the first layer."""

    dtype: torch.dtype
    device_type: str
    device: int
    seq_len: int
    batch: int
    rows: int
    input_size: int
    hidden_size: int
    directions: int
    packed: bool
    training: bool
    recompute: bool
    num_layers: int
    cell: bool
    marked: bool

    @property
    def keeps_states(self) -> bool:
        """Whether forward keeps the states alone for backward."""
        return self.training and self.recompute

    @property
    def pass_names(self) -> tuple[str, ...]:
        """Forward and, in training, backward."""
        return ("forward", "backward") if self.training else ("forward",)


def _layer(call: _Call, input_size: int, bias: bool, peaks: Peaks | None) -> LayerPlan:
    """The plans of a layer with what they cost."""
    passes = _passes(call, input_size)
    device_type, element_size = call.device_type, call.dtype.itemsize
    known = passes[0].kernel not in ("library", "reference") or len(passes) == 1
    row = int(ops.saved_row(call.hidden_size, call.dtype, device_type, call.keeps_states))
    saved = call.directions * call.rows * row * element_size if call.training else 0
    layer = cost.layer_cost(
        call.seq_len,
        call.batch,
        call.rows,
        input_size,
        call.hidden_size,
        call.directions,
        bias=bias,
        element_size=element_size,
        saved_bytes=saved,
        recompute=call.keeps_states and known,
    )
    plans = []
    for plan in passes:
        of_pass = layer.forward if plan.name == "forward" else layer.backward
        plan = replace(plan, products=of_pass.products, operations=of_pass.operations)
        if known:
            plan = replace(plan, read_bytes=of_pass.read_bytes, written_bytes=of_pass.written_bytes)
        if known and peaks is not None and device_type == "cpu":
            dtype, threads = str(call.dtype).removeprefix("torch."), torch.get_num_threads()
            shape = (call.seq_len, call.rows, input_size, call.hidden_size)
            moved = of_pass.read_bytes + of_pass.written_bytes
            plan = replace(plan, limits=peaks.limits(plan.name, *shape, dtype, threads, call.directions, moved))
        plans.append(plan)
    return LayerPlan(
        input_size,
        tuple(plans),
        layer.forward.products,
        sum(plan.operations for plan in plans),
        layer.weight_bytes,
        layer.input_bytes,
        layer.output_bytes,
        saved if known else None,
    )


def _passes(call: _Call, input_size: int) -> tuple[PassPlan, ...]:
    """The passes of one of the layers."""
    if not ops.has_kernel(call.device_type, call.dtype):
        why = f"gru_ext has no kernel for {call.dtype} on {call.device_type}: plain PyTorch runs, which is slower"
        return tuple(PassPlan(name, "reference", why) for name in call.pass_names)
    if call.device_type == "cpu":
        sizes = call.dtype, call.seq_len, call.rows
        if not call.training:
            first = call.input_size, call.hidden_size, call.directions
            stacked = _C.cpu_plan(*sizes, *first, layers=call.num_layers)
            if stacked["split"] == "layers":
                return (_cpu_pass("forward", stacked),)
        # Backward's second direction adds to the gradient of the input that the first has written.
        return tuple(
            _cpu_pass(name, _C.cpu_plan(*sizes, input_size, call.hidden_size, at_once))
            for name, at_once in zip(call.pass_names, (call.directions, 1), strict=False)
        )
    return _cuda_passes(call, input_size)


def _cuda_passes(call: _Call, input_size: int) -> tuple[PassPlan, ...]:
    """The same on CUDA."""
    steps, device = 0 if call.cell else call.seq_len, call.device
    of_batch = call.directions, call.packed, call.training, device
    decided = decision.decide(call.dtype, steps, call.batch, call.hidden_size, *of_batch)
    possible = decided.where_possible(
        call.seq_len, call.directions, call.num_layers, call.packed, call.recompute, call.marked
    )
    strategy = possible.strategy
    if strategy == "library":
        reason = "torch's own kernels run plain calls"
        return tuple(PassPlan(name, strategy, reason, source=decided.source) for name in call.pass_names)
    passes = decision.native.cuda_passes(
        call.dtype,
        steps,
        call.batch,
        input_size,
        call.hidden_size,
        *of_batch,
        "step" if call.marked else decided.kernel,
    )
    overlap = f"; layers overlap, in chunks of {wavefront.STEPS} steps" if strategy == "wavefront" else ""
    return tuple(
        PassPlan(name, str(plan.pop("kernel")), str(plan.pop("reason")) + overlap, plan, source=decided.source)
        for name, plan in zip(call.pass_names, passes, strict=True)
    )


def _cpu_pass(name: str, plan: dict[str, Any]) -> PassPlan:
    division = {word: value for word, value in plan.items() if word != "simd"}
    few = "; so few rows that the weights are read as they lie" if division["few_rows"] and name == "forward" else ""
    why = f"{text.counted(division['threads'])}: {_WHY_SPLIT[division['split']]}{few}"
    return PassPlan(name, str(plan["simd"]), why, division)


def _sizes(module: GRU | GRUCell, input: Tensor | PackedSequence | Sequence[int]) -> tuple[int, int, int]:
    """T, B and rows."""
    if isinstance(input, PackedSequence):
        if isinstance(module, GRUCell):
            raise ValueError("input of a GRUCell must be a tensor or a shape, got a PackedSequence")
        return input.batch_sizes.numel(), int(input.batch_sizes[0]), input.data.size(0)
    shape = tuple(int(size) for size in (input.shape if isinstance(input, Tensor) else input))
    most = 2 if isinstance(module, GRUCell) else 3
    if len(shape) not in (most - 1, most) or shape[-1] != module.input_size or min(shape) < 0:
        raise ValueError(
            f"input must have {most - 1} or {most} dimensions, the last of size {module.input_size}, got {shape}"
        )
    if isinstance(module, GRUCell):
        seq_len, batch = 1, 1 if len(shape) == 1 else shape[0]
    elif len(shape) == 2:
        seq_len, batch = shape[0], 1
    else:
        seq_len, batch = (shape[1], shape[0]) if module.batch_first else (shape[0], shape[1])
    if seq_len < 1:
        raise ValueError(f"input must have at least one step, got {shape}")
    return seq_len, batch, seq_len * batch


def _title(plan: Explanation) -> str:
    full = plan.rows == plan.seq_len * plan.batch
    packed = f" packed into {plan.rows} rows" if plan.packed else "" if full else f" with {plan.rows} steps in all"
    return (
        f"{plan.device} {plan.dtype}: seq_len {plan.seq_len}, batch {plan.batch}{packed}, "
        f"hidden_size {plan.hidden_size}, {'training' if plan.training else 'no gradient'}"
    )


def _sections(plan: Explanation) -> list[text.Section]:
    """A section for each layer, a column for each pass."""
    sections = []
    directions = ", both directions" if plan.directions == 2 else ""
    for number, layer in enumerate(plan.layers):
        saved = "what torch's kernels need" if layer.saved_bytes is None else text.size(layer.saved_bytes)
        kept = f", kept for backward {saved}" if plan.training else ""
        sections.append(
            text.Section(
                f"layer {number}, input_size {layer.input_size}{directions}",
                [(of_pass.name, _facts(of_pass)) for of_pass in layer.passes],
                f"weights {text.size(layer.weight_bytes)}, input {text.size(layer.input_bytes)}, "
                f"output {text.size(layer.output_bytes)}{kept}",
            )
        )
    return sections


def _facts(plan: PassPlan) -> dict[str, str]:
    """What there is to say about a pass."""
    facts = {"kernel": plan.kernel, "why": plan.reason}
    if plan.source:
        facts["chosen by"] = plan.source
    divided = [f"{plan.division[name]} {words}" for name, words in _DIVISION.items() if name in plan.division]
    if divided:
        facts["divided"] = ", ".join(divided)
    facts["products"] = "; ".join(f"{m:,}x{k:,} @ {k:,}x{n:,} {text.times(count)}" for m, n, k, count in plan.products)
    facts["operations"] = text.operations(plan.operations)
    if plan.read_bytes is not None and plan.written_bytes is not None:
        facts["bytes"] = f"{text.size(plan.read_bytes)} read, {text.size(plan.written_bytes)} written"
    if plan.limits is not None:
        cause, shortest = plan.limits.cause, text.duration(plan.limits.latency_us / 1e3)
        latency = f"; the smallest layer of as many steps takes {shortest}" if cause == "latency" else ""
        facts["floor"] = f"{text.duration(plan.limits.floor_us / 1e3)}, limited by {cause}{latency}"
    return facts
