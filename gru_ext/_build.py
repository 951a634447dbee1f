"""Loads the compiled module ``gru_ext._C``, or says in one sentence why it cannot and which command mends it.

The build writes a JSON file of the library's name beside it, such as ``_C.cpython-311-x86_64-linux-gnu.json``.
It is compared with the running torch before the library is touched: one that is linked against another torch would
otherwise fail with undefined symbols, or not fail and misbehave.
"""

import importlib
import json
import platform
import shlex
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TypedDict

import torch

PACKAGE = Path(__file__).resolve().parent
# pip would otherwise keep what is installed, or install again a wheel that it has built before.
ANEW = "--no-build-isolation --no-cache-dir --force-reinstall --no-deps"


class BuildConfig(TypedDict):
    """What the build says of itself."""

    torch_version: str  # torch.__version__ at build time, such as "2.13.0+cpu"
    cuda_version: str  # torch.version.cuda at build time; "" for a CPU build of torch
    compiler: str
    cuda_arch_list: str  # "" without CUDA
    with_cuda: bool  # whether the CUDA kernels were compiled
    without_cuda: str  # why they were not; "" when they were
    spin_limit: int  # polls after which they give a wait up by a trap; 0: never
    python_version: str  # "3.11.9"


def minor(version: str) -> str:
    """``"2.13.0+cpu"`` -> ``"2.13"``: one build serves one minor version of torch and of Python."""
    return ".".join(version.split("+")[0].split(".")[:2])


def mend() -> str:
    """What builds this copy of gru_ext for the running Python and torch: a command, by how the copy was installed."""
    from importlib.metadata import distributions  # these take 20 ms to import
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    for installed in distributions(name="gru_ext"):
        try:
            origin = json.loads(installed.read_text("direct_url.json") or "")
            url, editable = str(origin["url"]), bool(origin.get("dir_info", {}).get("editable"))
            commit = f"@{origin['vcs_info']['commit_id']}" if "vcs_info" in origin else ""
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # installed from an index, or by hand, or damaged
        path = url2pathname(urlsplit(url).path) if url.startswith("file:") else ""
        if Path(path if editable else str(installed.locate_file(""))).resolve() != PACKAGE.parent:
            continue  # another copy
        if url.endswith(".whl") or path and not Path(path).exists():
            break  # holds no sources, or is there no more
        source = f"{origin['vcs_info']['vcs']}+{url}{commit}" if commit else path or url
        pip = "uv pip" if (installed.read_text("INSTALLER") or "").strip() == "uv" else "pip"
        return f"run `{pip} install {ANEW} {'-e ' * editable}{shlex.quote(source)}`"
    if (PACKAGE.parent / "setup.py").is_file():
        return f"run `pip install --no-build-isolation -e {shlex.quote(str(PACKAGE.parent))}`"
    return f"run `pip install {ANEW} .` in its source directory"


def read_config(path: Path) -> BuildConfig:
    """The metadata of the build.

    Raises:
        ImportError: when the file is absent or unreadable, naming the command that builds.
    """
    try:
        config: BuildConfig = json.loads(path.read_text(encoding="utf-8"))
        missing = BuildConfig.__required_keys__.difference(config)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, TypeError, ValueError) as error:
        raise ImportError(f"gru_ext's build metadata {path.name} is damaged ({error}): {mend()}.") from None
    return config


def mismatch(config: BuildConfig) -> str | None:
    """The first respect in which the build does not fit the running torch, or None when it fits."""
    if minor(config["torch_version"]) != minor(torch.__version__):
        return f"for torch {config['torch_version']} but the installed torch is {torch.__version__}"
    if config["with_cuda"] and config["cuda_version"] != (torch.version.cuda or ""):
        installed = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return f"for CUDA {config['cuda_version']} but the installed torch {torch.__version__} is {installed}"
    return None


def load() -> None:
    """Imports ``gru_ext._C``.

    Raises:
        ImportError: in one sentence naming the mending command, when there is no build for this Python, or one for
            another torch or CUDA, or the library does not load.
    """
    # Looked for here alone: the finder of an editable install would offer the library of another directory.
    library = PathFinder.find_spec("gru_ext._C", [str(PACKAGE)])
    if library is None or library.origin is None:
        raise ImportError(
            f"gru_ext has not been built for Python {minor(platform.python_version())} in {PACKAGE.parent}: {mend()}, "
            "or import it elsewhere if it is installed too."
        )
    config = read_config(Path(library.origin).with_suffix(".json"))
    reason = mismatch(config)
    if reason is not None:
        raise ImportError(f"gru_ext was built {reason}: {mend()}.")
    try:
        importlib.import_module("gru_ext._C")
    except ImportError as error:
        raise ImportError(f"gru_ext's compiled module does not load ({error}): {mend()}.") from error
