"""The table of measurements: what benchmarks/measured_table.py claims."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import emulated
import measured_table
import pytest

from gru_ext.measure.harness import EVENT_TIMING, GRAPH_TIMING
from gru_ext.measure.measurements import Measurement, write_csv

GPU = "NVIDIA H100 80GB HBM3, CUDA 13.0, cuDNN 91500"
ROW = Measurement(
    "cuda", "bfloat16", 1, "training", 8, 256, 256, 256, "time-first", 7, 1,
    2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 1e-4,
    "", "events", "2026-11-27", GPU, "Linux", "3.12", "2.11.0+cu130", "0.1.0", "0123456789ab",
    kernel="stationary", compute_capability="9.0",
)  # fmt: skip
SIZES, BATCHES = (64, 128, 256, 512), (1, 8, 64)
Folder = dict[tuple[int, int], float]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up results, of no GPU yet, and where the header goes."""
    monkeypatch.setattr(measured_table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(measured_table, "HEADER", tmp_path / "measured.h")
    return tmp_path / "results"


def measured(results: Path, rows: list[Measurement], folder: str = "h100", name: str = "compare.csv") -> None:
    """A GPU has measured these."""
    (results / folder).mkdir(parents=True, exist_ok=True)
    write_csv(results / folder / name, rows)


def grid(ratio: float = 1.5, **others: Any) -> list[Measurement]:
    """Every hidden size and batch, all as fast."""
    return [
        replace(ROW, hidden_size=hidden_size, batch=batch, ratio=ratio, timing=timing, **others)
        for hidden_size in SIZES
        for batch in BATCHES
        for timing in (EVENT_TIMING, GRAPH_TIMING)
    ]


def but(rows: list[Measurement], cells: Folder) -> list[Measurement]:
    """The rows, with other ratios in these cells."""
    return [replace(row, ratio=cells.get((row.hidden_size, row.batch), row.ratio)) for row in rows]


COMMON = "9, 0, DataType::BFloat16, false, false, 1, false, true, "


def table() -> list[str]:
    """The rows that the header would have, sorted, without what is the same in all tests."""
    text = measured_table.header(measured_table.read_results())
    rows = [re.sub(r"(, INT64_MAX)?, \"stationary\".*", "", line) for line in re.findall(r"      {(.*)},", text)]
    return sorted(row.removeprefix(COMMON) for row in rows)


def test_all_of_the_grid(results: Path) -> None:
    """One row, whose bounds were measured, with the source of the claim."""
    measured(results, grid())
    text = measured_table.header(measured_table.read_results())
    assert f"// {GPU}: benchmarks/results/h100, 2026-11-27, commit 0123456789ab\n" in text
    said = '"stationary", 1.50, "NVIDIA H100 80GB HBM3", "benchmarks/results/h100"'
    assert f"  return {{\n      {{{COMMON}64, 512, 1, 64, INT64_MAX, {said}}},\n  }};\n" in text


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({(256, 8): 0.99}, ["64, 128, 1, 64", "64, 512, 64, 64", "64, 512, 1, 1", "512, 512, 1, 64"]),
        ({(256, 8): 1.0}, ["64, 512, 1, 64"]),
        ({(64, batch): 0.5 for batch in BATCHES}, ["128, 512, 1, 64"]),
        ({(size, 1): 0.9 for size in SIZES}, ["64, 512, 8, 64"]),
    ],
)
def test_no_cell_below_one(results: Path, cells: Folder, expected: list[str]) -> None:
    """A cell of 0.99 is in no range, and what lies around it is in as few as will do."""
    measured(results, but(grid(), cells))
    assert table() == sorted(expected)


def test_mean_of_a_range(results: Path) -> None:
    """1.19 is not enough, 1.2 is; a fast cell carries as many slower ones along as the rule lets it."""
    measured(results, grid(1.19))
    assert table() == []
    measured(results, grid(1.2))
    assert table() == ["64, 512, 1, 64"]
    measured(results, but(grid(1.01), {(64, 1): 1.45}))
    # With one neighbour the mean is 1.21, with two 1.14.
    assert table() == ["64, 128, 1, 1", "64, 64, 1, 8"]
    measured(results, [*grid(1.3), *grid(1.1, seq_len=8)])
    assert table() == []  # 1.196 over both sequence lengths


def test_short_sequences(results: Path) -> None:
    """Where the long ones are slower, a range of the short ones alone; not where one of any length holds already."""
    slow = {(size, 64): 0.9 for size in SIZES}
    measured(results, [*but(grid(), slow), *grid(1.4, seq_len=8), *grid(1.3, seq_len=1)])
    assert table() == ["64, 512, 1, 64, 8", "64, 512, 1, 8"]
    measured(results, [*but(grid(), slow), *but(grid(1.4, seq_len=8), {(64, 64): 0.9}), *grid(1.3, seq_len=1)])
    assert table() == ["128, 512, 1, 64, 8", "64, 512, 1, 64, 1", "64, 512, 1, 8"]


@pytest.mark.parametrize("timings", [(), (EVENT_TIMING,), (GRAPH_TIMING,)])
def test_gaps(results: Path, timings: tuple[str, ...]) -> None:
    """A cell that was not measured both ways is in no range."""
    measured(results, [row for row in grid() if (row.hidden_size, row.batch) != (128, 8) or row.timing in timings])
    expected = ("256, 512, 1, 64", "64, 512, 1, 1", "64, 512, 64, 64", "64, 64, 1, 64")
    assert table() == sorted(expected)


def test_kinds_are_kept_apart(results: Path) -> None:
    """Packed, training, dtype, directions, kernel: each on its own grid; of several GPUs all must agree."""
    kinds: list[dict[str, Any]] = [
        {"layout": "packed"}, {"mode": "inference"}, {"dtype": "tf32"}, {"dtype": "float32"},
        {"dtype": "float32-vs-tf32"}, {"bidirectional": 1}, {"kernel": "step"},
    ]  # fmt: skip
    measured(results, [*grid(0.9), *(row for kind in kinds for row in grid(**kind))])
    assert [row.partition("64, 512, 1, 64")[0].rstrip(", ") for row in table()] == [
        "",  # the other kernel
        "9, 0, DataType::BFloat16, false, false, 1, false, false",
        "9, 0, DataType::BFloat16, false, false, 1, true, true",
        "9, 0, DataType::BFloat16, false, false, 2, false, true",
        "9, 0, DataType::Float32, false, false, 1, false, true",
        "9, 0, DataType::Float32, false, true, 1, false, true",
        "9, 0, DataType::Float32, true, true, 1, false, true",
    ]
    measured(results, grid())
    measured(results, grid(0.9, machine="NVIDIA H200, CUDA 13.0"), "h200")
    assert table() == []
    measured(results, grid(1.1, machine="NVIDIA H200, CUDA 13.0"), "h200")
    (line,) = re.findall(r"      {(.*)},", measured_table.header(measured_table.read_results()))
    assert line.endswith(
        '1.28, "NVIDIA H100 80GB HBM3 and NVIDIA H200", "benchmarks/results/h100, benchmarks/results/h200"'
    )


@pytest.mark.parametrize(
    "other",
    [
        {"commit": "0123456789ab-dirty"}, {"commit": "unknown"}, {"kernel": ""}, {"kernel": "library"},
        {"num_layers": 2}, {"cell": 1}, {"mode": "recompute"}, {"device": "cpu"},
    ],
)  # fmt: skip
def test_rows_that_are_no_claim(results: Path, other: dict[str, Any]) -> None:
    """Of local changes, of whatever plan chose, of other layers than one."""
    measured(results, grid(**other))
    assert table() == []


def test_command(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without results the header is valid and empty; --check notices new ones; the committed header is right."""
    monkeypatch.setattr("sys.argv", ["measured_table.py"])
    assert measured_table.main() == 0
    header = measured_table.HEADER
    assert "No GPU has been measured yet" in header.read_text() and "return {\n  };" in header.read_text()
    written = header.stat().st_mtime_ns
    assert measured_table.main() == 0 and header.stat().st_mtime_ns == written
    monkeypatch.setattr("sys.argv", ["measured_table.py", "--check"])
    assert measured_table.main() == 0
    measured(results, grid())
    assert measured_table.main() == 1 and "disagree; run make pages" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", ["measured_table.py", "--check"])
    assert measured_table.main() == 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_header_compiles(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows of every kind, and with none."""
    monkeypatch.setattr("sys.argv", ["measured_table.py"])
    for rows in ([], [*grid(), *grid(dtype="tf32"), *grid(dtype="float16", layout="packed")]):
        if rows:
            measured(results, rows)
        assert measured_table.main() == 0
        options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++"]
        folder = emulated.ROOT / "csrc" / "cuda"
        command = ["g++", *options, f"-I{folder}", str(measured_table.HEADER)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "#pragma once in main file" in done.stderr, done.stderr
