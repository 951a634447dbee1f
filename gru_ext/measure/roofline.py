"""The roofline: what a layer's operations per byte allow on this machine, and what was achieved.

A point is a shape: across, its operations per byte; up, the operations a second that were achieved. Both contestants
stand above one another, for both have to do the same. Operations and bytes are those of work.py: bytes are what the
algorithm must read and write wherever it lies (W_hh at every step, input, output, what is kept for backward, and the
gradients), not what a counter saw.

The ceilings are measured in the same run by the loops of the SIMD target in use: arithmetic, level, and for each cache
and for memory the line of what reading a buffer that it holds allows. A point below the line of the cache that holds
W_hh and below arithmetic has something left to win; one above a line has kept W_hh nearer than that.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import gru_ext
from gru_ext.measure.floor import MOST_BYTES, Machine
from gru_ext.measure.work import Work, pass_work
from gru_ext.measure.workloads import DTYPES, Shape, shape_name
from gru_ext.text import Table, counted, size, three_digits

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_CACHES = (("L1", 32 << 10), ("L2", 1 << 20), ("L3", 32 << 20))  # where the system does not tell
PART = 2  # a buffer of one in so many of a cache stays in it
MEMORY_TIMES = 4  # as large as the last cache: what is read then comes from memory
OURS, TORCHS = "gru_ext", "nn.GRU"


@dataclass(frozen=True)
class Ceiling:
    """A limit of the machine.

    Attributes:
        name: "arithmetic", "L1", "L2", ..., "memory"
        bytes: of the buffer that was read; 0 for arithmetic
        rate: operations or bytes a second
    """

    name: str
    bytes: int
    rate: float


@dataclass(frozen=True)
class Point(Work):
    """What one contestant achieved on a shape, with operations and bytes of a call.

    Attributes:
        contestant: "gru_ext" or "nn.GRU"
        shape: B, T, I, H
        ms: of a call, median
    """

    contestant: str
    shape: Shape
    ms: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.ms * 1e3


def shape_work(shape: Shape, dtype: str, training: bool) -> Work:
    """Operations and bytes of one call of a layer of these sizes."""
    batch, seq_len, input_size, hidden_size = shape
    module = gru_ext.GRU(input_size, hidden_size, dtype=DTYPES[dtype])
    plan = gru_ext.explain(module, (seq_len, batch, input_size), training=training)
    (layer,) = plan.layers
    total = Work(0, 0)
    for of_pass in layer.passes:
        work = pass_work(plan, of_pass)
        assert work is not None  # there are kernels for every dtype on the CPU
        total += work
    return total


def caches() -> tuple[tuple[str, int, bool], ...]:
    """Name, bytes, and whether each core has its own, of the caches for data, the nearest first."""
    levels = []
    for folder in sorted(CACHES.glob("index*")):
        try:
            facts = {name: (folder / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")}
        except OSError:
            continue
        if facts["type"] != "Instruction" and facts["size"].endswith("K"):
            own = facts["shared_cpu_list"] == "0"
            levels.append((f"L{facts['level']}", int(facts["size"][:-1]) << 10, own))
    return tuple(levels) or tuple((name, capacity, name != "L3") for name, capacity in USUAL_CACHES)


def ceilings(machine: Machine, dtype: str, threads: int) -> tuple[Ceiling, ...]:
    """Arithmetic, and reading from each cache and from memory, by so many threads together."""
    limits = [Ceiling("arithmetic", 0, machine.operations_per_second(dtype, threads))]
    levels = caches()
    for name, capacity, own in levels:
        buffer = capacity // PART * (threads if own else 1)
        limits.append(Ceiling(name, buffer, machine.bytes_per_second(buffer, threads)))
    buffer = min(MEMORY_TIMES * levels[-1][1], MOST_BYTES)
    limits.append(Ceiling("memory", buffer, machine.bytes_per_second(buffer, threads)))
    return tuple(limits)


def tables(limits: Sequence[Ceiling], points: Sequence[Point]) -> Iterator[Table]:
    """The same in figures."""

    def rate(limit: Ceiling) -> str:
        return f"{three_digits(limit.rate / 1e9)} {'GB/s' if limit.bytes else 'GFLOP/s'}"

    rows = [(limit.name, size(limit.bytes) if limit.bytes else "", rate(limit)) for limit in limits]
    yield Table(("ceiling", "buffer", "rate"), rows)
    achieved: dict[Shape, list[str]] = {}
    for point in points:
        line = achieved.setdefault(point.shape, [shape_name(point.shape), three_digits(point.intensity)])
        line.append(three_digits(point.rate / 1e9))
    heads = ("(B,T,I,H)", "operations per byte", f"{OURS}, GFLOP/s", f"{TORCHS}, GFLOP/s")
    yield Table(heads, list(achieved.values()))


def write_csv(path: Path, limits: Sequence[Ceiling], points: Sequence[Point], described: dict[str, str]) -> None:
    """One row a ceiling and one a point; every row names the machine, the versions and the commit."""
    columns = ["kind", "name", "shape", "operations", "bytes", "ms", "per_second", *described]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for limit in limits:
            writer.writerow(["ceiling", limit.name, "", "", limit.bytes, "", f"{limit.rate:.6g}", *described.values()])
        for point in points:
            work = [shape_name(point.shape), point.operations, point.bytes, f"{point.ms:.6g}", f"{point.rate:.6g}"]
            writer.writerow(["point", point.contestant, *work, *described.values()])


def title(machine: str, dtype: str, threads: int, training: bool, commit: str) -> str:
    """What must stand above the picture for it to be read alone."""
    mode = "training step" if training else "inference"
    return f"{mode}, {dtype}, {counted(threads)}, torch {torch.__version__}, commit {commit}\n{machine}"
