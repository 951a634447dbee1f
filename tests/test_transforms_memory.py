"""What torch.func transforms keep for backward, with recompute too, and vmaps that have no members at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_transforms import DOUBLE, OPTIONS, draw
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gru_ext import ops

pytestmark = pytest.mark.usefixtures("no_warning")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_members(options: dict[str, Any]) -> None:
    """vmap over nothing gives results of the right shapes, as it does of nn.Linear."""
    module, parameters, input, hx = draw(**options)
    nothing = {name: parameter.expand(0, *parameter.shape) for name, parameter in parameters.items()}
    samples = torch.randn(0, *input.shape, dtype=DOUBLE)

    def call(parameters: dict[str, Tensor], input: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(module, parameters, (input, hx))

    output, h_n = call(parameters, input)
    for function, dims in (
        (vmap(call, (None, 0)), (parameters, samples)),
        (vmap(call, (0, None)), (nothing, input)),
        (vmap(call), (nothing, samples)),
    ):
        results = function(*dims)
        assert results[0].shape == (0, *output.shape) and results[1].shape == (0, *h_n.shape)

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return call(parameters, input)[0].pow(2).sum()

    slopes = vmap(grad(loss, argnums=(0, 1)), (None, 0))(parameters, samples)
    assert slopes[1].shape == samples.shape
    assert {name: tensor.shape for name, tensor in slopes[0].items()} == {
        name: tensor.shape for name, tensor in nothing.items()
    }
    assert vmap(grad(loss, argnums=1), (None, 0))(parameters, samples).shape == samples.shape
    assert grad(lambda samples: vmap(loss, (None, 0))(parameters, samples).sum())(samples).shape == samples.shape
    assert vmap(vmap(call, (None, 0)), (0, None))(nothing, samples)[0].shape == (0, 0, *output.shape)
    linear = nn.Linear(2, 5)
    assert vmap(linear)(torch.randn(0, 3, 2)).shape == (0, 3, 5)


class Kept:
    """How many elements each forward operator has kept for backward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.elements: list[int] = []
        original = ops.forward

        def record(*values: Any) -> Any:
            results = original(*values)
            self.elements.append(results[2].numel())
            return results

        monkeypatch.setattr(ops, "forward", record)

    def by(self, call: Callable[[], Any]) -> int:
        """All that this call keeps."""
        self.elements.clear()
        call()
        assert self.elements
        return sum(self.elements)


def test_nothing_is_kept_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """vmap alone keeps nothing for a backward pass that nobody can ask for; every kind of one that may come is seen."""
    module, parameters, _, _ = draw()
    samples = torch.randn(6, 4, 3, 2, dtype=DOUBLE)
    stacked = {name: torch.stack([parameter] * 6) for name, parameter in parameters.items()}
    kept = Kept(monkeypatch)

    def call(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(module, parameters, (input,))[0]

    everything = 6 * 4 * 3 * 5 * 5  # members, T, B, H and values of each
    leaf = samples.clone().requires_grad_()
    assert kept.by(lambda: vmap(call, (None, 0))(parameters, samples)) == 0
    assert kept.by(lambda: vmap(call)(stacked, samples)) == 0
    assert kept.by(lambda: vmap(vmap(call, (None, 0)), (0, None))(stacked, samples)) == 0
    assert kept.by(lambda: vmap(call, (None, 0))(parameters, leaf)) == everything
    assert kept.by(lambda: vmap(call)(stacked, leaf)) == everything
    assert kept.by(lambda: vmap(grad(lambda sample: call(parameters, sample).sum()))(samples)) == everything
    assert kept.by(lambda: grad(lambda some: vmap(call, (None, 0))(parameters, some).sum())(samples)) == everything
    assert kept.by(lambda: vmap(lambda sample: module(sample)[0])(samples)) == everything  # its parameters require grad
    with torch.no_grad():
        assert kept.by(lambda: vmap(lambda sample: module(sample)[0])(samples)) == 0
        assert kept.by(lambda: vmap(grad(lambda sample: call(parameters, sample).sum()))(samples)) == everything
    with torch.inference_mode():
        assert kept.by(lambda: vmap(lambda sample: module(sample)[0])(samples)) == 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_recompute(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under every transform a fifth is kept, and the gradients stay what they are."""
    module, parameters, _, _ = draw(**options)
    samples = torch.randn(6, 4, 3, 2, dtype=DOUBLE)
    stacked = {
        name: torch.stack([parameter * (1 + index / 9) for index in range(6)]) for name, parameter in parameters.items()
    }
    kept = Kept(monkeypatch)

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(module, parameters, (input,))[0].pow(2).sum()

    for function, inputs in (
        (grad(loss, argnums=(0, 1)), (parameters, samples[0])),
        (vmap(grad(loss, argnums=1), (None, 0)), (parameters, samples)),
        (vmap(grad(loss), (None, 0)), (parameters, samples)),
        (vmap(grad(loss)), (stacked, samples)),
    ):
        module.recompute = False
        expected = function(*inputs)
        everything = kept.by(lambda function=function, inputs=inputs: function(*inputs))
        module.recompute = True
        torch.testing.assert_close(function(*inputs), expected, rtol=1e-9, atol=1e-11)
        assert everything == 5 * kept.by(lambda function=function, inputs=inputs: function(*inputs)) > 0
