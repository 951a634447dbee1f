"""The kinds of measurement, their CSV form, and the summary of many: what benchmarks write, readme_table.py reads."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

FORMAT_DIGITS = 6  # significant digits of a number in the CSV


@dataclass(frozen=True)
class Workload:
    """What was run: one shape, dtype, thread count and mode, which every kind of measurement begins with."""

    device: str  # cpu or cuda
    dtype: str
    threads: int
    mode: str  # inference: forward under no_grad; training: forward, and backward to the input and every parameter
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    layout: str  # time-first or batch-first

    @property
    def shape(self) -> str:
        """(B,T,I,H)"""
        return f"({self.batch},{self.seq_len},{self.input_size},{self.hidden_size})"

    @property
    def group(self) -> tuple[str, int, str]:
        """(dtype, threads, mode): what a geometric mean is taken over."""
        return (self.dtype, self.threads, self.mode)


@dataclass(frozen=True)
class Measurement(Workload):
    """torch.nn.GRU against gru_ext.GRU in one cell.

    Times are milliseconds for one call. A ratio is torch.nn.GRU's time over gru_ext's: above 1, gru_ext is faster.
    """

    rounds: int  # times each was timed, the two by turns
    calls: int  # calls in one timing
    torch_ms: float  # median over the rounds
    torch_ms_q1: float
    torch_ms_q3: float
    gru_ext_ms: float
    gru_ext_ms_q1: float
    gru_ext_ms_q3: float
    ratio: float  # of the two medians
    ratio_q1: float  # quartiles of the rounds' own ratios
    ratio_q3: float
    largest_difference: float  # between the two outputs
    simd: str  # instruction set that gru_ext used; empty on CUDA
    timing: str  # clock used, and what was allowed
    date: str
    machine: str
    system: str
    python: str
    torch: str
    gru_ext: str
    commit: str


@dataclass(frozen=True)
class PeerMeasurement(Workload):
    """Another framework against gru_ext.GRU in one cell; times and ratios are as Measurement's."""

    peer: str
    variant: str  # the fastest way to ask it, of several; empty where there is one
    peer_version: str  # of its packages
    rounds: int
    peer_ms: float
    peer_ms_q1: float
    peer_ms_q3: float
    gru_ext_ms: float
    gru_ext_ms_q1: float
    gru_ext_ms_q3: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    peer_error: float  # largest relative error of its results against float64
    gru_ext_error: float
    tolerance: float  # what either might have been
    simd: str
    timing: str
    date: str
    machine: str
    system: str
    python: str
    torch: str
    gru_ext: str
    commit: str


Row = TypeVar("Row", bound=Workload)


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile, interpolated linearly between neighbours."""
    ordered = sorted(values)

    def at(fraction: float) -> float:
        position = fraction * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    return at(0.25), at(0.5), at(0.75)


def geometric_mean(values: Sequence[float]) -> float:
    """exp(mean(log(values))), the mean for ratios: swapping the two contestants gives its reciprocal."""
    return math.exp(sum(map(math.log, values)) / len(values))


def by_group(measurements: Iterable[Row]) -> dict[tuple[str, int, str], list[Row]]:
    """Measurements by (dtype, threads, mode), in the order of first appearance."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.group, []).append(measurement)
    return groups


def columns(kind: type[Workload]) -> list[str]:
    """Names of the CSV's columns for this kind of measurement: its fields."""
    return [field.name for field in fields(kind)]


def write_csv(path: Path, measurements: Sequence[Workload]) -> None:
    """Write one row for each measurement, all of one kind and at least one, under a header of its field names."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(type(measurements[0])), lineterminator="\n")
        writer.writeheader()
        for measurement in measurements:
            row = asdict(measurement).items()
            writer.writerow({k: f"{v:.{FORMAT_DIGITS}g}" if isinstance(v, float) else v for k, v in row})


def is_kind(path: Path, kind: type[Workload]) -> bool:
    """Whether the file's header is that of this kind of measurement."""
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), []) == columns(kind)


def read_csv(path: Path, kind: type[Row]) -> list[Row]:
    """Read what write_csv wrote. Raises ValueError, naming the file, when the columns are not the kind's."""
    if not is_kind(path, kind):
        raise ValueError(f"{path}: expected the columns of {kind.__name__}, {', '.join(columns(kind))}")
    # Annotations are strings here, and only these three.
    convert: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    types = {field.name: convert[str(field.type)] for field in fields(kind)}
    with path.open(newline="", encoding="utf-8") as file:
        return [kind(**{name: types[name](text) for name, text in row.items()}) for row in csv.DictReader(file)]
