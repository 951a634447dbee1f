"""Builds what runs on the emulated GPU (tests/emulator), into build/emulator, when it is stale: needs g++ alone.

* ``program()``: the checks of emulator/checks.cu, with AddressSanitizer and UndefinedBehaviorSanitizer;
* ``extension()``: gru_ext's operators with the CUDA path, kernels included, for tensors on the CPU.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import Case
from torch.utils import cpp_extension

SANITIZED = os.environ.get("GRU_EMULATOR_SANITIZED") == "1"  # a run with AddressSanitizer, see test_cuda_emulated.py
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
CSRC, BENCHMARKS, EMULATOR = ROOT / "csrc", ROOT / "benchmarks" / "cuda", TESTS / "emulator"
BUILD = ROOT / "build" / "emulator"
SCHEDULER = tuple(EMULATOR / f"{name}.cpp" for name in ("emulator", "scheduler", "fibers"))
KERNELS = (*sorted((CSRC / "cuda").glob("*.cpp")), *sorted((CSRC / "cuda").glob("*.cu")))
OPERATORS = [CSRC / "torch" / f"{name}.cpp" for name in ("layer", "operators")]
OPERATORS += sorted((CSRC / "torch").glob("layer_cuda*.cpp"))
EXTENSION = "emulated_gru"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
# -O1 compiles in a third of the time. g++ does not know nvcc's pragmas.
FLAGS = (
    "-O1", "-g1", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-DGRU_CUDA_EMULATOR", "-DGRU_MEMBERS_AT_ONCE=4",
    "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    f"-I{EMULATOR / 'include'}", f"-I{TESTS}", f"-I{CSRC}",
)  # fmt: skip


def compiler() -> str | None:
    """The C++ compiler: CXX, else g++; the emulator needs GCC's own setjmp and _Float16."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def _digest() -> str:
    """Changes with any file that an object may depend on."""
    digest = hashlib.sha256(torch.__version__.encode())
    for folder in (CSRC, EMULATOR, BENCHMARKS):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()


def update(file: Path, command: Sequence[str], digest: str) -> str:
    """Runs a compiler's command for `file` unless the same one made it from the same sources."""
    key = hashlib.sha256(repr((command, digest)).encode()).hexdigest()
    key_file = file.with_name(f"{file.name}.key")
    if not (file.exists() and key_file.exists() and key_file.read_text() == key):
        done = subprocess.run(
            [*command, "-o", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{file.name} does not compile:\n{done.stdout}")
        key_file.write_text(key)
    return str(file)


def _build(name: str, sources: Sequence[Path], sanitize: bool = True, link: Sequence[str] = ()) -> Path:
    """Compiles and links `sources`, unless that is done. Objects are shared; those that know torch have no sanitizers,
    with which they would take twice as long: what goes through tensors' memory is the kernels.
    """
    tool = compiler()
    if tool is None:
        raise FileNotFoundError("there is no C++ compiler: set CXX, or put g++ on PATH")
    folders = {sanitized: BUILD / ("sanitized" if sanitized else "plain") for sanitized in (False, True)}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    commands = {sanitized: [*tool.split(), *FLAGS, *(SANITIZE if sanitized else ())] for sanitized in (False, True)}
    for_torch = ["-std=c++20", f"-DTORCH_EXTENSION_NAME={EXTENSION}"]
    for path in (*cpp_extension.include_paths(), sysconfig.get_path("include")):
        for_torch += ["-isystem", path]

    def compile_source(source: Path) -> str:
        of_torch = source.parent == CSRC / "torch" or source.name == "binding.cpp"
        sanitized, flags = sanitize and not of_torch, for_torch if of_torch else ["-std=c++17"]
        command = [*commands[sanitized], *flags, "-x", "c++", "-c", str(source)]
        return update(folders[sanitized] / f"{source.name}.o", command, digest)

    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of pytest want the same files, and the first one makes them
        digest = _digest()
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_source, sorted(sources, key=_slowest_first)))
        return Path(update(folders[sanitize] / name, [*commands[sanitize], *objects, *link], digest))


def _slowest_first(source: Path) -> tuple[bool, int]:
    """A key to sort by: pybind11's templates take longest, then the longest files."""
    return source.name != "binding.cpp", -source.stat().st_size


def program() -> Path:
    """The checks of the emulator, with sanitizers."""
    return _build("checks", [*SCHEDULER, EMULATOR / "checks.cu"])


def benchmark(name: str) -> Path:
    """A program of benchmarks/cuda, "latencies" or "steps", with sanitizers; its times say nothing."""
    return _build(name, [*SCHEDULER, BENCHMARKS / f"{name}.cu", *(KERNELS if name == "steps" else ())])


def extension_file(sanitize: bool = False) -> Path:
    """The shared library of ``extension``."""
    name = EXTENSION + sysconfig.get_config_var("EXT_SUFFIX")
    libraries = cpp_extension.library_paths()
    link = ["-shared", *(f"-L{path}" for path in libraries), *(f"-Wl,-rpath,{path}" for path in libraries)]
    link += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    return _build(
        name, [*SCHEDULER, EMULATOR / "binding.cpp", EMULATOR / "control.cu", *OPERATORS, *KERNELS], sanitize, link
    )


def choose(monkeypatch: pytest.MonkeyPatch, kernel: str, tuning: str = "") -> None:
    """Make a strategy or kernel run: a word of GRU_EXT_CUDA_KERNEL, or "solo", "cluster" or "grid" for a stationary
    kernel that exchanges so. Solo runs where one block holds the weights, whatever is asked for.

    tuning: numbers for GRU_EXT_CUDA_TUNING
    """
    exchange = {"solo": "cluster", "cluster": "cluster", "grid": "grid"}.get(kernel, "")
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary" if exchange else kernel)
    monkeypatch.setenv("GRU_EXT_CUDA_TUNING", ",".join(word for word in (tuning, exchange) if word))


def paths(plans: Sequence[dict[str, Any]]) -> list[str]:
    """Of each pass the kernel, or how a stationary one exchanges."""
    return [str(plan.get("exchange", plan["kernel"])) for plan in plans]


def passes(extension: ModuleType, case: Case) -> list[dict[str, Any]]:
    """How the forward and the backward pass of a case would run on the emulated GPU."""
    directions, packed, training = 1 + case.bidirectional, bool(case.packed), True
    sizes = case.seq_len, case.batch, case.input_size, case.hidden_size
    plans: list[dict[str, Any]] = extension.cuda_passes(case.dtype, *sizes, directions, packed, training)
    return plans


def without_padding(saved: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """Rows of what a forward pass on CUDA keeps (csrc/gru.h) with the values of units alone, [..., 5H]."""
    states = saved.shape[-1] // 5 * 4
    return torch.cat([saved[..., : 4 * hidden_size], saved[..., states : states + hidden_size]], -1)


def extension(sanitize: bool = False) -> ModuleType:
    """gru_ext's operators on the emulated GPU: ``forward``, ``backward`` and ``set_seed``."""
    file = extension_file(sanitize)
    spec = importlib.util.spec_from_file_location(EXTENSION, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
