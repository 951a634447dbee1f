"""Where the time and the memory of a GRU go: :func:`profile`, for a module of the user's and an input.

It runs the module a few times under ``torch.profiler``. Every pass of a gru_ext layer is a range there whose name tells
pass, kernel, dtype and sizes (``gru_forward_avx2 fp32 T=100 B=8 I=80 H=256 D=1``); what it had to do is what
``gru_ext.explain`` says of the same layer, and the floor comes from the machine's peaks (floor.py). On the CPU the
kernels' own clock (phases.py) runs beside it, so that phases and ranges are of the same calls.

While a profiler listens, calls do not take the short way past torch's dispatcher: of calls of a few microseconds the
share outside our ranges is larger than in a run without it. ``python -m gru_ext bench`` times those.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # torch does not list it
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

import gru_ext
from gru_ext.explanation import Explanation, explainers
from gru_ext.measure import BadInput, memory
from gru_ext.measure.calls import call, tensors_in
from gru_ext.measure.floor import Machine
from gru_ext.measure.phases import PassPhases, PhaseTime, phase_clock, phase_times
from gru_ext.measure.work import pass_work
from gru_ext.planning import LayerPlan, PassPlan

WARM_UP_CALLS = 2
CALLS = 10
RANGE = re.compile(r"gru_(forward|backward)_(\w+) (fp32|fp64|bf16|fp16) ((?:\w+=\d+ ?)+)")
DTYPE_NAMES = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}


class PassKey(NamedTuple):
    """The pass of a layer, as the name of its range and ``gru_ext.explain`` both tell it: "forward" or "backward"."""

    name: str
    dtype: str
    seq_len: int
    rows: int
    input_size: int
    hidden_size: int
    directions: int
    members: int = 1  # of an ensemble, in one call

    @classmethod
    def parse(cls, text: str) -> PassKey | None:
        """Of a range's name; None for a name that is none of ours."""
        match = RANGE.match(text)
        if match is None:
            return None
        sizes = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match[4])}
        rows = sizes.get("rows", sizes["T"] * sizes["B"])
        of_layer = (sizes["I"], sizes["H"], sizes["D"], sizes.get("M", 1))
        return cls(match[1], DTYPE_NAMES[match[3]], sizes["T"], rows, *of_layer)

    @classmethod
    def of(cls, call: Explanation, layer: LayerPlan, plan: PassPlan) -> PassKey:
        """Of an explained pass."""
        return cls(plan.name, call.dtype, call.seq_len, call.rows, layer.input_size, call.hidden_size, call.directions)


@dataclass(frozen=True)
class PassProfile:
    """One pass of the layers of one size, over all calls.

    Attributes:
        range: its name in the profile and in the trace
        name: "forward" or "backward"
        calls: how often it ran
        ms: of all of them; on CUDA the time of the kernels that it launched
        share: of the time of all calls of the module, 0 to 1
        operations, bytes: of one call, by work.py; None where no layer of the module has these sizes and this dtype,
            as under autocast
        floor_ms: the least that this machine allows for one call; None on CUDA and where operations is
        floor_cause: what is said to limit the pass: "arithmetic", "cache", "memory" or "latency"
        fastest_ms: of a single call; None in a profile from before this was kept
    """

    range: str
    name: str
    calls: int
    ms: float
    share: float
    operations: int | None = None
    bytes: int | None = None
    floor_ms: float | None = None
    floor_cause: str | None = None
    fastest_ms: float | None = None

    @property
    def ms_per_call(self) -> float:
        """Milliseconds of one call."""
        return self.ms / self.calls

    @property
    def gflops(self) -> float | None:
        """10^9 operations a second."""
        return None if self.operations is None else self.operations / self.ms_per_call * 1e-6

    @property
    def gbytes(self) -> float | None:
        """10^9 bytes a second."""
        return None if self.bytes is None else self.bytes / self.ms_per_call * 1e-6

    @property
    def of_floor(self) -> float | None:
        """The floor over the time, 0 to 1: 1 is this machine's limit."""
        return None if self.floor_ms is None else self.floor_ms / self.ms_per_call


@dataclass(frozen=True)
class MemoryProfile:
    """Memory of one call of the module; see memory.py.

    Attributes:
        kept_bytes: what autograd keeps; None without training
        saved_bytes: of these, what our layers save beside their inputs and weights, by ``gru_ext.explain``; None for
            nn.GRU, and where torch's own kernels run
        peak_bytes: None where it was not measured
        exact: whether it is, as memory.py's Peak says
        why: why it could not be measured; empty where nobody asked for it
    """

    kept_bytes: int | None
    saved_bytes: int | None
    peak_bytes: int | None
    exact: bool = True
    why: str = ""


@dataclass(frozen=True)
class Profile:
    """What :func:`profile` has found; ``to_dict()`` is for ``json.dumps``.

    Attributes:
        device, training, threads: what was run; threads is torch's setting, of the CPU
        calls: of the module that were completed
        ms: of all of them
        passes: of our ranges, in the order of first appearance; with ``rest_ms`` they make ``ms``
        rest_ms: time in none of them: other modules, Python, torch's dispatcher, the profiler itself
        phases: of the CPU kernels; empty on CUDA
        memory: by "gru_ext" and "nn.GRU"; empty when it was not asked for
        interrupted: whether it was, by the user
    """

    device: str
    training: bool
    threads: int
    calls: int
    ms: float
    passes: tuple[PassProfile, ...]
    phases: tuple[PassPhases, ...]
    memory: dict[str, MemoryProfile] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def rest_ms(self) -> float:
        """Milliseconds in none of our ranges."""
        return max(0.0, self.ms - sum(of_pass.ms for of_pass in self.passes))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        """The reverse of :meth:`to_dict`; what else is in the mapping is left out."""

        def made(kind: type[Any], values: Mapping[str, Any]) -> Any:
            return kind(**{entry.name: values[entry.name] for entry in fields(kind) if entry.name in values})

        phases = tuple(
            made(PassPhases, {**entry, "phases": tuple(made(PhaseTime, phase) for phase in entry["phases"])})
            for entry in values["phases"]
        )
        passes = tuple(made(PassProfile, entry) for entry in values["passes"])
        memories = {name: made(MemoryProfile, entry) for name, entry in values["memory"].items()}
        profile: Profile = made(cls, {**values, "passes": passes, "phases": phases, "memory": memories})
        return profile

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only; of each pass what it achieved too."""
        values = asdict(self)
        for of_pass, row in zip(self.passes, values["passes"], strict=True):
            row |= {"gflops": of_pass.gflops, "gbytes": of_pass.gbytes, "of_floor": of_pass.of_floor}
        return values | {"rest_ms": self.rest_ms}


def profile(
    module: nn.Module,
    *inputs: Any,
    training: bool = True,
    calls: int = CALLS,
    machine: Machine | None = None,
    trace: Path | None = None,
    peaks: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Profiles calls of a module with GRUs in it.

    The module itself is left as it is: a copy runs whose GRUs are gru_ext's (``gru_ext.replace``), and for the memory
    another whose GRUs are torch's.

    Args:
        module: with at least one GRU or GRUCell, of torch's or gru_ext's
        inputs: what it is called with
        training: whether each call goes backward too, as calls.py says
        calls: how many are profiled, after two that are not
        machine: the peaks for the floor; None: measured now, which takes some seconds
        trace: where to write a trace for Perfetto or chrome://tracing
        peaks: whether to measure the peak of memory, on the CPU in two processes of their own
        progress: told in a few words what comes next

    Raises:
        BadInput: (a ValueError) there is no GRU in the module, calls is below 1, or there is nothing to train
        KeyboardInterrupt: before a call was completed; later it ends the profile early
    """
    if calls < 1:
        raise BadInput(f"calls must be at least 1, got {calls}")
    ours = _with(gru_ext.replace, module)
    if not any(isinstance(child, (gru_ext.GRU, gru_ext.GRUCell)) for child in ours.modules()):
        raise BadInput(f"{type(module).__name__} has no GRU: no nn.GRU, nn.GRUCell, gru_ext.GRU or gru_ext.GRUCell")
    device = next((tensor.device for tensor in (*ours.parameters(), *tensors_in(inputs))), torch.device("cpu"))
    machine = machine or Machine()
    interrupted = False
    progress("warming up")
    with explainers(ours, training) as explain:
        call(ours, inputs, training)
    for _ in range(WARM_UP_CALLS - 1):
        call(ours, inputs, training)
    seconds: list[float] = []
    progress("profiling")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch_profile(activities=activities, acc_events=True) as profiler, phase_clock():
        try:
            for _ in range(calls):
                seconds.append(_timed(ours, inputs, training, device))
        except KeyboardInterrupt:
            if not seconds:
                raise
            interrupted = True
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    phases = phase_times()
    ms = 1e3 * sum(seconds)
    try:
        progress("measuring the machine's peaks")
        plans = [of_call(peaks=machine) for _, of_call in explain]
    except KeyboardInterrupt:
        interrupted, plans = True, [of_call() for _, of_call in explain]
    passes = _passes(profiler, plans, ms, device)
    memories: dict[str, MemoryProfile] = {}
    try:
        if not interrupted:
            for name, model in (("gru_ext", ours), ("nn.GRU", _with(gru_ext.restore, ours))):
                progress(f"measuring memory, {name}")
                saved = _saved(plans) if name == "gru_ext" else None
                memories[name] = _memory(model, inputs, training, peaks, saved)
    except KeyboardInterrupt:
        interrupted = True
    return Profile(
        device.type, training, torch.get_num_threads(), len(seconds), ms, passes, phases, memories, interrupted
    )


def _with(change: Callable[[nn.Module], object], module: nn.Module) -> nn.Module:
    """A changed copy of the module."""
    changed = copy.deepcopy(module)
    change(changed)
    return changed


def _timed(module: nn.Module, inputs: tuple[Any, ...], training: bool, device: torch.device) -> float:
    begin = time.perf_counter()
    call(module, inputs, training)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _passes(
    profiler: torch_profile, explanations: list[Explanation], ms: float, device: torch.device
) -> tuple[PassProfile, ...]:
    """A row for each name among our ranges."""
    microseconds: dict[str, list[float]] = {}
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.device_type == DeviceType.CPU and PassKey.parse(event.name):
            spent = event.device_time_total if device.type == "cuda" else event.time_range.elapsed_us()
            microseconds.setdefault(event.name, []).append(float(spent))
    known = {
        PassKey.of(explanation, layer, plan): (explanation, plan)
        for explanation in explanations
        for layer in explanation.layers
        for plan in layer.passes
    }
    rows = []
    for text, times in microseconds.items():
        key = PassKey.parse(text)
        assert key is not None
        spent_ms = sum(times) * 1e-3
        row = PassProfile(text, key.name, len(times), spent_ms, spent_ms / ms, fastest_ms=min(times) * 1e-3)
        if key in known:
            explanation, plan = known[key]
            work = pass_work(explanation, plan)
            row = row if work is None else replace(row, operations=work.operations, bytes=work.bytes)
            if plan.limits is not None:
                row = replace(row, floor_ms=plan.limits.floor_us * 1e-3, floor_cause=plan.limits.cause)
        rows.append(row)
    return tuple(rows)


def _saved(explanations: list[Explanation]) -> int | None:
    saved = [layer.saved_bytes for explanation in explanations for layer in explanation.layers]
    known = [size for size in saved if size is not None]
    return sum(known) if len(known) == len(saved) else None


def _memory(
    module: nn.Module, inputs: tuple[Any, ...], training: bool, peaks: bool, saved: int | None
) -> MemoryProfile:
    kept = memory.kept_bytes(module, inputs) if training else None
    of_call = MemoryProfile(kept, saved if training else None, None)
    if not peaks:
        return of_call
    try:
        peak = memory.peak(module, inputs, training)
    except RuntimeError as error:
        return replace(of_call, why=str(error))
    return replace(of_call, peak_bytes=peak.bytes, exact=peak.exact)
