"""What runs for a module and an input, and why: :func:`explain`. It queries the planner that runs at each call."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gru_ext import checks, cost, text
from gru_ext.frozen import Frozen
from gru_ext.modules import GRU, GRUCell
from gru_ext.planning import Call, LayerPlan, PassPlan, Peaks, cut_at_resets, layer_plan

_DIVISION = {
    "blocks": "blocks", "groups": "groups of them", "warps": "warps each", "shared_bytes": "shared bytes each",
}  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` gives; ``str()`` of it is for reading, ``to_dict()`` for ``json.dumps``.

    rich prints it as a table: ``rich.print(gru_ext.explain(...))``.

    Attributes:
        device, dtype: of the weights
        seq_len, batch, hidden_size, directions: T, B, H, D
        rows: T * B, or the sum of batch_sizes when packed, or that of lengths
        training: whether it is for a call that is recorded for backward
        layers: one for each
        lengths: whether the call has lengths
        resets: how often a sequence begins anew; None: the call has no resets
        packing: when packed, what ``lengths`` would save
        weights: of a frozen module "float32", "bfloat16" or "int8"; of others empty
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
    lengths: bool = False
    resets: int | None = None
    packing: cost.PackingCost | None = None
    weights: str = ""

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
        lines += [line for section in _sections(self) for line in section.lines(width)]
        return "\n".join([*lines, *textwrap.wrap(_saving(self), width, subsequent_indent="  ")])

    def __rich__(self) -> Any:
        from rich.console import Group

        saving = [_saving(self)] if self.packing else []
        return Group(_title(self), *(section.table() for section in _sections(self)), *saving)


@dataclass(frozen=True)
class ModelExplanation:
    """What :func:`explain` gives of a model, with the same ways to print it.

    Attributes:
        calls: of its GRUs and GRUCells in order, those that differ: name, number of calls, explanation
    """

    calls: tuple[tuple[str, int, Explanation], ...]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only."""
        return {"calls": [{"name": name, "calls": count, **plan.to_dict()} for name, count, plan in self.calls]}

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text()

    def text(self, width: int = 120) -> str:
        """For reading: the lines of each explanation below its name."""
        return "\n".join(f"{heading(name, count)}\n{plan.text(width)}" for name, count, plan in self.calls)

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*(part for name, count, plan in self.calls for part in (heading(name, count), plan)))


def heading(name: str, calls: int) -> str:
    """Of a call within a model."""
    return f"{name or 'the model itself'}: {text.counted(calls, 'call')}"


Inputs = Tensor | PackedSequence | Sequence[int]


@overload
def explain(
    module: GRU | GRUCell,
    input: Inputs,
    *others: Any,
    training: bool | None = None,
    peaks: Peaks | None = None,
    **named: Any,
) -> Explanation: ...


@overload
def explain(
    module: nn.Module, *others: Any, training: bool | None = None, peaks: Peaks | None = None, **named: Any
) -> ModelExplanation: ...


def explain(
    module: nn.Module, *others: Any, training: bool | None = None, peaks: Peaks | None = None, **named: Any
) -> Explanation | ModelExplanation:
    """Which kernels run a call, how they divide the work, and what it costs.

    It describes a plain eager call with the present settings: threads, SIMD target, environment variables, choices of
    :func:`gru_ext.tune`. Under ``torch.autocast`` pass the module in the dtype of the autocast. Of a packed input it
    says what ``lengths`` would save.

    Of a GRU or GRUCell nothing is run. Any other model is run once, to see what those in it are called with.

    Args:
        module: a :class:`gru_ext.GRU` or :class:`gru_ext.GRUCell`, or a model with some
        input, others, named: what it is called with. Of a GRU or GRUCell the input's shape will do; of the input and
            hx the values, dtype and device are not looked at. lengths may be a list; those of a GPU are read here
        training: whether the call is recorded for backward; None: whether gradients are enabled and one of the weights
            wants one, in eval mode too
        peaks: a :class:`gru_ext.measure.floor.Machine`, which measures the peak rates of this machine: then each pass
            on the CPU has its floor and what limits it

    Raises:
        TypeError: module is no module, or has no such argument; resets are no tensor
        ValueError: there is no such GRU in the model, or none is called; input, lengths or resets are of no shape for
            the module; a length is not from 0 to T; on CUDA GRU_EXT_CUDA_KERNEL is not what it may be

    Examples::

        >>> gru = gru_ext.GRU(80, 256)
        >>> print(gru_ext.explain(gru, (100, 1, 80), training=False))
        >>> print(gru_ext.explain(gru, (100, 3, 80), lengths=[100, 20, 70]))
    """
    if isinstance(module, (GRU, GRUCell)):
        return _of_call(module, training, peaks, *others, **named)
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not any(isinstance(child, (GRU, GRUCell)) for child in module.modules()):
        raise ValueError(f"{type(module).__name__} has no gru_ext.GRU or gru_ext.GRUCell; gru_ext.replace makes them")
    if training is None:
        training = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    with explainers(module, training) as explainer, torch.set_grad_enabled(training):
        module(*others, **named)
    counts: list[tuple[str, int, Explanation]] = []
    for name, of_call in explainer:
        plan = of_call(peaks=peaks)
        same = next((index for index, known in enumerate(counts) if known[::2] == (name, plan)), None)
        if same is None:
            counts.append((name, 1, plan))
        else:
            counts[same] = (name, counts[same][1] + 1, plan)
    if not counts:
        raise ValueError(f"{type(module).__name__} calls none of its GRUs with this input")
    return ModelExplanation(tuple(counts))


@contextmanager
def explainers(model: nn.Module, training: bool) -> Iterator[list[tuple[str, Callable[..., Explanation]]]]:
    """Collects the calls of the GRUs in the model: a name, and what explains it, but for peaks.

    Args:
        training: whether they are recorded for backward where gradients are enabled
    """
    calls: list[tuple[str, Callable[..., Explanation]]] = []

    def note(name: str, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        recorded = training and torch.is_grad_enabled()
        calls.append((name, partial(explain, layer, *arguments, training=recorded, **keywords)))

    handles = [
        child.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, child in model.named_modules()
        if isinstance(child, (GRU, GRUCell))
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _of_call(
    module: GRU | GRUCell,
    training: bool | None,
    peaks: Peaks | None,
    input: Inputs,
    hx: Tensor | None = None,
    **named: Any,
) -> Explanation:
    layer = None if isinstance(module, GRUCell) else module
    unknown = named.keys() - ({"reset"} if layer is None else {"lengths", "resets", "reset_state"})
    if unknown:
        raise TypeError(f"{type(module).__name__} takes no argument {min(unknown)!r}")
    seq_len, batch, rows = _sizes(module, input)
    frozen = module if isinstance(module, Frozen) else None
    weight = next(module.parameters()) if frozen is None else torch.empty(0)  # as input and state are
    if frozen is not None and training:
        raise ValueError(f"a {type(module).__name__} has no backward pass: it cannot be explained for training")
    if training is None:
        training = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    lengths = _lengths(named.get("lengths"), input, seq_len, batch, weight.is_cuda)
    resets = _resets(named.get("reset" if layer is None else "resets"), input, rows)
    device_type = _device_type(weight)
    call = Call(
        weight.dtype,
        device_type,
        weight.get_device(),
        seq_len,
        batch,
        rows,
        rows,
        module.input_size,
        module.hidden_size,
        2 if layer is not None and layer.bidirectional else 1,
        packed=isinstance(input, PackedSequence),
        marked=lengths is not None or resets is not None,
        training=training,
        recompute=layer is not None and layer.recompute,
        num_layers=1 if layer is None else layer.num_layers,
        cell=layer is None,
        weights="" if frozen is None else frozen.weights,
    )
    if lengths is not None:
        rows = sum(lengths)
        if device_type == "cpu":
            call = call._replace(seq_len=max(1, *lengths), rows=rows)
    if resets is not None and layer is not None and device_type == "cpu":
        of_batch = resets.reshape(batch, seq_len) if layer.batch_first else resets.reshape(seq_len, batch).t()
        pieces = cut_at_resets(of_batch.tolist(), lengths or [seq_len] * batch, call.hidden_size)
        call = call._replace(pieces=pieces)
    layers = []
    for number in range(call.num_layers):
        input_size = module.input_size if number == 0 else call.directions * call.hidden_size
        held = None if frozen is None else frozen.weight_bytes()[number]
        layers.append(layer_plan(call, input_size, module.bias, peaks, held))
    plan = Explanation(
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
        lengths is not None,
        None if resets is None else int(resets.sum()),
        weights=call.weights,
    )
    if not isinstance(input, PackedSequence):
        return plan
    widths = module.input_size, call.directions * call.hidden_size
    sorts = input.sorted_indices is not None
    packing = cost.packing_cost(seq_len, batch, rows, *widths, element_size=call.dtype.itemsize, sorts=sorts)
    return replace(plan, packing=packing)


def _device_type(weight: Tensor) -> str:
    return weight.device.type


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


def _lengths(lengths: Any, input: Inputs, seq_len: int, batch: int, clamped: bool) -> list[int] | None:
    """As a list."""
    if lengths is None:
        return None
    if isinstance(input, PackedSequence):
        raise ValueError("lengths are for padded input, got a PackedSequence")
    counts = [int(length) for length in (lengths.reshape(-1).tolist() if isinstance(lengths, Tensor) else lengths)]
    if len(counts) != batch:
        raise ValueError(f"lengths must be {batch}, one of each sequence, got {len(counts)}")
    for index, length in enumerate(counts):
        if not clamped and not 0 <= length <= seq_len:
            raise ValueError(f"lengths[{index}] must be from 0 to {seq_len}, got {length}")
    return [min(max(length, 0), seq_len) for length in counts]


def _resets(resets: Tensor | None, input: Inputs, rows: int) -> Tensor | None:
    """Those of a call, checked."""
    if resets is None:
        return None
    checks.are_tensors(resets=resets)
    if isinstance(input, PackedSequence):
        raise ValueError("resets are for padded input, got a PackedSequence")
    if resets.numel() != rows:
        raise ValueError(f"resets must have a value for each of {rows} steps, got {list(resets.shape)}")
    return resets


def _title(plan: Explanation) -> str:
    sizes = f"seq_len {plan.seq_len}, batch {plan.batch}"
    if plan.packed:
        sizes += f" packed into {plan.rows} rows"
    if plan.lengths:
        sizes += f" with lengths ({plan.rows:,} of {plan.seq_len * plan.batch:,} steps)"
    if plan.resets is not None:
        sizes += f", {text.counted(plan.resets, 'reset')}"
    return (
        f"{plan.device} {plan.dtype}: {sizes}, hidden_size {plan.hidden_size}, "
        f"{'training' if plan.training else 'no gradient'}"
        f"{f', frozen weights in {plan.weights}' if plan.weights else ''}"
    )


def _saving(plan: Explanation) -> str:
    """What lengths would save a packed call; otherwise empty."""
    if plan.packing is None:
        return ""
    copies = f"copy at least {text.size(plan.packing.input_bytes)} of input and "
    copies += f"{text.size(plan.packing.output_bytes)} of output"
    copies += ", and as much of gradients" if plan.training else ""
    others = ["sort the sequences"] if plan.packing.sorts else []
    others += ["read the lengths on the host"] if plan.device == "cuda" else []
    others += ["break a graph of torch.compile"]
    return (
        f"lengths= would take the padded input, {plan.seq_len} steps of {plan.batch} sequences, as it is. "
        f"pack_padded_sequence and pad_packed_sequence {copies}; they {text.listed(others)}."
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
                f"weights {text.size(layer.weight_bytes)}{_in_float32(plan, layer)}, "
                f"input {text.size(layer.input_bytes)}, "
                f"output {text.size(layer.output_bytes)}{kept}",
            )
        )
    return sections


def _in_float32(plan: Explanation, layer: LayerPlan) -> str:
    """What the weights of a frozen layer would take as they were."""
    return f" ({text.size(layer.plain_weight_bytes)} in float32)" if plan.weights else ""


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
