"""Settings of every test: threads, the state that a test must leave as it found it, and the reason for each skip."""

from __future__ import annotations

import dataclasses
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import arm
import emulated
import pytest
import torch
from backends import Backend, use_operators

import gru_ext
from gru_ext import _C, functional, ops
from gru_ext.cuda import decision

THREADS = min(2, os.cpu_count() or 1)
torch.set_num_threads(THREADS)


def cuda_missing() -> str:
    """Why the CUDA tests cannot run here; "" when they can."""
    if not _C.build_info()["with_cuda"]:
        return "this build of gru_ext has no CUDA kernels"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return ""


def pytest_report_header() -> list[str]:
    """What is under test, at the head of the report."""
    targets = ", ".join(_C.cpu_targets())
    return [
        f"gru_ext {gru_ext.__version__}, torch {torch.__version__}, {THREADS} threads",
        f"SIMD targets: {targets}; in use: {_C.cpu_target()}",
        f"Arm tests: {arm.missing() or 'under qemu-user'}",
        f"CUDA tests: {cuda_missing() or torch.cuda.get_device_name(0)}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CUDA tests are collected everywhere; without a GPU they are skipped and the report says why."""
    reason = cuda_missing()
    if reason:
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def unchanged_state() -> Iterator[None]:
    """Seed before each test; restore threads, SIMD target and dtype after it."""
    target = _C.cpu_target()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(THREADS)
    torch.set_default_dtype(torch.float32)
    _C.set_cpu_target(target)


@pytest.fixture(scope="session")
def extension() -> ModuleType:
    """gru_ext's operators on the emulated GPU."""
    if platform.system() != "Linux" or emulated.compiler() is None:
        pytest.skip("the emulator is built with g++ on Linux")
    return emulated.extension(emulated.SANITIZED)


@pytest.fixture(scope="session")
def arm_worker() -> Iterator[Callable[[str], arm.Worker]]:
    """The worker of an Arm target, the same one again as long as it lives."""
    if arm.missing():
        pytest.skip(arm.missing())
    workers: dict[str, arm.Worker] = {}

    def worker(target: str) -> arm.Worker:
        if target not in workers or workers[target].process.poll() is not None:
            workers[target] = arm.Worker(target)
        return workers[target]

    yield worker
    for each in workers.values():
        each.close()


@pytest.fixture
def emulated_gpu(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Every layer runs there; memory that nothing wrote holds NaN.

    Products are not oneDNN's: on processors with AMX its bfloat16 product spreads a NaN to the row before it.
    """
    use_operators(monkeypatch, extension)
    monkeypatch.delenv("GRU_EXT_CUDA_KERNEL", raising=False)
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    yield extension
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def full_float32() -> Iterator[None]:
    """float32 products in float32, for torch and for us: TF32 would loosen the gate a thousandfold."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The backend that the test is parametrized with, in use."""
    requested: Backend = request.param
    if requested.kind == "cpu":
        _C.set_cpu_target(requested.kernel)
        assert _C.cpu_target() == requested.kernel
        return requested
    if requested.kind == "arm":
        use_operators(monkeypatch, request.getfixturevalue("arm_worker")(requested.kernel))
        return requested
    if requested.kind == "emulated":
        requested = dataclasses.replace(requested, extension=request.getfixturevalue("emulated_gpu"))
    request.getfixturevalue("full_float32")
    emulated.choose(monkeypatch, requested.kernel)
    return requested


@pytest.fixture
def gpu(emulated_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The emulated GPU as the one that gru_ext was built for, with no choices made and no table of measurements."""
    monkeypatch.setattr(ops, "on_cuda", lambda _: True)
    monkeypatch.setattr(decision, "native", emulated_gpu)
    emulated_gpu.forget_cuda_choices()
    emulated_gpu.use_measured([])
    yield emulated_gpu
    emulated_gpu.forget_cuda_choices()
    emulated_gpu.use_measured([])


@pytest.fixture
def tf32() -> Iterator[None]:
    """torch's products of float32 may round to TF32."""
    kept = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = kept


@pytest.fixture
def no_warning(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run of the reference would warn, and so fail."""
    monkeypatch.setattr(functional, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
