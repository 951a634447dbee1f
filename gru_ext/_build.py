"""Loads the compiled module ``gru_ext._C``, or says in one sentence why it cannot and which command mends it.

The build writes ``_build_config.json`` beside this file. It is compared with the running Python and torch before the
compiled module is touched: a library linked against another torch would otherwise fail with undefined symbols, or not
fail and misbehave.
"""

import importlib
import json
import platform
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TypedDict

import torch

MEND = "pip install --no-build-isolation ."
CONFIG_PATH = Path(__file__).with_name("_build_config.json")


class BuildConfig(TypedDict):
    """What ``_build_config.json`` holds."""

    torch_version: str  # torch.__version__ at build time, such as "2.13.0+cpu"
    cuda_version: str  # torch.version.cuda at build time; "" for a CPU build of torch
    compiler: str
    cuda_arch_list: str  # "" without CUDA
    with_cuda: bool  # whether the CUDA kernels were compiled
    spin_limit: int  # polls after which they give a wait up by a trap; 0: never
    python_version: str  # "3.11.9"


def minor(version: str) -> str:
    """``"2.13.0+cpu"`` -> ``"2.13"``: one build serves one minor version of torch and of Python."""
    return ".".join(version.split("+")[0].split(".")[:2])


def read_config(path: Path = CONFIG_PATH) -> BuildConfig:
    """The metadata of the build.

    Raises:
        ImportError: when the file is absent or unreadable, naming the command that builds.
    """
    try:
        config: BuildConfig = json.loads(path.read_text(encoding="utf-8"))
        missing = BuildConfig.__required_keys__.difference(config)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except FileNotFoundError:
        raise ImportError(
            f"gru_ext has not been built here: run `{MEND}` in its source directory "
            "(and import it from elsewhere, unless it was installed with -e)."
        ) from None
    except (TypeError, ValueError) as error:
        raise ImportError(
            f"gru_ext's build metadata {path.name} is damaged ({error}): run `{MEND}` in its source directory."
        ) from None
    return config


def mismatch(config: BuildConfig) -> str | None:
    """The first respect in which the build does not fit the running Python and torch, or None when it fits."""
    python_version = platform.python_version()
    if minor(config["python_version"]) != minor(python_version):
        return f"for Python {minor(config['python_version'])} but this is Python {minor(python_version)}"
    if minor(config["torch_version"]) != minor(torch.__version__):
        return f"for torch {config['torch_version']} but the installed torch is {torch.__version__}"
    if config["with_cuda"] and config["cuda_version"] != (torch.version.cuda or ""):
        installed = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return f"for CUDA {config['cuda_version']} but the installed torch {torch.__version__} is {installed}"
    return None


def load() -> None:
    """Imports ``gru_ext._C``.

    Raises:
        ImportError: in one sentence naming the mending command, when there is no build, or one for another Python,
            torch or CUDA, or the library does not load.
    """
    config = read_config()
    reason = mismatch(config)
    if reason is not None:
        raise ImportError(f"gru_ext was built {reason}: run `{MEND}` again in its source directory.")
    # Looked for here alone: the finder of an editable install would offer the library of another directory.
    if PathFinder.find_spec("gru_ext._C", [str(CONFIG_PATH.parent)]) is None:
        raise ImportError(
            f"gru_ext's compiled module is missing beside {CONFIG_PATH.name}: run `{MEND}` in its source directory."
        )
    try:
        importlib.import_module("gru_ext._C")
    except ImportError as error:
        raise ImportError(
            f"gru_ext's compiled module does not load ({error}): run `{MEND}` again in its source directory."
        ) from error
