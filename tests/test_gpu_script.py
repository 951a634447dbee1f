"""benchmarks/gpu.sh where there is no GPU: stages fail one by one, none stops the next, and the end says so."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gpu_summary
import pytest
import torch

from gru_ext.measure import measurements

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with this Python."""
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def results(folder: Path) -> dict[str, str]:
    """What became of each stage."""
    with (folder / "stages.csv").open(newline="", encoding="utf-8") as file:
        return {row["stage"]: row["result"] for row in csv.DictReader(file)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the stages would succeed")
def test_a_failed_stage_does_not_stop_the_next(tmp_path: Path) -> None:
    """Two stages that need a GPU."""
    done = run("--output", tmp_path, "primitives", "algorithms")
    assert done.returncode == 1
    assert {stage: result[:6] for stage, result in results(tmp_path).items()} == {
        "primitives": "failed",
        "algorithms": "failed",
    }
    assert "torch sees no GPU" in (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "=== summary" in done.stdout and "algorithms   failed" in done.stdout


def test_a_stage_ends_at_its_limit(tmp_path: Path) -> None:
    """The stage's own processes too: here a Python that sleeps for ten minutes."""
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\ncase $1 in *summary.py) exit 0;; esac\nexec sleep 600\n", encoding="utf-8")
    sleeper.chmod(0o755)
    done = run("--output", tmp_path / "out", "algorithms", PYTHON=str(sleeper), GPU_STAGE_SECONDS="6")
    assert done.returncode == 1
    assert results(tmp_path / "out") == {"algorithms": "out of time"}


@pytest.mark.parametrize("arguments", [("nonsense",), ("--minutes", "soon")])
def test_bad_arguments_are_one_sentence(arguments: tuple[str, ...]) -> None:
    """And exit code 2, before anything runs."""
    done = run(*arguments)
    assert done.returncode == 2 and "gpu.sh: " in done.stderr and arguments[-1] in done.stderr


def test_help_names_the_stages() -> None:
    """The head of the script."""
    done = run("--help")
    assert done.returncode == 0 and "environment build primitives tests" in done.stdout


def test_summary_of_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Geometric mean, cells below 1 and the worst shape, for each dtype and mode; failed tests by name."""
    one = measurements.read_csv(ROOT / "benchmarks" / "results" / "cpu.csv", measurements.Measurement)[0]
    rows = [
        replace(one, device="cuda", dtype="tf32", mode="inference", batch=b, ratio=r) for b, r in ((1, 4.0), (8, 0.25))
    ]
    measurements.write_csv(tmp_path / "padded.csv", rows)
    (tmp_path / "stages.csv").write_text("stage,result,seconds\npadded,passed,12\n", encoding="utf-8")
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1"><testcase name="test_a"/>'
        '<testcase name="test_b"><failure/></testcase><testcase name="test_c"><skipped/></testcase></testsuite>'
        "</testsuites>",
        encoding="utf-8",
    )
    monkeypatch.setattr(sys, "argv", ["gpu_summary.py", str(tmp_path)])
    assert gpu_summary.main() == 0
    printed = capsys.readouterr().out
    assert "tests: 1 passed, 1 failed, 1 skipped" in printed and "failed: test_b" in printed
    assert "geometric mean  1.00 over 2 shapes, 1 below 1" in printed and f"worst 0.25 at {rows[1].shape}" in printed


def test_compare_measures_packed_input(tmp_path: Path) -> None:
    """The layout that gpu.sh's last stage asks for, here on the CPU; the CSV is there with the first cell."""
    file = tmp_path / "packed.csv"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "--layout", "packed", "--quick", "--threads", "1",
         "--dtypes", "float32", "--shapes", "5,7,3,4", "--csv", str(file)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = measurements.read_csv(file, measurements.Measurement)
    assert [(row.mode, row.layout) for row in rows] == [("inference", "packed"), ("training", "packed")]
    assert all(row.largest_difference < 1e-5 for row in rows)
