"""A roofline plot: what a set of shapes achieves, below what this machine's arithmetic and memory allow.

example:
  python -m gru_ext roofline --output roofline.svg --csv roofline.csv --dtype float32 --threads 2

The machine's ceilings are measured in the same run, and so are the points, gru_ext's and torch.nn.GRU's by turns.
"""

from __future__ import annotations

import argparse

import torch

from gru_ext import _C
from gru_ext.commands.options import output_file, picture_file, positive
from gru_ext.measure import BadInput, harness
from gru_ext.measure.floor import Machine
from gru_ext.measure.machine import facts
from gru_ext.measure.measurements import Measurement
from gru_ext.measure.roofline import OURS, TORCHS, Point, ceilings, shape_work, tables, title, write_csv
from gru_ext.measure.timing import Budget
from gru_ext.measure.workloads import DTYPES, SHAPES, GRUShape, Workload, parse_shape
from gru_ext.text import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Shapes, how they run, and where the plot goes."""
    add = parser.add_argument
    add("--output", type=picture_file, metavar="FILE", help="the plot: .svg, .png or .pdf")
    add("--csv", type=output_file, metavar="FILE", help="the same in figures")
    add(
        "--shapes", nargs="+", type=parse_shape, default=list(SHAPES), metavar="B,T,I,H", help="default: those of bench"
    )
    add("--dtype", choices=DTYPES, default="float32", help="default: float32")
    add("--threads", type=positive, default=torch.get_num_threads(), metavar="N", help="default: torch's")
    add("--training", action="store_true", help="a step with backward, instead of inference")
    add("--seconds", type=float, default=4.0, metavar="S", help="for each shape (default: 4)")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints, plots. 130 when interrupted, after plotting the points that there are."""
    check(arguments)
    mode = "training" if arguments.training else "inference"
    cpu = torch.device("cpu")
    described = facts(cpu)
    # Before the points: a peak measured between two of them would be disturbed by the threads of the one before.
    limits = ceilings(Machine(), arguments.dtype, arguments.threads)
    workloads = [
        Workload(arguments.dtype, arguments.threads, mode, GRUShape(*shape), cpu)
        for shape in dict.fromkeys(arguments.shapes)
    ]
    result = harness.run(workloads, Budget(arguments.seconds), described, floor=False)
    points = [point for measurement in result.measurements for point in points_of(measurement)]
    show("", *(part for table in tables(limits, points) for part in (table, "")))
    for failure in result.failures:
        show(failure)
    if arguments.csv:
        more = {"dtype": arguments.dtype, "threads": str(arguments.threads), "mode": mode, "simd": _C.cpu_target()}
        write_csv(arguments.csv, limits, points, {**more, **described})
        show(f"written: {arguments.csv}")
    if arguments.output:
        from gru_ext.measure.plots import roofline_figure, save  # here: an optional package

        where = f"{described['machine']}, SIMD target {_C.cpu_target()}"
        head = title(where, arguments.dtype, arguments.threads, arguments.training, described["commit"])
        save(roofline_figure(limits, points, head), arguments.output)
        show(f"written: {arguments.output}")
    return result.exit_code


def points_of(measured: Measurement) -> list[Point]:
    """Ours and torch's."""
    work = shape_work(measured.sizes, measured.dtype, measured.mode != "inference")
    both = ((OURS, measured.gru_ext_ms), (TORCHS, measured.torch_ms))
    return [Point(work.operations, work.bytes, name, measured.sizes, ms) for name, ms in both]


def check(arguments: argparse.Namespace) -> None:
    """Raises BadInput where nothing would be measured."""
    if not arguments.seconds > 0:
        raise BadInput(f"--seconds is {arguments.seconds}; expected more than 0")
