"""The target avx512_amx on machines without AMX: its kernels over a software model of the tile instructions.

The program in amx/ holds them to avx512_bf16 and float64, and looks at their bits and at what they read. This builds
it, runs it, and plants faults in the model, each of which it must notice. Where there is AMX, the other tests run the
target itself.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from gru_ext import _C

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    *(ROOT / "tests" / "amx" / f"{name}.cpp" for name in ("products", "passes")),
    *(
        ROOT / "csrc" / "cpu" / f"{name}.cpp"
        for name in ("target_avx512_bf16", "phases", "plan", "threads", "workspace")
    ),
]
# -O1: the kernels compile in half the time, and nothing is measured.
FLAGS = ["-std=c++17", "-O1", "-fopenmp", "-Wall", "-Wextra", "-Werror"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled checks of amx/."""
    if platform.system() != "Linux" or not {"avx512_bf16", "avx512_amx"} & set(_C.cpu_targets()):
        pytest.skip("the model stands beside AVX-512 with bf16 on Linux, which this machine does not have")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler on PATH")
    folder = tmp_path_factory.mktemp("amx")
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    compilers = [
        subprocess.Popen(
            [*compiler.split(), *FLAGS, "-c", str(source), "-o", str(made)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for source, made in zip(SOURCES, objects, strict=True)
    ]
    printed = [process.communicate()[0] for process in compilers]
    if "no AMX intrinsics" in printed[0]:
        pytest.skip(f"{compiler} has no AMX intrinsics, so the target is not compiled either")
    assert all(process.returncode == 0 for process in compilers), "".join(printed)
    made = folder / "amx_check"
    subprocess.run([*compiler.split(), "-fopenmp", *map(str, objects), "-o", str(made)], check=True)
    return made


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the checks and return what became of it."""
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("check", ["products", "passes"])
def test_amx_through_the_model(program: Path, check: str) -> None:
    """Errors at most twice those of avx512_bf16; the same bits for every batch and thread count; nothing overread."""
    done = run(program, check)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout, end="")


# What each fault of amx/model.h is, and the checks that can see it.
FAULTS = [
    (1, "the last word of a sum is dropped", ("products", "passes")),
    (2, "the last row of a tile is dropped", ("products", "passes")),
    (3, "a row is read beyond its words", ("products",)),
    (4, "a row is mixed up with the one above", ("products", "passes")),
    (5, "the tiles are not released", ("products", "passes")),
]


@pytest.mark.parametrize(
    ("check", "fault"), [(check, number) for number, _, checks in FAULTS for check in checks], ids=str
)
def test_planted_faults_are_noticed(program: Path, check: str, fault: int) -> None:
    """A fault in the tile instructions makes the check fail, or touch the page beyond an operand."""
    done = run(program, check, str(fault))
    assert done.returncode != 0, f"not noticed: {FAULTS[fault - 1][1]}\n{done.stdout}"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "no configuration is loaded"),
        (1, "there is no such tile"),
        (2, "the shapes of the tiles do not fit"),
        (3, "the three tiles must differ"),
        (4, "the tile is not configured"),
        (5, "larger than 16 rows"),
        (6, "no configuration is loaded"),
    ],
)
def test_the_model_refuses_misuse(program: Path, number: int, message: str) -> None:
    """What the processor would fault on stops the model, with words."""
    done = run(program, "misuse", str(number))
    assert done.returncode < 0 and message in done.stderr, done.stdout + done.stderr
