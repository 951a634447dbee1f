"""Gradients against finite differences in float64, first and second order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gru_ext import GRUCell, functional, reference

# seq_len, batch, input_size, hidden_size, layers, bidirectional, bias, batch_first, batch_sizes
CONFIGURATIONS = {
    "smallest": (1, 1, 1, 1, 1, False, True, False, None),
    "plain": (3, 2, 3, 4, 1, False, True, False, None),
    "no_bias": (2, 3, 2, 3, 1, False, False, False, None),
    "bidirectional": (3, 2, 2, 3, 1, True, True, False, None),
    "batch_first": (3, 2, 2, 3, 1, True, True, True, None),
    "layers": (2, 2, 3, 2, 2, True, True, False, None),
    "packed": (3, 3, 2, 3, 1, False, True, False, (3, 2, 1)),
    "packed_bidirectional": (4, 3, 2, 2, 1, True, True, False, (3, 3, 1, 1)),
    "wide": (2, 1, 2, 9, 1, False, True, False, None),
}


def leaves(name: str) -> tuple[list[Tensor], dict[str, object]]:
    """The float64 leaves (input, hx, weights...) of a configuration, and functional.gru's other arguments."""
    seq_len, batch, input_size, hidden_size, layers, bidirectional, bias, batch_first, sizes = CONFIGURATIONS[name]
    directions = 2 if bidirectional else 1

    def draw(*shape: int) -> Tensor:
        return (torch.rand(*shape, dtype=torch.float64) * 2 - 1).requires_grad_()

    if sizes is not None:
        input = draw(sum(sizes), input_size)
    else:
        input = draw(batch, seq_len, input_size) if batch_first else draw(seq_len, batch, input_size)
    weights: list[Tensor] = []
    for layer in range(layers):
        for _ in range(directions):
            weights += [
                draw(3 * hidden_size, input_size if layer == 0 else directions * hidden_size),
                draw(3 * hidden_size, hidden_size),
            ]
            weights += [draw(3 * hidden_size), draw(3 * hidden_size)] if bias else []
    options = {
        "num_layers": layers,
        "bias": bias,
        "bidirectional": bidirectional,
        "batch_first": batch_first,
        "batch_sizes": None if sizes is None else torch.tensor(sizes),
    }
    return [input, draw(layers * directions, batch, hidden_size), *weights], options


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_first_order(name: str) -> None:
    """Every gradient of output and h_n agrees with finite differences."""
    arguments, options = leaves(name)
    assert gradcheck(lambda input, hx, *weights: functional.gru(input, hx, weights, **options), arguments)


@pytest.mark.parametrize("name", ["smallest", "bidirectional", "packed", "layers"])
def test_second_order(name: str) -> None:
    """Gradients of gradients agree with finite differences (gradient penalties, meta-learning)."""
    arguments, options = leaves(name)
    assert gradgradcheck(
        lambda input, hx, *weights: functional.gru(input, hx, weights, **options), arguments, fast_mode=True
    )


@pytest.mark.parametrize("used", ["output", "h_n"])
def test_one_result_only(used: str) -> None:
    """A loss that sees only one of the results: the other incoming gradient does not exist."""
    arguments, options = leaves("packed_bidirectional")
    index = ("output", "h_n").index(used)
    assert gradcheck(lambda input, hx, *weights: functional.gru(input, hx, weights, **options)[index], arguments)


@pytest.mark.parametrize("wanted", range(6))
def test_one_leaf_only(wanted: int) -> None:
    """Each leaf alone: input, hx, weight_ih, weight_hh, bias_ih, bias_hh."""
    arguments, options = leaves("plain")
    for index, leaf in enumerate(arguments):
        leaf.requires_grad_(index == wanted)
    assert gradcheck(lambda input, hx, *weights: functional.gru(input, hx, weights, **options), arguments)


def test_tied_weights() -> None:
    """One tensor in two places gets the sum of both gradients, in first and second order."""
    arguments, options = leaves("plain")
    input, hx, weight_ih, weight_hh, bias, _ = arguments

    def tied(input: Tensor, hx: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return functional.gru(input, hx, [weight_ih, weight_hh, bias, bias], **options)

    assert gradcheck(tied, (input, hx, weight_ih, weight_hh, bias))
    assert gradgradcheck(tied, (input, hx, weight_ih, weight_hh, bias), fast_mode=True)


def test_gradient_penalty() -> None:
    """A loss that contains a gradient trains the weights as the reference does."""
    arguments, options = leaves("layers")
    results = []
    for compute in (gru, reference_gru):
        fresh = [argument.detach().clone().requires_grad_() for argument in arguments]
        output, _ = compute(fresh[0], fresh[1], fresh[2:], options)
        (grad_input,) = torch.autograd.grad(output.pow(2).sum(), fresh[0], create_graph=True)
        (grad_input.norm() - 1).pow(2).backward()
        results.append([argument.grad for argument in fresh])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def gru(input: Tensor, hx: Tensor, weights: list[Tensor], options: dict[str, object]) -> tuple[Tensor, Tensor]:
    """functional.gru with its options in a dictionary."""
    return functional.gru(input, hx, weights, **options)  # type: ignore[arg-type]


def reference_gru(
    input: Tensor, hx: Tensor, weights: list[Tensor], options: dict[str, object]
) -> tuple[Tensor, Tensor]:
    """reference.gru with functional.gru's options."""
    chosen = {key: options[key] for key in ("num_layers", "batch_sizes", "batch_first")}
    return reference.gru(input, hx, weights, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [True, False])
def test_cell(bias: bool) -> None:
    """GRUCell, first and second order."""
    cell = GRUCell(3, 4, bias=bias, dtype=torch.float64)
    names = list(dict(cell.named_parameters()))
    input = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def call(input: Tensor, hx: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (input, hx))

    arguments = (input, hx, *cell.parameters())
    assert gradcheck(call, arguments)
    assert gradgradcheck(call, arguments, fast_mode=True)
