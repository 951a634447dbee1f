"""What the same tests run on: each SIMD target, the kernels of the emulated GPU, and those of a real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import cases
import emulated
import pytest
import torch
from cases import Case
from torch import nn

import gru_ext
from gru_ext import _C


@dataclass(frozen=True)
class Backend:
    """``kind`` is "cpu", "emulated" or "cuda"; ``kernel`` a SIMD target, or what ``emulated.choose`` takes."""

    kind: str
    kernel: str
    extension: ModuleType | None = None  # the emulated GPU's, in a test that runs on it

    def __str__(self) -> str:
        """A short name for test ids."""
        return f"{self.kind}-{self.kernel}"

    @property
    def device(self) -> str:
        """Where the tensors are."""
        return "cuda" if self.kind == "cuda" else "cpu"

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether it has kernels for this dtype: float64 weights are never kept on the chip."""
        return self.kind == "cpu" or self.kernel == "step" or dtype != torch.float64

    def check(self, case: Case, gru: Callable[..., nn.Module] = gru_ext.GRU) -> None:
        """Hold a case to the gate; on the emulated GPU with threads in the order of the case's seed."""
        if self.extension is not None:
            assert emulated.paths(emulated.passes(self.extension, case)) == [self.kernel] * 2
            self.extension.set_seed(case.seed)
        cases.check(gru, case, self.device)


CPU = [Backend("cpu", target) for target in _C.cpu_targets()]
EMULATED = [Backend("emulated", kernel) for kernel in ("step", "solo", "cluster", "grid")]
CUDA = [Backend("cuda", kernel) for kernel in ("step", "stationary", "cluster", "grid")]
ALL = EMULATED if emulated.SANITIZED else [*CPU, *EMULATED, *CUDA]


def pairs(cases_of: Callable[[Backend], Sequence[Any]], backends: Sequence[Backend] = ALL) -> list[tuple[Backend, Any]]:
    """Each backend with each of its cases whose dtype it takes."""
    return [(backend, case) for backend in backends for case in cases_of(backend) if backend.takes(case.dtype)]


def over(cases_of: Callable[[Backend], Sequence[Any]]) -> Any:
    """Parametrizes a test by ``backend`` and ``case``; a real GPU's have the mark "cuda"."""
    parameters = [
        pytest.param(backend, case, id=f"{backend}-{case}", marks=[pytest.mark.cuda] if backend.kind == "cuda" else [])
        for backend, case in pairs(cases_of)
    ]
    return pytest.mark.parametrize(("backend", "case"), parameters, indirect=["backend"])
