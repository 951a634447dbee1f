"""The plan of each layer of a call, with what it costs, from the planner that runs at each call."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch

from gru_ext import _C, cost, ops, text
from gru_ext.cost import Limits, MatrixProduct
from gru_ext.cuda import decision, wavefront

_WHY_SPLIT = {
    "none": "there is too little work for more, or torch.get_num_threads() or the machine allows no more",
    "batch": "each thread takes some of the sequences and waits for no other",
    "hidden units": "each thread keeps the weights of its own hidden units and meets the others after every step",
    "directions": "each thread takes one of the two directions",
    "layers": "a step is too short for more than one, so layers overlap, each a few steps behind the one below",
}


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
        division: the same in numbers. CPU: threads, split, few_rows, narrow_weights (weights of 16 bits are widened as
            they are read); pieces, where sequences are cut at
            resets. CUDA kernels that keep the weights on the chip: blocks (of a group, which holds W_hh), groups,
            group_batch (sequences of a group), tile (of them: whose product and cells a warp does at a time), warps,
            units, shared_bytes (of a block), directions_together
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
        input_bytes, output_bytes: of the layer's input and output, without padding
        saved_bytes: kept from forward to backward beside input and weights, with it; None where torch's own kernels
            decide
        plain_weight_bytes: of the weights and biases as they were before they were frozen; else as weight_bytes
    """

    input_size: int
    passes: tuple[PassPlan, ...]
    products: tuple[MatrixProduct, ...]
    operations: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    saved_bytes: int | None
    plain_weight_bytes: int


class Call(NamedTuple):
    """What is explained.

    Attributes:
        seq_len, rows: of lengths the longest and the sum, where the host knows them
        padded_rows: rows, with the padding between them
        input_size: of the first layer
        marked: whether there are lengths or resets
        pieces: what :func:`cut_at_resets` gives
        weights: in which they are frozen; empty: they are not
    """

    dtype: torch.dtype
    device_type: str
    device: int
    seq_len: int
    batch: int
    rows: int
    padded_rows: int
    input_size: int
    hidden_size: int
    directions: int
    packed: bool
    marked: bool
    training: bool
    recompute: bool
    num_layers: int
    cell: bool
    pieces: tuple[int, int] | None = None
    weights: str = ""

    @property
    def keeps_states(self) -> bool:
        """Whether forward keeps the states alone for backward."""
        return self.training and self.recompute

    @property
    def pass_names(self) -> tuple[str, ...]:
        """Forward and, in training, backward."""
        return ("forward", "backward") if self.training else ("forward",)


def cut_at_resets(resets: list[list[bool]], lengths: list[int], hidden_size: int) -> tuple[int, int] | None:
    """Into how many pieces passes on the CPU cut the sequences, and the steps of the longest; None: they do not.

    Layers that overlap take the sequences whole.

    Args:
        resets: [B][T]
        lengths: of the sequences
    """
    steps = []
    for of_sequence, length in zip(resets, lengths, strict=True):
        bounds = [0, *(time for time in range(1, length) if of_sequence[time]), length]
        steps += [end - start for start, end in pairwise(bounds) if end > start]
    if not steps or not _C.cpu_worth_cutting(len(resets[0]), len(resets), hidden_size, len(steps), max(steps)):
        return None
    return len(steps), max(steps)


def layer_plan(
    call: Call, input_size: int, bias: bool, peaks: Peaks | None, frozen_bytes: int | None = None
) -> LayerPlan:
    """The plans of a layer with what they cost; of a frozen one so many bytes are its weights."""
    overlapping = _overlapping(call)
    if call.pieces is not None and overlapping is None:
        call = call._replace(batch=call.pieces[0], seq_len=call.pieces[1])
    passes = _passes(call, input_size) if overlapping is None else (overlapping,)
    device_type, element_size = call.device_type, call.dtype.itemsize
    known = passes[0].kernel not in ("library", "reference") or len(passes) == 1
    row = int(ops.saved_row(call.hidden_size, call.dtype, device_type, call.keeps_states))
    saved_row = call.directions * row * element_size if call.training else 0
    layer = cost.layer_cost(
        call.seq_len,
        call.batch,
        call.rows,
        input_size,
        call.hidden_size,
        call.directions,
        bias=bias,
        element_size=element_size,
        saved_bytes=call.rows * saved_row,
        recompute=call.keeps_states and known,
    )
    plain_weight_bytes = layer.weight_bytes
    if frozen_bytes is not None:
        layer = layer.with_weights(frozen_bytes)
    plans = []
    for plan in passes:
        of_pass = layer.forward if plan.name == "forward" else layer.backward
        plan = replace(plan, products=of_pass.products, operations=of_pass.operations)
        if known:
            plan = replace(plan, read_bytes=of_pass.read_bytes, written_bytes=of_pass.written_bytes)
        if known and peaks is not None and device_type == "cpu" and call.weights in ("", "float32"):
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
        call.padded_rows * saved_row if known else None,
        plain_weight_bytes,
    )


def _overlapping(call: Call) -> PassPlan | None:
    """What runs the layers of a stack that overlap, a few steps behind one another; None: they do not."""
    if call.device_type != "cpu" or call.training or not ops.has_kernel(call.device_type, call.dtype):
        return None
    of_stack = call.seq_len, call.rows, call.input_size, call.hidden_size, call.directions
    longest_piece = None if call.pieces is None else call.pieces[1]
    plan = _C.cpu_plan(call.dtype, *of_stack, layers=call.num_layers, longest_piece=longest_piece, weights=call.weights)
    return _cpu_pass("forward", plan) if plan["split"] == "layers" else None


def _passes(call: Call, input_size: int) -> tuple[PassPlan, ...]:
    """The passes of one of the layers."""
    if not ops.has_kernel(call.device_type, call.dtype):
        why = f"gru_ext has no kernel for {call.dtype} on {call.device_type}: plain PyTorch runs, which is slower"
        return tuple(PassPlan(name, "reference", why) for name in call.pass_names)
    if call.device_type == "cpu":
        sizes = call.dtype, call.seq_len, call.rows, input_size, call.hidden_size
        # Backward's second direction adds to the gradient of the input that the first has written.
        return tuple(
            _cpu_pass(name, _C.cpu_plan(*sizes, at_once, weights=call.weights), call.pieces)
            for name, at_once in zip(call.pass_names, (call.directions, 1), strict=False)
        )
    return _cuda_passes(call, input_size)


def _cuda_passes(call: Call, input_size: int) -> tuple[PassPlan, ...]:
    """The same on CUDA."""
    steps, device = 0 if call.cell else call.seq_len, call.device
    of_batch = call.directions, call.packed, call.training, device
    decided = decision.decide(call.dtype, steps, call.batch, call.hidden_size, *of_batch)
    of_layers = call.seq_len, call.directions, call.num_layers, call.packed, call.recompute, call.marked
    strategy = decided.where_possible(*of_layers).strategy
    if strategy == "library":
        reason = "torch's own kernels run plain calls"
        return tuple(PassPlan(name, strategy, reason, source=decided.source) for name in call.pass_names)
    ours = None if decided.strategy == "library" else decided.kernel  # None: what runs where the library cannot
    passes = decision.native.cuda_passes(call.dtype, steps, call.batch, input_size, call.hidden_size, *of_batch, ours)
    overlap = f"; layers overlap, in chunks of {wavefront.STEPS} steps" if strategy == "wavefront" else ""
    return tuple(
        PassPlan(name, str(plan.pop("kernel")), str(plan.pop("reason")) + overlap, plan, source=decided.source)
        for name, plan in zip(call.pass_names, passes, strict=True)
    )


def _cpu_pass(name: str, plan: dict[str, Any], pieces: tuple[int, int] | None = None) -> PassPlan:
    division = {word: value for word, value in plan.items() if word != "simd"}
    why = f"{text.counted(division['threads'])}: {_WHY_SPLIT[division['split']]}"
    if division["few_rows"] and name == "forward":
        why += "; so few rows that the weights are read as they lie"
    if pieces is not None:
        division["pieces"] = pieces[0]
        why += f"; cut at the resets into {pieces[0]:,} pieces of at most {text.counted(pieces[1], 'step')}"
    return PassPlan(name, str(plan["simd"]), why, division)
