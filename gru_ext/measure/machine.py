"""Facts about the machine, the versions and the commit, written beside every measurement."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

import torch

import gru_ext

ROOT = Path(gru_ext.__file__).resolve().parent.parent  # the checkout, where it is one
# What can change a measurement; a changed README or result file does not make a measurement dirty.
MEASURED_SOURCES = ("csrc", "gru_ext", "setup.py", "pyproject.toml", "benchmarks/*.py")


def cpu_model() -> str:
    """The processor and its number of cores usable here, such as "AMD EPYC (family 25 model 17), 2 cores".

    In a virtual machine the name may be that of many generations; family and model tell them apart.
    """
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or name
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']} model {fields['model']})"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def device_name(device: torch.device) -> str:
    """Name of what the measured code ran on: the processor, or the GPU with its CUDA and cuDNN versions."""
    if device.type == "cpu":
        return cpu_model()
    name = torch.cuda.get_device_name(device)
    return f"{name}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def commit(root: Path | None = None) -> str:
    """The short commit of the checkout at root, by default gru_ext's own, "-dirty" behind it when a measured source
    differs.

    Without git, or installed elsewhere, what the environment variable COMMIT says, for copies of a checkout, else
    "unknown".
    """
    root = root or ROOT

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        # Site packages may lie within a repository of somebody else's.
        if not (root / "csrc").is_dir() or Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return os.environ.get("COMMIT", "unknown")
        revision = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", *MEASURED_SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", "unknown")
    return f"{revision}-dirty" if changed else revision


def facts(device: torch.device, root: Path | None = None) -> dict[str, str]:
    """Everything that a reader of a measurement must know besides the measurement.

    Args:
        root: the checkout that gru_ext was installed from, where it does not run from it
    """
    described = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gru_ext": gru_ext.__version__,
        "commit": commit(root),
    }
    if device.type == "cuda":
        described["compute_capability"] = "{}.{}".format(*torch.cuda.get_device_capability(device))
    return described
