"""The floor: the formula on made-up machines, the peaks of this one, the way into CSV and printed table."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import quartiles, row_of

from gru_ext import _C
from gru_ext.measure import floor
from gru_ext.measure.floor import ARITHMETIC, READING, Machine, floor_ms
from gru_ext.measure.frozen import FrozenMeasurement
from gru_ext.measure.measurements import (
    Measurement,
    MemoryMeasurement,
    PeerMeasurement,
    SequenceMeasurement,
    is_kind,
    read_csv,
    write_csv,
)
from gru_ext.measure.tables import tables
from gru_ext.measure.workloads import GRUShape, Workload

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TARGETS = _C.cpu_targets()


def machine(operations: float = 1e9, reading: float = 1e9) -> Machine:
    """One whose peaks are these, whatever is asked."""
    return Machine(lambda dtype, threads: operations, lambda size, threads: reading)


def measurement(**fields: Any) -> Measurement:
    """A measurement with a floor of 4 ms, unless told otherwise."""
    values: dict[str, Any] = {"dtype": "float32", "mode": "inference", "rounds": 9, "timing": "wall", "simd": "avx2"}
    values |= quartiles("torch_ms", 12.0, 12.5, 13.0) | quartiles("gru_ext_ms", 4.75, 5.0, 5.25)
    values |= quartiles("ratio", 2.25, 2.5, 2.75)
    values |= {"floor_ms": 4.0, "floor_cause": ARITHMETIC, "operations_per_second": 1.25e11, "bytes_per_second": 1e11}
    return row_of(Measurement, **{"shape": (32, 128, 256, 256), "largest_difference": 1.5e-7, **values, **fields})


WITHOUT = {"floor_ms": None, "floor_cause": None, "operations_per_second": None, "bytes_per_second": None}


@pytest.mark.parametrize(
    ("batch", "mode", "peaks", "expected"),
    [
        # T 10, I 2, H 4: of one sequence a step is 96 operations or 192 bytes, the projections are 480 operations.
        (1, "inference", {}, (2.40e-3, READING)),
        # Two passes of 1.92 us; of 3 * 1440 operations 1920 are theirs, 2400 are left.
        (1, "training", {}, (6.24e-3, READING)),
        # Four sequences read no more than one, and compute four times as much.
        (4, "inference", {}, (5.76e-3, ARITHMETIC)),
        (4, "training", {}, (17.28e-3, ARITHMETIC)),
        (4, "recompute", {"operations": 1e8}, (172.8e-3, ARITHMETIC)),
        (4, "training", {"reading": 1e8}, (48.0e-3, READING)),
    ],
)
def test_formula(batch: int, mode: str, peaks: dict[str, float], expected: tuple[float, str]) -> None:
    """By hand, where reading binds and where arithmetic does."""
    time, cause = floor_ms(GRUShape(batch, 10, 2, 4), "float32", mode, machine(**peaks), 1)
    assert (time, cause) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1), ("float64", 2), ("bfloat16", 0.5), ("float16", 0.5)])
def test_element_sizes(dtype: str, factor: float) -> None:
    """W_hh is read in its own type, even where a target computes in a wider one."""
    assert floor.weight_bytes(64, dtype) == 3 * 64 * 64 * 4 * factor
    endless = machine(operations=1e30)
    expected = floor_ms(GRUShape(1, 7, 3, 64), "float32", "training", endless, 1)[0] * factor
    assert floor_ms(GRUShape(1, 7, 3, 64), dtype, "training", endless, 1)[0] == pytest.approx(expected)


def test_peaks_are_measured_once_and_for_what_is_asked() -> None:
    """A machine passes dtype, size and threads on, asks a second time for nothing, and for no size out of range."""
    measured: list[tuple[object, int]] = []

    def peak(what: object, threads: int) -> float:
        measured.append((what, threads))
        return 1e9 * threads

    here = Machine(peak, peak)
    for _ in range(2):
        for threads in (1, 2):
            for mode in ("inference", "training"):
                floor_ms(GRUShape(3, 5, 7, 64), "bfloat16", mode, here, threads)
    assert measured == [("bfloat16", 1), (24576, 1), ("bfloat16", 2), (24576, 2)]
    assert here.bytes_per_second(12, 3) == here.bytes_per_second(4096, 3) == 3e9
    assert here.bytes_per_second(2**40, 3) == 3e9
    assert measured[4:] == [(4096, 3), (2**31, 3)]


def test_search_for_a_peak() -> None:
    """It goes on while tries get better, and the best counts, not the last."""
    values = iter([1.0, 5.0, 3.0, 3.0, 3.0, 7.0, *[6.0] * (floor.ATTEMPTS - 1), 7.01, 100.0])
    assert floor.best_of(lambda: next(values)) == 7.01


def test_disturbed_peaks_are_pointed_out() -> None:
    """Two threads that compute no more than one had one core between them: their floors would be too high."""
    workloads = [
        Workload(dtype, threads, "training", GRUShape(1, 1, 64, hidden_size))
        for dtype, threads, hidden_size in product(("float32", "bfloat16"), (1, 2), (64, 128))
    ]
    scaling = Machine(lambda dtype, threads: 1e11 * threads, lambda size, threads: 1e11)
    quiet = list(floor.peak_lines(scaling, workloads))
    names = [line[2:22].strip() for line in quiet[1:]]
    assert names == ["float32", "bfloat16", *(f"reading {size} KiB" for size in (24, 48, 96, 192))]
    disturbed = list(floor.peak_lines(machine(), workloads))
    assert disturbed[-1].startswith("?: 2 threads") and max(map(len, disturbed)) <= 80


@pytest.mark.alone
@pytest.mark.parametrize("target", TARGETS)
def test_peaks_of_every_target(target: str) -> None:
    """In the range of any machine; bfloat16's operations are float32's or better, but on processors where their target
    stands behind AVX-512's for that; and far reading is no faster.
    """
    _C.set_cpu_target(target)
    rates = {dtype: max(_C.cpu_operations_per_second(dtype, 1, 5) for _ in range(5)) for dtype in DTYPES}
    sizes = (4096, 5001, 16384, 2**26)
    reading = {size: max(_C.cpu_bytes_per_second(size, 1, 5) for _ in range(3)) for size in sizes}
    assert all(1e8 < value < 1e14 for value in (*rates.values(), *reading.values())), (rates, reading)
    if target == "avx512_bf16":
        preferred = TARGETS.index("avx512_bf16") < TARGETS.index("avx512")
        assert (rates[torch.bfloat16] >= rates[torch.float32]) == preferred, rates
    assert reading[16384] > reading[2**26], reading


@pytest.mark.alone
@pytest.mark.parametrize("threads", [2, 3, 1024])
def test_threads_share_the_machine(threads: int) -> None:
    """Any number of threads may be asked for, more than there are processors or parts of the buffer as well."""
    assert 1e8 < _C.cpu_operations_per_second(torch.float32, threads, 5) < 1e16
    assert 1e8 < _C.cpu_bytes_per_second(4096, threads, 5) < 1e16


def test_other_threads_of_python_go_on() -> None:
    """The lock of the interpreter is released while a peak is measured."""
    done = threading.Event()
    ticks: list[None] = []
    within: list[int] = []

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(None)

    other = threading.Thread(target=tick)
    other.start()
    for peak, what in ((_C.cpu_operations_per_second, torch.float32), (_C.cpu_bytes_per_second, 4096)):
        before = len(ticks)
        peak(what, 1, 300)
        within.append(len(ticks) - before)
    done.set()
    other.join()
    assert min(within) > 10


@pytest.mark.parametrize(
    ("peak", "arguments", "said"),
    [
        *((_C.cpu_bytes_per_second, (size, 1), f"bytes is {size}; expected 4096 to") for size in (4095, 2**31 + 1)),
        *((_C.cpu_bytes_per_second, (4096, n), f"threads is {n}; expected 1 to 1024") for n in (-1, 0, 1025)),
        (_C.cpu_operations_per_second, (torch.float32, 1025), "threads is 1025; expected 1 to 1024"),
        (_C.cpu_operations_per_second, (torch.float32, 1, 0), "milliseconds is 0; expected 1 to 10000"),
        (_C.cpu_operations_per_second, (torch.int32, 1), "dtype is .*; expected float32"),
    ],
)
def test_bad_arguments_are_named(peak: Callable[..., float], arguments: tuple[Any, ...], said: str) -> None:
    """Out of range, the message says which argument, what it was and what was expected (more in malformed.py)."""
    with pytest.raises((ValueError, TypeError), match=said):
        peak(*arguments)


def test_csv(tmp_path: Path) -> None:
    """What is written is read, without the later columns too: kernels (2), stacks (7), floors (4); not half of them."""
    rows = [measurement(), measurement(mode="training", **WITHOUT)]
    write_csv(tmp_path / "new.csv", rows)
    assert read_csv(tmp_path / "new.csv", Measurement) == rows
    write_csv(tmp_path / "new.csv", rows[1:])
    lines = (tmp_path / "new.csv").read_text(encoding="utf-8").splitlines()
    for left, accepted in ((13, True), (9, True), (2, True), (12, False), (8, False), (1, False), (14, False)):
        old = tmp_path / f"{left}.csv"
        old.write_text("".join(line.rsplit(",", left)[0] + "\n" for line in lines), encoding="utf-8")
        if accepted:
            assert read_csv(old, Measurement) == rows[1:]
        else:
            with pytest.raises(ValueError, match="expected the columns"):
                read_csv(old, Measurement)


def test_committed_results_are_read() -> None:
    """Whatever their age."""
    kinds = (Measurement, SequenceMeasurement, PeerMeasurement, MemoryMeasurement, FrozenMeasurement)
    read = [(kind, path) for path in RESULTS.rglob("*.csv") for kind in kinds if is_kind(path, kind)]
    assert all(read_csv(path, kind) for kind, path in read) and {kind for kind, _ in read} == set(kinds)
    assert {path.name for path in RESULTS.glob("*.csv")} <= {path.name for _, path in read}


def test_printed_table() -> None:
    """A column of floors, bracketed where small, in at most 80 columns; none where there is no floor."""
    wide = {"batch": 1024, "seq_len": 1000, "input_size": 1024, "hidden_size": 1024, "rounds": 1000}
    rows = [
        measurement(dtype="bfloat16", threads=16, **wide),
        measurement(dtype="bfloat16", threads=16, ratio=1234.0, ratio_q1=98.5, ratio_q3=1300.0, floor_ms=0.0125),
    ]
    (table,) = tables(rows)
    printed = list(table.lines())
    assert max(map(len, printed)) <= 80, printed
    assert printed[0] == "bfloat16, 16 threads, inference"
    assert "floor" in printed[1] and " 1.25 " in printed[3] and " (400) " in printed[4]
    assert "of floor 1.25" in " ".join(printed[5:])
    (plain,) = tables([replace(row, **WITHOUT) for row in rows])  # type: ignore[arg-type]
    bare = list(plain.lines())
    assert "floor" not in "".join(bare) and len(bare) == len(printed)
    with_lstm = [replace(row, lstm_ms=1234.5, num_layers=2, bidirectional=1) for row in rows[1:]]
    (third,) = tables(with_lstm)
    assert max(map(len, third.lines())) <= 80 and "nn.LSTM" in third.columns and "1.23 s" in third.rows[0]
    assert third.rows[0][0] == "(32,128,256,256) x2 bi"


def test_floor_of_stacks() -> None:
    """Layers and directions add up; the second layer's input is all directions of the first; packed rows count."""
    first = floor_ms(GRUShape(3, 5, 7, 4), "float32", "training", machine(), 1)[0]
    second = floor_ms(GRUShape(3, 5, 8, 4), "float32", "training", machine(), 1)[0]
    layer = GRUShape(3, 5, 7, 4, num_layers=2, bidirectional=True)
    assert floor_ms(layer, "float32", "training", machine(), 1)[0] == pytest.approx(2 * (first + second))
    few = floor_ms(
        GRUShape(3, 5, 7, 4, layout="packed", lengths=(5, 3, 2)), "float32", "inference", machine(reading=1e30), 1
    )
    assert few[0] == pytest.approx(6 * 10 * 4 * (4 + 7) / 1e9 * 1e3)


@pytest.mark.parametrize(
    ("operations", "reading", "latency", "cause"),
    [
        (1e9, lambda size: 1e15, 0.0, "arithmetic"),
        (1e15, lambda size: 1e9 if size > 2**20 else 1e10, 0.0, "cache"),
        (1e15, lambda size: 1e9, 0.0, "memory"),
        (1e15, lambda size: 1e15, 1.0, "latency"),
    ],
)
def test_cause_of_the_floor(operations: float, reading: Callable[[int], float], latency: float, cause: str) -> None:
    """The largest limit is the cause; reading as fast as memory is memory."""
    here = Machine(lambda *_: operations, lambda size, _: reading(size), lambda *_: latency)
    limits = here.limits("forward", 10, 10, 64, 64, "float32", 1, 1, 50_000)
    assert limits.cause == cause, limits
    assert limits.latency_us == latency * 1e6


def test_passes_share_the_floor() -> None:
    """What limits say of forward and backward adds up to the floor of training."""
    sizes = (10, 30, 7, 64, "float32", 1, 2, 50_000)
    here = Machine(lambda *_: 1e9, lambda *_: 1e9, lambda _, seq_len, training: 1e-6 * seq_len * (1 + training))
    forward, backward = (here.limits(name, *sizes) for name in ("forward", "backward"))
    whole = floor_ms(GRUShape(3, 10, 7, 64, bidirectional=True), "float32", "training", here, 1)[0]
    assert forward.floor_us + backward.floor_us == pytest.approx(whole * 1e3)
    assert (forward.latency_us, backward.latency_us) == pytest.approx((10, 10))


def test_latency_is_measured() -> None:
    """More steps take longer, forward and backward longer than forward."""
    rates = {key: floor.measured_latency("float32", *key) for key in ((1, False), (500, False), (500, True))}
    assert 0 < rates[1, False] < rates[500, False] < rates[500, True] < 1
