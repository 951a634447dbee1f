"""What the same tests run on: each SIMD target, those of Arm, the kernels of an emulated GPU, and of a real one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import arm
import cases
import emulated
import pytest
import torch
from cases import Case
from torch import nn

import gru_ext
from gru_ext import _C, ops


@dataclass(frozen=True)
class Backend:
    """``kind`` is "cpu", "arm", "emulated" or "cuda"; ``kernel`` a SIMD target, or what ``emulated.choose`` takes."""

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
        return self.kind in ("cpu", "arm") or self.kernel == "step" or dtype != torch.float64

    def affords(self, case: Case) -> bool:
        """Whether there is time for a case, drawn at random where qemu runs it: more where the target differs most."""
        if self.kind != "arm":
            return True
        own = self.kernel == "neon" or (self.kernel == "neon_bf16" and case.dtype == torch.bfloat16)
        return random.Random(f"{self}-{case}").random() < (0.5 if own else 0.1)

    def check(self, case: Case, gru: Callable[..., nn.Module] = gru_ext.GRU) -> None:
        """Hold a case to the gate; on the emulated GPU with threads in the order of the case's seed."""
        if self.extension is not None:
            assert emulated.paths(emulated.passes(self.extension, case)) == [self.kernel] * 2
            self.extension.set_seed(case.seed)
        cases.check(gru, case, self.device)


def use_operators(monkeypatch: pytest.MonkeyPatch, operators: Any) -> None:
    """Every layer runs by ``operators.forward`` and ``.backward``, in place of gru_ext's."""
    monkeypatch.setattr(ops, "forward", operators.forward)
    monkeypatch.setattr(ops, "backward", operators.backward)
    monkeypatch.setattr(ops, "layer_direct", lambda *_: None)  # "the operators, please"
    monkeypatch.setattr(ops, "cell_direct", lambda *_: None)


CPU = [Backend("cpu", target) for target in _C.cpu_targets()]
ARM = [Backend("arm", target) for target in arm.PROCESSORS]
EMULATED = [Backend("emulated", kernel) for kernel in ("step", "solo", "cluster", "grid")]
CUDA = [Backend("cuda", kernel) for kernel in ("step", "stationary", "cluster", "grid")]
ALL = EMULATED if emulated.SANITIZED else [*CPU, *ARM, *EMULATED, *CUDA]


def pairs(cases_of: Callable[[Backend], Sequence[Any]], backends: Sequence[Backend] = ALL) -> list[tuple[Backend, Any]]:
    """Each backend with each of its cases whose dtype it takes and for which there is time."""
    return [
        (backend, case)
        for backend in backends
        for case in cases_of(backend)
        if backend.takes(case.dtype) and backend.affords(case)
    ]


def over(cases_of: Callable[[Backend], Sequence[Any]]) -> Any:
    """Parametrizes a test by ``backend`` and ``case``; a real GPU's have the mark "cuda"."""
    parameters = [
        pytest.param(backend, case, id=f"{backend}-{case}", marks=[pytest.mark.cuda] if backend.kind == "cuda" else [])
        for backend, case in pairs(cases_of)
    ]
    return pytest.mark.parametrize(("backend", "case"), parameters, indirect=["backend"])
