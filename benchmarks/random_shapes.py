"""Draws GRUs at random and looks for those that gru_ext runs more slowly than torch.nn: shapes nobody thought of.

    python benchmarks/random_shapes.py                                    # 300 calls a dtype and thread count
    python benchmarks/random_shapes.py --seed 1 --count 60 --dtypes bfloat16 --threads 2
    python benchmarks/random_shapes.py --seed 1 --dtypes bfloat16 --threads 2 --cells 17 43

A call is a GRU of 1 to 3 layers, of one or both directions, time-first, batch-first or packed, or a GRUCell; it is run
for inference or trained. Sizes are spread evenly over their logarithms, with more weight on one sequence, on few steps,
and on common and prime sizes. Number N of a seed and dtype is always the same call, which --cells shows again.

Calls that torch.nn would need longer for than --most-milliseconds are drawn anew, by an estimate from their operations;
where a first call shows that the estimate was far too low, the cell is left out. Each cell is read briefly. Those
below, or not far above, the bound are then read again, longer, and the second reading counts. Exit code 1: some are
below, or could not be read.
"""

from __future__ import annotations

import argparse
import math
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from gru_ext.commands.explain import explained
from gru_ext.commands.options import output_file, positive
from gru_ext.cost import backward_operations, forward_operations, weight_hh_bytes
from gru_ext.measure.harness import each, row_of
from gru_ext.measure.machine import facts
from gru_ext.measure.measurements import Measurement, geometric_mean, write_csv
from gru_ext.measure.tables import ratio_quartiles
from gru_ext.measure.timing import LEAST_ROUNDS, LEAST_ROUNDS_QUICK, Budget, make_call, make_module, measure, timed
from gru_ext.measure.workloads import DTYPES, LAYOUTS, MODES, GRUShape, Workload
from gru_ext.planning import PassPlan
from gru_ext.text import Table, counted, duration, show, three_digits

MOST_BATCH, MOST_STEPS, FEW_STEPS, MOST_SIZE = 256, 512, 5, 1024
COMMON = (8, 16, 32, 40, 64, 80, 100, 128, 200, 256, 300, 512, 768, 1024)
PRIMES = (1, 2, 3, 5, 7, 13, 17, 31, 61, 67, 127, 131, 251, 257, 509, 521, 1021)
CPU = torch.device("cpu")

# What torch.nn does in a millisecond of one thread, about, without 16-bit instructions; and what a step takes besides.
OPERATIONS_PER_MS = {"float32": 4e7, "float64": 2e7, "bfloat16": 5e6, "float16": 5e6}
BYTES_PER_MS = 2e7  # of W_hh, read again at each step
STEP_MS = {"inference": 0.03, "training": 0.3}
FAR = 3.0  # a first call that takes so many times --most-milliseconds is the last

NEAR = 1.1  # times the bound: what is read again
LONGER = 25  # times --seconds: the second reading
WORST = 5


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--count", type=positive, default=300, help="calls for each dtype and thread count")
    add("--cells", nargs="+", type=int, metavar="N", help="in place of --count: these numbers alone")
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    add("--threads", nargs="+", type=positive, default=[1, 2], metavar="N")
    add("--below", type=float, default=0.95, metavar="RATIO", help="report cells whose ratio is below this")
    add("--seconds", type=float, default=0.04, help=f"of a cell's first reading; the second takes {LONGER} times that")
    add("--most-milliseconds", type=float, default=100.0, metavar="MS", help="that a call of torch.nn may take")
    add("--csv", type=output_file, metavar="FILE", help="write the measurements here, the last of each cell")
    return parser.parse_args(words)


def log_uniform(draw: random.Random, most: int) -> int:
    """1 to most, as often between 1 and 10 as between 10 and 100."""
    return min(most, int(math.exp(draw.uniform(0, math.log(most + 1)))))


def size(draw: random.Random) -> int:
    """An input_size or hidden_size."""
    return draw.choice((log_uniform(draw, MOST_SIZE), draw.choice(COMMON), draw.choice(PRIMES)))


def draw_gru(draw: random.Random, name: str) -> GRUShape:
    """Any GRU or GRUCell, however long it takes."""
    batch = 1 if draw.random() < 0.25 else log_uniform(draw, MOST_BATCH)
    if draw.random() < 0.1:
        return GRUShape(batch, 1, size(draw), size(draw), cell=True, name=name)
    seq_len = draw.randint(1, FEW_STEPS) if draw.random() < 0.15 else log_uniform(draw, MOST_STEPS)
    layout = draw.choice(LAYOUTS)
    lengths = sorted([seq_len, *(draw.randint(1, seq_len) for _ in range(batch - 1))], reverse=True)
    return GRUShape(
        batch,
        seq_len,
        size(draw),
        size(draw),
        num_layers=draw.choice((1, 1, 1, 2, 3)),
        bidirectional=draw.random() < 0.25,
        layout=layout,
        lengths=tuple(lengths) if layout == "packed" else None,
        name=name,
    )


def estimated_ms(gru: GRUShape, dtype: str, mode: str) -> float:
    """What torch.nn might take for a call, with one thread."""
    operations, reads = 0, 1 if mode == "inference" else 3
    for layer in range(gru.num_layers):
        sizes = (gru.rows, gru.directions * gru.hidden_size if layer else gru.input_size, gru.hidden_size)
        operations += gru.directions * forward_operations(*sizes)
        operations += gru.directions * backward_operations(*sizes) if reads > 1 else 0
    step = STEP_MS[mode] + reads * weight_hh_bytes(gru.hidden_size, DTYPES[dtype].itemsize) / BYTES_PER_MS
    return operations / OPERATIONS_PER_MS[dtype] + gru.seq_len * gru.num_layers * gru.directions * step


def draw_workload(seed: int, number: int, dtype: str, threads: int, most_ms: float) -> Workload:
    """Call ``number`` of the seed: the first of its draws that takes no longer than ``most_ms``."""
    draw = random.Random(f"{seed} {number}")
    while True:
        gru, mode = draw_gru(draw, f"#{number}"), draw.choice(MODES)
        if estimated_ms(gru, dtype, mode) <= most_ms:
            return Workload(dtype, threads, mode, gru)


def first_call_ms(workload: Workload) -> float:
    """What the first call of torch.nn takes."""
    gru, dtype = workload.gru, workload.torch_dtype
    torch.set_num_threads(workload.threads)
    module = make_module(nn.GRUCell if gru.cell else nn.GRU, gru, CPU, dtype)
    gradient = torch.ones(*gru.outer_sizes, gru.directions * gru.hidden_size, dtype=dtype)
    return timed(make_call(module, workload.mode, gru.random_input(CPU, dtype), gradient), 1, CPU)


@dataclass
class Group:
    """The cells of one dtype and thread count.

    Attributes:
        workloads: by number, as the rows have it as their name
        rows: the last reading of each
        again: which were read twice
        left_out: a sentence for each that torch.nn takes too long for
        failures: a sentence for each that could not be read
        complete: whether no cell is missing because of an interruption
    """

    workloads: dict[str, Workload]
    rows: dict[str, Measurement] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    complete: bool = False

    def below(self, bound: float) -> list[Measurement]:
        """The slow cells, the slowest first."""
        return sorted((row for row in self.rows.values() if row.ratio < bound), key=lambda row: row.ratio)


def read(group: Group, parsed: argparse.Namespace, described: dict[str, str]) -> None:
    """Read every cell, and those again that are below the bound or near it."""

    def add(workload: Workload, budget: Budget) -> None:
        group.rows[workload.gru.name] = row_of(workload, measure(workload, budget, seed=parsed.seed), described, None)

    def first(workload: Workload) -> None:
        taken = first_call_ms(workload)
        if taken > FAR * parsed.most_milliseconds:
            group.left_out.append(f"{workload.title}: torch.nn takes {duration(taken)}")
        else:
            add(workload, Budget(parsed.seconds, LEAST_ROUNDS_QUICK))

    def second(workload: Workload) -> None:
        add(workload, Budget(LONGER * parsed.seconds, LEAST_ROUNDS))
        group.again.append(workload.gru.name)

    if each(list(group.workloads.values()), first, group.failures, "read"):
        near = [group.workloads[name] for name, row in group.rows.items() if row.ratio < NEAR * parsed.below]
        print(f"{len(group.rows)} cells read, {len(near)} of them to be read again", file=sys.stderr)
        group.complete = each(near, second, group.failures, "read again")


def pass_words(plan: PassPlan) -> str:
    """How the pass is divided."""
    division = plan.division
    words = [f"{plan.name} {counted(division['threads'])}"] if division else [plan.name, plan.kernel]
    words += [f"by {division['split']}"] if division.get("split", "none") != "none" else []
    words += ["few rows"] if division.get("few_rows") and plan.name == "forward" else []  # it means nothing else
    return " ".join(words)


def plan_words(workload: Workload) -> str:
    """What plan chose for each layer; layers in a row that run alike are named once."""
    layers = [", ".join(map(pass_words, layer.passes)) for layer in explained(workload).layers]
    return "; ".join(dict.fromkeys(layers))


def again_words(workload: Workload, parsed: argparse.Namespace) -> str:
    """The command that reads the cell again."""
    words = ["python", "benchmarks/random_shapes.py", "--seed", parsed.seed, "--dtypes", workload.dtype, "--threads"]
    words += [workload.threads, "--most-milliseconds", f"{parsed.most_milliseconds:g}", "--cells"]
    return shlex.join([*map(str, words), workload.gru.name[1:]])


def cells_table(rows: Sequence[Measurement], head: str, notes: Sequence[str] = ()) -> Table:
    """A line a cell."""
    columns = ("cell (B,T,I,H)", "mode", "nn.GRU", "gru_ext", "ratio", "quartiles")
    cells = [
        (
            row.title,
            row.mode,
            duration(row.torch_ms),
            duration(row.gru_ext_ms),
            f"{row.ratio:.3f}",
            ratio_quartiles(row),
        )
        for row in rows
    ]
    return Table(columns, cells, head, tuple(notes), words=2)


def report(group: Group, parsed: argparse.Namespace, where: str) -> None:
    """Print what was read, and of the slow cells how they run and how to read them again."""
    rows = sorted(group.rows.values(), key=lambda row: row.ratio)
    below = group.below(parsed.below)
    for word, sentences in (("left out", group.left_out), ("failed", group.failures)):
        for sentence in sentences:
            print(f"{word}: {sentence}")
    if not rows:
        return
    summary = (
        f"{len(rows)} cells of {len(group.workloads)} drawn, {len(group.again)} read again; geometric mean of ratio "
        f"{three_digits(geometric_mean([row.ratio for row in rows]))}; {len(below)} below {parsed.below:g}"
        f"{'; ?: the machine was not idle' if any(row.noisy for row in rows[:WORST]) else ''}"
    )
    show(cells_table(rows[:WORST], f"{where}: the worst", [summary]), "")
    if below:
        show(cells_table(below, f"{where}: below {parsed.below:g} at the second reading too"))
        for row in below:
            workload = group.workloads[row.name]
            print(f"{row.name}: {plan_words(workload)}\n    {again_words(workload, parsed)}")
        print()


def main(words: Sequence[str] | None = None) -> int:
    """Draw, read and report, a dtype and thread count after the other."""
    parsed = parse_arguments(words)
    described = facts(CPU)
    print(", ".join(described[name] for name in ("machine", "torch", "gru_ext", "commit", "date")))
    groups: list[Group] = []
    for dtype in parsed.dtypes:
        for threads in parsed.threads:
            numbers = parsed.cells or range(parsed.count)
            drawn = [draw_workload(parsed.seed, n, dtype, threads, parsed.most_milliseconds) for n in numbers]
            groups.append(Group({workload.gru.name: workload for workload in drawn}))
            print(f"{dtype}, {counted(threads)}: {len(drawn)} cells", file=sys.stderr)
            read(groups[-1], parsed, described)
            report(groups[-1], parsed, f"{dtype}, {counted(threads)}")
            rows = [row for group in groups for row in group.rows.values()]
            if parsed.csv and rows:
                write_csv(parsed.csv, rows)
            if not groups[-1].complete:
                return 130
    return int(any(group.below(parsed.below) or group.failures for group in groups))


if __name__ == "__main__":
    sys.exit(main())
