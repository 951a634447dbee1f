"""The floor: the least time that this machine allows for a shape, from peaks measured in the same run.

    python benchmarks/floor.py                  # the peaks, and the floor of every shape of compare.py
    python benchmarks/floor.py --threads 1 --dtypes float64 --shapes 32,128,256,256

A GRU layer with B sequences of T steps, I inputs and H hidden units costs

    step       6 B H^2 operations: the product with W_hh, two for each multiply-add; and reading W_hh, 3 H^2 elements,
               for nothing nearer than the cache that holds it keeps it until the next step
    pass       T max(6 B H^2 / operations per second, bytes of W_hh / bytes per second)
    inference  pass + 6 B T H I / operations per second, the latter for the product with W_ih
    training   2 passes, forward's and backward's, + what is left of three times inference's operations: the gradients
               of the weights and of the input cost twice what forward does, of which one pass is sequential:
               2 pass + (3 * 6 B T H (H + I) - 2 * 6 B T H^2) / operations per second

Operations per second are those of a loop of multiply-adds on registers, bytes per second those of reading a buffer of
the size of W_hh over and over, both by the given threads at the same time, with the vectors of the SIMD target in use.

It is a yardstick and no proof. Too low: the gates, input, output and what is saved for backward count for nothing, nor
does waiting for other threads. Too high, in principle: a part of W_hh may stay in a nearer cache, or in registers, from
one step to the next.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from cells import DTYPES, SHAPES, Shape, parse_shape, shape_name
from tables import milliseconds, three_digits

# What an element of W_hh takes while it is read. Some kernels keep 16-bit weights as float32, which is theirs to mend.
ELEMENT_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
LEAST_BYTES, MOST_BYTES = 4096, 2**31  # what _C.cpu_bytes_per_second takes
ATTEMPTS = 5  # in a row without one better by more than this factor end the search for a peak
BETTER = 1.01
PAUSE = 0.1  # seconds; OpenMP's threads wait busily for some 10 milliseconds
SHARED = 0.75  # of its part of the arithmetic: a thread that has less cannot have had a core to itself
ARITHMETIC, READING = "arithmetic", "reading W_hh"


def best_of(measure: Callable[[], float], pause: float = 0.0) -> float:
    """The best that can be had: whatever else the machine does makes a peak look lower, never higher.

    pause: seconds before each attempt. Threads that sleep meanwhile are woken on idle cores, where threads that keep
    running may share one for seconds.
    """
    best, tries = 0.0, 0
    while tries < ATTEMPTS:
        time.sleep(pause)
        value = measure()
        tries = 0 if value > BETTER * best else tries + 1
        best = max(best, value)
    return best


def measured_operations(dtype: str, threads: int) -> float:
    """Operations a second, by _C."""
    from gru_ext import _C  # here, so that --help needs no build

    return best_of(lambda: _C.cpu_operations_per_second(DTYPES[dtype], threads), PAUSE if threads > 1 else 0)


def measured_reading(size: int, threads: int) -> float:
    """Bytes a second of a buffer of `size` bytes, by _C."""
    from gru_ext import _C

    return best_of(lambda: _C.cpu_bytes_per_second(size, threads), PAUSE if threads > 1 else 0)


class Machine:
    """The peaks of this machine; each is measured when it is first asked for, and then stays the same for the run.

    Args:
        operations: (dtype, threads) -> operations a second
        reading: (bytes, threads) -> bytes a second
    """

    def __init__(
        self,
        operations: Callable[[str, int], float] = measured_operations,
        reading: Callable[[int, int], float] = measured_reading,
    ) -> None:
        self._operations, self._reading = operations, reading
        self._known_operations: dict[tuple[str, int], float] = {}
        self._known_reading: dict[tuple[int, int], float] = {}

    def operations_per_second(self, dtype: str, threads: int) -> float:
        """Peak of `threads` threads together: operations a second, two for each multiply-add."""
        key = (dtype, threads)
        if key not in self._known_operations:
            self._known_operations[key] = self._operations(*key)
        return self._known_operations[key]

    def bytes_per_second(self, size: int, threads: int) -> float:
        """Peak of `threads` threads together, each reading its part of `size` bytes over and over: bytes a second."""
        key = (min(max(size, LEAST_BYTES), MOST_BYTES), threads)
        if key not in self._known_reading:
            self._known_reading[key] = self._reading(*key)
        return self._known_reading[key]


def weight_bytes(hidden_size: int, dtype: str) -> int:
    """Bytes of W_hh [3H, H]."""
    return 3 * hidden_size * hidden_size * ELEMENT_BYTES[dtype]


def floor_ms(shape: Shape, dtype: str, mode: str, machine: Machine, threads: int) -> tuple[float, str]:
    """The least milliseconds for one call, and which limit binds in the recurrence: "arithmetic" or "reading W_hh".

    The formula is at the head of this file.

    Args:
        shape: B, T, I, H
        dtype: name of the dtype, such as "float32"
        mode: "inference", "training" or "recompute", whose floor is that of training
        machine: where the peaks come from
        threads: how many threads share the work
    """
    batch, seq_len, input_size, hidden_size = shape
    operations = machine.operations_per_second(dtype, threads)
    size = weight_bytes(hidden_size, dtype)
    step_operations = 6 * batch * hidden_size * hidden_size
    arithmetic, reading = step_operations / operations, size / machine.bytes_per_second(size, threads)
    recurrence = seq_len * max(arithmetic, reading)
    inference_operations = seq_len * (step_operations + 6 * batch * hidden_size * input_size)
    passes = 1 if mode == "inference" else 2
    all_operations = inference_operations * (1 if mode == "inference" else 3)
    others = (all_operations - passes * seq_len * step_operations) / operations
    return (passes * recurrence + others) * 1e3, ARITHMETIC if arithmetic >= reading else READING


def size_name(size: int) -> str:
    """In the unit that keeps it readable: 768 KiB, 1.5 MiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 2**10:.3g} KiB"


def counted(threads: int) -> str:
    """1 thread, 2 threads."""
    return f"{threads} thread{'s' * (threads > 1)}"


def peak_lines(
    machine: Machine, dtypes: Sequence[str], threads: Sequence[int], shapes: Sequence[Shape]
) -> Iterator[str]:
    """Measure every peak that the floors of these shapes take, and table them, with a warning where they look wrong."""

    def line(name: str, unit: str, peak: Callable[[int], float]) -> str:
        return f"  {name:20}" + "".join(f"{three_digits(peak(count) / 1e9):>12}" for count in threads) + f"  {unit}"

    yield f"{'peaks of this machine':22}" + "".join(f"{counted(count):>12}" for count in threads)
    for dtype in dtypes:
        yield line(dtype, "GFLOP/s", partial(machine.operations_per_second, dtype))
    hidden_sizes = {shape[3] for shape in shapes}
    for size in sorted({weight_bytes(hidden_size, dtype) for hidden_size in hidden_sizes for dtype in dtypes}):
        yield line(f"reading {size_name(size)}", "GB/s", partial(machine.bytes_per_second, size))
    few = min(threads)
    for count in threads:
        if any(
            machine.operations_per_second(dtype, count) / count
            < SHARED * machine.operations_per_second(dtype, few) / few
            for dtype in dtypes
        ):
            yield f"?: {counted(count)} compute far less than {count / few:.3g} times {counted(few)}: machine not idle?"


def floor_lines(
    machine: Machine, dtypes: Sequence[str], threads: Sequence[int], shapes: Sequence[Shape]
) -> Iterator[str]:
    """A table of floors, one row a shape."""
    for dtype in dtypes:
        for count in threads:
            title = f"{dtype}, {counted(count)}"
            yield f"{title:34}{'inference':>11}{'training':>11}  recurrence's limit"
            for shape in shapes:
                inference, cause = floor_ms(shape, dtype, "inference", machine, count)
                training, _ = floor_ms(shape, dtype, "training", machine, count)
                yield f"  {shape_name(shape):32}{milliseconds(inference):>11}{milliseconds(training):>11}  {cause}"
            yield ""


def main() -> int:
    """Print the peaks and the floors."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=list(SHAPES), metavar="B,T,I,H")
    arguments = parser.parse_args()
    if min(arguments.threads) < 1:
        parser.error(f"argument --threads: expected counts of at least 1, got {min(arguments.threads)}")
    machine = Machine()
    what = (machine, arguments.dtypes, arguments.threads, arguments.shapes)
    print("\n".join([*peak_lines(*what), "", *floor_lines(*what)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
