"""The targets of AVX-512, AMX and AVX_VNNI on machines without them: kernels over a software model of the instructions.

The program in x86/ holds them to float64 as closely as the portable target, and looks at their bits and at what they
read. This builds it, runs it, and plants faults in the model, each of which it must notice. Where there is AVX-512 the
model itself is held to the processor; where there is any of these targets, the other tests run it as it is.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gru_ext import _C

ROOT = Path(__file__).resolve().parent.parent
X86, CPU = ROOT / "tests" / "x86", ROOT / "csrc" / "cpu"
AVX2 = "avx2" in _C.cpu_targets()
# avx2_vnni is left out where there is no AVX2: all of it but one instruction runs as it is.
TARGETS = ["avx512_bf16", "avx512", "avx512_vnni", *(["avx2_vnni"] if AVX2 else []), "portable"]


def target_source(name: str) -> tuple[Path, tuple[str, ...]]:
    """The file of a target behind the model, and its product of bytes for the checks."""
    files = (X86 / "check.h", CPU / f"target_{name}.cpp")
    return X86 / "bytes.cpp", (f"-DX86_TARGET={name}", *(part for file in files for part in ("-include", str(file))))


# The slowest to compile first.
SOURCES = [
    (X86 / "products.cpp", ()),
    *map(target_source, TARGETS),
    (X86 / "passes.cpp", ()),
    *((CPU / f"{name}.cpp", ()) for name in ("phases", "plan", "threads", "workspace")),
]
# -Og: the kernels compile in a third of the time of -O1, and nothing is measured. No product and sum that the
# intrinsics keep apart may be fused, and vectors need not be passed as AVX-512 would pass them.
FLAGS = ["-std=c++17", "-Og", "-fopenmp", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
if AVX2:
    FLAGS += ["-mavx2", "-mfma", "-mf16c"]  # the model is faster


def compiler() -> list[str]:
    """The compiler's command; skips where there is none, or another kind of machine."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the model is of x86-64 on Linux")
    command = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if command is None:
        pytest.skip("there is no C++ compiler on PATH")
    return command.split()


def build(made: Path, sources: list[tuple[Path, tuple[str, ...]]]) -> Path:
    """Compile and link, two files at a time."""
    command = [*compiler(), *FLAGS]
    objects = [made.with_name(f"{made.name}-{number}.o") for number in range(len(sources))]
    lines = [
        [*command, *flags, "-c", str(source), "-o", str(target)]
        for (source, flags), target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda line: subprocess.run(line, capture_output=True, text=True, check=False), lines))
    printed = "".join(process.stderr for process in done)
    if "no AMX intrinsics" in printed:
        pytest.skip(f"{command[0]} has no AMX intrinsics, so the target is not compiled either")
    assert all(process.returncode == 0 for process in done), printed
    subprocess.run([*compiler(), "-fopenmp", *map(str, objects), "-o", str(made)], check=True)
    return made


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled checks of x86/."""
    return build(tmp_path_factory.mktemp("x86") / "x86_check", SOURCES)


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the checks and return what became of it."""
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=300, check=False)


def test_the_model_is_the_processor(tmp_path: Path) -> None:
    """Each modelled intrinsic gives what the real one gives, the reciprocal's estimate and sums of products nearly."""
    if "avx512_bf16" not in _C.cpu_targets():
        pytest.skip("this machine has no AVX-512 with bf16 to hold the model to")
    source = X86 / "intrinsics.cpp"
    done = run(build(tmp_path / "x86_intrinsics", [(source, ("-DX86_MODELLED",)), (source, ())]))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("check", ["products", "bytes", "forward", "packed", "backward", "peaks", "choice"])
def test_through_the_model(program: Path, check: str) -> None:
    """Errors within the gate; the same bits for every batch and thread count; nothing overread; the right choice."""
    done = run(program, check)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout, end="")


# What each fault of x86/faults.h is, and the checks that can see it.
FAULTS = [
    (1, "the last word of a sum is dropped", ("products", "bytes", "packed", "backward")),
    (2, "the last row of a tile is dropped", ("products", "bytes", "packed", "backward")),
    (3, "a row is read beyond its words", ("products", "bytes")),
    (4, "a row is mixed up with the one above", ("products", "bytes", "packed", "backward")),
    (5, "the tiles are not released", ("products", "bytes", "forward", "packed", "backward")),
    (6, "the halves of a word are mixed up", ("products", "bytes", "forward", "packed", "backward")),
    (7, "the last run of a sum is dropped", ("products", "forward", "backward")),
    (8, "the upper half of a word is not zeroed", ("backward",)),
    (9, "two parts of a transposed vector change places", ("forward", "backward")),
    (10, "bytes without a sign are taken for such with one", ("bytes", "packed")),
]


@pytest.mark.parametrize(
    ("check", "fault"), [(check, number) for number, _, checks in FAULTS for check in checks], ids=str
)
def test_planted_faults_are_noticed(program: Path, check: str, fault: int) -> None:
    """A fault in the instructions makes the check fail, or touch the page beyond an operand."""
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
        (7, "the shapes of the tiles do not fit"),
    ],
)
def test_the_model_refuses_misuse(program: Path, number: int, message: str) -> None:
    """What the processor would fault on stops the model, with words."""
    done = run(program, "misuse", str(number))
    assert done.returncode < 0 and message in done.stderr, done.stdout + done.stderr
