"""Second derivatives: what trains on gradients of gradients trains on gru_ext as on torch.nn.GRU.

torch.nn.GRU has second derivatives on the CPU, where it is made of differentiable steps; it is cuDNN that refuses them.
So the steps below are compared with nn.GRU in float64, gradient by gradient.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import twins
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext

DOUBLE = torch.float64


def pair(*arguments: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    """torch's module and ours with equal weights, in float64."""
    theirs, ours = twins(gru_ext.GRU, *arguments, **options)
    return theirs.double(), ours.double()


def critic_step(gru: nn.Module, head: Tensor, real: Tensor, fake: Tensor, mix: Tensor) -> dict[str, Tensor]:
    """The critic's gradients in a step of WGAN-GP (Gulrajani et al., 2017): the penalty is on a gradient's length."""

    def score(input: Tensor) -> Tensor:
        return gru(input)[0][-1] @ head

    between = (mix * real + (1 - mix) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    lengths = slope.pow(2).sum((0, 2)).sqrt()
    loss = score(fake).mean() - score(real).mean() + 10 * (lengths - 1).pow(2).mean()
    parameters = dict(gru.named_parameters())
    gradients = torch.autograd.grad(loss, [head, *parameters.values()])
    return dict(zip(["head", *parameters], gradients, strict=True))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
def test_wgan_gp_step(options: dict[str, Any]) -> None:
    """The gradient penalty's gradient of every weight."""
    width = 6 * (1 + options.get("bidirectional", False))
    head = torch.randn(width, dtype=DOUBLE, requires_grad=True)
    real, fake = torch.randn(2, 5, 4, 3, dtype=DOUBLE)
    mix = torch.rand(1, 4, 1, dtype=DOUBLE)
    expected, result = (critic_step(module, head, real, fake, mix) for module in pair(3, 6, **options))
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-9, atol=1e-12, msg=name)


def meta_step(gru: nn.Module, head: Tensor, tasks: list[tuple[Tensor, Tensor]], first_order: bool) -> dict[str, Tensor]:
    """The gradients of MAML (Finn et al., 2017): through two steps of gradient descent on each task."""
    slow = dict(gru.named_parameters())
    total = torch.zeros((), dtype=DOUBLE)
    for input, target in tasks:
        fast = slow
        for _ in range(2):
            loss = (functional_call(gru, fast, (input,))[0] @ head - target).pow(2).mean()
            gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
            fast = {name: fast[name] - 0.1 * grad for name, grad in zip(fast, gradients, strict=True)}
        total = total + (functional_call(gru, fast, (input.flip(1),))[0] @ head - target).pow(2).mean()
    gradients = torch.autograd.grad(total, list(slow.values()))
    return dict(zip(slow, gradients, strict=True))


def test_maml_step() -> None:
    """Through the inner steps: the gradients of nn.GRU's own MAML step, and not those of its first order."""
    head = torch.randn(6, dtype=DOUBLE)
    tasks = [(torch.randn(5, 4, 3, dtype=DOUBLE), torch.randn(5, 4, dtype=DOUBLE)) for _ in range(2)]
    theirs, ours = pair(3, 6)
    expected = meta_step(theirs, head, tasks, first_order=False)
    for name, value in meta_step(ours, head, tasks, first_order=False).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    rough = meta_step(ours, head, tasks, first_order=True)["weight_hh_l0"]
    assert (rough - expected["weight_hh_l0"]).abs().max() > 1e-4


@pytest.mark.parametrize("packed", [False, True])
def test_gradgradcheck(packed: bool) -> None:
    """Numerical second derivatives by input, hx and weights."""
    module = gru_ext.GRU(2, 3, bidirectional=True, dtype=DOUBLE)
    input = torch.randn(4, 3, 2, dtype=DOUBLE, requires_grad=True)
    hx = torch.randn(2, 3, 3, dtype=DOUBLE, requires_grad=True)

    def call(input: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        data = pack_padded_sequence(input, [4, 2, 1]) if packed else input
        output, h_n = functional_call(module, named, (data, hx))
        return (output.data if packed else output), h_n

    assert torch.autograd.gradgradcheck(call, (input, hx, *module.parameters()), fast_mode=True)
