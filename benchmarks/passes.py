"""The bare forward and backward passes on the CPU, without modules and autograd: what the kernels alone take.

    python benchmarks/passes.py                                   # every shape of compare.py
    python benchmarks/passes.py --shapes 32,128,256,256 --dtypes bfloat16 --threads 1 2 --seconds 3
    python benchmarks/passes.py --shapes 1,100,64,64 --threads 2 --bidirectional

Calls the operators torch.ops.gru_ext.forward and .backward in a loop and prints the fastest and the median call, beside
the pass's share of the floor (floor.py): inference is its floor's, backward what training's has above inference's. The
fastest call is what the kernels can do, the median what the machine lets them. For work on a kernel; what a user gets
is measured by compare.py.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gru_ext import _C, ops
from gru_ext.measure.floor import Machine, floor_ms, peak_lines
from gru_ext.measure.machine import facts
from gru_ext.measure.units import counted, milliseconds, three_digits
from gru_ext.measure.workloads import DTYPES, SHAPES, Shape, parse_shape, shape_name

LEAST_CALLS = 5


def timed(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Fastest and median milliseconds of a call, after one that does not count."""
    call()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or time.perf_counter() < deadline:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return min(times), statistics.median(times)


def passes(shape: Shape, dtype: torch.dtype, recompute: bool, directions: int) -> dict[str, Callable[[], object]]:
    """The passes to be timed, by name, on random data and weights as torch.nn.GRU draws them."""
    batch, seq_len, input_size, hidden_size = shape
    bound = hidden_size**-0.5

    def weight(*size: int) -> Tensor:
        return torch.empty(size).uniform_(-bound, bound).to(dtype)

    weights = [
        weight(3 * hidden_size, input_size),
        weight(3 * hidden_size, hidden_size),
        weight(3 * hidden_size),
        weight(3 * hidden_size),
    ] * directions
    input = torch.randn(seq_len, batch, input_size).to(dtype)
    hx = torch.zeros(directions, batch, hidden_size, dtype=dtype)
    layer = ops.Arguments(input, hx, weights, options=ops.Options(directions, recompute=int(recompute)))
    grad_output = torch.randn(seq_len, batch, directions * hidden_size).to(dtype)
    needs = [True] * (2 + len(weights))

    def forward(save: bool) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = ops.forward(*layer, save)
        return result

    saved = forward(True)[2]
    return {
        "inference": lambda: forward(False),
        "forward": lambda: forward(True),
        "backward": lambda: ops.backward(grad_output, None, saved, needs, *layer),
    }


def floor_of(name: str, shape: Shape, dtype: str, machine: Machine, threads: int) -> float:
    """The pass's part of the floor, milliseconds."""
    inference, _ = floor_ms(shape, dtype, "inference", machine, threads)
    training, _ = floor_ms(shape, dtype, "training", machine, threads)
    return training - inference if name == "backward" else inference


def main() -> int:
    """Measure and print, a line a pass."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--threads", nargs="+", type=int, default=[1], metavar="N")
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    add("--shapes", nargs="+", type=parse_shape, default=list(SHAPES), metavar="B,T,I,H")
    add("--seconds", type=float, default=1.0, help="time for each pass")
    add("--recompute", action="store_true", help="keep only the states, and compute the gates again in backward")
    add("--bidirectional", action="store_true", help="both directions of a layer, and twice the floor")
    arguments = parser.parse_args()
    directions = 2 if arguments.bidirectional else 1
    if min(arguments.threads) < 1:
        parser.error(f"argument --threads: expected counts of at least 1, got {min(arguments.threads)}")
    described = facts(torch.device("cpu"))
    print(f"{described['machine']}, SIMD target {_C.cpu_target()}, commit {described['commit']}")
    machine = Machine()
    # before the passes: a peak measured between two of them would be disturbed by the threads of the one before
    print("\n".join(peak_lines(machine, arguments.dtypes, arguments.threads, arguments.shapes)))
    for dtype in arguments.dtypes:
        for threads in arguments.threads:
            print(f"{f'{dtype}, {counted(threads)}':32}{'pass':10}{'fastest':>9}{'median':>9}{'floor':>9}  over floor")
            torch.set_num_threads(threads)
            for shape in arguments.shapes:
                torch.manual_seed(0)
                for name, call in passes(shape, DTYPES[dtype], arguments.recompute, directions).items():
                    fastest, median = timed(call, arguments.seconds)
                    floor = directions * floor_of(name, shape, dtype, machine, threads)
                    times = "".join(f"{milliseconds(value):>9}" for value in (fastest, median, floor))
                    ratios = f"{three_digits(fastest / floor):>6} {three_digits(median / floor):>6}"
                    print(f"  {shape_name(shape):30}{name:10}{times}{ratios}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
