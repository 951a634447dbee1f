"""Build of gru_ext._C, the compiled half of gru_ext. Everything that is not about compiling is in pyproject.toml.

The source distribution needs no torch, all else the torch that will run it. pip's isolated environment has none, since
pyproject.toml does not require it: it would be another.

The CPU kernels are always built. The CUDA kernels are built when torch is a CUDA build and a CUDA toolkit is found; no
GPU need be present. Environment:

    GRU_EXT_CPU_ONLY=1     leave the CUDA kernels out
    GRU_EXT_FORCE_CUDA=1   fail when the CUDA kernels cannot be built
    GRU_EXT_WERROR=1       warnings in our own sources are errors
    GRU_EXT_SPIN_LIMIT=N   a CUDA kernel that polls N times for another block says so and ends by a trap
    CUDA_HOME, CUDA_PATH   the CUDA toolkit to use
    TORCH_CUDA_ARCH_LIST   GPU architectures, such as "8.0;9.0+PTX" (read by torch)
    MAX_JOBS               compiler processes at once (read by torch); 1: ninja is not needed
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
EXTENSION = "gru_ext._C"
OLDEST_TORCH, END_OF_TORCH = (2, 11), (3, 0)
SUPPORTED_TORCH = "torch>={}.{},<{}.{}".format(*OLDEST_TORCH, *END_OF_TORCH)
CXX = shlex.split(os.environ.get("CXX", "c++"))  # as torch reads it
SOURCES_ONLY = next((word for word in sys.argv[1:] if not word.startswith("-")), "") in ("egg_info", "sdist")
# For a build without TORCH_CUDA_ARCH_LIST on a machine without a GPU. Those that nvcc does not know are left out.
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")


class BuildError(SystemExit):
    """A build that cannot go on: one message, no traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"gru_ext: {message}")


if sys.version_info < (3, 10):  # noqa: UP036 (older Pythons that run this file)
    raise BuildError(f"needs Python 3.10 or newer, this is {platform.python_version()}")
if int(setuptools.__version__.split(".")[0]) < 77:  # not read from pyproject.toml with --no-build-isolation
    raise BuildError(
        f'setuptools {setuptools.__version__} is too old to read pyproject.toml: run `pip install "setuptools>=77"`'
    )
if not SOURCES_ONLY:
    try:
        import torch
    except ImportError as error:
        raise BuildError(
            f"`import torch` fails in this build environment ({error}): install torch if it is not installed, then run "
            "`pip install --no-build-isolation .`, which compiles for that torch"
        ) from None


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit on this machine."""

    home: Path
    version: str  # such as "13.0"

    @property
    def nvcc(self) -> Path:
        return self.home / "bin" / "nvcc"

    def directories(self, name: str) -> list[str]:
        """Extra directories called `name` ("include" or "lib") of a layout that keeps them only under targets/."""
        if (self.home / "include" / "cuda_runtime.h").is_file():
            return []
        return [str(path) for path in sorted(self.home.glob(f"targets/*-linux/{name}"))]


def flag(name: str) -> bool:
    """The environment variable `name` as yes or no; unset and empty are no."""
    value = os.environ.get(name, "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise BuildError(f"{name} must be 1 or 0, got {os.environ[name]!r}")


def spin_limit() -> int:
    """GRU_EXT_SPIN_LIMIT; 0, no limit, where it is unset or empty."""
    value = os.environ.get("GRU_EXT_SPIN_LIMIT", "").strip()
    if value and not (value.isascii() and value.isdigit() and 0 < int(value) < 2**63):
        raise BuildError(f"GRU_EXT_SPIN_LIMIT must be a whole number of at least 1, got {value!r}")
    return int(value or 0)


def say(message: str) -> None:
    print(f"gru_ext: {message}", flush=True)


def run(*command: str | Path) -> str:
    """What the command prints, on both streams; empty when it cannot be run."""
    try:
        done = subprocess.run(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def read_toolkit(home: Path) -> Toolkit | None:
    """The toolkit at `home`, or None when nvcc or the runtime's headers are missing there."""
    headers = [home / "include", *home.glob("targets/*/include")]
    if not (home / "bin" / "nvcc").is_file() or not any((path / "cuda_runtime.h").is_file() for path in headers):
        return None
    release = re.search(r"release (\d+\.\d+)", run(home / "bin" / "nvcc", "--version"))
    return Toolkit(home, release.group(1)) if release else None


def find_toolkit() -> Toolkit | None:
    """The CUDA toolkit: CUDA_HOME, CUDA_PATH, the nvcc on PATH, /usr/local/cuda, in this order."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        value = os.environ.get(variable)
        if value:
            toolkit = read_toolkit(Path(value))
            if toolkit is not None:
                return toolkit
            say(f"{variable}={value} holds no CUDA toolkit (bin/nvcc and include/cuda_runtime.h); looking elsewhere")
    candidates = []
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        # nvcc on PATH may be a script that calls the real one: ask it where its files are, then guess from its path.
        top = re.search(r"^#\$ TOP=(.+)$", run(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
        if top is not None:
            candidates.append(Path(os.path.normpath(top.group(1).strip())))
        candidates.append(Path(os.path.realpath(nvcc)).parent.parent)
        candidates.append(Path(nvcc).parent.parent)
    candidates.append(Path("/usr/local/cuda"))
    return next((toolkit for toolkit in map(read_toolkit, candidates) if toolkit is not None), None)


def choose_toolkit() -> tuple[Toolkit | None, str]:
    """The toolkit to build the CUDA kernels with, or None and why they are left out."""
    cpu_only, forced = flag("GRU_EXT_CPU_ONLY"), flag("GRU_EXT_FORCE_CUDA")
    if cpu_only and forced:
        raise BuildError("GRU_EXT_CPU_ONLY=1 and GRU_EXT_FORCE_CUDA=1 contradict each other: unset one of them")
    toolkit = None if cpu_only or torch.version.cuda is None else find_toolkit()
    if cpu_only:
        why = "GRU_EXT_CPU_ONLY=1"
    elif torch.version.cuda is None:
        why = f"torch {torch.__version__} is not a CUDA build; install a CUDA build of torch"
    elif toolkit is None:
        why = f"no CUDA toolkit found; install CUDA {torch.version.cuda} or point CUDA_HOME to it"
    elif toolkit.version.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise BuildError(
            f"the CUDA toolkit at {toolkit.home} is version {toolkit.version} but torch {torch.__version__} was built "
            f"with CUDA {torch.version.cuda}: install a CUDA {torch.version.cuda.split('.')[0]} toolkit and point "
            f"CUDA_HOME to it, or install a torch built with CUDA {toolkit.version.split('.')[0]}, "
            "or set GRU_EXT_CPU_ONLY=1"
        )
    else:
        return toolkit, ""
    if forced:
        raise BuildError(f"GRU_EXT_FORCE_CUDA=1, but the CUDA kernels cannot be built: {why}")
    say(f"the CUDA kernels are left out: {why}")
    return None, why


def choose_architectures(toolkit: Toolkit) -> str:
    """TORCH_CUDA_ARCH_LIST for torch: the one given, else the visible GPUs, else those nvcc knows of a default list."""
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if requested and requested != "native":
        return requested.replace(" ", ";")

    def number(architecture: str) -> tuple[int, ...]:
        return tuple(int(part) for part in architecture.split("."))

    known = re.findall(r"compute_(\d+)(\d)\b", run(toolkit.nvcc, "--list-gpu-arch"))
    supported = sorted({f"{major}.{minor}" for major, minor in known}, key=number)
    if not supported:
        raise BuildError(f"{toolkit.nvcc} --list-gpu-arch names no GPU architecture: set TORCH_CUDA_ARCH_LIST")
    usable = [name for name in DEFAULT_ARCHITECTURES if name in supported]
    chosen: set[str] = set()
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if f"{capability[0]}.{capability[1]}" in supported:
            chosen.add(f"{capability[0]}.{capability[1]}")
        else:
            # A GPU newer than this nvcc runs the newest PTX it can make.
            chosen.update([name for name in usable if number(name) <= capability][-1:])
    names = sorted(chosen or usable, key=number)
    if not names:
        raise BuildError(
            f"{toolkit.nvcc} supports none of {', '.join(DEFAULT_ARCHITECTURES)}: set TORCH_CUDA_ARCH_LIST"
        )
    return ";".join(names) + "+PTX"


def check_environment() -> None:
    """What a build needs, asked for before anything is compiled."""
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if not OLDEST_TORCH <= release < END_OF_TORCH:
        raise BuildError(f'torch {torch.__version__} is not supported: run `pip install "{SUPPORTED_TORCH}"`')
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").is_file():
        raise BuildError(f"Python.h is not in {headers}: install Python's headers, on Debian and Ubuntu python3-dev")
    if not run(*CXX, "--version"):
        raise BuildError(f"the C++ compiler `{' '.join(CXX)}` does not run: install g++ or clang++, or set CXX")
    # pip called by its path, without the environment activated: ninja is installed, but torch looks for it on PATH.
    scripts = sysconfig.get_path("scripts")
    if shutil.which("ninja") is None and shutil.which("ninja", path=scripts) is not None:
        os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), scripts))
    if not run("ninja", "--version") and os.environ.get("MAX_JOBS") != "1":
        raise BuildError("no ninja, which compiles files side by side: run `pip install ninja`, or set MAX_JOBS=1")


def sources(*patterns: str) -> list[str]:
    """Files under this directory, sorted, relative to it as setuptools wants them."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


def extension(toolkit: Toolkit | None, architectures: str, polls: int) -> Extension:
    """gru_ext._C. No -std and no -gencode: torch adds those that fit it and TORCH_CUDA_ARCH_LIST."""
    from torch.utils import cpp_extension  # reads CUDA_HOME

    link = ["-fopenmp"] if sys.platform.startswith("linux") else []
    cxx = ["-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", *link]
    for path in cpp_extension.include_paths():
        cxx += ["-isystem", path]  # warnings in torch's headers are not ours
    # Assertions name their source file: not by its place on this machine.
    cxx += [f"-ffile-prefix-map={ROOT}/=", f"-ffile-prefix-map={Path(torch.__file__).parent}=torch"]
    # ninja does not follow system headers: this makes objects in build/ that are of another torch stale.
    cxx.append(f'-DGRU_EXT_TORCH="{torch.__version__}"')
    nvcc = ["-O3", "-lineinfo", "-Xcompiler=-fvisibility=hidden,-Wall"]
    if flag("GRU_EXT_WERROR"):
        cxx.append("-Werror")
        nvcc.append("-Werror=all-warnings")
    with_cuda = sources("csrc/torch/layer_cuda*.cpp")
    files = [file for file in sources("csrc/torch/*.cpp", "csrc/cpu/*.cpp") if file not in with_cuda]
    if toolkit is None:
        return cpp_extension.CppExtension(
            EXTENSION, files, include_dirs=[os.path.abspath("csrc")], extra_compile_args=cxx, extra_link_args=link
        )
    cxx += [
        "-DGRU_EXT_WITH_CUDA",
        f'-DGRU_EXT_CUDA_VERSION="{torch.version.cuda}"',
        f'-DGRU_EXT_CUDA_ARCH_LIST="{architectures}"',
    ]
    if polls:
        cxx.append(f"-DGRU_EXT_SPIN_LIMIT={polls}")
        nvcc.append(cxx[-1])
    return cpp_extension.CUDAExtension(
        EXTENSION,
        [*files, *with_cuda, *sources("csrc/cuda/*.cpp", "csrc/cuda/*.cu")],
        include_dirs=[os.path.abspath("csrc"), *toolkit.directories("include")],
        library_dirs=toolkit.directories("lib"),
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
    )


class BuildPackage(build_py):
    """build_py that begins anew: a module that was deleted must not come back from an earlier build."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / "gru_ext", ignore_errors=True)
        super().run()


def build() -> None:
    """Everything but the source distribution: for this torch, of which the metadata requires the minor version."""
    check_environment()
    polls = spin_limit()
    toolkit, without_cuda = choose_toolkit()
    architectures = ""
    if toolkit is not None:
        architectures = choose_architectures(toolkit)
        # torch reads both when cpp_extension is imported and when it compiles; its own guess of CUDA_HOME takes the
        # prefix of whatever is called nvcc on PATH.
        os.environ["CUDA_HOME"] = str(toolkit.home)
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
        say(f"CUDA {toolkit.version} at {toolkit.home}, architectures {architectures}")
    config: dict[str, str | bool | int] = {
        "torch_version": torch.__version__,
        "cuda_version": torch.version.cuda if toolkit is not None else "",
        "compiler": run(*CXX, "--version").splitlines()[0],
        "cuda_arch_list": architectures,
        "with_cuda": toolkit is not None,
        "without_cuda": without_cuda,
        "spin_limit": polls if toolkit is not None else 0,
        "python_version": platform.python_version(),
    }
    compiled = extension(toolkit, architectures, polls)

    from torch.utils import cpp_extension

    class BuildWithConfig(cpp_extension.BuildExtension):
        """torch's build_ext, which also leaves beside the extension a record of what it was built for."""

        def run(self) -> None:
            library = Path(self.get_ext_fullpath(EXTENSION))
            try:
                library.parent.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=library.parent).close()
            except OSError as error:
                raise BuildError(f"cannot write to {library.parent.resolve()}: {error.strerror}") from None
            if not self.inplace and sys.platform.startswith("linux"):
                compiled.extra_link_args.append("-Wl,-s")  # in place, profilers need the names of functions
            super().run()
            library.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    minor = ".".join(torch.__version__.split(".")[:2])
    commands = {"build_py": BuildPackage, "build_ext": BuildWithConfig}
    setup(ext_modules=[compiled], cmdclass=commands, install_requires=[f"torch=={minor}.*"])


if SOURCES_ONLY:
    setup(ext_modules=[Extension(EXTENSION, sources("csrc/**/*.cpp"))], install_requires=[SUPPORTED_TORCH])
else:
    build()
