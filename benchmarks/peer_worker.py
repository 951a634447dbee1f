"""The measuring process of peers.py: one thread count, every cell, one JSON object a line to standard output.

A process of its own for each thread count, because JAX and its pools settle their size once, when they start.

A line is an event: its name under "event", the rest as EVENTS says. Whatever the frameworks print goes to standard
error instead.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from peer_frameworks import PEERS, GruExt
from peer_problem import Absent, Peer, Problem, Wrong, check, make_problem

from gru_ext.measure.measurements import PeerMeasurement, quartiles
from gru_ext.measure.sequences import tolerance
from gru_ext.measure.timing import LEAST_ROUNDS, MOST_ROUNDS, timed, warm_up
from gru_ext.measure.workloads import DTYPES, Shape

CPU = torch.device("cpu")
QUIET_SECONDS, QUIET_USE = 0.002, 0.25
LONGEST_WAIT_SECONDS = 3.0
AWAKE_SECONDS = 0.025  # threads that sleep may wake on the same core, and be moved apart some 12 ms later
HOPELESS = 1.5  # a variant this much slower than the peer's best in the warm-up takes no part in the rounds
EVENTS = {
    "cells": {"count"},  # to come
    "absent": {"reason"},
    "cell": {"title"},  # begins
    "failed": {"reason"},
    "measured": {"row"},  # PeerMeasurement's fields
    "end": set(),  # nothing is missing
}


@dataclass(frozen=True)
class Request:
    """What the process is to measure."""

    threads: int
    dtypes: list[str]
    modes: list[str]
    shapes: list[Shape]
    peers: list[str]
    seconds: float
    seed: int
    described: dict[str, Any]  # what machine.facts says, and simd: PeerMeasurement's fields that are the same for all
    resets: int = 0  # or on average one in so many steps

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Request:
        """Read what to_json wrote."""
        values = json.loads(text)
        return Request(shapes=[(batch, steps, i, h) for batch, steps, i, h in values.pop("shapes")], **values)


@dataclass
class Contestant:
    """One way to ask one framework, found right and ready to be timed."""

    name: str
    variant: str
    call: Callable[[], Any]
    error: float
    calls: int = 1  # in one timing
    times: list[float] = field(default_factory=list)  # milliseconds for one call, a round each


def encode(event: str, **values: Any) -> str:
    """An event as a line."""
    return json.dumps({"event": event, **values})


def decode(line: str) -> dict[str, Any]:
    """The event on a line. Raises ValueError where there is none, or not the right one."""
    try:
        event = json.loads(line)
        complete = set(event) == EVENTS[event["event"]] | {"event"}
    except (ValueError, TypeError, KeyError):
        complete = False
    if not complete:
        raise ValueError(f"expected an event of {', '.join(EVENTS)}, got {line.strip()[:80]!r}")
    return dict(event)


def present(peers: Iterable[Peer], report: Callable[..., None]) -> dict[str, str]:
    """Versions of the peers that are installed, by their names; the absent are reported."""
    versions = {}
    for peer in peers:
        try:
            versions[peer.name] = peer.version()
        except Absent as absent:
            report("absent", reason=str(absent))
    return versions


def contestants_of(
    peer: Peer, problem: Problem, threads: int, where: str, report: Callable[..., None]
) -> list[Contestant]:
    """Each way to ask the peer whose answer is right; the others are reported."""
    right = []
    try:
        for prepared in peer.prepare(problem, threads):
            label = f"{peer.name} {prepared.variant}".strip()
            try:
                error = check(problem, prepared.results(prepared.call()))
                right.append(Contestant(peer.name, prepared.variant, prepared.call, error))
            except Wrong as wrong:
                report("failed", reason=f"{label}, {where}: {wrong}")
    except Exception as error:  # whatever a framework raises, the others go on
        first = (str(error).strip() or "no message").splitlines()[0]
        report("failed", reason=f"{peer.name}, {where}: {type(error).__name__}: {first}")
    return right


def settle() -> None:
    """Wait until this process's threads sleep.

    Those of a framework that has just run wait busily for more work, as long as they think fit: OpenMP's for 5 to 10
    milliseconds, ONNX Runtime's for 100 and more. With a thread for every processor, whoever comes next would run on
    what they leave.
    """
    give_up = time.perf_counter() + LONGEST_WAIT_SECONDS
    quiet = 0
    while quiet < 2 and time.perf_counter() < give_up:
        used, begin = time.process_time(), time.perf_counter()
        time.sleep(QUIET_SECONDS)
        busy = time.process_time() - used > QUIET_USE * (time.perf_counter() - begin)
        quiet = 0 if busy else quiet + 1


def wake(call: Callable[[], Any]) -> None:
    """Call until threads are awake, each on a core of its own, and data is in the caches."""
    begin = time.perf_counter()
    call()
    while time.perf_counter() - begin < AWAKE_SECONDS:
        call()


def without_hopeless(contestants: list[Contestant]) -> list[Contestant]:
    """Warm everyone up, set the calls of a timing, and leave out what cannot be its peer's fastest variant."""
    quick = {}
    for contestant in contestants:
        settle()
        contestant.calls = warm_up(contestant.call, CPU)
        quick[id(contestant)] = timed(contestant.call, contestant.calls, CPU)
    best = {c.name: min(quick[id(d)] for d in contestants if d.name == c.name) for c in contestants}
    return [c for c in contestants if quick[id(c)] <= HOPELESS * best[c.name]]


def race(contestants: list[Contestant], seconds: float) -> None:
    """Time everyone once a round, in alternating order, until the time is spent."""
    begin = time.perf_counter()
    for count in range(MOST_ROUNDS):
        if count >= LEAST_ROUNDS and time.perf_counter() - begin >= seconds:
            break
        for contestant in contestants if count % 2 == 0 else contestants[::-1]:
            settle()
            wake(contestant.call)
            contestant.times.append(timed(contestant.call, contestant.calls, CPU))


def summary(ours: Contestant, theirs: Contestant) -> dict[str, Any]:
    """PeerMeasurement's fields that were measured."""
    peer_q1, peer_median, peer_q3 = quartiles(theirs.times)
    ours_q1, ours_median, ours_q3 = quartiles(ours.times)
    ratio_q1, _, ratio_q3 = quartiles([a / b for a, b in zip(theirs.times, ours.times, strict=True)])
    return {
        "peer": theirs.name,
        "variant": theirs.variant,
        "rounds": len(ours.times),
        "peer_ms": peer_median,
        "peer_ms_q1": peer_q1,
        "peer_ms_q3": peer_q3,
        "gru_ext_ms": ours_median,
        "gru_ext_ms_q1": ours_q1,
        "gru_ext_ms_q3": ours_q3,
        "ratio": peer_median / ours_median,
        "ratio_q1": ratio_q1,
        "ratio_q3": ratio_q3,
        "peer_error": theirs.error,
        "gru_ext_error": ours.error,
    }


def measure(
    request: Request, dtype: str, mode: str, shape: Shape, peers: list[Peer], report: Callable[..., None]
) -> list[dict[str, Any]]:
    """One cell: the fields that were measured, of each peer that gave the right answer, by its fastest variant."""
    where = f"{dtype}, {request.threads}t, {mode}, ({','.join(map(str, shape))})"
    problem = make_problem(shape, DTYPES[dtype], mode, request.seed, request.resets)
    contestants: list[Contestant] = []
    for peer in (GruExt(), *peers):
        contestants += contestants_of(peer, problem, request.threads, where, report)
    if len({GruExt.name, *(contestant.name for contestant in contestants)}) < 2 or contestants[0].name != GruExt.name:
        return []  # nobody to compare; the reasons have been reported
    contestants = without_hopeless(contestants)
    race(contestants, request.seconds)
    fastest: dict[str, Contestant] = {}
    for contestant in sorted(contestants[1:], key=lambda c: -quartiles(c.times)[1]):
        fastest[contestant.name] = contestant
    return [summary(contestants[0], fastest[peer.name]) for peer in peers if peer.name in fastest]


def work(request: Request, report: Callable[..., None]) -> None:
    """Measure everything requested."""
    torch.set_num_threads(request.threads)
    peers = [peer for peer in PEERS if peer.name in request.peers and peer.takes_resets == bool(request.resets)]
    versions = present(peers, report)
    cells = [
        (dtype, mode, shape, able)
        for dtype in request.dtypes
        for mode in request.modes
        if (able := [p for p in peers if p.name in versions and p.supports(mode, DTYPES[dtype])])
        for shape in request.shapes
    ]
    report("cells", count=len(cells))
    for dtype, mode, shape, able in cells:
        report("cell", title=f"{dtype} {request.threads}t {mode} ({','.join(map(str, shape))})")
        for measured in measure(request, dtype, mode, shape, able, report):
            batch, seq_len, input_size, hidden_size = shape
            row = PeerMeasurement(
                device="cpu",
                dtype=dtype,
                threads=request.threads,
                mode=mode,
                batch=batch,
                seq_len=seq_len,
                input_size=input_size,
                hidden_size=hidden_size,
                layout="time-first",
                peer_version=versions[measured["peer"]],
                tolerance=tolerance(DTYPES[dtype], shape),
                timing="wall",
                resets=request.resets,
                **measured,
                **request.described,
            )
            report("measured", row=asdict(row))
        gc.collect()  # ends the pools of this cell's sessions
    report("end")


def main() -> int:
    """Read the request from the first argument, and keep standard output for events alone."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(event: str, **values: Any) -> None:
        print(encode(event, **values), file=events, flush=True)

    work(Request.from_json(sys.argv[1]), report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
