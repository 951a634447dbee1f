"""Frozen GRUs beside the module they were frozen from, torch.nn.GRU and torch.ao's quantised one, and ONNX Runtime.

All of a cell are timed by turns, on the same weights and input, for inference. torch.ao's is that of
``quantize_dynamic`` in int8; ONNX Runtime, where it is installed with onnx and onnxscript, runs the float32 model that
torch.onnx exports. Errors are those of the outputs, relative to the float64 model, in the Euclidean norm.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import gru_ext
from gru_ext.measure.harness import Run, timing_words
from gru_ext.measure.measurements import Result, geometric_mean
from gru_ext.measure.timing import Budget, by_turns, contestants, time_columns, values
from gru_ext.measure.workloads import Shape, Workload
from gru_ext.packed_weights import FORMATS
from gru_ext.text import Table, duration, installed, size, three_digits

# One sequence: frame by frame, and a hundred frames at once; W_hh of 48 KiB to 12 MiB in float32.
SHAPES: tuple[Shape, ...] = tuple(
    (1, seq_len, hidden_size, hidden_size) for hidden_size in (64, 128, 256, 512, 1024) for seq_len in (1, 20, 100)
)
NEEDS = ("onnxruntime", "onnx", "onnxscript")
WAYS = {
    "torch": "nn.GRU", "torch_ao": "torch.ao", "onnxruntime": "ORT", "gru_ext": "gru_ext",
    "float32": "float32", "bfloat16": "bf16", "int8": "int8",
}  # fmt: skip


@dataclass(frozen=True)
class FrozenMeasurement(Result):
    """Times in milliseconds for one call, medians and quartiles over the rounds; onnxruntime's None without it."""

    rounds: int
    calls: int
    torch_ms: float
    torch_ms_q1: float
    torch_ms_q3: float
    torch_ao_ms: float
    torch_ao_ms_q1: float
    torch_ao_ms_q3: float
    gru_ext_ms: float  # not frozen
    gru_ext_ms_q1: float
    gru_ext_ms_q3: float
    float32_ms: float  # frozen
    float32_ms_q1: float
    float32_ms_q3: float
    bfloat16_ms: float
    bfloat16_ms_q1: float
    bfloat16_ms_q3: float
    int8_ms: float
    int8_ms_q1: float
    int8_ms_q3: float
    torch_error: float
    torch_ao_error: float
    float32_error: float
    bfloat16_error: float
    int8_error: float
    gru_ext_bytes: int  # of all weights and biases
    float32_bytes: int
    bfloat16_bytes: int
    int8_bytes: int
    simd: str  # of int8
    timing: str
    date: str
    machine: str
    system: str
    python: str
    torch: str
    gru_ext: str
    commit: str
    name: str
    num_layers: int
    bidirectional: int
    cell: int
    compute_capability: str = ""
    onnxruntime: str = ""  # its version
    onnxruntime_ms: float | None = field(default=None)
    onnxruntime_ms_q1: float | None = field(default=None)
    onnxruntime_ms_q3: float | None = field(default=None)

    def gain(self, way: str, over: str = "gru_ext") -> float | None:
        """The time of ``over`` divided by that of ``way``."""
        ours, theirs = getattr(self, f"{way}_ms"), getattr(self, f"{over}_ms")
        return None if ours is None or theirs is None else theirs / ours


def measure_frozen(workload: Workload, budget: Budget, seed: int = 0) -> dict[str, Any]:
    """Time a workload.

    Returns:
        those fields of a FrozenMeasurement that are measured

    Raises:
        RuntimeError: what torch raises, such as for want of memory
    """
    (theirs, ours), data = contestants(workload, seed)
    ways: dict[str, Callable[[], Any]] = {}
    modules: dict[str, nn.Module] = {"torch": theirs.eval(), "gru_ext": ours.eval(), "torch_ao": _torch_ao(theirs)}
    modules |= {weights: gru_ext.freeze(ours, weights) for weights in FORMATS}
    for name, module in modules.items():
        ways[name] = partial(module, data)
    session = _onnxruntime(ours, data, workload.threads) if isinstance(data, Tensor) else None
    fields: dict[str, Any] = {}
    if session is not None:
        ways["onnxruntime"], fields["onnxruntime"] = session
    with torch.no_grad():
        outputs = {name: values(modules[name](data)).double() for name in modules}
        truth = values(theirs.double()(data.double()))
        theirs.float()
    with torch.inference_mode():
        calls, times = by_turns(list(ways.values()), budget, workload.device)
    for name, of in zip(ways, times, strict=True):
        fields |= time_columns(name, of)
    for name in ("torch", "torch_ao", *FORMATS):
        fields[f"{name}_error"] = float((outputs[name] - truth).norm() / truth.norm())
    for weights in FORMATS:
        held: Any = modules[weights]
        fields[f"{weights}_bytes"] = sum(held.weight_bytes())
    fields["gru_ext_bytes"] = sum(parameter.nbytes for parameter in ours.parameters())
    plan: Any = gru_ext.explain(modules["int8"], data)
    fields["simd"] = plan.layers[0].passes[0].kernel
    return fields | {"rounds": len(times[0]), "calls": calls, "timing": timing_words(workload)}


def _torch_ao(module: nn.Module) -> nn.Module:
    """torch.ao's GRU or cell with int8 weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and nothing replaces it
        quantized: Any = torch.ao.quantization.quantize_dynamic(nn.Sequential(module), {type(module)}, torch.qint8)
    first: nn.Module = quantized[0]
    return first


def _onnxruntime(module: nn.Module, data: Tensor, threads: int) -> tuple[Callable[[], Any], str] | None:
    """A call, its input and outputs bound, and the version; None where it or what exports to it is missing."""
    if not all(installed(package) for package in NEEDS):
        return None
    import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter's, such as of packages that it does without
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = module(data)
            table = gru_ext.onnx.translation_table()
            program = torch.onnx.export(module, (data,), dynamo=True, custom_translation_table=table, verbose=False)
    finally:
        logging.disable(disabled)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    assert program is not None
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding, of = session.io_binding(), onnxruntime.OrtValue.ortvalue_from_numpy
    binding.bind_ortvalue_input(session.get_inputs()[0].name, of(data.numpy()))
    tensors = expected if isinstance(expected, tuple) else (expected,)
    for output, tensor in zip(session.get_outputs(), tensors, strict=True):
        binding.bind_ortvalue_output(output.name, of(torch.empty_like(tensor).numpy()))
    return lambda: session.run_with_iobinding(binding), str(onnxruntime.__version__)


def frozen_tables(measurements: Sequence[FrozenMeasurement]) -> Iterator[Table]:
    """Times, and what they say, for each number of threads; at most 80 columns wide."""
    for threads in dict.fromkeys(row.threads for row in measurements):
        rows = [row for row in measurements if row.threads == threads]
        where = f"float32, {threads} thread{'s' * (threads > 1)}, inference"
        times = [
            (row.title, *("-" if (ms := getattr(row, f"{way}_ms")) is None else duration(ms) for way in WAYS))
            for row in rows
        ]
        yield Table(("(B,T,I,H)", *WAYS.values()), times, f"{where}: time of a call; the last three frozen")
        columns: dict[str, tuple[str, str]] = {
            "float32": ("float32", "gru_ext"), "bf16": ("bfloat16", "gru_ext"), "int8": ("int8", "gru_ext"),
            "/float32": ("int8", "float32"), "/torch.ao": ("int8", "torch_ao"), "/ORT": ("int8", "onnxruntime"),
        }  # fmt: skip
        gains = [(row, [row.gain(*of) for of in columns.values()]) for row in rows]
        cells = [
            (row.title, *("-" if gain is None else three_digits(gain) for gain in of), size(row.int8_bytes))
            for row, of in gains
        ]
        means = [[gain for gain in column if gain is not None] for column in zip(*(of for _, of in gains), strict=True)]
        cells.append(("geometric mean", *(three_digits(geometric_mean(of)) if of else "-" for of in means), ""))
        errors = (f"{way} {max(getattr(row, f'{way}_error') for row in rows):.1e}" for way in (*FORMATS, "torch_ao"))
        notes = [
            "the first three: gru_ext's time over that of each, frozen; the others: that of frozen float32, torch.ao "
            "and ONNX Runtime over int8's; bytes: of int8",
            f"largest error: {', '.join(errors)}",
        ]
        yield Table(("(B,T,I,H)", *columns, "bytes"), cells, f"{where}: gains", notes)


def frozen_lines(result: Run[FrozenMeasurement]) -> Iterator[str]:
    """Where freezing gains less than nothing."""
    rows = result.measurements
    slower = [(row.gain("float32") or 0, row) for row in rows if (row.gain("float32") or 0) < 1]
    if rows:
        yield f"frozen float32 slower than unfrozen: {len(slower) or 'none'} of {len(rows)} cells"
    for gain, row in slower:
        yield f"  {gain:.3f}  {row.threads}t, {row.title}"
