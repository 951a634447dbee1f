"""How long a call takes alone, and beside other processes that do the same: a server's workers, a loader's helpers.

    python benchmarks/together.py                                  # two processes of two threads each
    python benchmarks/together.py --processes 4 --threads 1 --mode training --shapes 32,128,256,256

Each process calls its own module, torch.nn.GRU and then gru_ext.GRU, over and over for --seconds: first one process
while the others sleep, then all, which a barrier starts at the same time. A row is one of the processes that ran at
once; its ratio is of the medians, together over alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier

import torch
from torch import nn

import gru_ext
from gru_ext.commands.options import positive
from gru_ext.measure.machine import facts
from gru_ext.measure.timing import make_call, make_module, timed, values, warm_up
from gru_ext.measure.workloads import DTYPES, MODES, GRUShape, Workload, parse_shape
from gru_ext.text import Table, counted, duration, show, three_digits

MODULES: dict[str, type[nn.Module]] = {"nn.GRU": nn.GRU, "gru_ext": gru_ext.GRU}
LEAST_CALLS = 2  # a percentile wants two

_barrier: Barrier


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--processes", type=positive, default=2, metavar="N", help="at once")
    add("--threads", type=positive, default=2, metavar="N", help="of each process")
    shapes = [(1, 100, 80, 256), (8, 128, 128, 128)]
    add("--shapes", nargs="+", type=parse_shape, default=shapes, metavar="B,T,I,H")
    add("--dtype", choices=DTYPES, default="float32")
    add("--mode", choices=MODES, default=MODES[0])
    add("--seconds", type=float, default=3.0, help="time of each module, alone and again together")
    return parser.parse_args(words)


def begin(barrier: Barrier) -> None:
    """The first thing that a process does."""
    global _barrier
    _barrier = barrier


def met() -> None:
    """Returns once all processes are here."""
    _barrier.wait()


def times(module: str, workload: Workload, seconds: float, together: bool) -> list[float]:
    """In a process of its own: milliseconds of each call that begins within so many seconds."""
    try:
        torch.set_num_threads(workload.threads)
        torch.manual_seed(0)
        layer = make_module(MODULES[module], workload.gru, workload.device, workload.torch_dtype)
        data = workload.gru.random_input(workload.device, workload.torch_dtype)
        with torch.no_grad():
            gradient = torch.randn_like(values(layer(data)))
        call = make_call(layer, workload.mode, data, gradient)
        warm_up(call, workload.device)
        if together:
            met()
    except BaseException:
        _barrier.abort()  # or the others would wait for ever
        raise
    taken: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(taken) < LEAST_CALLS or time.perf_counter() < deadline:
        taken.append(timed(call, 1, workload.device))
    return taken


def summary(taken: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    return statistics.median(taken), statistics.quantiles(taken, n=20, method="inclusive")[-1]


def main(words: Sequence[str] | None = None) -> int:
    """Measure every shape, print the table."""
    parsed = parse_arguments(words)
    described = facts(torch.device("cpu"))
    print(", ".join(described[name] for name in ("machine", "torch", "gru_ext", "commit", "date")))
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parsed.processes, context, begin, (context.Barrier(parsed.processes),)) as processes:
        for ready in [processes.submit(met) for _ in range(parsed.processes)]:
            ready.result()
        for shape in parsed.shapes:
            for module in MODULES:
                workload = Workload(parsed.dtype, parsed.threads, parsed.mode, GRUShape(*shape))
                of_call = (module, workload, parsed.seconds)
                alone = summary(processes.submit(times, *of_call, False).result())
                at_once = [processes.submit(times, *of_call, True) for _ in range(parsed.processes)]
                for number, future in enumerate(at_once, 1):
                    together = summary(future.result())
                    shown = map(duration, (*alone, *together))
                    rows.append((workload.gru.title, module, str(number), *shown, three_digits(together[0] / alone[0])))
    columns = ("(B,T,I,H)", "module", "process", "alone", "95 %", "together", "95 %", "ratio")
    title = f"{parsed.dtype}, {parsed.mode}, {parsed.processes} processes of {counted(parsed.threads)}"
    show(Table(columns, rows, title, ("of a call: median and 95th percentile; ratio: of the medians",), words=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
