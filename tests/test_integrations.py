"""gru_ext.integrations.torchrl against torchrl's own backends; ``make test-torchrl`` installs what it needs."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import gru_ext
from gru_ext.text import installed

needs_torchrl = pytest.mark.skipif(not installed("torchrl"), reason="torchrl is not installed (make test-torchrl)")
KEYS = {"in_keys": ["value", "state"], "out_keys": ["output", ("next", "state")]}
B, T, I, H = 3, 9, 5, 6  # noqa: E741


def rollout(layers: int, directions: int, dtype: torch.dtype = torch.float64) -> Any:
    """A rollout of B environments in T steps, of which some begin an episode; each step has a state of its own."""
    from tensordict import TensorDict

    is_init = torch.zeros(B, T, 1, dtype=torch.bool)
    is_init[0, [0, 3, 4, 8]] = True  # at the first and the last step, and twice in a row
    is_init[1, 5] = True
    state = torch.randn(B, T, layers * directions, H, dtype=dtype)
    return TensorDict({"value": torch.randn(B, T, I, dtype=dtype), "state": state, "is_init": is_init}, [B, T])


def run(module: Any, data: Any, recurrent: bool) -> dict[str, Tensor]:
    """The results of a call, and all gradients of a sum that tells every value of them apart."""
    from torchrl.modules import set_recurrent_mode

    data, module = data.clone(), copy.deepcopy(module)
    leaves = {name: data[name].requires_grad_() for name in ("value", "state") if name in data}
    with set_recurrent_mode(recurrent):
        result = module(data)
    assert result is data
    results = {"output": result["output"], "next": result["next", "state"]}
    generator = torch.Generator().manual_seed(3)
    loss = sum(
        (torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * tensor).sum()
        for tensor in results.values()
    )
    leaves.update(module.named_parameters())
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {**results, **{f"gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)}}


@needs_torchrl
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize(
    "backend, directions, layers",  # both directions: pad alone can
    [*itertools.product(["pad", "scan", "python"], [1], [1, 2]), ("pad", 2, 1), ("pad", 2, 2)],
)
def test_same_as_torchrl(layers: int, directions: int, backend: str, recurrent: bool) -> None:
    """Outputs, next states and gradients, those of the stored states included: float64, to rounding."""
    from torchrl.modules import GRUModule

    from gru_ext.integrations import torchrl as ours

    options: dict[str, Any] = {"python_based": True} if backend == "python" else {"recurrent_backend": backend}
    options.update(num_layers=layers, bidirectional=directions == 2, **KEYS)
    theirs = GRUModule(I, H, **options).double()
    candidate = ours.replace(copy.deepcopy(theirs))
    assert type(candidate) is ours.GRUModule and type(theirs) is GRUModule
    data = rollout(layers, directions)
    # Time is the last dimension, whatever is before.
    for case in (data, data.exclude("state"), data[0], torch.stack([data, data.flip(0)]), data[:, 4:5]):
        expected, got = (run(module, case, recurrent) for module in (theirs, candidate))
        for name, value in expected.items():
            torch.testing.assert_close(
                got[name], value, rtol=1e-10, atol=1e-10, msg=lambda said, name=name: f"{name}: {said}"
            )


@needs_torchrl
def test_one_call_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer runs once, in both modes, with the resets as they are; recompute counts."""
    from torchrl.modules import set_recurrent_mode

    from gru_ext.integrations import torchrl as ours

    module = ours.GRUModule(gru=gru_ext.GRU(I, H, batch_first=True, recompute=True), **KEYS)
    calls: list[dict[str, Any]] = []
    kernel = gru_ext.functional.gru

    def counted(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        calls.append(named)
        return kernel(*arguments, **named)

    monkeypatch.setattr(gru_ext.functional, "gru", counted)
    data = rollout(1, 1, torch.float32)
    for recurrent in (True, False):
        with set_recurrent_mode(recurrent):
            module(data.clone())
    assert [tuple(named["resets"].shape) for named in calls] == [(B, T), (B * T, 1)]
    assert all(named["recompute"] for named in calls)


@needs_torchrl
def test_acting_then_training() -> None:
    """A policy steps through environments whose episodes end at different times, then sees the rollout as a whole."""
    from tensordict import TensorDict
    from torchrl.modules import set_recurrent_mode

    from gru_ext.integrations import torchrl as ours

    module = ours.GRUModule(I, H, **KEYS)
    state, steps = torch.zeros(B, 1, H), []
    for step in range(T):
        is_init = torch.full((B, 1), step == 0) | (torch.rand(B, 1) < 0.3)
        seen = TensorDict({"value": torch.randn(B, I), "state": state, "is_init": is_init}, [B])
        # What InitTracker and a primer store at a first step: zeros.
        seen["state"] = torch.where(is_init[..., None], 0, state)
        state = module(seen)["next", "state"].detach()
        steps.append(seen)
    whole = torch.stack(steps, 1)
    expected = whole["output"].clone()
    with set_recurrent_mode(True):
        torch.testing.assert_close(module(whole)["output"], expected, rtol=1e-5, atol=1e-6)


@needs_torchrl
def test_replace() -> None:
    """gru_ext.replace leaves torchrl's module working, and names what swaps it; a compiled one is a whole graph."""
    from torchrl.modules import GRUModule, set_recurrent_mode

    from gru_ext.integrations import torchrl as ours

    policy, data = torch.nn.Sequential(GRUModule(I, H, **KEYS)), rollout(1, 1, torch.float32)
    report = gru_ext.replace(policy)
    assert not report.swapped and "gru_ext.integrations.torchrl.replace(model)" in report.left["0.gru"]
    with set_recurrent_mode(True):
        expected = policy(data.clone())["output"]
        assert ours.replace(policy) is policy and type(policy[0].gru) is gru_ext.GRU
        compiled = torch.compile(policy[0], fullgraph=True, backend="aot_eager")
        for module in (policy, compiled):
            torch.testing.assert_close(module(data.clone())["output"], expected, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()
    assert list(gru_ext.restore(policy).swapped) == ["0.gru"]


@needs_torchrl
def test_bad_input() -> None:
    """What is missing is named."""
    from tensordict import TensorDict
    from torchrl.modules import set_recurrent_mode

    from gru_ext.integrations import torchrl as ours

    module = ours.GRUModule(I, H, **KEYS)
    with pytest.raises(KeyError, match="value"):
        module(TensorDict({"is_init": torch.ones(B, 1, dtype=torch.bool)}, [B]))
    with pytest.raises(KeyError, match="is_init"):
        module(TensorDict({"value": torch.ones(B, I)}, [B]))
    with set_recurrent_mode(True), pytest.raises(ValueError, match="dimension of time"):
        module(TensorDict({"value": torch.ones(I), "is_init": torch.ones(1, dtype=torch.bool)}, []))


@pytest.mark.skipif(installed("torchrl"), reason="torchrl is installed")
def test_without_torchrl() -> None:
    """gru_ext does without; the adapter says what to install."""
    code = "import gru_ext, gru_ext.integrations; import gru_ext.integrations.torchrl"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "gru_ext.integrations.torchrl needs torchrl" in done.stderr
    assert done.stderr.rstrip().endswith("pip install torchrl")
