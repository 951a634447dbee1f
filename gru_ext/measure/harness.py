"""The one harness: measures workload after workload, says what it does, and keeps what it has when it is cut short."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from gru_ext import _C
from gru_ext.measure.floor import Machine, peak_lines, stack_floor_ms, weight_bytes
from gru_ext.measure.machine import facts
from gru_ext.measure.measurements import Measurement, write_csv
from gru_ext.measure.text import width
from gru_ext.measure.timing import Budget, measure
from gru_ext.measure.workloads import Shape, Workload

EVENT_TIMING, GRAPH_TIMING = "events, warm L2", "graph replays, warm L2"


class Progress(Protocol):
    """What of tqdm's bar is used."""

    def update(self) -> object:
        """One more workload is done."""

    def set_description(self, text: str) -> object:
        """Says which workload is being measured."""

    def close(self) -> object:
        """The bar is in nobody's way after this."""


@dataclass
class Run:
    """What a run has measured so far.

    Attributes:
        measurements: one a workload, in the order of the workloads
        failures: a sentence for each workload that could not be measured
        complete: whether no workload is missing because of an interruption
    """

    measurements: list[Measurement] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def exit_code(self) -> int:
        """0, 1 when a workload failed, 130 when interrupted."""
        return 130 if not self.complete else 1 if self.failures else 0


def progress_bar(total: int) -> Progress | None:
    """tqdm's, on a terminal and where it is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    bar: Progress = tqdm(total=total, unit="cell", disable=None)
    return bar


def timing_words(device: torch.device, graph: bool) -> str:
    """Which clock is used, and what was allowed; ``graph`` as in Workload."""
    if device.type != "cuda":
        return "wall"
    return GRAPH_TIMING if graph else EVENT_TIMING


def kernel_asked(device: torch.device) -> str:
    """The kernel that the environment asks for; empty: plan chooses."""
    return os.environ.get("GRU_EXT_CUDA_KERNEL", "") if device.type == "cuda" else ""


def title(workload: Workload) -> str:
    """The workload in a few words, for the progress bar and for messages."""
    name = f"{workload.gru.name}: " if workload.gru.name else ""
    threads = f"{workload.threads}t " if workload.device.type == "cpu" else ""
    return f"{name}{workload.dtype} {threads}{workload.mode} ({','.join(map(str, workload.shape))})"


def floor_fields(workload: Workload, machine: Machine) -> dict[str, Any]:
    """Measurement's fields that are computed from the machine's peaks."""
    floor, cause = stack_floor_ms(workload.gru, workload.dtype, workload.mode, machine, workload.threads)
    size = weight_bytes(workload.gru.hidden_size, workload.dtype)
    return {
        "floor_ms": floor,
        "floor_cause": cause,
        "operations_per_second": machine.operations_per_second(workload.dtype, workload.threads),
        "bytes_per_second": machine.bytes_per_second(size, workload.threads),
    }


def row_of(
    workload: Workload, measured: dict[str, Any], described: dict[str, str], machine: Machine | None
) -> Measurement:
    """The workload's row: what was measured, beside what was asked for and where."""
    gru = workload.gru
    floor = {} if machine is None else floor_fields(workload, machine)
    fields: dict[str, Any] = {**measured, **described, **floor}
    return Measurement(
        device=workload.device.type,
        dtype=workload.dtype,
        threads=workload.threads,
        mode=workload.mode,
        batch=gru.batch,
        seq_len=gru.seq_len,
        input_size=gru.input_size,
        hidden_size=gru.hidden_size,
        layout=gru.layout,
        simd="" if workload.device.type == "cuda" else _C.cpu_target(),
        timing=timing_words(workload.device, workload.graph),
        kernel=kernel_asked(workload.device),
        name=gru.name,
        num_layers=gru.num_layers,
        bidirectional=int(gru.bidirectional),
        cell=int(gru.cell),
        **fields,
    )


def each(workloads: Sequence[Workload], do: Callable[[Workload], None], failures: list[str], done: str) -> bool:
    """Does something with workload after workload, below a progress bar. Ctrl-C ends it.

    Args:
        do: may raise RuntimeError or MemoryError, such as for want of memory: other workloads may have enough
        failures: is given a sentence for each workload that did
        done: what becomes of the workloads, such as "measured"

    Returns:
        whether it came to the end
    """
    count = 0
    bar = progress_bar(len(workloads))
    try:
        for workload in workloads:
            if bar is not None:
                bar.set_description(title(workload))
            try:
                do(workload)
                count += 1
            except (RuntimeError, MemoryError) as error:
                failures.append(f"{title(workload)}: {(str(error) or type(error).__name__).splitlines()[0]}")
            if bar is not None:
                bar.update()
    except KeyboardInterrupt:
        print(f"interrupted: {count} of {len(workloads)} cells {done}", file=sys.stderr)
        return False
    finally:
        if bar is not None:
            bar.close()
    return True


def distinct(workloads: Sequence[Workload]) -> tuple[list[str], list[int], list[Shape]]:
    """The dtypes, thread counts and shapes of the workloads, each once."""
    dtypes, threads, shapes = (
        dict.fromkeys(getattr(workload, of) for workload in workloads) for of in ("dtype", "threads", "shape")
    )
    return list(dtypes), list(threads), list(shapes)


def run(
    workloads: Sequence[Workload],
    budget: Budget,
    *,
    lstm: bool = False,
    floor: bool = True,
    seed: int = 0,
    csv: Path | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """Measure every workload, all on the same device. Ctrl-C ends the run and keeps what it has.

    Args:
        workloads: at least one
        budget: for each workload
        lstm: whether torch.nn.LSTM is timed as well
        floor: whether the machine's peaks are measured first; on CUDA there are none
        csv: written anew with each workload, so that a run that is cut short leaves what it measured
        say: takes the lines that head the results
    """
    device = workloads[0].device
    if device.type == "cuda":  # events are recorded on the current device
        torch.cuda.set_device(device if device.index is not None else 0)
    described = facts(device)
    simd = f", SIMD target {_C.cpu_target()}" if device.type == "cpu" else ""
    versions = ", ".join(f"{name} {described[name]}" for name in ("torch", "gru_ext", "commit", "python", "date"))
    layouts = ", ".join(dict.fromkeys(workload.gru.layout for workload in workloads))
    kernel = f", kernel {kernel_asked(device) or 'by plan'}" if device.type == "cuda" else ""
    about = f"timing: {timing_words(device, workloads[0].graph)}{kernel}; {layouts} input"
    for line in (f"{described['machine']}, {described['system']}{simd}", versions, about):
        say(textwrap.fill(line, width()))
    result = Run()
    machine = Machine() if floor and device.type == "cpu" else None
    if machine is not None:
        try:  # before the workloads, and all: a peak measured between two workloads would disturb them
            for line in peak_lines(machine, *distinct(workloads)):
                say(line)
        except MemoryError:
            say("no floor: there is no memory for a buffer as large as the largest W_hh")
            machine = None
        except KeyboardInterrupt:
            print("interrupted: no cell measured", file=sys.stderr)
            return result

    def add(workload: Workload) -> None:
        measured = measure(workload, budget, lstm=lstm, seed=seed)
        result.measurements.append(row_of(workload, measured, described, machine))
        if csv:
            write_csv(csv, result.measurements)

    result.complete = each(workloads, add, result.failures, "measured")
    return result
