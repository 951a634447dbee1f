"""Many gradients at once by autograd's own vmap, jacobian(vectorize=True) and is_grads_batched: held to the gate.

nn.GRU's, in float64 and one after the other, are the truth.
"""

from __future__ import annotations

from typing import Any

import gate
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

import gru_ext

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bidirectional": True, "bias": False},
]


def modules(options: dict[str, Any]) -> tuple[gru_ext.GRU, nn.GRU, nn.GRU]:
    """Ours, nn.GRU in the same dtype, and the truth, with equal weights."""
    truth = nn.GRU(3, 5, dtype=torch.float64, **options)
    for weight in truth.parameters():
        weight.data = weight.data.float().double()
    candidate, reference = gru_ext.GRU(3, 5, **options), nn.GRU(3, 5, **options)
    for module in (candidate, reference):
        module.load_state_dict(truth.state_dict())
    return candidate, reference, truth


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_jacobian(options: dict[str, Any]) -> None:
    """torch.autograd.functional.jacobian of both results with respect to input and hx."""
    candidate, reference, truth = modules(options)
    batch = 4 if options.get("batch_first") else 2
    states = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    arguments = (torch.randn(4, 2, 3), torch.randn(states, batch, 5))

    def results(module: nn.Module, dtype: torch.dtype, vectorize: bool) -> dict[str, Tensor]:
        inputs = tuple(tensor.to(dtype) for tensor in arguments)
        gradient_rows = jacobian(lambda *inputs: module(*inputs), inputs, vectorize=vectorize)
        names = [f"{result} by {by}" for result in ("output", "h_n") for by in ("input", "hx")]
        return dict(zip(names, [block for row in gradient_rows for block in row], strict=True))

    with pytest.warns(UserWarning, match="vectorize"):
        gradient_rows = results(candidate, torch.float32, True)
    expected = results(truth, torch.float64, False)
    gate.check(gradient_rows, results(reference, torch.float32, False), expected)
    with pytest.warns(UserWarning, match="vectorize"):
        exact = results(candidate.double(), torch.float64, True)
    for name, value in exact.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_grads_batched(options: dict[str, Any]) -> None:
    """torch.autograd.grad with six gradients of the output: those of input and of every parameter."""
    candidate, reference, truth = modules(options)
    input = torch.randn(4, 2, 3)
    many = torch.randn(6, 4, 2, 5 * (1 + options.get("bidirectional", False)))

    def gradients(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        data = input.to(dtype).requires_grad_()
        leaves = {"input": data, **dict(module.named_parameters())}
        output, pulls = module(data)[0], many.to(dtype)
        if isinstance(module, gru_ext.GRU):
            gradient_rows = torch.autograd.grad(output, list(leaves.values()), pulls, is_grads_batched=True)
        else:
            alone = [torch.autograd.grad(output, list(leaves.values()), pull, retain_graph=True) for pull in pulls]
            gradient_rows = tuple(torch.stack(every) for every in zip(*alone, strict=True))
        return dict(zip(leaves, gradient_rows, strict=True))

    with pytest.warns(UserWarning, match="is_grads_batched"):
        gradient_rows = gradients(candidate, torch.float32)
    expected = gradients(truth, torch.float64)
    gate.check(gradient_rows, gradients(reference, torch.float32), expected)
    with pytest.warns(UserWarning, match="is_grads_batched"):
        exact = gradients(candidate.double(), torch.float64)
    for name, value in exact.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)
