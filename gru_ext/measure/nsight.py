"""The command lines that put our CUDA kernels under NVIDIA's profilers, for ``python -m gru_ext profile`` on a GPU."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence

# Names of the kernels of csrc/cuda without namespaces and template arguments, as ncu's --kernel-name matches them.
KERNELS = "^(forward|backward)_(cell|stationary)_kernel$|^(write_sizes|write_marks|clear_padding)_kernel$"


def commands(arguments: Sequence[str], launches: int = 10) -> dict[str, str]:
    """Shell command lines, by tool, that run ``python -m gru_ext profile`` with these arguments under it.

    Args:
        arguments: of the profile command; ``--nvtx`` is added, with which it only runs the calls: torch.profiler and
            these tools cannot both have the GPU's counters
        launches: of our kernels, that ncu looks at; each is run some forty times over
    """
    run = shlex.join([sys.executable, "-m", "gru_ext", "profile", *arguments, "--nvtx"])
    return {
        "Nsight Systems": (
            f"nsys profile --trace=cuda,nvtx,cublas --capture-range=cudaProfilerApi --output gru_ext {run}"
        ),
        "Nsight Compute": (
            f"ncu --profile-from-start off --kernel-name {shlex.quote('regex:' + KERNELS)} --launch-count {launches} "
            f"--set full --import-source yes --export gru_ext {run}"
        ),
    }


def lines(arguments: Sequence[str]) -> Iterator[str]:
    """What to do next on a GPU, and what the table above can and cannot say."""
    yield "Nothing above needs hardware counters: times are the driver's record of each"
    yield "kernel, operations and bytes are counted from the sizes. Counters are needed for"
    yield "what was really moved (L2 and memory traffic), how busy the tensor cores were,"
    yield "occupancy, and stalls line by line (the kernels are compiled with -lineinfo)."
    yield "Nsight Compute reads them where the driver permits it; where not, it says"
    yield "ERR_NVGPUCTRPERM: run it as root, or ask for the permission."
    for tool, command in commands(arguments).items():
        yield f"{tool}:"
        yield f"  {command}"
