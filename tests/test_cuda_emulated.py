"""The CUDA path on the emulated GPU: the very kernels and launchers of csrc/cuda, and csrc/ops_cuda.cpp around them,
held to the same gate as the CPU kernels, under several orders of the threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import cases
import emulated
import gate
import pytest
import torch
from cases import Case

import gru_ext
from gru_ext import ops

SANITIZED = os.environ.get("GRU_EMULATOR_SANITIZED") == "1"


@pytest.fixture(scope="module")
def extension() -> ModuleType:
    """gru_ext's operators on the emulated GPU."""
    if platform.system() != "Linux" or emulated.compiler() is None:
        pytest.skip("the emulator is built with g++ on Linux")
    return emulated.extension(SANITIZED)


@pytest.fixture(autouse=True)
def on_the_emulated_gpu(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every layer runs there; memory that nothing wrote holds NaN."""
    monkeypatch.setattr(ops, "forward", extension.forward)
    monkeypatch.setattr(ops, "backward", extension.backward)
    monkeypatch.setattr(ops, "layer_direct", lambda *_: None)  # "the operators, please"
    monkeypatch.setattr(ops, "cell_direct", lambda *_: None)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


SHAPES = cases.shapes()
OPTIONS = cases.options(120)


@pytest.mark.parametrize("index", range(len(SHAPES)), ids=[str(case) for case in SHAPES])
def test_shapes(extension: ModuleType, index: int) -> None:
    """One beside each tile edge, in every dtype."""
    extension.set_seed(index)
    cases.check(gru_ext.GRU, SHAPES[index])


@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=[str(case) for case in OPTIONS])
def test_options(extension: ModuleType, index: int) -> None:
    """Layers, directions, biases, layouts, packed and unbatched input, partial gradients."""
    extension.set_seed(index)
    cases.check(gru_ext.GRU, OPTIONS[index])


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("special", ["inf", "nan", "huge"])
def test_special_values(special: str, dtype: torch.dtype) -> None:
    """inf and NaN where torch has them and nowhere else."""
    cases.check(gru_ext.GRU, Case(5, 4, 3, 17, dtype, special=special, seed=4))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_the_order_of_threads_changes_no_bit(extension: ModuleType, dtype: torch.dtype) -> None:
    """The same bits under every seed."""
    case = Case(4, 9, 5, 33, dtype, bidirectional=True, packed="unsorted", seed=7)
    extension.set_seed(0)
    first = cases.evaluate(gru_ext.GRU, case)
    for seed in range(1, 6):
        extension.set_seed(seed)
        gate.assert_same_bits(cases.evaluate(gru_ext.GRU, case), first, f"seed {seed}")


def test_the_emulated_path_is_the_one_that_runs(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of this file: what it tests is not the CPU kernels."""
    calls = []
    monkeypatch.setattr(ops, "forward", lambda *given: calls.append("forward") or extension.forward(*given))
    monkeypatch.setattr(ops, "backward", lambda *given: calls.append("backward") or extension.backward(*given))
    module = gru_ext.GRU(3, 4)
    module(torch.randn(2, 1, 3))[0].sum().backward()
    assert calls == ["forward", "backward"]


def sanitizer_library() -> str | None:
    """AddressSanitizer's runtime, which must be loaded before anything else."""
    tool = emulated.compiler() or "g++"
    done = subprocess.run([*tool.split(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    path = done.stdout.strip()
    return path if os.path.isabs(path) else None


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python with AddressSanitizer loaded. torch itself leaks at exit and mixes its allocators."""
    library = sanitizer_library()
    if library is None:
        pytest.skip("the compiler has no libasan.so")
    options = "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0"
    environment = os.environ | {
        "LD_PRELOAD": library, "ASAN_OPTIONS": options, "GRU_EMULATOR_SANITIZED": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=emulated.TESTS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.skipif(SANITIZED, reason="this is the sanitized run")
def test_nothing_is_read_or_written_out_of_bounds(extension: ModuleType) -> None:
    """Shapes and options again with AddressSanitizer, which guards every tensor, and with alignment checked."""
    emulated.extension_file(sanitize=True)
    chosen = ["-k", "test_shapes or test_options or test_special"]
    done = run_sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_cuda_emulated.py", *chosen)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"{len(SHAPES) + len(OPTIONS) + 12} passed" in done.stdout, done.stdout[-2000:]


@pytest.mark.skipif(SANITIZED, reason="this is the sanitized run")
@pytest.mark.parametrize(("elements", "said"), [(64, ""), (65, "heap-buffer-overflow")])
def test_out_of_bounds_would_be_noticed(extension: ModuleType, elements: int, said: str) -> None:
    """The control: one element beyond a tensor of 64 ends the process with a report."""
    emulated.extension_file(sanitize=True)
    program = (
        "import emulated, torch; extension = emulated.extension(True);"
        f"extension.copy_reversed(torch.arange(64, dtype=torch.int32), torch.empty(64, dtype=torch.int32), {elements})"
    )
    done = run_sanitized("-c", program)
    assert (done.returncode != 0) == bool(said), done.stdout + done.stderr
    assert said in done.stderr
