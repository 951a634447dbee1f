"""The one harness: measures workload after workload, says what it does, and keeps what it has when it is cut short."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch

from gru_ext import _C
from gru_ext.measure.floor import Machine, floor_ms, peak_lines, weight_bytes
from gru_ext.measure.measurements import Measurement, Row, write_csv
from gru_ext.measure.timing import Budget, measure
from gru_ext.measure.workloads import Workload
from gru_ext.text import width

EVENT_TIMING, GRAPH_TIMING = "events, warm L2", "graph replays, warm L2"


@dataclass
class Run(Generic[Row]):
    """What a run has measured so far.

    Attributes:
        measurements: one a workload, in the order of the workloads
        failures: a sentence for each workload that could not be measured
        complete: whether no workload is missing because of an interruption
    """

    measurements: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def exit_code(self) -> int:
        """0, 1 when a workload failed, 130 when interrupted."""
        return 130 if not self.complete else 1 if self.failures else 0


def progress_bar(total: int) -> Any:
    """tqdm's, on a terminal and where it is installed, else None."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit="cell", disable=None)


def kernel_asked(device: torch.device) -> str:
    """The kernel that the environment asks for; empty: plan chooses."""
    return os.environ.get("GRU_EXT_CUDA_KERNEL", "") if device.type == "cuda" else ""


def timing_words(workload: Workload) -> str:
    """Which clock is used, and what was allowed."""
    if workload.device.type != "cuda":
        return "wall"
    return GRAPH_TIMING if workload.graph else EVENT_TIMING


def floor_columns(workload: Workload, machine: Machine) -> dict[str, Any]:
    """Measurement's columns that are computed from the machine's peaks."""
    floor, cause = floor_ms(workload.gru, workload.dtype, workload.mode, machine, workload.threads)
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
    fields: dict[str, Any] = {**workload.columns(), **measured, **described}
    return Measurement(
        simd="" if workload.device.type == "cuda" else _C.cpu_target(),
        timing=timing_words(workload),
        kernel=kernel_asked(workload.device),
        **fields,
        **({} if machine is None else floor_columns(workload, machine)),
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
                bar.set_description(workload.title)
            try:
                do(workload)
                count += 1
            except (RuntimeError, MemoryError) as error:
                failures.append(f"{workload.title}: {(str(error) or type(error).__name__).splitlines()[0]}")
            if bar is not None:
                bar.update()
    except KeyboardInterrupt:
        print(f"interrupted: {count} of {len(workloads)} cells {done}", file=sys.stderr)
        return False
    finally:
        if bar is not None:
            bar.close()
    return True


def kept(workloads: Sequence[Workload], row: Callable[[Workload], Row], csv: Path | None = None) -> Run[Row]:
    """A row for each workload; Ctrl-C ends the run and keeps what it has.

    Args:
        csv: written anew with each row, so that a run that is cut short leaves what it measured
    """
    result: Run[Row] = Run()

    def add(workload: Workload) -> None:
        result.measurements.append(row(workload))
        if csv:
            write_csv(csv, result.measurements)

    result.complete = each(workloads, add, result.failures, "measured")
    return result


def heading(workloads: Sequence[Workload], described: dict[str, str]) -> Iterator[str]:
    """What is measured, where and how: lines for the head of the results."""
    device = workloads[0].device
    simd = f", SIMD target {_C.cpu_target()}" if device.type == "cpu" else ""
    versions = ", ".join(f"{name} {described[name]}" for name in ("torch", "gru_ext", "commit", "python", "date"))
    layouts = ", ".join(dict.fromkeys(workload.gru.layout for workload in workloads))
    kernel = f", kernel {kernel_asked(device) or 'by plan'}" if device.type == "cuda" else ""
    about = f"timing: {timing_words(workloads[0])}{kernel}; {layouts} input"
    for line in (f"{described['machine']}, {described['system']}{simd}", versions, about):
        yield textwrap.fill(line, width())


def use(device: torch.device) -> None:
    """Make it the current one, on which events are recorded."""
    if device.type == "cuda":
        torch.cuda.set_device(device if device.index is not None else 0)


def run(
    workloads: Sequence[Workload],
    budget: Budget,
    described: dict[str, str],
    *,
    lstm: bool = False,
    floor: bool = True,
    seed: int = 0,
    csv: Path | None = None,
    say: Callable[[str], None] = print,
) -> Run[Measurement]:
    """Measure every workload, all on the same device. Ctrl-C ends the run and keeps what it has.

    Args:
        workloads: at least one
        budget: for each workload
        described: by machine.py
        lstm: whether torch.nn.LSTM is timed as well
        floor: whether the machine's peaks are measured first; on CUDA there are none
        csv: as for :func:`kept`
        say: takes the lines that head the results
    """
    device = workloads[0].device
    use(device)
    for line in heading(workloads, described):
        say(line)
    machine = Machine() if floor and device.type == "cpu" else None
    if machine is not None:
        try:  # before the workloads, and all: a peak measured between two workloads would disturb them
            for line in peak_lines(machine, workloads):
                say(line)
        except MemoryError:
            say("no floor: there is no memory for a buffer as large as the largest W_hh")
            machine = None
        except KeyboardInterrupt:
            print("interrupted: no cell measured", file=sys.stderr)
            return Run()
    return kept(
        workloads,
        lambda workload: row_of(workload, measure(workload, budget, lstm=lstm, seed=seed), described, machine),
        csv,
    )
