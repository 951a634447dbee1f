"""gru_ext.GRU against other frameworks on the CPU.

ONNX Runtime and OpenVINO in inference, JAX in training, and with resets torchrl:

    make peers                                # in an environment of its own, which has them all
    python benchmarks/peers.py                # those that this environment has
    python benchmarks/peers.py --peers jax --dtypes bfloat16 --threads 1 --shapes 32,128,256,256 --seconds 30
    python benchmarks/peers.py --resets 33    # torchrl's GRUModule, where 3 % of the steps begin an episode

Everyone gets the same weights, input and gradient, and everyone's answer is first held against float64 torch.nn.GRU
(peer_problem.py says how near it must be): a wrong answer is reported and not timed. What is timed is the whole call as
a user makes it. inference: gru_ext's module with parameters that ask for no gradient, ONNX Runtime's and OpenVINO's run
with their input and output bound beforehand. training: forward, and backward to the input and every parameter, with
everything on the device and compiled beforehand. Where there are several ways to ask a peer (peer_jax.py), the fastest
counts.

Each thread count is measured in a process of its own that may use no more processors than threads. There a round times
everyone once, in alternating order; each begins when the threads of the one before have gone to sleep, and with calls
that are not timed, until its own are awake. Rounds go on until the cell's time is spent. The ratio is that of the
medians, the spread is given by the quartiles of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peer_frameworks import PEERS
from peer_worker import Request, decode

from gru_ext import _C
from gru_ext.commands.options import output_file, positive
from gru_ext.measure.machine import facts
from gru_ext.measure.measurements import NOISY, PeerMeasurement, by_group, geometric_mean, write_csv
from gru_ext.measure.workloads import MODES, SHAPES, parse_shape
from gru_ext.text import duration

try:
    from tqdm import tqdm
except ImportError:  # optional: without it there is no progress bar
    tqdm = None

ROOT = Path(__file__).resolve().parent.parent  # make peers installs gru_ext from here
WORKER = Path(__file__).resolve().with_name("peer_worker.py")
DTYPES = ("float32", "bfloat16")
TORCHRL_SHAPE = (128, 128, 64, 256)  # B, I and H are defaults of its own benchmark


class Board:
    """What the measuring processes reported."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path  # of the CSV, written anew with each measurement: an interrupted run keeps what it has
        self.measurements: list[PeerMeasurement] = []
        self.failures: list[str] = []
        self.complete = True
        self._said: set[str] = set()
        self._bar = tqdm(total=0, unit="cell", disable=None) if tqdm else None

    def say_once(self, text: str) -> None:
        """Print it unless another process has said the same."""
        if text not in self._said:
            self._said.add(text)
            if self._bar is not None:
                self._bar.write(text)
            else:
                print(text)

    def take(self, event: dict[str, Any]) -> bool:
        """Take an event in; returns whether it is the last one."""
        kind = event["event"]
        if kind == "absent":
            self.say_once(f"not measured: {event['reason']}")
        elif kind == "failed":
            self.failures.append(event["reason"])
        elif kind == "measured":
            self.measurements.append(PeerMeasurement(**event["row"]))
            if self.path:
                write_csv(self.path, self.measurements)
        elif kind == "cells" and self._bar is not None:
            self._bar.total += event["count"]
            self._bar.refresh()
        elif kind == "cell" and self._bar is not None:
            self._bar.set_description(event["title"])
            self._bar.update()
        return bool(kind == "end")

    def close(self) -> None:
        """The progress bar is in nobody's way after this."""
        if self._bar is not None:
            self._bar.close()


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a measuring process."""
    variables = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if threads == 1:  # where processors cannot be bound, this is all that can be done about it
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    return variables


def start(command: list[str], threads: int) -> subprocess.Popen[str]:
    """Start a measuring process on as many processors as it has threads, the last ones.

    JAX has no setting for its threads: it starts as many as the process may use processors. The first processors have
    the most interrupts to serve.
    """

    def process() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment(threads))

    if not hasattr(os, "sched_setaffinity"):
        return process()
    processors = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, sorted(processors)[-threads:])
        return process()
    finally:
        os.sched_setaffinity(0, processors)


def collect(command: list[str], threads: int, board: Board) -> None:
    """Run a measuring process to its end; one that ends early is a failure."""
    reason = ""
    ended = False
    with start(command, threads) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                ended = board.take(decode(line))
        except ValueError as error:
            reason = f", {error}"
            process.kill()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0 or not ended:
        board.complete = False
        board.failures.append(f"measuring with {threads}t ended early, exit status {process.returncode}{reason}")


def table(measurements: list[PeerMeasurement]) -> Iterator[str]:
    """The printed table, at most 80 columns wide."""
    for peer in dict.fromkeys(m.peer for m in measurements):
        of_peer = [m for m in measurements if m.peer == peer]
        for (dtype, threads, mode), rows in by_group(of_peer).items():
            resets = f", resets every {rows[0].resets} steps" if rows[0].resets else ""
            yield f"{peer}: {dtype}, {threads} thread{'s' * (threads > 1)}, {mode}{resets}"
            yield f"  {'(B,T,I,H)':22}{peer:>13}{'gru_ext':>10}{'ratio':>8}  {'quartiles':12}{'rounds':>5}"
            for row in rows:
                times = f"{duration(row.peer_ms):>13}{duration(row.gru_ext_ms):>10}"
                spread = f"{row.ratio_q1:.2f}-{row.ratio_q3:.2f}{'?' * noisy(row)}"
                yield f"  {row.shape:22}{times}{row.ratio:8.2f}  {spread:12}{row.rounds:>5}"
            worst = min(rows, key=lambda row: row.ratio)
            mean = geometric_mean([row.ratio for row in rows])
            yield f"  {'geometric mean':45}{mean:8.2f}  worst {worst.ratio:.2f}"
            errors = f"{peer} {max(r.peer_error for r in rows):.1e}, gru_ext {max(r.gru_ext_error for r in rows):.1e}"
            yield f"  largest relative errors: {errors}"
            variants = Counter(row.variant for row in rows if row.variant)
            if variants:
                yield "  fastest: " + ", ".join(f"{name} {count}" for name, count in variants.most_common())
            yield ""


def noisy(row: PeerMeasurement) -> bool:
    """Whether the quartiles say more about the machine than about the code."""
    return row.ratio_q3 > NOISY * row.ratio_q1


def verdict(measurements: list[PeerMeasurement]) -> Iterator[str]:
    """The closing lines: in which cells gru_ext is slower than a peer."""
    slower = sorted((m for m in measurements if m.ratio < 1.0), key=lambda m: m.ratio)
    yield f"slower than a peer (ratio below 1): {len(slower) or 'none'} of {len(measurements)} measurements"
    for m in slower:
        yield f"  {m.ratio:.3f}  {m.peer}, {m.dtype}, {m.threads}t, {m.mode}, {m.shape}"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    names = [peer.name for peer in PEERS]
    add("--peers", nargs="+", choices=names, default=names)
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="thread counts, a process each")
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--shapes", nargs="+", type=parse_shape, metavar="B,T,I,H", help=f"{len(SHAPES)}, with --resets torchrl's")
    about = "every step begins a sequence anew with the probability 1 / EVERY: torchrl alone is measured"
    add("--resets", type=positive, metavar="EVERY", help=about)
    add("--seconds", type=float, default=4.0, help="time budget of a cell, beside compiling, checking and the warm-up")
    add("--seed", type=int, default=0)
    add("--csv", type=output_file, metavar="FILE", help="write the measurements here")
    parsed = parser.parse_args(arguments)
    parsed.shapes = parsed.shapes or ([TORCHRL_SHAPE] if parsed.resets else list(SHAPES))
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for count in parsed.threads:
        if not 1 <= count <= processors:
            parser.error(f"argument --threads: expected counts from 1 to this machine's {processors}, got {count}")
    return parsed


def main() -> int:
    """Measure, print the table, write the CSV. Exit code 1 when a peer gave no right answer or nothing was measured."""
    parsed = parse_arguments()
    described = {**facts(torch.device("cpu"), ROOT), "simd": _C.cpu_target()}
    print(f"{described['machine']}, {described['system']}, SIMD target {described['simd']}")
    print(", ".join(f"{name} {described[name]}" for name in ("torch", "gru_ext", "commit", "python", "date")))
    if not hasattr(os, "sched_setaffinity"):
        print("this system cannot bind a process to processors: JAX may run more threads than the table says")
    board = Board(parsed.csv)
    try:
        for threads in parsed.threads:
            request = Request(
                threads=threads,
                dtypes=parsed.dtypes,
                modes=parsed.modes,
                shapes=parsed.shapes,
                peers=parsed.peers,
                seconds=parsed.seconds,
                seed=parsed.seed,
                resets=parsed.resets or 0,
                described=described,
            )
            collect([sys.executable, str(WORKER), request.to_json()], threads, board)
    except KeyboardInterrupt:
        board.complete = False
        board.failures.append("interrupted")
    finally:
        board.close()
    print("\n".join(["", *table(board.measurements)]))
    for failure in board.failures:
        print(f"failed: {failure}")
    if not board.measurements:
        print("nothing was measured: no peer is installed here, or none does what was asked for", file=sys.stderr)
        return 1
    count = sum(map(noisy, board.measurements))
    if count:
        print(f"{count} of {len(board.measurements)} marked ?: quartiles more than {NOISY} times apart, machine busy?")
    if parsed.csv:
        print(f"written: {parsed.csv}" + ("" if board.complete else ", as far as it went"))
    print("\n".join(verdict(board.measurements)))
    return 1 if board.failures else 0


if __name__ == "__main__":
    sys.exit(main())
