"""The kinds of measurement, their CSV form, and the summary of many."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from gru_ext.measure.workloads import GRUShape

FORMAT_DIGITS = 6  # significant digits of a number in the CSV
# Below this floor the price of a call as such, a few microseconds, counts beside what the machine allows.
SMALL_FLOOR_MS = 0.5
NOISY = 1.5  # quartiles further apart than this factor say more about the machine than about the code
# Columns that came later, and when: a file has those of its time.
FLOORS, STACKS, KERNELS, RESETS = {"since": 1}, {"since": 2}, {"since": 3}, {"since": 4}
LAYER_COLUMNS = ("name", "num_layers", "bidirectional", "cell")


@dataclass(frozen=True)
class Result:
    """What was run: one shape, dtype, thread count and mode, which every kind of measurement begins with."""

    device: str  # cpu or cuda
    dtype: str
    threads: int
    mode: str  # inference: forward under no_grad; training: forward, and backward to the input and every parameter;
    # recompute: the same with gru_ext's recompute=True
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    layout: str  # time-first, batch-first or packed; of SequenceMeasurement also lengths or half-lengths

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, T, I, H"""
        return (self.batch, self.seq_len, self.input_size, self.hidden_size)

    @property
    def shape(self) -> str:
        """(B,T,I,H)"""
        return GRUShape(*self.sizes).title

    @property
    def title(self) -> str:
        """What tells this layer from others of a run."""
        more = {name: getattr(self, name) for name in LAYER_COLUMNS if hasattr(self, name)}
        return GRUShape(*self.sizes, layout=self.layout, **more).title

    @property
    def group(self) -> tuple[str, int, str]:
        """(dtype, threads, mode): what a geometric mean is taken over."""
        return (self.dtype, self.threads, self.mode)


@dataclass(frozen=True)
class Measurement(Result):
    """torch.nn.GRU against gru_ext.GRU in one cell.

    Times are milliseconds for one call. A ratio is torch.nn.GRU's time over gru_ext's: above 1, gru_ext is faster. The
    floor's four fields are None on CUDA and in files that were written without them, the LSTM's where it was not timed.
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
    # What the machine allows for the cell, and what binds in the recurrence: arithmetic, or reading W_hh.
    floor_ms: float | None = field(default=None, metadata=FLOORS)
    floor_cause: str | None = field(default=None, metadata=FLOORS)
    # The peaks that the floor was computed from, by so many threads.
    operations_per_second: float | None = field(default=None, metadata=FLOORS)
    bytes_per_second: float | None = field(default=None, metadata=FLOORS)
    name: str = field(default="", metadata=STACKS)  # in the user's model, where it was lifted from one
    num_layers: int = field(default=1, metadata=STACKS)
    bidirectional: int = field(default=0, metadata=STACKS)  # 0 or 1
    cell: int = field(default=0, metadata=STACKS)  # 1: GRUCells were compared
    lstm_ms: float | None = field(default=None, metadata=STACKS)  # torch.nn.LSTM's, of the same sizes
    lstm_ms_q1: float | None = field(default=None, metadata=STACKS)
    lstm_ms_q3: float | None = field(default=None, metadata=STACKS)
    kernel: str = field(default="", metadata=KERNELS)  # that GRU_EXT_CUDA_KERNEL asked for; empty: by plan, and on CPUs
    compute_capability: str = field(default="", metadata=KERNELS)  # of the GPU, such as 9.0

    @property
    def noisy(self) -> bool:
        """Whether the rounds disagree so much that the machine cannot have been idle."""
        return self.ratio_q3 > NOISY * self.ratio_q1

    @property
    def over_floor(self) -> float | None:
        """gru_ext's time over the floor: 1 is the machine's limit. None without a floor."""
        return None if self.floor_ms is None else self.gru_ext_ms / self.floor_ms

    @property
    def small_floor(self) -> bool:
        """Whether over_floor says more about the price of a call than about the kernels."""
        return self.floor_ms is not None and self.floor_ms < SMALL_FLOOR_MS


@dataclass(frozen=True)
class PeerMeasurement(Result):
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
    resets: int = field(default=0, metadata=RESETS)  # as SequenceMeasurement's


@dataclass(frozen=True)
class MemoryMeasurement(Result):
    """torch.nn.GRU and gru_ext.GRU in one training step, in MiB, as memory.py defines it."""

    torch_peak_mib: float
    gru_ext_peak_mib: float
    torch_kept_mib: float
    gru_ext_kept_mib: float
    recompute: int  # 1 when gru_ext.GRU was made with recompute=True
    exact: int  # 0 when the system could not count the peak anew for the step
    date: str
    machine: str
    system: str
    python: str
    torch: str
    gru_ext: str
    commit: str
    name: str = field(default="", metadata=STACKS)
    num_layers: int = field(default=1, metadata=STACKS)
    bidirectional: int = field(default=0, metadata=STACKS)
    cell: int = field(default=0, metadata=STACKS)


@dataclass(frozen=True)
class SequenceMeasurement(Result):
    """gru_ext.GRU with lengths or resets against torch.nn.GRU with the same by hand, as sequences.py defines it.

    Times and ratios are as Measurement's. plain: the same module without lengths or resets.
    """

    resets: int  # each step begins anew with the probability 1 / resets; 0: lengths were measured
    steps: int  # of all sequences together, by their lengths
    by_hand: str  # how torch.nn.GRU took them: packed, or pieces padded to the longest
    rounds: int
    calls: int
    torch_ms: float
    torch_ms_q1: float
    torch_ms_q3: float
    gru_ext_ms: float
    gru_ext_ms_q1: float
    gru_ext_ms_q3: float
    torch_plain_ms: float
    torch_plain_ms_q1: float
    torch_plain_ms_q3: float
    gru_ext_plain_ms: float
    gru_ext_plain_ms_q1: float
    gru_ext_plain_ms_q3: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    saving: float  # gru_ext without over with lengths or resets: the fastest rounds of both, by turns alone
    saving_q1: float  # quartiles of the rounds' own
    saving_q3: float
    largest_error: float  # between gru_ext's results and those by hand, relative, in the Euclidean norm
    simd: str
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
    compute_capability: str = ""

    @property
    def title(self) -> str:
        """What tells this layer from others of its group."""
        return GRUShape(*self.sizes, self.num_layers, bool(self.bidirectional)).title

    @property
    def group(self) -> tuple[str, int, str]:
        """(dtype, threads, mode and what was measured)"""
        every = f", resets every {self.resets} steps" if self.resets else ""
        layout = f", {self.layout}" if self.layout != "time-first" else ""
        return (self.dtype, self.threads, f"{self.mode}{layout}{every}")

    @property
    def noisy(self) -> bool:
        """As Measurement's."""
        return self.ratio_q3 > NOISY * self.ratio_q1

    @property
    def gain(self) -> float:
        """The ratio over that of the modules without lengths or resets."""
        return self.ratio * self.gru_ext_plain_ms / self.torch_plain_ms

    @property
    def cost(self) -> float:
        """How much longer gru_ext takes than without resets, as a share."""
        return 1 / self.saving - 1


Row = TypeVar("Row", bound=Result)


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


def by_group(measurements: Iterable[Row]) -> dict[tuple[str, int, str], list[Row]]:
    """Measurements by (dtype, threads, mode), in the order of first appearance."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.group, []).append(measurement)
    return groups


def columns(kind: type[Result], since: int = RESETS["since"]) -> list[str]:
    """Names of the CSV's columns for this kind of measurement: its fields, those that came later than `since` not."""
    return [field.name for field in fields(kind) if field.metadata.get("since", 0) <= since]


def write_csv(path: Path, measurements: Sequence[Result]) -> None:
    """Write one row for each measurement, all of one kind and at least one, under a header of its field names."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(type(measurements[0])), lineterminator="\n")
        writer.writeheader()
        for measurement in measurements:
            row = asdict(measurement).items()
            writer.writerow({k: f"{v:.{FORMAT_DIGITS}g}" if isinstance(v, float) else v for k, v in row})


def is_kind(path: Path, kind: type[Result]) -> bool:
    """Whether the file's header is that of this kind of measurement, of today or from before later columns came."""
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), []) in [columns(kind, since) for since in range(RESETS["since"] + 1)]


def read_csv(path: Path, kind: type[Row]) -> list[Row]:
    """Read what write_csv wrote, now or before there were the later columns, which then have their defaults.

    Raises ValueError, naming the file, when the columns are not the kind's.
    """

    def optional(convert: Callable[[str], Any]) -> Callable[[str], Any]:
        return lambda text: convert(text) if text else None

    if not is_kind(path, kind):
        raise ValueError(f"{path}: expected the columns of {kind.__name__}, {', '.join(columns(kind))}")
    # Annotations are strings here, and only these.
    convert: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    convert |= {f"{name} | None": optional(function) for name, function in convert.items()}
    types = {field.name: convert[str(field.type)] for field in fields(kind)}
    with path.open(newline="", encoding="utf-8") as file:
        return [kind(**{name: types[name](text) for name, text in row.items()}) for row in csv.DictReader(file)]
