"""The CUDA path on the emulated GPU: the very kernels and launchers of csrc/cuda, and csrc/ops_cuda.cpp around them,
held to the same gate as the CPU kernels, under several orders of the threads.

The emulated GPU is an H100: 132 multiprocessors, clusters, 227 KiB of shared memory a block."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cases
import emulated
import gate
import processes
import pytest
import test_saved_emulated
import torch
from cases import Case
from torch.profiler import ProfilerActivity, profile

import gru_ext
from gru_ext import ops

pytestmark = pytest.mark.usefixtures("emulated_gpu")

SANITIZED = emulated.SANITIZED
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


def test_a_step_is_a_product_and_a_cell(extension: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever else the step path does, it does once a pass; backward needs a view of each step's gradients, too."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "step")
    module = gru_ext.GRU(4, 16)

    def work(seq_len: int) -> list[Counter[str]]:
        """What each pass has torch do, views included, and how many kernels of ours it launches."""
        output, passes = None, []
        for direction in ("forward", "backward"):
            file = tmp_path / f"{direction}-{seq_len}"
            monkeypatch.setenv("GRU_EMULATOR_LAUNCHES", str(file))
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                if output is None:
                    output = module(torch.zeros(seq_len, 3, 4, requires_grad=True))[0].sum()
                else:
                    output.backward()
            inside = [event for event in profiler.events() if event.cpu_parent is not None]
            names = [event.name for event in inside if event.cpu_parent.name.startswith(f"gru_{direction}_step")]
            passes.append(Counter([*names, *("launch" for _ in file.read_text().splitlines())]))
        return passes

    few, many = work(4), work(12)
    assert [dict(more - less) for less, more in zip(few, many, strict=True)] == [
        {"aten::mm": 8, "launch": 8},
        {"aten::mm": 8, "aten::as_strided": 8, "launch": 8},
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Kernels that keep the weights on the chip
# ----------------------------------------------------------------------------------------------------------------------

HALF = (torch.bfloat16, torch.float16)


def largest_solo(dtype: torch.dtype) -> int:
    """The largest hidden size whose weights fit into one block."""
    return 64 if dtype == torch.float32 else 128


def plan(extension: ModuleType, case: Case) -> list[dict[str, Any]]:
    """How the forward and the backward pass of a case would run."""
    passes: list[dict[str, Any]] = extension.cuda_passes(
        case.dtype,
        case.seq_len,
        case.batch,
        case.input_size,
        case.hidden_size,
        1 + case.bidirectional,
        bool(case.packed),
        True,
    )
    return passes


def check_stationary(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, case: Case, kernel: str, seed: int = 0
) -> None:
    """Hold a case to the gate on this kernel, and make sure that it is the one that runs."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", kernel)
    assert [one["kernel"] for one in plan(extension, case)] == [kernel, kernel]
    extension.set_seed(seed)
    cases.check(gru_ext.GRU, case)


# One beside each edge: of a tile of units, of a tile of columns, of a block.
FEW_SIZES = (17, 65, 129)  # those of the sanitized run, which is slow
STATIONARY = [
    (kernel, size, dtype)
    for dtype in (torch.float32, *HALF)
    for size in (FEW_SIZES if SANITIZED else (1, 2, 15, 17, 64, 65, 100, 128, 129, 192, 255, 256))
    for kernel in (("solo",) if size <= largest_solo(dtype) else ("cluster", "grid"))
]


@pytest.mark.parametrize(("kernel", "hidden_size", "dtype"), STATIONARY, ids=str)
def test_stationary_sizes(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, dtype: torch.dtype
) -> None:
    """One group of sequences, and two of each direction with packed input of odd lengths."""
    one = Case(5, 3, 4, hidden_size, dtype, seed=hidden_size)
    two = Case(4, 9, 3, hidden_size, dtype, bidirectional=True, packed="unsorted", seed=hidden_size + 1)
    for seed, case in enumerate((one, two)):
        check_stationary(extension, monkeypatch, case, kernel, seed)


LARGE = [
    *(("cluster", size, torch.bfloat16) for size in (300, 512, 520, 768)),
    *(("grid", size, torch.bfloat16) for size in (512, 520, 800)),
    ("cluster", 300, torch.float32),
    *(("grid", size, torch.float32) for size in (300, 512, 600)),
]


@pytest.mark.parametrize(("kernel", "hidden_size", "dtype"), LARGE, ids=str)
def test_stationary_large_sizes(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, dtype: torch.dtype
) -> None:
    """Weights beyond the registers, which stay in shared memory; up to 25 blocks that exchange."""
    case = Case(3, 5, 4, hidden_size, dtype, seed=hidden_size)
    check_stationary(extension, monkeypatch, case, kernel, hidden_size)


STATIONARY_OPTIONS = [case for case in cases.options(160) if case.dtype != torch.float64]


@pytest.mark.parametrize("index", range(len(STATIONARY_OPTIONS)), ids=[str(case) for case in STATIONARY_OPTIONS])
def test_stationary_options(extension: ModuleType, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Layers, directions, biases, layouts, packed and unbatched input, partial gradients; a fourth on more blocks."""
    case = STATIONARY_OPTIONS[index]
    kernel = "solo"
    if index % 4 == 3:
        kernel = ("cluster", "grid")[index // 4 % 2]
        case = replace(case, hidden_size=129 + index, batch=min(case.batch, 9), layers=min(case.layers, 2))
    elif case.hidden_size > largest_solo(case.dtype):
        kernel = "cluster"
    check_stationary(extension, monkeypatch, case, kernel, index)


@pytest.mark.parametrize(("kernel", "hidden_size"), [("solo", 40), ("cluster", 130), ("grid", 130)])
def test_stationary_many_sequences_in_a_group(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int
) -> None:
    """More groups than the GPU can run at the same time become larger ones: several tiles of 8 sequences."""
    batch = {"solo": 2200, "cluster": 500, "grid": 560}[kernel]
    case = Case(2, batch, 3, hidden_size, torch.bfloat16, seed=1)
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", kernel)
    words = plan(extension, case)[0]["reason"]
    assert re.search(r"groups of (16|24|32) sequences", words), words
    if SANITIZED:
        pytest.skip("takes minutes with AddressSanitizer")
    check_stationary(extension, monkeypatch, case, kernel)


@pytest.mark.parametrize(("kernel", "hidden_size"), [("solo", 33), ("cluster", 150), ("grid", 150)])
def test_stationary_order_of_threads_changes_no_bit(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int
) -> None:
    """The same bits under every seed: sums are added up in one order."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", kernel)
    case = Case(4, 9, 5, hidden_size, torch.float16, bidirectional=True, packed="unsorted", seed=7)
    extension.set_seed(0)
    first = cases.evaluate(gru_ext.GRU, case)
    for seed in range(1, 7):
        extension.set_seed(seed)
        gate.assert_same_bits(cases.evaluate(gru_ext.GRU, case), first, f"seed {seed}")


@pytest.mark.parametrize(("kernel", "hidden_size"), [("solo", 33), ("cluster", 150), ("grid", 150)])
@pytest.mark.parametrize("batch", [1, 2, 10])
def test_stationary_few_sequences(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, batch: int
) -> None:
    """Up to two sequences of a tile are multiplied alone, from the start or when the others have ended."""
    for seed, packed in enumerate(("", "unsorted")):
        case = Case(5, batch, 3, hidden_size, torch.float32, bidirectional=True, packed=packed, seed=seed)
        check_stationary(extension, monkeypatch, case, kernel, seed)


@pytest.mark.parametrize("special", ["inf", "nan", "huge"])
@pytest.mark.parametrize(("kernel", "hidden_size"), [("solo", 17), ("cluster", 130), ("grid", 130)])
def test_stationary_special_values(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, special: str
) -> None:
    """inf and NaN where torch has them and nowhere else: no padding takes part."""
    for dtype in HALF:
        case = Case(5, 4, 3, hidden_size, dtype, special=special, seed=4)
        check_stationary(extension, monkeypatch, case, kernel)


TF32 = [
    *(("solo", size) for size in (1, 17, 64)),
    *((kernel, size) for kernel in ("cluster", "grid") for size in (100, 129, 200, 256)),
    *(("grid", size) for size in (300, 512, 600)),
]


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(("kernel", "hidden_size"), TF32, ids=str)
def test_stationary_tf32(extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int) -> None:
    """Where torch may use TF32 so may we: held to what ``nn.GRU`` makes of float16, which has as many digits."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", kernel)
    small = hidden_size < 300
    case = Case(
        4, 9 if small else 3, 5, hidden_size, torch.float16, bidirectional=small, packed="unsorted", seed=hidden_size
    )
    for one in plan(extension, replace(case, dtype=torch.float32)):
        assert one["kernel"] == kernel and "products in TF32" in one["reason"]
    extension.set_seed(hidden_size)
    truth, reference = cases.evaluate(torch.nn.GRU, case, torch.float64), cases.evaluate(torch.nn.GRU, case)
    candidate = cases.evaluate(gru_ext.GRU, case, torch.float32)
    for name, value in truth.items():
        error, allowed = (gate.max_error(one[name], value) for one in (candidate, reference))
        assert error <= gate.FACTOR * allowed + gate.floor(value, torch.float16), name
    exact = cases.evaluate(torch.nn.GRU, case, torch.float32)
    error, least = (gate.max_error(one["output"], truth["output"]) for one in (candidate, exact))
    assert error > 4 * least or hidden_size == 1, "this was float32, not TF32"


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "hidden_size"), [("step", 33), ("solo", 33), ("cluster", 150), ("grid", 150)])
def test_recompute(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, dtype: torch.dtype
) -> None:
    """With recompute the states alone are kept, and the gate holds all the same."""
    if dtype == torch.float64 and kernel != "step":
        pytest.skip("no kernel keeps float64 weights on the chip")
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", kernel)
    kept = []

    def forward(*given: Any) -> Any:
        results = extension.forward(*given)
        kept.append(results[2].shape[-1])
        return results

    monkeypatch.setattr(ops, "forward", forward)
    case = Case(6, 5, 7, hidden_size, dtype, layers=2, bidirectional=True, packed="unsorted", seed=8)
    cases.check(partial(gru_ext.GRU, recompute=True), case)
    assert set(kept) == {hidden_size}


def test_stationary_odd_addresses(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights at an odd address and with an odd size: nothing wider than an element is read there."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary")
    module = gru_ext.GRU(3, 24, dtype=torch.bfloat16)
    input = torch.randn(3, 2, 3, dtype=torch.bfloat16)
    expected = module(input)[0]
    for name, parameter in module.named_parameters():
        moved = torch.empty(parameter.numel() + 1, dtype=torch.bfloat16)[1:].view(parameter.shape)
        moved.copy_(parameter.detach())
        assert moved.data_ptr() % 4 == 2
        setattr(module, name, torch.nn.Parameter(moved))
    assert gate.same_bits(module(input)[0], expected)


@pytest.mark.parametrize("tuning", ["8,4,8", "16,2,4", "12,2,6", "24,2,2", "16,4,4", "4,2,16,24"])
def test_stationary_tunings(extension: ModuleType, monkeypatch: pytest.MonkeyPatch, tuning: str) -> None:
    """Every division of the work that may be asked for gives right results."""
    monkeypatch.setenv("GRU_EXT_CUDA_TUNING", tuning)
    case = Case(3, 19, 3, 100, torch.bfloat16, seed=3)
    check_stationary(extension, monkeypatch, case, "solo" if tuning.endswith(",24") else "cluster")
    assert ("24 sequences" in plan(extension, case)[0]["reason"]) == tuning.endswith(",24")


# Each kernel there is for tiles of 16 sequences, and divisions among two, four and eight warps that share columns.
TILES_OF_16 = [
    ("solo", 40, "8,2,8"),
    ("cluster", 129, "8,2,8"),
    ("cluster", 200, "8,4,8"),
    ("cluster", 257, "12,2,8"),
    ("cluster", 130, "16,2,4"),
    ("cluster", 101, "24,2,2"),
    ("grid", 130, "8,2,8"),
    ("grid", 101, "12,4,8"),
    ("grid", 150, "16,4,8"),
]


@pytest.mark.parametrize(("kernel", "hidden_size", "tuning"), TILES_OF_16[:3] if SANITIZED else TILES_OF_16, ids=str)
def test_stationary_tiles_of_16_sequences(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, tuning: str
) -> None:
    """A group of several tiles, the last of them in part without sequences; and packed, where tiles end one by one.

    Forward gives a sequence the bits that it has in a tile of 8.
    """
    dtype = HALF[hidden_size % 2]
    module = gru_ext.GRU(3, hidden_size, dtype=dtype)
    input = torch.randn(3, 21, 3, dtype=dtype)
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", kernel)
    monkeypatch.setenv("GRU_EXT_CUDA_TUNING", tuning)
    expected = module(input)[0]
    monkeypatch.setenv("GRU_EXT_CUDA_TUNING", f"{tuning},48")
    assert gate.same_bits(module(input)[0], expected)
    cases_of_48 = (
        Case(3, 45, 4, hidden_size, dtype, seed=1),
        Case(4, 35, 3, hidden_size, dtype, bidirectional=True, packed="unsorted", seed=2),
        Case(3, 20, 3, hidden_size, dtype, special="nan", seed=3),
    )
    for seed, case in enumerate(cases_of_48):
        assert {division["tile"] for division in plan(extension, case)} == {16}
        check_stationary(extension, monkeypatch, case, kernel, seed)


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
    environment = processes.environment() | {
        "LD_PRELOAD": library, "ASAN_OPTIONS": options, "GRU_EMULATOR_SANITIZED": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=emulated.TESTS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


@pytest.mark.skipif(SANITIZED, reason="this is the sanitized run")
def test_nothing_is_read_or_written_out_of_bounds(extension: ModuleType) -> None:
    """Shapes and options again with AddressSanitizer, which guards every tensor, and with alignment checked."""
    emulated.extension_file(sanitize=True)
    files = ("test_cuda_emulated.py", "test_saved_emulated.py")
    chosen = (
        "-k",
        "test_shapes or test_options or test_special or stationary_sizes or stationary_odd or of_16 or anywhere",
    )
    done = run_sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *chosen)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    few = sum(size in FEW_SIZES for _, size, _ in STATIONARY)
    count = len(SHAPES) + len(OPTIONS) + 12 + few + 1 + 3 + len(test_saved_emulated.ANYWHERE)
    assert f"{count} passed" in done.stdout, done.stdout[-2000:]


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
