"""gru_ext.GRU against torch.nn.GRU, interleaved in one process: the table of the README.

    python benchmarks/compare.py                         # the default table, on the CPU
    python benchmarks/compare.py --quick                 # the same cells, a short look at each
    python benchmarks/compare.py --device cuda --dtypes float32 tf32 bfloat16 float16 --layout packed
    python benchmarks/compare.py --shapes 32,128,256,256 --modes training --threads 1 --seconds 30

gru_ext/measure/timing.py says how it is measured: rounds go on until the cell's time budget is spent, for at least 7
rounds, or 3 where these take longer than half a minute. `python -m gru_ext bench` measures shapes of your own with the
same harness.

dtype tf32 is float32 with TF32 allowed in CUDA's matrix products, for both; float32 is without; float32-vs-tf32 is
PyTorch's default: allowed to torch.nn.GRU alone, while ours is float32. layout packed is a PackedSequence, half of
whose sequences are shorter, down to half of seq_len.

The column "floor" is gru_ext's time over the least that the machine allows for the shape (gru_ext/measure/floor.py), by
peaks measured at the start of the same run; in brackets where that is so little that the price of a call as such counts
beside it. There is none on CUDA.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from gru_ext.measure.harness import run
from gru_ext.measure.tables import closing_lines, tables
from gru_ext.measure.text import show
from gru_ext.measure.timing import LEAST_ROUNDS, LEAST_ROUNDS_QUICK, Budget
from gru_ext.measure.workloads import (
    DTYPES,
    LAYOUTS,
    MODES,
    RECOMPUTE,
    SHAPES,
    TF32,
    TORCH_TF32,
    GRUShape,
    Shape,
    Workload,
    packed_lengths,
    parse_shape,
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="CPU thread counts")
    add("--dtypes", nargs="+", choices=[*DTYPES, TF32, TORCH_TF32], default=["float32", "bfloat16"])
    add("--modes", nargs="+", choices=[*MODES, RECOMPUTE], default=list(MODES))
    add("--shapes", nargs="+", type=parse_shape, default=list(SHAPES), metavar="B,T,I,H")
    add("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="order of the input's dimensions, or packed")
    add("--bidirectional", action="store_true", help="both directions of a layer")
    add("--graph", action="store_true", help="on CUDA: time replays of a CUDA graph of each call")
    add("--seconds", type=float, default=4.0, help="time budget of a cell, beside the warm-up")
    add("--quick", action="store_true", help="at most 0.2 seconds and at least 3 rounds for a cell")
    add("--seed", type=int, default=0)
    add("--csv", type=Path, metavar="FILE", help="write the measurements here")
    arguments = parser.parse_args()
    if min(arguments.threads) < 1:
        parser.error(f"argument --threads: expected counts of at least 1, got {min(arguments.threads)}")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"argument --device: {arguments.device} was asked for, and torch sees no GPU")
    if {TF32, TORCH_TF32} & set(arguments.dtypes) and not arguments.device.startswith("cuda"):
        parser.error(f"argument --dtypes: {TF32} and {TORCH_TF32} are for CUDA")
    if arguments.graph and not arguments.device.startswith("cuda"):
        parser.error("argument --graph: it is for CUDA")
    if arguments.csv and not arguments.csv.parent.is_dir():
        parser.error(f"argument --csv: there is no folder {arguments.csv.parent}")
    return arguments


def shaped(shape: Shape, layout: str, bidirectional: bool) -> GRUShape:
    """Of one layer, in the layout."""
    lengths = packed_lengths(shape[0], shape[1]) if layout == "packed" else None
    return GRUShape(*shape, bidirectional=bidirectional, batch_first=layout == "batch-first", lengths=lengths)


def main() -> int:
    """Measure every workload, print the table, write the CSV."""
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    workloads = [
        Workload(dtype, count, mode, shaped(shape, arguments.layout, arguments.bidirectional), device, arguments.graph)
        for dtype in arguments.dtypes
        for count in ([torch.get_num_threads()] if device.type == "cuda" else arguments.threads)
        for mode in arguments.modes
        for shape in arguments.shapes
    ]
    if device.type == "cuda":  # shape by shape: a run that is cut short has all of the shapes that it came to
        workloads.sort(key=lambda workload: arguments.shapes.index(workload.shape))
    budget = Budget(
        min(arguments.seconds, 0.2) if arguments.quick else arguments.seconds,
        LEAST_ROUNDS_QUICK if arguments.quick else LEAST_ROUNDS,
    )
    result = run(workloads, budget, seed=arguments.seed, csv=arguments.csv)
    show(*(part for table in tables(result.measurements) for part in ("", table)), "")
    show(*closing_lines(result, arguments.csv))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
