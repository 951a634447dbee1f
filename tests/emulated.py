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

import torch
from torch.utils import cpp_extension

SANITIZED = os.environ.get("GRU_EMULATOR_SANITIZED") == "1"  # a run with AddressSanitizer, see test_cuda_emulated.py
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
BUILD = ROOT / "build" / "emulator"
EMULATOR = TESTS / "emulator"
SCHEDULER = tuple(EMULATOR / f"{name}.cpp" for name in ("emulator", "scheduler", "fibers"))
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
# -O1 compiles in a third of the time; what nvcc's pragmas ask for is nothing to g++.
FLAGS = (
    "-O1", "-g1", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-DGRU_CUDA_EMULATOR",
    "-DGRU_MEMBERS_AT_ONCE=4",
    "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    f"-I{EMULATOR / 'include'}", f"-I{TESTS}", f"-I{ROOT / 'csrc'}",
)  # fmt: skip


def compiler() -> str | None:
    """The C++ compiler: CXX, else g++; the emulator needs GCC's own setjmp and _Float16."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def _key(command: Sequence[str]) -> str:
    """Changes when anything does that the objects may depend on."""
    digest = hashlib.sha256(repr((command, torch.__version__)).encode())
    for folder in (ROOT / "csrc", EMULATOR, ROOT / "benchmarks" / "cuda"):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _build(name: str, sources: Sequence[Path], flags: Sequence[str], link: Sequence[str]) -> Path:
    """Compiles and links `sources` into build/emulator/`name`, unless that is done already."""
    tool = compiler()
    if tool is None:
        raise FileNotFoundError("there is no C++ compiler: set CXX, or put g++ on PATH")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests that run in several processes want the same, and one of them builds
        return _built(name, tool, sources, flags, link)


def _built(name: str, tool: str, sources: Sequence[Path], flags: Sequence[str], link: Sequence[str]) -> Path:
    made, key_file = BUILD / name, BUILD / f"{name}.key"
    key = _key([tool, *flags, *link])
    if made.exists() and key_file.exists() and key_file.read_text() == key:
        return made
    objects = [BUILD / f"{name}-{source.stem}-{source.suffix[1:]}.o" for source in sources]

    def compile_one(source: Path, to: Path) -> str:
        command = [*tool.split(), *flags, "-x", "c++", "-c", str(source), "-o", str(to)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.stdout if done.returncode else ""

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        errors = "".join(pool.map(compile_one, sources, objects))
    if errors:
        raise RuntimeError(f"{name} does not compile:\n{errors}")
    subprocess.run([*tool.split(), *flags, *map(str, objects), *link, "-o", str(made)], check=True)
    key_file.write_text(key)
    return made


def program() -> Path:
    """The checks of the emulator, with sanitizers."""
    sources = [*SCHEDULER, EMULATOR / "checks.cu"]
    return _build("checks", sources, [*FLAGS, "-std=c++17", *SANITIZE], [])


def benchmark(name: str) -> Path:
    """A program of benchmarks/cuda, "latencies" or "steps", whose times then say nothing."""
    sources = [*SCHEDULER, ROOT / "benchmarks" / "cuda" / f"{name}.cu"]
    if name == "steps":
        sources += [*sorted((ROOT / "csrc" / "cuda").glob("*.cpp")), *KERNELS]
    return _build(name, sources, [*FLAGS, "-std=c++17", *SANITIZE], [])


def extension_file(sanitize: bool = False) -> Path:
    """The shared library of ``extension``."""
    name = "emulated_gru" + ("_sanitized" if sanitize else "")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    libraries = cpp_extension.library_paths()
    flags = [
        *FLAGS,
        "-std=c++20",
        f"-DTORCH_EXTENSION_NAME={name}",
        *(word for path in includes for word in ("-isystem", path)),
        *(SANITIZE if sanitize else ()),
    ]
    link = ["-shared", *(f"-L{path}" for path in libraries), *(f"-Wl,-rpath,{path}" for path in libraries)]
    link += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    sources = [
        *SCHEDULER,
        EMULATOR / "binding.cpp",
        *(
            ROOT / "csrc" / f"{one}.cpp"
            for one in ("ops", "ops_members", "ops_cuda", "ops_cuda_stationary", "cuda/plan", "cuda/choice")
        ),
        *KERNELS,
    ]
    return _build(f"{name}{suffix}", sources, flags, link)


def without_padding(saved: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """Rows of what a forward pass on CUDA keeps (csrc/gru.h) with the values of units alone, [..., 5H]."""
    states = saved.shape[-1] // 5 * 4
    return torch.cat([saved[..., : 4 * hidden_size], saved[..., states : states + hidden_size]], -1)


def extension(sanitize: bool = False) -> ModuleType:
    """gru_ext's operators on the emulated GPU: ``forward``, ``backward`` and ``set_seed``."""
    file = extension_file(sanitize)
    spec = importlib.util.spec_from_file_location(file.name.split(".")[0], file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
