"""How the kernels that keep W_hh on the chip should divide their work on this GPU: times every division that fits.

    python benchmarks/tune_cuda.py [--dtypes bfloat16 float32] [--hidden-sizes 256 512] [--batches 8 64] [--csv FILE]

For each hidden size and batch: torch.nn.GRU, the step path, and the stationary kernels with each division that
GRU_EXT_CUDA_TUNING can ask for, forward and forward with backward. Prints the fastest of each, with the numbers of a
line of the tables in csrc/cuda/stationary.h; the CSV has all. The first two batches come before the others, training
before inference, and the sizes in the order given, so that a run cut short has what matters most.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from gru_ext import _C, GRU, explain
from gru_ext.commands.options import output_file
from gru_ext.measure.timing import make_call, timed, warm_up

SEQ_LEN = 256
HIDDEN_SIZES = (256, 512, 1024, 128, 768, 64, 2048, 192, 384)
BATCHES = (8, 64, 1, 256)
MODES = ("training", "inference")
KERNEL, TUNING = "GRU_EXT_CUDA_KERNEL", "GRU_EXT_CUDA_TUNING"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COLUMNS = ("dtype", "hidden_size", "batch", "mode", "kernel", "tuning", "milliseconds", "microseconds_a_step", "error")


def tunings(dtype: str, hidden_size: int) -> Iterator[str]:
    """Divisions that hold the weights, and not twice as many: k_tiles,splits,warps."""
    for k_tiles, most_warps, two_splits in _C.cuda_tiles(DTYPES[dtype]):
        for splits in (2,) if two_splits else (2, 4, 8):
            columns = 16 * k_tiles * splits
            for warps in (4, 6, 8, 16):
                fits = warps <= most_warps and warps % splits == 0
                if fits and hidden_size <= columns < max(2 * hidden_size, 128):
                    yield f"{k_tiles},{splits},{warps}"


def candidates(dtype: str, hidden_size: int) -> Iterator[tuple[str, str]]:
    """What to time: (kernel, tuning), where a stationary kernel has the name of its exchange."""
    yield "torch", ""
    yield "step", ""
    for exchange in ("solo", "cluster", "grid"):
        for tuning in tunings(dtype, hidden_size):
            yield exchange, tuning


def measure(dtype: str, hidden_size: int, batch: int, mode: str, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a candidate. An exchange that a division does not have is left out."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    theirs = nn.GRU(hidden_size, hidden_size, device=device, dtype=DTYPES[dtype])
    ours = GRU(hidden_size, hidden_size, device=device, dtype=DTYPES[dtype])
    ours.load_state_dict(theirs.state_dict())
    data = torch.randn(SEQ_LEN, batch, hidden_size, device=device, dtype=DTYPES[dtype])
    gradient = torch.randn_like(data)
    for kernel, tuning in candidates(dtype, hidden_size):
        row: dict[str, Any] = {"dtype": dtype, "hidden_size": hidden_size, "batch": batch, "mode": mode}
        row |= {"kernel": kernel, "tuning": tuning, "error": ""}
        stationary = kernel not in ("torch", "step")
        os.environ[KERNEL] = "stationary" if stationary else "step"
        os.environ[TUNING] = f"{tuning},{'grid' if kernel == 'grid' else 'cluster'}" if stationary else ""
        passes = explain(ours, data, training=mode == "training").layers[0].passes
        exchanges = [pass_plan.division.get("exchange") for pass_plan in passes]
        if stationary and (exchanges[0] != kernel or None in exchanges):
            continue
        try:
            call = make_call(theirs if kernel == "torch" else ours, mode, data, gradient)
            calls = warm_up(call, device)
            row["milliseconds"] = statistics.median(timed(call, calls, device) for _ in range(rounds))
            row["microseconds_a_step"] = row["milliseconds"] * 1e3 / SEQ_LEN
        except RuntimeError as error:
            row["error"] = str(error).splitlines()[0]
        yield row


def order(
    dtypes: Sequence[str], hidden_sizes: Sequence[int], batches: Sequence[int]
) -> Iterator[tuple[str, int, int, str]]:
    """(dtype, hidden_size, batch, mode) of every shape, what matters most first."""
    for group in (batches[:2], batches[2:]):
        for mode in MODES:
            for hidden_size in hidden_sizes:
                for batch in group:
                    for dtype in dtypes:
                        yield dtype, hidden_size, batch, mode


def main() -> int:
    """Time all, print the best, write the CSV with each shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--hidden-sizes", nargs="+", type=int, default=list(HIDDEN_SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=output_file, metavar="FILE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune_cuda: torch sees no GPU", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    for dtype, hidden_size, batch, mode in order(arguments.dtypes, arguments.hidden_sizes, arguments.batches):
        here = list(measure(dtype, hidden_size, batch, mode, arguments.rounds))
        rows += here
        timed_rows = [row for row in here if "milliseconds" in row]
        if timed_rows:
            by_kernel = {row["kernel"]: row["milliseconds"] for row in timed_rows if not row["tuning"]}
            best = min(timed_rows, key=lambda row: row["milliseconds"])
            print(
                f"{dtype} H={hidden_size} B={batch} {mode}: {best['kernel']} {best['tuning']} "
                f"{best['microseconds_a_step']:.2f} us a step, "
                + ", ".join(f"{name} {time * 1e3 / SEQ_LEN:.2f}" for name, time in by_kernel.items()),
                flush=True,
            )
        if arguments.csv:
            with arguments.csv.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
