"""Memory of one training step: torch.nn.GRU against gru_ext.GRU, each step in a process of its own, on one thread.

    python benchmarks/training_memory.py                                          # the shapes of compare.py
    python benchmarks/training_memory.py --shapes 128,256,128,128 --dtypes float32

peak and kept are what gru_ext/measure/memory.py says, of the first forward and backward to the input and every
parameter. Peaks below 1 MiB are not compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gru_ext
from gru_ext.measure.machine import facts
from gru_ext.measure.measurements import Result, geometric_mean, write_csv
from gru_ext.measure.memory import kept_bytes, peak
from gru_ext.measure.workloads import DTYPES, SHAPES, Shape, parse_shape

MIB = 2**20
SMALLEST_PEAK_MIB = 1.0  # one below it says more about what the heap had left over than about the step
MODULES = {"nn.GRU": nn.GRU, "gru_ext": gru_ext.GRU}


@dataclass(frozen=True)
class MemoryMeasurement(Result):
    """torch.nn.GRU and gru_ext.GRU in one training step, in MiB; see the module's text."""

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


def prepared(name: str, shape: Shape, dtype: torch.dtype, recompute: bool) -> tuple[nn.RNNBase, Tensor]:
    """A module and its input."""
    batch, seq_len, input_size, hidden_size = shape
    options = {"recompute": True} if recompute and name == "gru_ext" else {}
    module = MODULES[name](input_size, hidden_size, dtype=dtype, **options)
    return module, torch.randn(seq_len, batch, input_size, dtype=dtype, requires_grad=True)


def measure(name: str, shape: Shape, dtype: str, recompute: bool) -> dict[str, int]:
    """Bytes of peak and kept, and whether peak is exact. Raises RuntimeError when the process of the peak fails."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module, data = prepared(name, shape, DTYPES[dtype], recompute)
    try:
        measured = peak(module, (data,), True)
    except RuntimeError as error:
        raise RuntimeError(f"{name}, {dtype}, {shape}: {error}") from error
    return {"peak": measured.bytes, "kept": kept_bytes(module, (data,)), "exact": int(measured.exact)}


def table(measurements: list[MemoryMeasurement]) -> Iterator[str]:
    """The printed table, at most 80 columns wide."""
    for dtype in dict.fromkeys(m.dtype for m in measurements):
        rows = [m for m in measurements if m.dtype == dtype]
        yield f"{dtype + ', MiB':22}{'-- peak of the step --':>27} {'-- kept by autograd --':>27}"
        yield f"  {'(B,T,I,H)':20}" + " ".join(2 * [f"{'nn.GRU':>9}{'gru_ext':>10}{'ratio':>8}"])
        for row in rows:
            peak = f"{row.torch_peak_mib:9.2f}{row.gru_ext_peak_mib:10.2f}{peak_ratio([row]):>8}"
            kept = f"{row.torch_kept_mib:9.2f}{row.gru_ext_kept_mib:10.2f}{kept_ratio([row]):>8}"
            yield f"  {row.shape:20}{peak} {kept}"
        yield f"  {'geometric mean':39}{peak_ratio(rows):>8}{kept_ratio(rows):>28}"
        yield ""


def peak_ratio(rows: list[MemoryMeasurement]) -> str:
    """Geometric mean of torch's peak to gru_ext's, where both are large enough to compare."""
    pairs = [(row.torch_peak_mib, row.gru_ext_peak_mib) for row in rows]
    ratios = [theirs / ours for theirs, ours in pairs if min(theirs, ours) >= SMALLEST_PEAK_MIB]
    return f"{geometric_mean(ratios):.2f}" if ratios else "-"


def kept_ratio(rows: list[MemoryMeasurement]) -> str:
    """Geometric mean of what torch keeps to what gru_ext does; recomputing, it may keep nothing."""
    ratios = [row.torch_kept_mib / row.gru_ext_kept_mib for row in rows if row.gru_ext_kept_mib > 0]
    return f"{geometric_mean(ratios):.2f}" if ratios else "-"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    add("--shapes", nargs="+", type=parse_shape, default=list(SHAPES), metavar="B,T,I,H")
    add("--recompute", action="store_true", help="make gru_ext.GRU with recompute=True")
    add("--csv", type=Path, metavar="FILE", help="write the measurements here")
    parsed = parser.parse_args()
    if parsed.csv and not parsed.csv.parent.is_dir():
        parser.error(f"argument --csv: there is no folder {parsed.csv.parent}")
    return parsed


def main() -> int:
    """Measure every shape, print the table, write the CSV."""
    parsed = parse_arguments()
    described = facts(torch.device("cpu"))
    print(f"{described['machine']}, {described['system']}")
    print(", ".join(f"{name} {described[name]}" for name in ("torch", "gru_ext", "commit", "python", "date")))
    measurements: list[MemoryMeasurement] = []
    for dtype in parsed.dtypes:
        for shape in parsed.shapes:
            try:
                theirs, ours = (measure(name, shape, dtype, parsed.recompute) for name in MODULES)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return 1
            batch, seq_len, input_size, hidden_size = shape
            fields: dict[str, Any] = described
            measurements.append(
                MemoryMeasurement(
                    device="cpu",
                    dtype=dtype,
                    threads=1,
                    mode="training",
                    batch=batch,
                    seq_len=seq_len,
                    input_size=input_size,
                    hidden_size=hidden_size,
                    layout="time-first",
                    torch_peak_mib=theirs["peak"] / MIB,
                    gru_ext_peak_mib=ours["peak"] / MIB,
                    torch_kept_mib=theirs["kept"] / MIB,
                    gru_ext_kept_mib=ours["kept"] / MIB,
                    recompute=int(parsed.recompute),
                    exact=min(theirs["exact"], ours["exact"]),
                    **fields,
                )
            )
    print("\n".join(["", *table(measurements)]))
    if not all(m.exact for m in measurements):
        print(
            "This system cannot count the peak anew for the step, as Linux can: peak is the rise of the process's own\n"
            "peak, which is too small where importing and making the input needed more for a while."
        )
    if parsed.csv:
        write_csv(parsed.csv, measurements)
        print(f"written: {parsed.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
