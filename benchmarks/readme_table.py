"""Generate the README's results from the committed measurements, benchmarks/results/*.csv and, of GPUs, */*.csv.

A file's header says what it holds: compare.py's measurements, shown shape by shape, or summed up where
GRU_EXT_CUDA_KERNEL named the kernel; or peers.py's, shown summed up.

python benchmarks/readme_table.py            # rewrite the README between its two markers
python benchmarks/readme_table.py --check    # exit code 1 when the README says something else
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from readme_part import ROOT, rewrite

from gru_ext.measure.floor import READING
from gru_ext.measure.harness import GRAPH_TIMING
from gru_ext.measure.measurements import (
    SMALL_FLOOR_MS,
    Measurement,
    PeerMeasurement,
    Result,
    by_group,
    geometric_mean,
    is_kind,
    mean_over_floor,
    read_csv,
)
from gru_ext.measure.tables import over_floor
from gru_ext.measure.workloads import RECOMPUTE
from gru_ext.text import three_digits

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
MODES = {
    "inference": "forward, no grad",
    "training": "forward + backward",
    RECOMPUTE: "forward + backward, recompute=True",
}


def every(rows: Sequence[Result], field: str) -> str:
    """The values that the rows have in this field, each once."""
    return " / ".join(dict.fromkeys(str(getattr(row, field)) for row in rows))


def header(name: str, rows: list[Measurement] | list[PeerMeasurement]) -> str:
    """One paragraph on where, with what and how the file's rows were measured."""
    simd = f", SIMD target {every(rows, 'simd')}" if every(rows, "simd") else ""
    return (
        f"**{every(rows, 'machine')}** ({every(rows, 'system')}{simd}). torch {every(rows, 'torch')}, gru_ext "
        f"{every(rows, 'gru_ext')} at commit {every(rows, 'commit')}, Python {every(rows, 'python')}, "
        f"{every(rows, 'date')}; {every(rows, 'layout')} input; timing: {every(rows, 'timing')}; "
        f"{min(r.rounds for r in rows)} to {max(r.rounds for r in rows)} rounds a cell. "
        f"[All figures](benchmarks/results/{name})."
    )


def kernel_table(rows: list[Measurement]) -> Iterator[str]:
    """A Markdown table: (clock, input, seq_len, dtype) down, what all sizes' ratios come to in each mode across."""
    modes = dict.fromkeys(row.mode for row in rows)

    def kind(row: Measurement) -> tuple[str, str, int, str]:
        clock = "CUDA graph" if row.timing == GRAPH_TIMING else "as called"
        return (clock, row.layout + " bidirectional" * row.bidirectional, row.seq_len, row.dtype)

    yield "| | sizes | " + " | ".join(f"{MODES[mode]}, geometric mean | lowest, highest" for mode in modes) + " |"
    yield "|---|---|" + "---|---|" * len(modes)
    for of in sorted({kind(row) for row in rows}, key=lambda of: (of[:2], -of[2], of[3])):
        members = [row for row in rows if kind(row) == of]
        clock, layout, seq_len, dtype = of
        line = f"| {clock}: {layout}, {seq_len} steps, {dtype} | {len({row.shape for row in members})} |"
        for mode in modes:
            ratios = [row.ratio for row in members if row.mode == mode]
            line += f" **{geometric_mean(ratios):.2f}** | {min(ratios):.2f}, {max(ratios):.2f} |" if ratios else " | |"
        yield line


def against_library(paths: list[Path]) -> Iterator[str]:
    """The parts on a GPU's files in which the environment named the kernel: a folder each."""
    for folder in dict.fromkeys(path.parent for path in paths):
        rows = [row for path in paths if path.parent == folder for row in read_csv(path, Measurement)]
        yield (
            f"Kernels that keep the weights on the chip (`GRU_EXT_CUDA_KERNEL={every(rows, 'kernel')}`), hidden sizes "
            f"{min(row.hidden_size for row in rows)} to {max(row.hidden_size for row in rows)}, batches "
            f"{min(row.batch for row in rows)} to {max(row.batch for row in rows)}. `plan` runs them where none of "
            "these ratios is below 1 ([csrc/cuda/measured.h](csrc/cuda/measured.h)), and torch's elsewhere. Timed as a "
            "program calls the module, where torch's many launches wait for the host, and by replays of a CUDA graph, "
            "where they do not."
        )
        yield header(f"{folder.name}", rows)
        yield "\n".join(kernel_table(rows))


def grid(name: str, rows: list[Measurement], cell: Callable[[Measurement], str]) -> Iterator[str]:
    """Head and body of a Markdown table: shapes down, (threads, mode) across."""
    groups = by_group(rows)

    def title(threads: int, mode: str) -> str:
        where = f"{threads} thread{'s' * (threads > 1)}, " if rows[0].device == "cpu" else ""
        return where + MODES[mode]

    yield f"| {name}: (B,T,I,H) | " + " | ".join(title(t, m) for _, t, m in groups) + " |"
    yield "|---|" + "---|" * len(groups)
    cells = {(row.shape, row.group): cell(row) for row in rows}
    for shape in dict.fromkeys(row.shape for row in rows):
        yield f"| {shape} | " + " | ".join(cells.get((shape, group), "") for group in groups) + " |"


def ratio_table(rows: list[Measurement]) -> Iterator[str]:
    """The ratios of one dtype."""
    groups = by_group(rows)
    yield from grid(rows[0].dtype, rows, lambda row: f"{row.ratio:.2f} ({row.ratio_q1:.2f}–{row.ratio_q3:.2f})")
    means = (f"**{geometric_mean([row.ratio for row in group]):.2f}**" for group in groups.values())
    yield "| **geometric mean** | " + " | ".join(means) + " |"
    yield "| worst | " + " | ".join(f"{min(row.ratio for row in group):.2f}" for group in groups.values()) + " |"


def floor_table(rows: list[Measurement]) -> Iterator[str]:
    """The times of one dtype over the floor."""

    def cell(row: Measurement) -> str:
        return over_floor(row) + " w" * (row.floor_cause == READING)

    yield from grid(f"{rows[0].dtype}, time over floor", rows, cell)
    means = map(mean_over_floor, by_group(rows).values())
    shown = (f"**{three_digits(mean)}**" if mean is not None else "" for mean in means)
    yield "| **geometric mean, without brackets** | " + " | ".join(shown) + " |"


def floor_header(rows: list[Measurement]) -> str:
    """One paragraph on what the tables of floors say, and the peaks that they rest on."""
    peaks: dict[int, dict[str, str]] = {}
    for row in rows:
        if row.operations_per_second is not None:
            peaks.setdefault(row.threads, {})[row.dtype] = three_digits(row.operations_per_second / 1e9)
    said = "; ".join(
        f"{threads} thread{'s' * (threads > 1)}: " + ", ".join(f"{dtype} {peak}" for dtype, peak in of.items())
        for threads, of in peaks.items()
    )
    return (
        "Time over floor: `gru_ext.GRU`'s median time over the least that this machine allows for the shape (1.00: "
        "its limit), which [gru_ext/measure/floor.py](gru_ext/measure/floor.py) computes from peaks measured in the "
        f"same run ({said} GFLOP/s). w: what limits the recurrence is reading W_hh at every step, elsewhere it is "
        f"arithmetic. In brackets: the floor is below {SMALL_FLOOR_MS} ms, and the price of a call as such counts "
        "beside it."
    )


def peer_table(rows: list[PeerMeasurement]) -> Iterator[str]:
    """A Markdown table: (peer, dtype, mode) down, what the shapes' ratios come to with each thread count across."""
    threads = sorted({row.threads for row in rows})
    counts = [f"{count} thread{'s' * (count > 1)}" for count in threads]
    yield "| | " + " | ".join(f"{count}, geometric mean | lowest, highest" for count in counts) + " |"
    yield "|---|" + "---|---|" * len(threads)
    for peer, dtype, mode in dict.fromkeys((row.peer, row.dtype, row.mode) for row in rows):
        line = f"| {peer}, {dtype}, {MODES[mode]} |"
        for count in threads:
            ratios = [r.ratio for r in rows if (r.peer, r.dtype, r.mode, r.threads) == (peer, dtype, mode, count)]
            summed = f"**{geometric_mean(ratios):.2f}** | {min(ratios):.2f}, {max(ratios):.2f}" if ratios else "|"
            line += f" {summed} |"
        yield line


def against_torch(paths: list[Path]) -> Iterator[str]:
    """The parts on compare.py's files."""
    yield (
        "Ratio of `torch.nn.GRU`'s median time to `gru_ext.GRU`'s (above 1: gru_ext is faster); in brackets the"
        " quartiles of the single rounds' ratios."
    )
    for path in paths:
        rows = read_csv(path, Measurement)
        yield header(path.relative_to(RESULTS).as_posix(), rows)
        for dtype in dict.fromkeys(row.dtype for row in rows):
            yield "\n".join(ratio_table([row for row in rows if row.dtype == dtype]))
        with_floor = [row for row in rows if row.floor_ms is not None]
        if with_floor:
            yield floor_header(with_floor)
        for dtype in dict.fromkeys(row.dtype for row in with_floor):
            yield "\n".join(floor_table([row for row in with_floor if row.dtype == dtype]))


def against_peers(paths: list[Path]) -> Iterator[str]:
    """The parts on peers.py's files."""
    for path in paths:
        rows = read_csv(path, PeerMeasurement)
        versions = "; ".join(dict.fromkeys(row.peer_version for row in rows))
        shapes = len({row.shape for row in rows})
        yield (
            f"Against other frameworks: ratio of their median time to `gru_ext.GRU`'s over {shapes} shapes; {versions}."
        )
        yield header(path.relative_to(RESULTS).as_posix(), rows)
        yield "\n".join(peer_table(rows))


def results() -> str:
    """Everything between the markers."""
    paths = sorted(RESULTS.glob("*.csv"))
    # Folders hold other tables as well: those of a GPU's other stages, of memory, of the compiler.
    paths += [path for path in sorted(RESULTS.glob("*/*.csv")) if is_kind(path, Measurement)]
    peers = [path for path in paths if is_kind(path, PeerMeasurement)]
    kernels = [path for path in paths if path not in peers and read_csv(path, Measurement)[0].kernel]
    modules = [path for path in paths if path not in peers and path not in kernels]
    if not paths:
        return "No measurement has been committed yet: `make bench` measures on your machine."
    return "\n\n".join([*(against_torch(modules) if modules else ()), *against_library(kernels), *against_peers(peers)])


def main() -> int:
    """Rewrite or check the README."""
    parser = argparse.ArgumentParser(description="Generate the README's results from benchmarks/results/*.csv.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the README is stale")
    arguments = parser.parse_args()
    return rewrite(README, (BEGIN, END), results(), arguments.check, RESULTS)


if __name__ == "__main__":
    sys.exit(main())
