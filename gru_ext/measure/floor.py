"""The floor: the least time that this machine allows for a shape, from peaks measured in the same run.

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

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch

import gru_ext
from gru_ext import _C, cost
from gru_ext.cost import Limits
from gru_ext.measure.workloads import DTYPES, GRUShape, Workload
from gru_ext.text import counted, size, three_digits

LEAST_BYTES, MOST_BYTES = 4096, 2**31  # what _C.cpu_bytes_per_second takes
ATTEMPTS = 5  # in a row without one better by more than this factor end the search for a peak
BETTER = 1.01
PAUSE = 0.1  # seconds; OpenMP's threads wait busily for some 10 milliseconds
LATENCY_CALLS = 20
SHARED = 0.75  # of its part of the arithmetic: a thread that has less cannot have had a core to itself
ARITHMETIC, READING = "arithmetic", "reading W_hh"
# Causes in Limits. Reading hardly faster than from a buffer that no cache holds is reading from memory.
CACHE, MEMORY, LATENCY = "cache", "memory", "latency"
MEMORY_BYTES, MEMORY_LIKE = 2**28, 1.5


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
    return best_of(lambda: _C.cpu_operations_per_second(DTYPES[dtype], threads), PAUSE if threads > 1 else 0)


def measured_reading(size: int, threads: int) -> float:
    """Bytes a second of a buffer of `size` bytes, by _C."""
    return best_of(lambda: _C.cpu_bytes_per_second(size, threads), PAUSE if threads > 1 else 0)


def measured_latency(dtype: str, seq_len: int, training: bool) -> float:
    """Seconds of a call of the smallest layer, one sequence and one unit, of so many steps: the fastest of some."""
    module = gru_ext.GRU(1, 1, dtype=DTYPES[dtype])
    data = torch.zeros(seq_len, 1, 1, dtype=DTYPES[dtype])
    inputs, gradient = list(module.parameters()), torch.ones_like(data)
    times: list[float] = []
    with torch.set_grad_enabled(training):
        for _ in range(LATENCY_CALLS):
            begin = time.perf_counter()
            output, _ = module(data)
            if training:
                torch.autograd.grad(output, inputs, gradient)
            times.append(time.perf_counter() - begin)
    return min(times)


class Machine:
    """The peaks of this machine; each is measured when it is first asked for, and then stays the same for the run.

    Args:
        operations: (dtype, threads) -> operations a second
        reading: (bytes, threads) -> bytes a second
        latency: (dtype, seq_len, training) -> seconds of the smallest layer
    """

    def __init__(
        self,
        operations: Callable[[str, int], float] = measured_operations,
        reading: Callable[[int, int], float] = measured_reading,
        latency: Callable[[str, int, bool], float] = measured_latency,
    ) -> None:
        self._operations, self._reading, self._latency = cache(operations), cache(reading), cache(latency)

    def operations_per_second(self, dtype: str, threads: int) -> float:
        """Peak of `threads` threads together: operations a second, two for each multiply-add."""
        return self._operations(dtype, threads)

    def bytes_per_second(self, size: int, threads: int) -> float:
        """Peak of `threads` threads together, each reading its part of `size` bytes over and over: bytes a second."""
        return self._reading(min(max(size, LEAST_BYTES), MOST_BYTES), threads)

    def memory_bytes_per_second(self, threads: int) -> float:
        """Peak of reading what no cache holds, by `threads` threads together: bytes a second."""
        return self.bytes_per_second(MEMORY_BYTES, threads)

    def latency_seconds(self, dtype: str, seq_len: int, training: bool) -> float:
        """What a call of the smallest layer of so many steps takes; when training, forward and backward."""
        return self._latency(dtype, seq_len, training)

    def limits(
        self,
        pass_name: str,
        seq_len: int,
        rows: int,
        input_size: int,
        hidden_size: int,
        dtype: str,
        threads: int,
        directions: int,
        traffic_bytes: int,
    ) -> Limits:
        """What bounds a pass, "forward" or "backward", of a layer of these sizes; the arguments are layer_floor_ms's.

        Args:
            traffic_bytes: of all tensors that the pass reads and writes
        """
        sizes = (seq_len, rows, input_size, hidden_size, dtype)
        forward, training = (
            layer_floor_ms(*sizes, mode, self, threads, directions)[0] for mode in ("inference", "training")
        )
        count = cost.forward_operations if pass_name == "forward" else cost.backward_operations
        operations = directions * count(rows, input_size, hidden_size)
        weights = weight_bytes(hidden_size, dtype)
        nearest_power = 2 ** min(max(traffic_bytes, LEAST_BYTES) - 1, MEMORY_BYTES - 1).bit_length()
        read_rate, traffic_rate = (self.bytes_per_second(size, threads) for size in (weights, nearest_power))
        latency = self.latency_seconds(dtype, seq_len, False)
        floor = forward
        if pass_name == "backward":
            floor = training - forward
            latency = max(0.0, self.latency_seconds(dtype, seq_len, True) - latency)
        arithmetic = operations / self.operations_per_second(dtype, threads)
        reading = directions * seq_len * weights / read_rate
        traffic = traffic_bytes / traffic_rate

        def level(rate: float) -> str:
            return MEMORY if rate < MEMORY_LIKE * self.memory_bytes_per_second(threads) else CACHE

        causes = {ARITHMETIC: arithmetic, LATENCY: latency}
        for seconds, rate in ((reading, read_rate), (traffic, traffic_rate)):
            causes[level(rate)] = max(causes.get(level(rate), 0.0), seconds)
        cause = max(causes, key=lambda name: causes[name])
        return Limits(floor * 1e3, cause, arithmetic * 1e6, reading * 1e6, traffic * 1e6, latency * 1e6)


def weight_bytes(hidden_size: int, dtype: str) -> int:
    """Bytes of W_hh [3H, H] as it is read, even where a kernel keeps 16-bit weights as float32."""
    return cost.weight_hh_bytes(hidden_size, DTYPES[dtype].itemsize)


def layer_floor_ms(
    seq_len: int,
    rows: int,
    input_size: int,
    hidden_size: int,
    dtype: str,
    mode: str,
    machine: Machine,
    threads: int,
    directions: int = 1,
) -> tuple[float, str]:
    """The least milliseconds for one layer, and which limit binds in the recurrence: "arithmetic" or "reading W_hh".

    The formula is at the head of this file.

    Args:
        seq_len, input_size, hidden_size: T, I, H
        rows: T * B, or fewer when packed: then a step has as many sequences as the steps have on average
        dtype: name of the dtype, such as "float32"
        mode: "inference", "training" or "recompute", whose floor is that of training
        machine: where the peaks come from
        threads: how many threads share the work
        directions: 1, or 2 with twice the work
    """
    operations = machine.operations_per_second(dtype, threads)
    size = weight_bytes(hidden_size, dtype)
    pass_operations = cost.gate_operations(rows, hidden_size, hidden_size)
    arithmetic, reading = pass_operations / operations, seq_len * size / machine.bytes_per_second(size, threads)
    passes, all_operations = 1, cost.forward_operations(rows, input_size, hidden_size)
    if mode != "inference":
        passes, all_operations = 2, all_operations + cost.backward_operations(rows, input_size, hidden_size)
    others = (all_operations - passes * pass_operations) / operations
    milliseconds = directions * (passes * max(arithmetic, reading) + others) * 1e3
    return milliseconds, ARITHMETIC if arithmetic >= reading else READING


def floor_ms(gru: GRUShape, dtype: str, mode: str, machine: Machine, threads: int) -> tuple[float, str]:
    """The least milliseconds for all layers and directions, one after another, and what limits the recurrence."""
    total, cause = 0.0, ""
    for number in range(gru.num_layers):
        input_size = gru.input_size if number == 0 else gru.directions * gru.hidden_size
        sizes = (gru.seq_len, gru.rows, input_size, gru.hidden_size)
        floor, cause = layer_floor_ms(*sizes, dtype, mode, machine, threads, gru.directions)
        total += floor
    return total, cause


def peak_lines(machine: Machine, workloads: Sequence[Workload]) -> Iterator[str]:
    """Measure every peak that the floors of these take, and table them, with a warning where they look wrong."""
    dtypes, threads = (dict.fromkeys(getattr(workload, of) for workload in workloads) for of in ("dtype", "threads"))
    hidden_sizes = {workload.gru.hidden_size for workload in workloads}

    def line(name: str, unit: str, peak: Callable[[int], float]) -> str:
        return f"  {name:20}" + "".join(f"{three_digits(peak(count) / 1e9):>12}" for count in threads) + f"  {unit}"

    yield f"{'peaks of this machine':22}" + "".join(f"{counted(count):>12}" for count in threads)
    for dtype in dtypes:
        yield line(dtype, "GFLOP/s", partial(machine.operations_per_second, dtype))
    for buffer in sorted({weight_bytes(hidden_size, dtype) for hidden_size in hidden_sizes for dtype in dtypes}):
        yield line(f"reading {size(buffer)}", "GB/s", partial(machine.bytes_per_second, buffer))
    few = min(threads)
    for count in threads:
        if any(
            machine.operations_per_second(dtype, count) / count
            < SHARED * machine.operations_per_second(dtype, few) / few
            for dtype in dtypes
        ):
            yield f"?: {counted(count)} compute far less than {count / few:.3g} times {counted(few)}: machine not idle?"
