"""One measurement, its CSV form, and the summary of many: what compare.py writes and readme_table.py reads."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

FORMAT_DIGITS = 6  # significant digits of a number in the CSV
# Below this floor the price of a call as such, a few microseconds, counts beside what the machine allows.
SMALL_FLOOR_MS = 0.5


@dataclass(frozen=True)
class Measurement:
    """torch.nn.GRU against gru_ext.GRU in one cell: one shape, dtype, thread count and mode.

    Times are milliseconds for one call. A ratio is torch.nn.GRU's time over gru_ext's: above 1, gru_ext is faster. The
    last four fields, from floor.py, are None on CUDA and in files that were written without them.
    """

    device: str  # cpu or cuda
    dtype: str
    threads: int
    mode: str  # inference: forward under no_grad; training: forward, and backward to the input and every parameter
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    layout: str  # time-first or batch-first
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
    floor_ms: float | None = None  # what the machine allows for the cell
    floor_cause: str | None = None  # what binds in the recurrence: arithmetic, or reading W_hh
    operations_per_second: float | None = None  # the peaks that the floor was computed from, by so many threads
    bytes_per_second: float | None = None

    @property
    def shape(self) -> str:
        """(B,T,I,H)"""
        return f"({self.batch},{self.seq_len},{self.input_size},{self.hidden_size})"

    @property
    def group(self) -> tuple[str, int, str]:
        """(dtype, threads, mode): what a geometric mean is taken over."""
        return (self.dtype, self.threads, self.mode)

    @property
    def over_floor(self) -> float | None:
        """gru_ext's time over the floor: 1 is the machine's limit. None without a floor."""
        return None if self.floor_ms is None else self.gru_ext_ms / self.floor_ms

    @property
    def small_floor(self) -> bool:
        """Whether over_floor says more about the price of a call than about the kernels."""
        return self.floor_ms is not None and self.floor_ms < SMALL_FLOOR_MS


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


def mean_over_floor(measurements: Iterable[Measurement]) -> float | None:
    """Geometric mean of over_floor where the floor is not small; None where there is no such measurement."""
    values = [m.over_floor for m in measurements if m.over_floor is not None and not m.small_floor]
    return geometric_mean(values) if values else None


def by_group(measurements: Iterable[Measurement]) -> dict[tuple[str, int, str], list[Measurement]]:
    """Measurements by (dtype, threads, mode), in the order of first appearance."""
    groups: dict[tuple[str, int, str], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.group, []).append(measurement)
    return groups


def write_csv(path: Path, measurements: Iterable[Measurement]) -> None:
    """Write one row for each measurement under a header of Measurement's field names."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Measurement)], lineterminator="\n")
        writer.writeheader()
        for measurement in measurements:
            row = asdict(measurement).items()
            writer.writerow({k: f"{v:.{FORMAT_DIGITS}g}" if isinstance(v, float) else v for k, v in row})


def read_csv(path: Path) -> list[Measurement]:
    """Read what write_csv wrote, now or before there were optional fields, which then are None.

    Raises ValueError, naming the file, when the columns are not Measurement's.
    """

    def optional(convert: Callable[[str], Any]) -> Callable[[str], Any]:
        return lambda text: convert(text) if text else None

    # Annotations are strings here, and only these.
    convert: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    convert |= {f"{name} | None": optional(function) for name, function in convert.items()}
    columns = fields(Measurement)
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        found = list(rows.fieldnames or [])
        if found == [field.name for field in columns if field.default is MISSING]:
            columns = tuple(field for field in columns if field.default is MISSING)
        names = [field.name for field in columns]
        if found != names:
            raise ValueError(f"{path}: expected the columns {', '.join(names)}; write it with benchmarks/compare.py")
        return [Measurement(**{f.name: convert[str(f.type)](row[f.name]) for f in columns}) for row in rows]
