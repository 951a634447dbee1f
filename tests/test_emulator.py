"""The emulated GPU proves itself: every primitive does what it must, and every planted fault is noticed.

The kernels are those of emulator/kernels.cuh; benchmarks/gpu.sh runs the same ones, without faults, on a real GPU.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import re
import subprocess
from pathlib import Path

import emulated
import pytest

SEEDS = 24


@pytest.fixture(scope="module")
def program() -> Path:
    """The compiled checks."""
    if platform.system() != "Linux" or emulated.compiler() is None:
        pytest.skip("the emulator is built with g++ on Linux")
    return emulated.program()


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a check and return what became of it; none takes longer than a minute, nor hangs: the emulator ends it."""
    command = [str(program), *map(str, arguments)]
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # a launch that fails drops its stacks as they are
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


CHECKS = ("reverse", "lanes", "product", "tf32", "handover", "ring", "chain", "wide_chain", "functions",
          "refusals")  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_primitives(program: Path, check: str) -> None:
    """Right results whatever the order in which threads, blocks and copies come."""
    done = run(program, check, 0, SEEDS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wait_in_vain_ends_and_says_what_for(program: Path) -> None:
    """On a real GPU with GRU_EXT_SPIN_LIMIT by a trap, here as a deadlock."""
    done = run(program, "hang", 0, 1)
    assert done.returncode == 0 and re.search(r"deadlock(?s:.*)a flag that nobody sets", done.stdout), done.stdout


WRONG = r"element \d+ is"
DEADLOCK = r"deadlock: no thread can go on\n(?s:.*)block \(\d+, 0, 0\): (?s:.*)"
# What was planted, and what must be said of it.
FAULTS = [
    ("reverse", 1, "a missing barrier", WRONG),
    ("reverse", 2, "a write beyond shared memory", "heap-buffer-overflow"),
    ("reverse", 3, "a read beyond shared memory", "heap-buffer-overflow"),
    ("reverse", 4, "a read beyond global memory", "heap-buffer-overflow"),
    ("reverse", 5, "a write beyond global memory", "heap-buffer-overflow"),
    ("lanes", 1, "a lane that skips an exchange", r"lane \d+ comes to shuffle.* and lane \d+ of its warp to shuffle"),
    ("lanes", 2, "lanes that part", r"lane \d+ comes to shuffle\w* and lane \d+ of its warp to shuffle"),
    ("product", 1, "copies that are not waited for", WRONG),
    ("product", 2, "the row after", WRONG + "|heap-buffer-overflow"),
    ("product", 3, "a swapped fragment", WRONG),
    ("product", 4, "a stage filled while others may read it", WRONG),
    ("product", 5, "rows that are not aligned", "not a multiple of 16"),
    ("tf32", 3, "a swapped fragment", WRONG),
    ("handover", 1, "a barrier that expects one warp too many", DEADLOCK + r"wait for barrier_sync \(\d+ of 128 have"),
    ("handover", 2, "a buffer filled before it was read", WRONG + "|deadlock"),
    (
        "ring",
        1,
        "a barrier that expects one arrival too many",
        DEADLOCK + r"64 wait for mbarrier_wait \(phase 0 lacks 1 arrivals",
    ),
    ("ring", 2, "a barrier that expects too few bytes", WRONG + "|deadlock"),
    ("ring", 3, "one buffer where two are needed", WRONG + "|deadlock"),
    ("ring", 4, "no barrier of the cluster before the first store", "was not initialised|has exited"),
    ("ring", 5, "a rank that the cluster has not, and a barrier elsewhere", "no block of this rank|another block"),
    ("chain", 1, "a flag that is not asked for", WRONG),
    ("chain", 2, "blocks of a grid that is not resident wait for each other", DEADLOCK + "a word"),
    ("chain", 3, "a block whose word never comes", DEADLOCK + r"1 wait for a word.*"),
    ("wide_chain", 1, "a flag that is not asked for", WRONG),
    ("wide_chain", 2, "a word of 16 bytes written in two halves", WRONG),
    ("wide_chain", 3, "two neighbouring words with one flag asked for", WRONG),
]


@pytest.mark.parametrize(("check", "fault", "planted", "said"), FAULTS, ids=[f"{c}-{f}" for c, f, _, _ in FAULTS])
def test_planted_faults_are_noticed(program: Path, check: str, fault: int, planted: str, said: str) -> None:
    """Under one of the seeds at least, with the words that lead to it."""
    done = run(program, check, fault, SEEDS)
    printed = done.stdout + done.stderr
    assert done.returncode not in (0, 2), f"not noticed: {planted}\n{printed}"
    assert re.search(said, printed), f"noticed, but not said: {planted}\n{printed}"


def test_a_seed_repeats(program: Path) -> None:
    """The same seed finds the same fault in the same place."""
    first, second = (run(program, "reverse", 1, SEEDS).stdout for _ in range(2))
    assert first == second and "seed" in first


def test_the_program_of_latencies_runs() -> None:
    """benchmarks/cuda/latencies.cu waits for nothing that does not come, in clusters of 16 and grids of 128 blocks."""
    if platform.system() != "Linux" or emulated.compiler() is None:
        pytest.skip("the emulator is built with g++ on Linux")
    done = run(emulated.benchmark("latencies"), 2, 1, 1)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert rows[0] == ["what", "blocks", "microseconds", "note"] and len(rows) == 36
    unmeasured = [row for row in rows[1:] if row[0] != "resident clusters" and not row[2]]
    assert not unmeasured, unmeasured


def test_the_program_of_steps_runs() -> None:
    """benchmarks/cuda/steps.cu: every kernel is right by its own check, and each gets a time in each mode."""
    if platform.system() != "Linux" or emulated.compiler() is None:
        pytest.skip("the emulator is built with g++ on Linux")
    steps, few = emulated.benchmark("steps"), ("--steps", 1, "--few", 1, "--repeats", 1)
    done = run(steps, *few, "--dtypes", "bfloat16", "float32", "float64", "--hidden-sizes", 40, "--batches", 3)
    assert done.returncode == 0 and "steps: 27 kernels checked against float64 on the host, 0 wrong" in done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["kernel"] for row in rows] == [*["solo", "step"] * 6, *["step"] * 3]
    assert all(row["microseconds"] and not row["note"] for row in rows)
    for wrong in (("--hidden-sizes", "many"), ("--dtypes", "int8"), ("--speed",)):
        refused = run(steps, *wrong)
        assert refused.returncode == 2 and refused.stderr.startswith("steps: ")
