"""Where the CPU kernels spend their time: the clock compiled into them, switched on for a while and read.

The phases of a pass, in the order in which they are shown:

    packing      rearranging W_ih and W_hh, and the state before the first step
    projection   the inputs' product with W_ih
    product      the product with W_hh, step by step
    gates        what a step does with its sums: gates and state; in backward the gradients before the activations
    waiting      for the other threads, at a barrier
    gradients    backward's large products: gradients of the input, the weights and the biases
    recompute    backward's gates, where forward kept the states alone
    rest         what is left: memory, waking the threads, and those that are done waiting for the last

A thread reads the clock where a phase ends, some four times a step: 0.1 to 0.2 us, which is in the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gru_ext import _C

REST = "rest"


@dataclass(frozen=True)
class PhaseTime:
    """One phase of all passes of a kind.

    Attributes:
        phase: its name
        seconds: of all threads together
        slowest_seconds: of the thread that spent most in it; 0 for the rest, which belongs to none
        share: of the time of all threads, 0 to 1
    """

    phase: str
    seconds: float
    slowest_seconds: float
    share: float


@dataclass(frozen=True)
class PassPhases:
    """All forward or all backward passes while the clock was on.

    Attributes:
        name: "forward" or "backward"
        calls: of the kernel, one for each direction of each layer
        threads: that took part
        seconds: of all calls, as their callers saw them
        thread_seconds: the same, each call's times its threads: what the phases divide among them
        phases: those that took any time, and the rest
    """

    name: str
    calls: int
    threads: int
    seconds: float
    thread_seconds: float
    phases: tuple[PhaseTime, ...]


@contextmanager
def phase_clock() -> Iterator[None]:
    """Counts the phases of every pass on the CPU that begins within it, in any thread, from zero."""
    _C.set_phase_clock(True)
    try:
        yield
    finally:
        _C.set_phase_clock(False)


def phase_times() -> tuple[PassPhases, ...]:
    """What the last :func:`phase_clock` has counted: forward and backward, those that ran."""
    passes = []
    for name, counts in _C.phase_times().items():
        if counts["calls"] == 0:
            continue
        threads, whole = counts["threads"], counts["thread_seconds"]
        phases = []
        for phase_name in threads[0]:
            times = [of[phase_name] for of in threads]
            if sum(times) > 0:
                phases.append(PhaseTime(phase_name, sum(times), max(times), sum(times) / whole))
        rest = max(0.0, whole - sum(phase.seconds for phase in phases))  # a clock read later may see a trifle more
        phases.append(PhaseTime(REST, rest, 0.0, rest / whole))
        passes.append(PassPhases(name, counts["calls"], len(threads), counts["seconds"], whole, tuple(phases)))
    return tuple(passes)
