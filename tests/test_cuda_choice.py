"""What runs on CUDA unless asked otherwise: torch's own kernels, until tune() has measured ours to be faster.

On the emulated GPU: tensors on the CPU are taken for its own, and torch's own kernels are those of the CPU.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import twins
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext
from gru_ext import ops
from gru_ext.cuda import library, tuning

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.fixture
def calls(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has run: "library", or "ours" once a layer."""
    called: list[str] = []
    theirs = library.gru

    def run_theirs(*arguments: Any, **options: Any) -> Any:
        called.append("library")
        return theirs(*arguments, **options)

    def run_ours(*arguments: Any) -> Any:
        called.append("ours")
        return gpu.forward(*arguments)

    monkeypatch.setattr(library, "gru", run_theirs)
    monkeypatch.setattr(ops, "forward", run_ours)
    return called


def gradients(module: nn.Module, input: Any, hx: Tensor | None = None) -> list[Tensor]:
    """Output, h_n and the gradient of every parameter."""
    output, h_n = module(input, hx)
    data = output if isinstance(output, Tensor) else output.data
    loss = data.pow(2).sum() + h_n.sum()
    return [data.detach(), h_n.detach(), *torch.autograd.grad(loss, list(module.parameters()))]


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}]
)
def test_torchs_own_kernels_run_by_default(calls: list[str], options: dict[str, Any]) -> None:
    """Padded, packed and unbatched, hx given or not: the bits of nn.GRU, by one call for all layers."""
    theirs, ours = twins(gru_ext.GRU, 3, 5, **options)
    states = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    input = torch.randn(4, 4, 3)
    packed = pack_padded_sequence(input, [4, 1, 3, 2], options.get("batch_first", False), enforce_sorted=False)
    for data, hx in ((input, None), (packed, None), (input, torch.randn(states, 4, 5)), (input[0], None)):
        for result, expected in zip(gradients(ours, data, hx), gradients(theirs, data, hx), strict=True):
            assert torch.equal(result, expected)
    assert calls == ["library"] * 4


def test_dropout_only_in_training(calls: list[str]) -> None:
    """In eval mode there is none, although torch's kernels are told to prepare for backward."""
    module = gru_ext.GRU(3, 5, 2, dropout=0.9)
    input = torch.randn(4, 2, 3)
    assert not torch.equal(module(input)[0], module(input)[0])
    module.eval()
    assert torch.equal(module(input)[0], module(input)[0])
    module(input)[0].sum().backward()
    assert set(calls) == {"library"}


def test_ours_runs_where_the_library_cannot(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """When asked for, with recompute, without cuDNN, in compiled graphs."""
    module = gru_ext.GRU(3, 5)
    input = torch.randn(4, 2, 3)
    expected = module(input)[0]
    with torch.backends.cudnn.flags(enabled=False):
        torch.testing.assert_close(module(input)[0], expected)
    module.recompute = True
    torch.testing.assert_close(module(input)[0], expected)
    module.recompute = False
    for word in ("step", "stationary"):
        monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", word)
        torch.testing.assert_close(module(input)[0], expected)
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "library")
    module(input)
    assert calls == ["library", *["ours"] * 4, "library"]


def test_bad_input_says_what_it_says_elsewhere() -> None:
    """The checks come first, with gru_ext's messages."""
    module = gru_ext.GRU(3, 5)
    with pytest.raises(RuntimeError, match="Expected 3, got 4"):
        module(torch.randn(4, 2, 4))
    with pytest.raises(RuntimeError, match=re.escape("Expected hidden size (1, 2, 5), got [1, 3, 5]")):
        module(torch.randn(4, 2, 3), torch.randn(1, 3, 5))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        module(torch.randn(4, 2, 3).double())


def test_cell() -> None:
    """A cell, too, is torch's own by default."""
    theirs, ours = twins(gru_ext.GRUCell, 3, 5)
    input, hx = torch.randn(2, 3), torch.randn(2, 5)
    assert torch.equal(ours(input, hx), theirs(input, hx)) and torch.equal(ours(input), theirs(input))
    assert torch.equal(ours(input[0]), theirs(input[0]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_tune_uses_the_fastest(calls: list[str], monkeypatch: pytest.MonkeyPatch, kind: str, training: bool) -> None:
    """Whichever is fastest runs from then on, and only for such calls."""
    times = {"library": 3.0, "step": 2.0, "stationary": 1.0}

    def milliseconds(call: Any, device: torch.device) -> float:
        before = len(calls)
        call()
        del device
        return times["library"] if calls[before] == "library" else next(slower)

    module = gru_ext.GRU(3, 17, bidirectional=True).train(training)
    input: Any = torch.randn(5, 4, 3)
    if kind == "packed":
        input = pack_padded_sequence(input, [5, 4, 4, 1])
    weights = [parameter.clone() for parameter in module.parameters()]
    slower = iter([times["step"], times["stationary"]] * 3)
    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    tuned = gru_ext.tune(module, input, rounds=3)
    assert tuned.kernel == "stationary" and tuned.training is training
    assert [candidate.kernel for candidate in tuned.candidates] == ["library", "step", "stationary"]
    assert [candidate.milliseconds for candidate in tuned.candidates] == [3.0, 2.0, 1.0]
    assert all(0 <= candidate.error <= 1 for candidate in tuned.candidates)
    assert re.search(r"forward.*: stationary\n  library +3\.000 ms +error 0\.\d\d of", str(tuned))
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(*pair) for pair in zip(weights, module.parameters(), strict=True))
    calls.clear()
    with torch.set_grad_enabled(training):
        module(input)
    with torch.set_grad_enabled(not training):
        module(input)
    assert calls == ["ours", "library"]


def test_tune_takes_no_wrong_kernel(gpu: ModuleType, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose results are off, or NaN, is not even timed."""
    for wrong in (lambda output: output + 1e-3, lambda output: output * torch.nan):
        gpu.forget_cuda_choices()

        def forward(*arguments: Any, wrong: Any = wrong) -> Any:
            output, h_n, saved = gpu.forward(*arguments)
            return wrong(output), h_n, saved

        monkeypatch.setattr(ops, "forward", forward)
        tuned = gru_ext.tune(gru_ext.GRU(3, 17), torch.randn(5, 4, 3), rounds=1)
        assert tuned.kernel == "library"
        assert [candidate.milliseconds is None for candidate in tuned.candidates] == [False, True, True]
        assert all(candidate.error > 1 for candidate in tuned.candidates[1:]) and "wrong results, not used" in str(
            tuned
        )


def test_tune_with_recompute(calls: list[str]) -> None:
    """torch's kernels cannot, so they are the measure and no candidate."""
    tuned = gru_ext.tune(gru_ext.GRU(3, 17, recompute=True), torch.randn(5, 4, 3), rounds=1)
    assert [candidate.kernel for candidate in tuned.candidates] == ["step", "stationary"] and tuned.kernel != "library"
    assert calls.count("library") == 2 and all(candidate.error <= 1 for candidate in tuned.candidates)


def test_tune_refuses_what_it_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a sentence that names the argument."""
    module = gru_ext.GRU(3, 5)
    input = torch.randn(4, 2, 3)
    with pytest.raises(TypeError, match=r"module must be a gru_ext.GRU, got GRU$"):
        gru_ext.tune(nn.GRU(3, 5), input)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        gru_ext.tune(module, input, rounds=0)
    with torch.backends.cudnn.flags(enabled=False), pytest.raises(ValueError, match="cudnn.enabled is False"):
        gru_ext.tune(module, input)
    monkeypatch.setattr(ops, "on_cuda", lambda _: False)
    with pytest.raises(ValueError, match=r"expected input on a GPU .* got torch.float32 on cpu"):
        gru_ext.tune(module, input)
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "step")
    with pytest.raises(ValueError, match="GRU_EXT_CUDA_KERNEL is set"):
        gru_ext.tune(module, input)


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("options", "tried"), [({"num_layers": 2}, True), ({}, False), ({"bidirectional": True}, False)]
)
def test_tune_tries_overlapping_layers(options: dict[str, Any], tried: bool) -> None:
    """Of stacked layers of one direction with more steps than a chunk has: the same results, so a candidate."""
    tuned = gru_ext.tune(gru_ext.GRU(3, 5, **options), torch.randn(70, 2, 3), training=False, rounds=1)
    assert ("wavefront" in [candidate.kernel for candidate in tuned.candidates]) == tried
    assert all(candidate.error <= 1 for candidate in tuned.candidates)
