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
from gru_ext.measure.profile_text import PLOT_NEEDS, save
from gru_ext.measure.text import Table
from gru_ext.measure.units import counted, size_name, three_digits
from gru_ext.measure.work import Work, pass_work
from gru_ext.measure.workloads import DTYPES, Shape, shape_name

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
class Point:
    """What one contestant achieved on a shape.

    Attributes:
        contestant: "gru_ext" or "nn.GRU"
        shape: B, T, I, H
        operations, bytes: of a call
        ms: of a call, median
    """

    contestant: str
    shape: Shape
    operations: int
    bytes: int
    ms: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes

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
    return tuple(levels) or tuple((name, size, name != "L3") for name, size in USUAL_CACHES)


def ceilings(machine: Machine, dtype: str, threads: int) -> tuple[Ceiling, ...]:
    """Arithmetic, and reading from each cache and from memory, by so many threads together."""
    limits = [Ceiling("arithmetic", 0, machine.operations_per_second(dtype, threads))]
    levels = caches()
    for name, size, own in levels:
        buffer = size // PART * (threads if own else 1)
        limits.append(Ceiling(name, buffer, machine.bytes_per_second(buffer, threads)))
    buffer = min(MEMORY_TIMES * levels[-1][1], MOST_BYTES)
    limits.append(Ceiling("memory", buffer, machine.bytes_per_second(buffer, threads)))
    return tuple(limits)


def tables(limits: Sequence[Ceiling], points: Sequence[Point]) -> Iterator[Table]:
    """The same in figures."""
    rows = [
        (
            limit.name,
            size_name(limit.bytes) if limit.bytes else "",
            f"{three_digits(limit.rate / 1e9)} {'GB/s' if limit.bytes else 'GFLOP/s'}",
        )
        for limit in limits
    ]
    yield Table(("ceiling", "buffer", "rate"), rows)
    achieved = []
    for shape in dict.fromkeys(point.shape for point in points):
        both = {point.contestant: point for point in points if point.shape == shape}
        rates = (three_digits(both[name].rate / 1e9) if name in both else "-" for name in (OURS, TORCHS))
        achieved.append((shape_name(shape), three_digits(next(iter(both.values())).intensity), *rates))
    yield Table(("(B,T,I,H)", "operations per byte", f"{OURS}, GFLOP/s", f"{TORCHS}, GFLOP/s"), achieved)


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


def plot(path: Path, limits: Sequence[Ceiling], points: Sequence[Point], title: str) -> None:
    """The picture, as SVG, PNG or PDF by the name.

    Raises:
        ImportError: matplotlib is not installed; the message says how to.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"a plot needs matplotlib: {PLOT_NEEDS}") from error
    figure = Figure(figsize=(9.5, 5.6))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    arithmetic = next(limit for limit in limits if limit.bytes == 0)
    reading = [limit for limit in limits if limit.bytes]
    left = min([0.25, *(0.6 * point.intensity for point in points)])
    right = max([100.0, *(2 * point.intensity for point in points)])
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.plot([left, right], [arithmetic.rate / 1e9] * 2, color="black", linewidth=1.5)
    axes.annotate(
        f"arithmetic, {three_digits(arithmetic.rate / 1e9)} GFLOP/s", (right, arithmetic.rate / 1e9), (-4, 4),
        textcoords="offset points", ha="right", fontsize=8,
    )  # fmt: skip
    shades = ("#1b6ca8", "#4a9c6d", "#b8860b", "#a33b3b", "#6b4a8c")
    for shade, limit in zip(shades, reading, strict=False):
        end = min(right, arithmetic.rate / limit.rate)
        name = f"{limit.name}, {size_name(limit.bytes)}: {three_digits(limit.rate / 1e9)} GB/s"
        axes.plot(
            [left, end], [left * limit.rate / 1e9, end * limit.rate / 1e9], color=shade, linewidth=1.2, label=name
        )
    shapes = list(dict.fromkeys(point.shape for point in points))
    sides = _sides({point.shape: point.intensity for point in points})
    faces = {OURS: "#222222", TORCHS: "white"}
    for number, shape in enumerate(shapes, 1):
        both = [point for point in points if point.shape == shape]
        axes.plot([p.intensity for p in both], [p.rate / 1e9 for p in both], color="#888888", linewidth=0.8, zorder=2)
        for point in both:
            at = (point.intensity, point.rate / 1e9)
            axes.plot(*at, "o", markersize=6, markerfacecolor=faces[point.contestant], markeredgecolor="#222222")
            axes.annotate(
                str(number), at, (6 * sides[shape], 0), textcoords="offset points", va="center", fontsize=8,
                ha="left" if sides[shape] > 0 else "right",
            )  # fmt: skip
    for name, face in faces.items():
        axes.plot([], [], "o", markersize=6, markerfacecolor=face, markeredgecolor="#222222", label=name)
    for number, shape in enumerate(shapes, 1):
        axes.plot([], [], " ", label=f"{number:>2}  {shape_name(shape)}")
    axes.set_xlabel("operations per byte that the layer must read or write")
    axes.set_ylabel("GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(which="both", alpha=0.15)
    axes.set_title(title, fontsize=9)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, title="ceilings, and (B,T,I,H)",
        title_fontsize=8,
    )  # fmt: skip
    save(figure, path)


def _sides(intensities: dict[Shape, float]) -> dict[Shape, int]:
    """Where each shape's number stands, left (-1) or right (1) of its points: away from the nearer neighbour."""
    ordered = sorted(intensities, key=lambda shape: intensities[shape])
    sides = {}
    for index, shape in enumerate(ordered):
        here = intensities[shape]
        before = here / intensities[ordered[index - 1]] if index > 0 else float("inf")
        after = intensities[ordered[index + 1]] / here if index + 1 < len(ordered) else float("inf")
        sides[shape] = -1 if after < before else 1
    return sides


def title(machine: str, dtype: str, threads: int, training: bool, commit: str) -> str:
    """What must stand above the picture for it to be read alone."""
    mode = "training step" if training else "inference"
    return f"{mode}, {dtype}, {counted(threads)}, torch {torch.__version__}, commit {commit}\n{machine}"
