"""Whether a change costs time or changes a bit: this gru_ext and that of another checkout, by turns, in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gru_ext import _C
from gru_ext.measure import BadInput, harness
from gru_ext.measure.machine import ROOT
from gru_ext.measure.measurements import quartiles
from gru_ext.measure.workloads import GRUShape, Workload, shape_name
from gru_ext.text import Table, as_json, counted, duration, show

WORKER = Path(__file__).with_name("against_worker.py")


def check(checkout: Path) -> None:
    """Raises BadInput where there is no gru_ext, or none that was built."""
    if not any((checkout / "gru_ext").glob("_C*.so")):
        raise BadInput(f"--against: {checkout} is no checkout of gru_ext with its build in place")


def results_of(checkout: Path, task: Sequence[object]) -> dict[str, Any]:
    """A task of against_worker.py, with the gru_ext of a checkout. Raises RuntimeError where its process fails."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    command = [sys.executable, str(WORKER), json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"the process of {checkout} failed: {last}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def times(before: Path, workload: Workload, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each call of the modules: the fastest of all rounds in milliseconds, and the ratio's quartiles."""
    task = ["fastest", workload.gru.shape, workload.dtype, workload.threads, seconds]
    checkouts = {"before": before, "after": ROOT}
    taken: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for number in range(rounds):
        for name in list(checkouts)[:: -1 if number % 2 else 1]:
            taken[name].append(results_of(checkouts[name], task))
    rows = []
    for call in taken["before"][0]:
        old, new = ([of[call] for of in taken[name]] for name in checkouts)
        spread = quartiles(after / before for before, after in zip(old, new, strict=True))
        row: dict[str, Any] = {"shape": shape_name(workload.gru.shape), "call": call, "dtype": workload.dtype}
        row |= {"threads": workload.threads, "before_ms": min(old), "after_ms": min(new)}
        rows.append(row | dict(zip(("ratio_q1", "ratio", "ratio_q3"), spread, strict=True)))
    return rows


def show_times(before: Path, workloads: Sequence[Workload], rounds: int, seconds: float, as_program: bool) -> int:
    """Measure and print, a line a call; 130 when interrupted, 1 when a process failed."""
    for workload in workloads:
        if workload.gru != GRUShape(*workload.gru.shape):
            raise BadInput(f"--against is of plain layers, got {workload.gru.title}")
    rows: list[dict[str, Any]] = []
    failures: list[str] = []

    def add(workload: Workload) -> None:
        rows.extend(times(before, workload, rounds, seconds))

    complete = harness.each(workloads, add, failures, "measured")
    if as_program:
        print(as_json({"complete": complete, "failures": failures, "measurements": rows}))
    else:
        for dtype, count in dict.fromkeys((row["dtype"], row["threads"]) for row in rows):
            cells = [
                (
                    f"{row['shape']} {row['call']}",
                    duration(row["before_ms"]),
                    duration(row["after_ms"]),
                    " ".join(f"{row[of]:.3f}" for of in ("ratio_q1", "ratio", "ratio_q3")),
                )
                for row in rows
                if (row["dtype"], row["threads"]) == (dtype, count)
            ]
            show(Table(("call", "before", "after", "after/before, quartiles"), cells, f"{dtype}, {counted(count)}"), "")
        show(*(f"failed: {failure}" for failure in failures))
    return 130 if not complete else int(bool(failures))


def show_bits(before: Path, targets: Sequence[str], threads: Sequence[int], as_program: bool) -> int:
    """Compare every output and gradient, by SIMD target and number of threads; 1 where one differs."""
    different: dict[str, list[str]] = {}
    for target in targets or _C.cpu_targets():
        if target not in _C.cpu_targets():
            raise BadInput(f"--bits: {target} is none of this machine's SIMD targets, {', '.join(_C.cpu_targets())}")
        for count in threads:
            try:
                old, new = (results_of(checkout, ["digests", target, count]) for checkout in (before, ROOT))
            except RuntimeError as error:
                raise BadInput(str(error)) from None
            names = [name for name in old if old[name] != new.get(name)]
            different[f"{target}, {counted(count)}"] = names
            if not as_program:
                same = f"{target}, {counted(count)}: {len(old) - len(names)} of {len(old)} results are the same"
                show(same, *(f"  not {name}" for name in names))
    if as_program:
        print(as_json({"different": different}))
    return int(any(different.values()))
