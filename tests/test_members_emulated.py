"""Ensembles on the emulated GPU: step by step four members in a launch, with stationary weights one after the other.

On a real one as many as a grid has room for (``GRU_MEMBERS_AT_ONCE``)."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import emulated
import ensembles
import gate
import pytest
import torch
from ensembles import VARIANTS, Ensemble
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

DTYPES = [torch.float32, torch.float64, torch.bfloat16]

pytestmark = pytest.mark.usefixtures("emulated_gpu")


def by_torch(case: Ensemble, dtype: torch.dtype) -> Any:
    """A member by nn.GRU in this dtype."""

    def member(arguments: dict[str, Any], grad_output: Tensor, grad_h_n: Tensor) -> dict[str, Tensor]:
        module = nn.GRU(
            case.input_size,
            case.hidden_size,
            bias=case.bias,
            bidirectional=case.bidirectional,
            batch_first=case.batch_first,
            dtype=dtype,
        )
        with torch.no_grad():
            for weight, value in zip(module.parameters(), arguments["weights"], strict=True):
                weight.copy_(value)
        input, hx = (arguments[name].to(dtype).requires_grad_() for name in ("input", "hx"))
        output, h_n = module(PackedSequence(input, arguments["batch_sizes"]) if case.packed else input, hx)
        rows = output.data if case.packed else output
        gradients = torch.autograd.grad(
            [rows, h_n], [input, hx, *module.parameters()], [grad_output.to(dtype), grad_h_n.to(dtype)]
        )
        results = {"output": rows.detach(), "h_n": h_n.detach()}
        return {**results, **{f"gradient {i}": gradient for i, gradient in enumerate(gradients)}}

    return member


def check(extension: ModuleType, case: Ensemble) -> None:
    """Hold every result to the gate: all members together may be as wrong as nn.GRU is on them, twice over."""
    truth = ensembles.in_turn(case, by_torch(case, torch.float64))
    reference = ensembles.in_turn(case, by_torch(case, case.dtype))
    for recompute in (False, True):
        results = ensembles.together(extension, replace(case, recompute=recompute))
        saved = results.pop("saved")
        kept = saved if recompute else emulated.without_padding(saved, case.hidden_size)
        assert not kept.isnan().any()
        if case.dtype == torch.float64:
            for name, value in truth.items():
                torch.testing.assert_close(results[name], value, rtol=1e-11, atol=1e-12)
        else:
            gate.check(results, reference, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_step_by_step(extension: ModuleType, case: Ensemble, dtype: torch.dtype) -> None:
    """With a bias a member, shared tensors, packed input, one and two directions."""
    check(extension, replace(case, dtype=dtype))


@pytest.mark.parametrize("case", [VARIANTS[0], VARIANTS[3], VARIANTS[9]], ids=str)
def test_stationary_weights(extension: ModuleType, monkeypatch: pytest.MonkeyPatch, case: Ensemble) -> None:
    """The same by kernels that keep the weights on the chip: the bits of each member's own call."""
    emulated.choose(monkeypatch, "stationary")
    case = replace(case, dtype=torch.bfloat16)
    check(extension, case)
    expected = ensembles.in_turn(case, ensembles.by_operator(extension))
    results = ensembles.together(extension, case)
    for each in (results, expected):
        each["saved"] = emulated.without_padding(each["saved"], case.hidden_size)
    for name in ("output", "h_n", "saved", "gradient 1"):  # the products over all steps are batched
        assert gate.same_bits(results[name], expected[name]), name


def test_sizes_beyond_32_bits_are_planned_for(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The division of work neither overflows nor promises what no GPU holds."""
    emulated.choose(monkeypatch, "stationary")
    for batch in (2**31, 2**62, 2**63 - 1):
        passes = extension.cuda_passes(torch.float32, 2**63 - 1, batch, 2**63 - 1, 64, 2, False, True)
        assert [plan["kernel"] for plan in passes] == ["step", "step"]
        assert "batch is above 2147483647" in passes[0]["reason"]
    assert extension.cuda_passes(torch.float32, 1, 2**31 - 1, 1, 2**63 - 1, 1, False, True)[0]["kernel"] == "step"
    assert extension.cuda_passes(torch.float32, 1, 2**31 - 1, 1, 64, 1, False, True)[0]["kernel"] == "step"
    assert extension.cuda_passes(torch.float32, 1, 2**29, 1, 64, 1, False, True)[0]["groups"] > 0
