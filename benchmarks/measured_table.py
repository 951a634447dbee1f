"""Generate csrc/cuda/measured.h, by which plan prefers our kernels to torch's, from what GPUs have measured.

    python benchmarks/measured_table.py            # rewrite the header
    python benchmarks/measured_table.py --check    # exit code 1 when it says something else

It reads every CSV of bench in benchmarks/results/<gpu>/, and of these the rows of one layer in which
GRU_EXT_CUDA_KERNEL named the kernel, at a commit without local changes.

Rows of one compute capability, dtype, number of directions, packed or not, training or not, and kernel lie on a grid of
the hidden sizes and batches that were measured both ways: as a program calls the module, where torch's many launches
may wait for the host, and by replays of a CUDA graph, where they do not. A range of both goes into the table where the
grid has no gap, the geometric mean of its ratios is at least 1.2, and none is below 1.0, on whichever GPU. The range
with the most cells comes first, then the one that adds the most, until none adds any. Ranges for sequences of any
length come first, by all rows; then those for sequences no longer than some that were measured, by the rows of these.
What lies outside is torch's, as everything is without results. A row of float32 is used where TF32 is allowed as it was
when the row was measured, in our kernels and in torch's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any

from gru_ext.measure.harness import EVENT_TIMING, GRAPH_TIMING
from gru_ext.measure.measurements import Measurement, geometric_mean, is_kind, read_csv
from gru_ext.measure.workloads import MODES, TF32, TORCH_TF32

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "cuda" / "measured.h"
RESULTS = ROOT / "benchmarks" / "results"
LEAST_MEAN, LEAST_RATIO = 1.2, 1.0
KERNELS = ("step", "stationary")
TYPES = {"float64": "Float64", "bfloat16": "BFloat16", "float16": "Float16"}
ALLOWED_TF32 = {"float32": (False, False), TORCH_TF32: (False, True), TF32: (True, True)}  # for us, for torch
Cell = tuple[int, int]  # hidden size, batch
Grid = dict[Cell, list[float]]  # the ratios of all sequence lengths and input sizes


@dataclass(frozen=True)
class Range:
    """Hidden sizes and batches, bounds included, in which a kernel is on.

    Attributes:
        hidden_sizes, batches: the least and the most
        seq_len: the most; None: any
        ratio: geometric mean of all that was measured in it
        cells: of the grid
    """

    hidden_sizes: tuple[int, int]
    batches: tuple[int, int]
    seq_len: int | None
    ratio: float
    cells: frozenset[Cell]


def claims(row: Measurement) -> bool:
    """Whether the table may rest on this row."""
    committed = row.commit != "unknown" and not row.commit.endswith("-dirty")
    one_layer = row.num_layers == 1 and not row.cell
    return row.device == "cuda" and row.kernel in KERNELS and committed and one_layer and row.mode in MODES


def within(values: Sequence[int], bounds: tuple[int, int]) -> list[int]:
    """The values between the bounds, these included."""
    return [value for value in values if bounds[0] <= value <= bounds[1]]


def measured_ranges(grid: Grid, seq_len: int | None) -> Iterator[Range]:
    """Every range of the grid, of sequences up to this length, that has no gap and keeps the rule."""
    sizes, counts = (sorted({cell[side] for cell in grid}) for side in (0, 1))
    for hidden_sizes, batches in product(
        combinations_with_replacement(sizes, 2), combinations_with_replacement(counts, 2)
    ):
        cells = frozenset(product(within(sizes, hidden_sizes), within(counts, batches)))
        if not cells <= grid.keys():
            continue
        ratios = [ratio for cell in cells for ratio in grid[cell]]
        mean = geometric_mean(ratios)
        if mean >= LEAST_MEAN and min(ratios) >= LEAST_RATIO:
            yield Range(hidden_sizes, batches, seq_len, mean, cells)


def chosen_ranges(rows: Sequence[Measurement]) -> Iterator[Range]:
    """Each adds the most cells to those before; of several it is the largest, and then the fastest."""
    covered: frozenset[Cell] = frozenset()
    lengths = sorted({row.seq_len for row in rows}, reverse=True)
    for longest in lengths:
        grid: Grid = {}
        timings: dict[Cell, set[str]] = {}
        for row in rows:
            if row.seq_len <= longest:
                grid.setdefault((row.hidden_size, row.batch), []).append(row.ratio)
                timings.setdefault((row.hidden_size, row.batch), set()).add(row.timing)
        grid = {cell: ratios for cell, ratios in grid.items() if timings[cell] >= {EVENT_TIMING, GRAPH_TIMING}}
        ranges = list(measured_ranges(grid, None if longest == lengths[0] else longest))
        while ranges:
            best = max(ranges, key=lambda claim: (len(claim.cells - covered), len(claim.cells), claim.ratio))
            if best.cells <= covered:
                break
            covered |= best.cells
            yield best


def read_results() -> list[tuple[str, Measurement]]:
    """The rows that the table may rest on, and the folder of each."""
    paths = [path for path in sorted(RESULTS.glob("*/*.csv")) if is_kind(path, Measurement)]
    return [(path.parent.name, row) for path in paths for row in read_csv(path, Measurement) if claims(row)]


def lines(rows: Sequence[tuple[str, Measurement]]) -> Iterator[str]:
    """What was measured, and the table's rows: the largest ratio first, for the first that holds a shape decides."""
    sources = {
        f"// {row.machine}: benchmarks/results/{folder}, {row.date}, commit {row.commit}": None for folder, row in rows
    }
    groups: dict[tuple[Any, ...], list[tuple[str, Measurement]]] = {}
    for folder, row in rows:
        flags = (1 + row.bidirectional, row.layout == "packed", row.mode == "training")
        groups.setdefault((row.compute_capability, row.dtype, *flags, row.kernel), []).append((folder, row))
    truth = {False: "false", True: "true"}
    entries: list[tuple[float, str]] = []
    for (capability, dtype, directions, packed, training, kernel), members in groups.items():
        allowed = [truth[tf32] for tf32 in ALLOWED_TF32.get(dtype, (False, False))]
        of_layer = (*allowed, directions, truth[packed], truth[training])
        gpus = dict.fromkeys(row.machine.split(", CUDA ")[0] for _, row in members)
        folders = dict.fromkeys(f"benchmarks/results/{folder}" for folder, _ in members)
        for claim in chosen_ranges([row for _, row in members]):
            said = (f'"{kernel}"', f"{claim.ratio:.2f}", f'"{" and ".join(gpus)}"', f'"{", ".join(folders)}"')
            bounds = (*claim.hidden_sizes, *claim.batches, claim.seq_len or "INT64_MAX")
            values = (*capability.split("."), f"DataType::{TYPES.get(dtype, 'Float32')}", *of_layer, *bounds, *said)
            entries.append((claim.ratio, ", ".join(map(str, values))))
    yield from sources or ["// No GPU has been measured yet."]
    yield "inline std::vector<Measured> measured_table() {"
    yield "  return {"
    for _, entry in sorted(entries, reverse=True):
        yield f"      {{{entry}}},"
    yield "  };"
    yield "}"


def header(rows: Sequence[tuple[str, Measurement]]) -> str:
    """The whole file."""
    text = [
        "// Where our kernels were measured to be faster than torch's. Generated, never edited:",
        "// benchmarks/measured_table.py has the rule.",
        "#pragma once",
        "",
        "#include <vector>",
        "",
        '#include "decision.h"',
        "",
        "namespace gru::cuda {",
        "",
        "// clang-format off",
        *lines(rows),
        "// clang-format on",
        "",
        "}  // namespace gru::cuda",
    ]
    return "\n".join(text) + "\n"


def main() -> int:
    """Rewrite or check the header."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the header is stale")
    arguments = parser.parse_args()
    fresh = header(read_results())
    stale = not HEADER.is_file() or HEADER.read_text(encoding="utf-8") != fresh
    if arguments.check:
        says = "disagree; run make pages" if stale else "agree"
        print(f"{HEADER.name} and {RESULTS.name}/ {says}", file=sys.stderr if stale else sys.stdout)
        return int(stale)
    if stale:  # an untouched header makes no build stale
        HEADER.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
