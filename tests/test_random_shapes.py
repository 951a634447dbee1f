"""benchmarks/random_shapes.py and benchmarks/together.py: what is drawn, what is reported, what is not."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import random_shapes
import together
from test_bench import fake_measure
from torch import nn

import gru_ext
from gru_ext.measure.measurements import Measurement, read_csv
from gru_ext.measure.timing import Budget
from gru_ext.measure.workloads import LAYOUTS, MODES, GRUShape, Workload

Captured = pytest.CaptureFixture[str]
SMALL = ["--dtypes", "float32", "--threads", "1", "--most-milliseconds", "1", "--seconds", "0"]


def drawn(seed: int, count: int = 300) -> list[Workload]:
    """The calls of a seed."""
    return [random_shapes.draw_workload(seed, number, "float32", 1, 100.0) for number in range(count)]


def test_draws() -> None:
    """The same for a seed, others for another; every layout, mode and kind, and the sizes that are often forgotten."""
    workloads = drawn(0)
    assert workloads == drawn(0) and len(set(workloads)) == 300 and workloads[7:9] != drawn(1)[7:9]
    grus = [workload.gru for workload in workloads]
    assert {(gru.layout, mode) for gru, mode in zip(grus, (w.mode for w in workloads), strict=True)} == {
        (layout, mode) for layout in LAYOUTS for mode in MODES
    }
    assert {gru.num_layers for gru in grus} == {1, 2, 3} and {gru.directions for gru in grus} == {1, 2}
    assert any(gru.cell for gru in grus) and any(gru.packed and gru.seq_len == 1 for gru in grus)
    assert any(gru.lengths and len(set(gru.lengths)) > 2 for gru in grus)
    assert set(range(1, 6)) < {gru.seq_len for gru in grus} and max(gru.batch for gru in grus) > 128
    assert sum(gru.batch == 1 for gru in grus) > 60
    sizes = {size for gru in grus for size in (gru.input_size, gru.hidden_size)}
    assert {1, 127, 128, 521, 1024} < sizes and sum(size % 8 > 0 for size in sizes) > 50


def test_long_calls_are_drawn_again() -> None:
    """Less time means smaller shapes, and 16 bits take longer."""
    for most in (1.0, 100.0):
        for dtype in ("float32", "bfloat16"):
            workloads = [random_shapes.draw_workload(0, number, dtype, 1, most) for number in range(50)]
            times = [random_shapes.estimated_ms(workload.gru, dtype, workload.mode) for workload in workloads]
            assert most / 10 < max(times) <= most
    gru = workloads[0].gru
    assert random_shapes.estimated_ms(gru, "bfloat16", "training") > random_shapes.estimated_ms(
        gru, "float32", "inference"
    )


def use(ratios: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Budget]]:
    """In place of the clock: a cell's ratios, or an error, reading after reading, the last again and again.

    Returns the budgets of each cell's readings.
    """
    budgets: dict[str, list[Budget]] = {}

    def measure(workload: Workload, budget: Budget, **options: Any) -> dict[str, Any]:
        budgets.setdefault(workload.gru.name, []).append(budget)
        of_cell = ratios.get(workload.gru.name, [2.0])
        ratio = of_cell[min(len(budgets[workload.gru.name]), len(of_cell)) - 1]
        if isinstance(ratio, BaseException):
            raise ratio
        return {**fake_measure(workload, budget), "ratio": ratio}

    monkeypatch.setattr(random_shapes, "measure", measure)
    monkeypatch.setattr(random_shapes, "first_call_ms", lambda _: 0.0)
    return budgets


def test_slow_once(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """A reading that does not repeat is no slow cell; the second is longer, and for those near the bound alone."""
    budgets = use({"#1": [0.5, 1.5], "#2": [1.0, 0.96], "#3": [1.1]}, monkeypatch)
    assert random_shapes.main([*SMALL[:4], "--count", "5"]) == 0
    assert {name: len(of_cell) for name, of_cell in budgets.items()} == {"#0": 1, "#1": 2, "#2": 2, "#3": 1, "#4": 1}
    first, second = budgets["#1"]
    assert second.seconds >= 5 * first.seconds and second.least_rounds > first.least_rounds
    out, err = capsys.readouterr()
    assert "5 cells of 5 drawn, 2 read again" in out and "0 below 0.95" in " ".join(out.split())
    assert "second reading" not in out and "5 cells read, 2 of them to be read again" in err


def test_slow_twice(monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path) -> None:
    """Reported, the slowest first, each with the command that shows it again; so it does, and in the CSV it stands."""
    ratios = {"#1": [0.9, 0.9], "#2": [0.93, 0.7], "#3": [0.8, 0.97]}
    use(ratios, monkeypatch)
    file = tmp_path / "out.csv"
    assert random_shapes.main([*SMALL[:4], "--seed", "3", "--count", "5", "--csv", str(file)]) == 1
    out = capsys.readouterr().out
    reported = out[out.index("second reading") :]
    commands = re.findall(r"python benchmarks/random_shapes.py (.*)", reported)
    assert [command.split()[-1] for command in commands] == ["2", "1"] and reported.count("forward 1 thread") == 2
    rows = read_csv(file, Measurement)
    assert [row.ratio for row in rows] == [2.0, 0.9, 0.7, 0.97, 2.0]

    use(ratios, monkeypatch)
    assert random_shapes.main([*commands[0].split(), "--csv", str(file)]) == 1
    (again,) = read_csv(file, Measurement)
    assert (again.title, again.mode, again.layout) == (rows[2].title, rows[2].mode, rows[2].layout)


def test_planted_slow_kernel(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Modules of ours that sleep are found, by the real clock; as they are, small calls are faster than torch's."""
    words = [*SMALL, "--count", "2", "--below", "0.5"]
    assert random_shapes.main(words) == 0
    capsys.readouterr()
    for kind in (gru_ext.GRU, gru_ext.GRUCell):
        forward = kind.forward

        def slow(self: nn.Module, *inputs: Any, forward: Any = forward) -> Any:
            time.sleep(0.005)
            return forward(self, *inputs)

        monkeypatch.setattr(kind, "forward", slow)
    assert random_shapes.main(words) == 1
    assert "2 cells of 2 drawn, 2 read again" in (out := capsys.readouterr().out)
    assert out.count("--cells") == 2


def test_slow_torch_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Where a call of torch's takes far longer than was estimated."""
    monkeypatch.setattr(random_shapes, "timed", lambda call, calls, device: (call(), 3e9)[1])
    monkeypatch.setattr(random_shapes, "measure", None)
    assert random_shapes.main([*SMALL, "--count", "30"]) == 0
    assert len(re.findall(r"left out: .* #\d+ .*: torch.nn takes", capsys.readouterr().out)) == 30


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("can't allocate memory"), 1, "failed: .* #2 .*: can't allocate memory(.|\n)*3 cells of 4 drawn"),
        (KeyboardInterrupt(), 130, "2 cells of 4 drawn"),
    ],
)
def test_cell_that_ends_early(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A failed cell is named and the others are read; an interrupted run keeps what was read until then."""
    use({"#2": [error]}, monkeypatch)
    assert random_shapes.main([*SMALL[:4], "--count", "4"]) == code
    assert re.search(said, capsys.readouterr().out)


@pytest.mark.slow
def test_together(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each module and process, with the times of both columns and their ratio."""
    monkeypatch.setenv("COLUMNS", "120")
    words = ["--processes", "2", "--threads", "1", "--shapes", "2,3,4,5", "--seconds", "0.05", "--mode", "training"]
    assert together.main(words) == 0
    out = capsys.readouterr().out
    assert re.search(r"alone +95 % +together +95 % +ratio", out), out
    number = r" +(\d[\d.]*) (us|ms|s)"
    rows = re.findall(rf"\(2,3,4,5\) +(nn.GRU|gru_ext) +(\d){number * 4} +([\d.]+)", out)
    assert [row[:2] for row in rows] == [(module, n) for module in ("nn.GRU", "gru_ext") for n in ("1", "2")]
    scale = {"us": 1e-3, "ms": 1, "s": 1e3}
    for row in rows:
        alone, slow, at_once, slow_at_once = (float(row[at]) * scale[row[at + 1]] for at in (2, 4, 6, 8))
        assert 0 < alone <= slow and at_once <= slow_at_once and float(row[-1]) == pytest.approx(at_once / alone, 0.05)
    assert together.summary(range(101)) == (50, 95)


def test_together_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing begins when all have warmed up, and alone at once. One that fails keeps no other waiting."""
    barrier = threading.Barrier(2)
    monkeypatch.setattr(together, "_barrier", barrier, raising=False)
    workload = Workload("float32", 1, "inference", GRUShape(2, 3, 4, 5))
    assert len(together.times("gru_ext", workload, 0.0, False)) == together.LEAST_CALLS
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(together.times, "gru_ext", workload, 0.0, True)
        try:
            while not barrier.n_waiting and not future.done():
                time.sleep(0.001)
            assert not future.done()
            with pytest.raises(RuntimeError):
                together.times("nn.GRU", replace(workload, gru=GRUShape(1, 1, 2**61, 1)), 0.0, True)
            assert isinstance(future.exception(timeout=10), threading.BrokenBarrierError)
        finally:
            barrier.abort()
