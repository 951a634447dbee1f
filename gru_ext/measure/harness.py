"""The one harness: measures cell after cell, says what it does, and keeps what it has when it is cut short."""

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
from gru_ext.measure.cells import Cell, Shape
from gru_ext.measure.floor import Machine, peak_lines, stack_floor_ms, weight_bytes
from gru_ext.measure.machine import facts
from gru_ext.measure.measurements import Measurement, write_csv
from gru_ext.measure.text import width
from gru_ext.measure.timing import Budget, measure

EVENT_TIMING, GRAPH_TIMING = "events, warm L2", "graph replays, warm L2"


class Progress(Protocol):
    """What of tqdm's bar is used."""

    def update(self) -> object:
        """One more cell is done."""

    def set_description(self, text: str) -> object:
        """Says which cell is being measured."""

    def close(self) -> object:
        """The bar is in nobody's way after this."""


@dataclass
class Run:
    """What a run has measured so far.

    Attributes:
        measurements: one a cell, in the order of the cells
        failures: a sentence for each cell that could not be measured
        complete: whether no cell is missing because of an interruption
    """

    measurements: list[Measurement] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def exit_code(self) -> int:
        """0, 1 when a cell failed, 130 when interrupted."""
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
    """Which clock is used, and what was allowed; ``graph`` as in Cell."""
    if device.type != "cuda":
        return "wall"
    return GRAPH_TIMING if graph else EVENT_TIMING


def kernel_asked(device: torch.device) -> str:
    """The kernel that the environment asks for; empty: plan chooses."""
    return os.environ.get("GRU_EXT_CUDA_KERNEL", "") if device.type == "cuda" else ""


def title(cell: Cell) -> str:
    """The cell in a few words, for the progress bar and for messages."""
    name = f"{cell.layer.name}: " if cell.layer.name else ""
    threads = f"{cell.threads}t " if cell.device.type == "cpu" else ""
    return f"{name}{cell.dtype} {threads}{cell.mode} ({','.join(map(str, cell.shape))})"


def floor_fields(cell: Cell, machine: Machine) -> dict[str, Any]:
    """Measurement's fields that are computed from the machine's peaks."""
    floor, cause = stack_floor_ms(cell.layer, cell.dtype, cell.mode, machine, cell.threads)
    size = weight_bytes(cell.layer.hidden_size, cell.dtype)
    return {
        "floor_ms": floor,
        "floor_cause": cause,
        "operations_per_second": machine.operations_per_second(cell.dtype, cell.threads),
        "bytes_per_second": machine.bytes_per_second(size, cell.threads),
    }


def row_of(cell: Cell, measured: dict[str, Any], described: dict[str, str], machine: Machine | None) -> Measurement:
    """The cell's row: what was measured, beside what was asked for and where."""
    layer = cell.layer
    fields: dict[str, Any] = {**measured, **described, **(floor_fields(cell, machine) if machine is not None else {})}
    return Measurement(
        device=cell.device.type,
        dtype=cell.dtype,
        threads=cell.threads,
        mode=cell.mode,
        batch=layer.batch,
        seq_len=layer.seq_len,
        input_size=layer.input_size,
        hidden_size=layer.hidden_size,
        layout=layer.layout,
        simd="" if cell.device.type == "cuda" else _C.cpu_target(),
        timing=timing_words(cell.device, cell.graph),
        kernel=kernel_asked(cell.device),
        name=layer.name,
        num_layers=layer.num_layers,
        bidirectional=int(layer.bidirectional),
        cell=int(layer.cell),
        **fields,
    )


def each(cells: Sequence[Cell], do: Callable[[Cell], None], failures: list[str], done: str) -> bool:
    """Does something with cell after cell, below a progress bar. Ctrl-C ends it.

    Args:
        do: may raise RuntimeError or MemoryError, such as for want of memory: other cells may have enough
        failures: is given a sentence for each cell that did
        done: what becomes of the cells, such as "measured"

    Returns:
        whether it came to the end
    """
    count = 0
    bar = progress_bar(len(cells))
    try:
        for cell in cells:
            if bar is not None:
                bar.set_description(title(cell))
            try:
                do(cell)
                count += 1
            except (RuntimeError, MemoryError) as error:
                failures.append(f"{title(cell)}: {(str(error) or type(error).__name__).splitlines()[0]}")
            if bar is not None:
                bar.update()
    except KeyboardInterrupt:
        print(f"interrupted: {count} of {len(cells)} cells {done}", file=sys.stderr)
        return False
    finally:
        if bar is not None:
            bar.close()
    return True


def distinct(cells: Sequence[Cell]) -> tuple[list[str], list[int], list[Shape]]:
    """The dtypes, thread counts and shapes of the cells, each once."""
    dtypes, threads, shapes = (
        dict.fromkeys(getattr(cell, of) for cell in cells) for of in ("dtype", "threads", "shape")
    )
    return list(dtypes), list(threads), list(shapes)


def run(
    cells: Sequence[Cell],
    budget: Budget,
    *,
    lstm: bool = False,
    floor: bool = True,
    seed: int = 0,
    csv: Path | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """Measure every cell, all on the same device. Ctrl-C ends the run and keeps what it has.

    Args:
        cells: at least one
        budget: for each cell
        lstm: whether torch.nn.LSTM is timed as well
        floor: whether the machine's peaks are measured first; on CUDA there are none
        csv: written anew with each cell, so that a run that is cut short leaves what it measured
        say: takes the lines that head the results
    """
    device = cells[0].device
    if device.type == "cuda":  # events are recorded on the current device
        torch.cuda.set_device(device if device.index is not None else 0)
    described = facts(device)
    simd = f", SIMD target {_C.cpu_target()}" if device.type == "cpu" else ""
    versions = ", ".join(f"{name} {described[name]}" for name in ("torch", "gru_ext", "commit", "python", "date"))
    layouts = ", ".join(dict.fromkeys(cell.layer.layout for cell in cells))
    kernel = f", kernel {kernel_asked(device) or 'by plan'}" if device.type == "cuda" else ""
    about = f"timing: {timing_words(device, cells[0].graph)}{kernel}; {layouts} input"
    for line in (f"{described['machine']}, {described['system']}{simd}", versions, about):
        say(textwrap.fill(line, width()))
    result = Run()
    machine = Machine() if floor and device.type == "cpu" else None
    if machine is not None:
        try:  # before the cells, and all: a peak measured between two cells would disturb them
            for line in peak_lines(machine, *distinct(cells)):
                say(line)
        except MemoryError:
            say("no floor: there is no memory for a buffer as large as the largest W_hh")
            machine = None
        except KeyboardInterrupt:
            print("interrupted: no cell measured", file=sys.stderr)
            return result

    def add(cell: Cell) -> None:
        measured = measure(cell, budget, lstm=lstm, seed=seed)
        result.measurements.append(row_of(cell, measured, described, machine))
        if csv:
            write_csv(csv, result.measurements)

    result.complete = each(cells, add, result.failures, "measured")
    return result
