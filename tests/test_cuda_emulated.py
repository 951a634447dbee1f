"""What the emulated GPU alone can show (test_backends.py has the rest): tunings, tiles of 16 sequences, odd addresses,
launches counted, and no access out of bounds.

It is an H100: 132 multiprocessors, clusters, 227 KiB of shared memory a block."""

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

import cases
import emulated
import gate
import processes
import pytest
import test_saved_emulated
import torch
from backends import EMULATED, pairs
from cases import Case
from test_backends import options, sequences, shapes, special_values
from torch.profiler import ProfilerActivity, profile

import gru_ext
from gru_ext import ops

pytestmark = pytest.mark.usefixtures("emulated_gpu")

SANITIZED = emulated.SANITIZED


def test_a_step_is_a_product_and_a_cell(extension: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever else the step path does, it does once a pass; backward needs a view of each step's gradients, too."""
    emulated.choose(monkeypatch, "step")
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


def check_stationary(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, case: Case, kernel: str, seed: int = 0, tuning: str = ""
) -> None:
    """Hold a case to the gate on this kernel, and make sure that it is the one that runs."""
    emulated.choose(monkeypatch, kernel, tuning)
    assert emulated.paths(emulated.passes(extension, case)) == [kernel, kernel]
    extension.set_seed(seed)
    cases.check(gru_ext.GRU, case)


@pytest.mark.parametrize(
    ("kernel", "hidden_size", "tuning"), [("solo", 40, "2,2,8"), ("cluster", 130, "4,4,8"), ("grid", 130, "4,4,8")]
)
def test_stationary_many_sequences_in_a_group(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, tuning: str
) -> None:
    """More groups than the GPU can run at the same time become larger ones: several tiles of 8 sequences.

    What runs is two groups of that size, not 2,200 sequences.
    """
    case = Case(2, {"solo": 2200, "cluster": 500, "grid": 560}[kernel], 3, hidden_size, torch.float32, seed=1)
    emulated.choose(monkeypatch, kernel)
    plan = emulated.passes(extension, case)[0]
    words = re.search(r"groups of (16|24|32) sequences", plan["reason"])
    assert words and plan["tile"] == 8, plan
    case = replace(case, batch=int(words[1]) + 5)
    check_stationary(extension, monkeypatch, case, kernel, tuning=f"{tuning},{words[1]}")


@pytest.mark.parametrize(("kernel", "hidden_size"), [("solo", 33), ("cluster", 150), ("grid", 150)])
@pytest.mark.parametrize("batch", [1, 2, 10])
def test_stationary_few_sequences(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, batch: int
) -> None:
    """Up to two sequences of a tile are multiplied alone, from the start or when the others have ended."""
    for seed, packed in enumerate(("", "unsorted")):
        case = Case(5, batch, 3, hidden_size, torch.float32, bidirectional=True, packed=packed, seed=seed)
        check_stationary(extension, monkeypatch, case, kernel, seed)


TF32 = [
    *(("solo", size) for size in (1, 17, 64)),
    *((kernel, size) for kernel in ("cluster", "grid") for size in (100, 129, 200, 256)),
    *(("grid", size) for size in (300, 512, 600)),
]


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(("kernel", "hidden_size"), TF32, ids=str)
def test_stationary_tf32(extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int) -> None:
    """Where torch may use TF32 so may we: held to what ``nn.GRU`` makes of float16, which has as many digits."""
    emulated.choose(monkeypatch, kernel)
    small = hidden_size < 300
    case = Case(
        4, 9 if small else 3, 5, hidden_size, torch.float16, bidirectional=small, packed="unsorted", seed=hidden_size
    )
    plans = emulated.passes(extension, replace(case, dtype=torch.float32))
    assert emulated.paths(plans) == [kernel] * 2 and all("products in TF32" in plan["reason"] for plan in plans)
    extension.set_seed(hidden_size)
    truth, reference = cases.evaluate(torch.nn.GRU, case, torch.float64), cases.evaluate(torch.nn.GRU, case)
    candidate = cases.evaluate(gru_ext.GRU, case, torch.float32)
    for name, value in truth.items():
        error, allowed = (gate.max_error(results[name], value) for results in (candidate, reference))
        assert error <= gate.FACTOR * allowed + gate.floor(value, torch.float16), name
    exact = cases.evaluate(torch.nn.GRU, case, torch.float32)
    error, least = (gate.max_error(results["output"], truth["output"]) for results in (candidate, exact))
    assert error > 4 * least or hidden_size == 1, "this was float32, not TF32"


def test_stationary_odd_addresses(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights at an odd address and with an odd size: nothing wider than an element is read there."""
    emulated.choose(monkeypatch, "stationary")
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
    case = Case(3, 19, 3, 100, torch.bfloat16, seed=3)
    kernel = "solo" if tuning.endswith(",24") else "cluster"
    check_stationary(extension, monkeypatch, case, kernel, tuning=tuning)
    assert ("24 sequences" in emulated.passes(extension, case)[0]["reason"]) == tuning.endswith(",24")


# Each kernel there is for tiles of 16 sequences, and divisions among two, four and eight warps that share columns.
TILES_OF_16 = [
    ("solo", 40, "8,2,8"),
    ("cluster", 129, "8,2,8"),
    ("cluster", 150, "8,4,8"),
    ("cluster", 200, "12,2,8"),
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
    emulated.choose(monkeypatch, kernel, tuning)
    expected = module(input)[0]
    emulated.choose(monkeypatch, kernel, f"{tuning},48")
    assert gate.same_bits(module(input)[0], expected)
    cases_of_48 = (
        Case(3, 45, 4, hidden_size, dtype, seed=1),
        Case(4, 35, 3, hidden_size, dtype, bidirectional=True, packed="unsorted", seed=2),
        Case(3, 20, 3, hidden_size, dtype, special="nan", seed=3),
    )
    for seed, case in enumerate(cases_of_48):
        assert {division["tile"] for division in emulated.passes(extension, case)} == {16}
        check_stationary(extension, monkeypatch, case, kernel, seed, f"{tuning},48")


def test_sizes_beyond_32_bits_are_planned_for(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The division of work neither overflows nor promises what no GPU holds."""
    emulated.choose(monkeypatch, "stationary")
    for batch in (2**31, 2**62, 2**63 - 1):
        passes = extension.cuda_passes(torch.float32, 2**63 - 1, batch, 2**63 - 1, 64, 2, False, True)
        assert [plan["kernel"] for plan in passes] == ["step", "step"]
        assert "batch is above 2147483647" in passes[0]["reason"]
    assert extension.cuda_passes(torch.float32, 1, 2**31 - 1, 1, 2**63 - 1, 1, False, True)[0]["kernel"] == "step"
    assert extension.cuda_passes(torch.float32, 1, 2**31 - 1, 1, 64, 1, False, True)[0]["kernel"] == "step"
    assert extension.cuda_passes(torch.float32, 1, 2**29, 1, 64, 1, False, True)[0]["groups"] > 0


def test_the_emulated_path_is_the_one_that_runs(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of this file: what it tests is not the CPU kernels."""
    calls = []
    monkeypatch.setattr(ops, "forward", lambda *call: calls.append("forward") or extension.forward(*call))
    monkeypatch.setattr(ops, "backward", lambda *call: calls.append("backward") or extension.backward(*call))
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
    """Shapes, options, lengths and resets again with AddressSanitizer, which guards every tensor; alignment too."""
    emulated.extension_file(sanitize=True)
    files = ("test_backends.py", "test_cuda_emulated.py", "test_saved_emulated.py")
    names = "test_shapes or test_options or test_special or test_sequences or stationary_odd or of_16 or anywhere"
    done = run_sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", names)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    drawn = [partial(cases_of, sanitized=True) for cases_of in (shapes, options, special_values, sequences)]
    count = sum(len(pairs(cases_of, EMULATED)) for cases_of in drawn) + 1 + 3 + len(test_saved_emulated.ANYWHERE)
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
