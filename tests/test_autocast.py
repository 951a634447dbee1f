"""torch.autocast: dtypes, gradients of float32 weights, and each weight cast once in a block."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gate
import pytest
import torch
from cases import twins
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

import gru_ext
from gru_ext import ops

DTYPES = (torch.bfloat16, torch.float16)
WEIGHT = (21, 7)  # the shape of weight_hh in `module`, of nothing else


def module() -> gru_ext.GRU:
    """Two layers, one direction."""
    return gru_ext.GRU(3, 7, 2)


@contextmanager
def casts() -> Iterator[list[int]]:
    """Counts how often a tensor of shape WEIGHT was cast. A profiler sees casts without changing how they are made."""
    count: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        yield count
    shapes = [event.input_shapes for event in seen.events() if event.name == "aten::_to_copy"]
    count.append(sum(bool(shape) and tuple(shape[0]) == WEIGHT for shape in shapes))


@pytest.mark.parametrize("grad", [True, False, None], ids=["grad", "no_grad", "inference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_are_cast_once(dtype: torch.dtype, grad: bool | None) -> None:
    """Three calls in one block cast each weight once; the next block casts it again. Also without grad."""
    gru, input = module(), torch.randn(4, 2, 3)
    context = torch.inference_mode() if grad is None else torch.set_grad_enabled(grad)
    for _ in range(2):
        with context, casts() as count, torch.autocast("cpu", dtype=dtype):
            for _ in range(3):
                output, h_n = gru(input)
                assert output.dtype == h_n.dtype == torch.float32
        # weight_hh of both layers, weight_ih of the second
        assert count == [3]


def test_cell_is_cast_once() -> None:
    """A loop of GRUCell in one block as well."""
    cell = gru_ext.GRUCell(3, 7)
    with casts() as count, torch.autocast("cpu"):
        hx = torch.zeros(2, 7)
        for _ in range(5):
            hx = cell(torch.randn(2, 3), hx)
    assert count == [1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_shared_casts(dtype: torch.dtype) -> None:
    """Two calls in one block: float32 gradients, the sum of those of both calls alone, in the block or after it."""
    gru = module()
    parameters = list(gru.parameters())
    inputs = torch.randn(2, 4, 2, 3)

    def alone(input: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=dtype):
            loss = gru(input)[0].float().sum()
        return torch.autograd.grad(loss, parameters)

    expected = [first + second for first, second in zip(alone(inputs[0]), alone(inputs[1]), strict=True)]
    for inside in (True, False):
        gru.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            losses = [gru(input)[0].float().sum() for input in inputs]
            if inside:
                losses[0].backward()
        for loss in losses[inside:]:
            loss.backward()
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert parameter.grad.dtype == torch.float32
            # The sum over both is rounded once more or less to 16 bits: twice the unit of the largest element.
            bound = 2 * torch.finfo(dtype).eps * gradient.abs().max().item()
            torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=bound)


@pytest.mark.parametrize("first", ["no_grad", "inference"])
def test_a_cast_without_grad_takes_no_gradient(first: str) -> None:
    """A call without grad comes first in the block: the next call's weights have their gradients all the same."""
    gru, input = module(), torch.randn(4, 2, 3)
    with torch.autocast("cpu"):
        with torch.no_grad() if first == "no_grad" else torch.inference_mode():
            gru(input)
        gru(input)[0].float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in gru.parameters())


def test_a_cast_of_torchs_without_grad() -> None:
    """torch's own layer shares the weight, ran without grad and left a cast without gradient: it is not used."""
    gru = module()
    with torch.autocast("cpu"):
        with torch.no_grad():
            nn.functional.linear(torch.randn(2, 7), gru.weight_hh_l0)
        gru(torch.randn(4, 2, 3))[0].float().sum().backward()
    assert gru.weight_hh_l0.grad is not None


@pytest.mark.parametrize("how", ["step", "data"])
def test_weights_that_change_within_the_block(how: str) -> None:
    """An optimizer's step inside the block is seen by the next call, as it is by nn.GRU."""
    gru, input = module(), torch.randn(4, 2, 3)
    with torch.autocast("cpu"):
        before = gru(input)[0]
        before.float().sum().backward()
        if how == "step":
            torch.optim.SGD(gru.parameters(), lr=0.5).step()
        else:
            for parameter in gru.parameters():
                parameter.data = parameter.data * 1.5
        after, again = gru(input)[0], gru(input)[0]
    with torch.autocast("cpu"):
        expected = gru(input)[0]
    assert torch.equal(after, expected) and torch.equal(again, expected)
    assert not torch.equal(before, expected)


def test_cache_switched_off() -> None:
    """cache_enabled=False keeps no casts, which CUDA graphs ask for."""
    gru, input = module(), torch.randn(4, 2, 3)
    with casts() as count, torch.autocast("cpu", cache_enabled=False):
        gru(input)
        gru(input)
    assert count == [6]


def test_casts_are_freed_with_the_block() -> None:
    """Nothing of a block is held once it has ended and its results are gone."""
    gru = module()
    with torch.autocast("cpu"):
        gru(torch.randn(4, 2, 3))
        held = [weakref.ref(cast) for cast in ops.kept_casts(list(gru.parameters())) if cast is not None]
        assert len(held) == 8 and all(reference() is not None for reference in held)
    assert all(reference() is None for reference in held)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_with_a_scaler(dtype: torch.dtype) -> None:
    """Mixed precision as torch's recipe has it: float32 master weights, a scaled loss that falls."""
    gru = gru_ext.GRU(3, 16)
    head = nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    input = torch.randn(12, 16, 3)
    target = input.cumsum(0).sum(-1, keepdim=True).tanh()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = nn.functional.mse_loss(head(gru(input)[0]).float(), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in gru.parameters())


def test_under_compile() -> None:
    """The casts are part of a compiled graph: the same results, and float32 gradients."""
    gru, input = module(), torch.randn(4, 2, 3)
    parameters = list(gru.parameters())

    def step(input: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return gru(input)[0]

    torch._dynamo.reset()
    results = []
    for call in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        output = call(input)
        assert output.dtype == torch.float32
        results.append((output, *torch.autograd.grad(output.float().sum(), parameters)))
    torch._dynamo.reset()
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert all(gradient.dtype == torch.float32 for gradient in results[0][1:])


@pytest.mark.parametrize("bias", [True, False])
def test_frozen_and_mixed_weights(bias: bool) -> None:
    """Weights that require no grad, and float64 ones, are cast or left as autocast has it."""
    gru = gru_ext.GRU(3, 7, bias=bias).requires_grad_(False)
    with torch.autocast("cpu"):
        assert gru(torch.randn(4, 2, 3))[0].dtype == torch.float32
        assert gru.double()(torch.randn(4, 2, 3, dtype=torch.float64))[0].dtype == torch.float64


FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def dtypes_of(module: nn.Module, dtype: torch.dtype, input: Tensor, hx: Tensor | None, packed: bool) -> Any:
    """Of the results and of every gradient under autocast; or the exception."""
    leaves = [leaf.detach().requires_grad_() for leaf in (input, hx) if leaf is not None]
    try:
        with torch.autocast("cpu", dtype=dtype):
            results = module(pack_padded_sequence(leaves[0], [5, 3]) if packed else leaves[0], *leaves[1:])
        results = [value.data if isinstance(value, PackedSequence) else value for value in results]
        sum(result.float().sum() for result in results).backward()
    except RuntimeError as error:
        return str(error)
    return [value.dtype for value in results], [leaf.grad.dtype for leaf in (*leaves, *module.parameters())]


@pytest.mark.parametrize("kind", ["plain", "packed", "cell"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_are_those_of_torchs(dtype: torch.dtype, kind: str) -> None:
    """Every dtype of weights, input and hx: nn.GRU's results, gradients and errors have ours."""
    theirs, ours = (nn.GRUCell(3, 7), gru_ext.GRUCell(3, 7)) if kind == "cell" else twins(gru_ext.GRU, 3, 7)
    for of_weights, of_input, of_hx in itertools.product(FLOATING, FLOATING, (None, *FLOATING)):
        input = torch.randn(*((2, 3) if kind == "cell" else (5, 2, 3))).to(of_input)
        hx = None if of_hx is None else torch.randn(*((2, 7) if kind == "cell" else (1, 2, 7))).to(of_hx)
        expected, seen = (
            dtypes_of(module.to(of_weights), dtype, input, hx, kind == "packed") for module in (theirs, ours)
        )
        assert seen == expected, (of_weights, of_input, of_hx)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_state_leaves_the_block(compiled: bool) -> None:
    """A state computed within goes on into a float32 call outside, eager and compiled."""
    for module, input in ((gru_ext.GRU(3, 7, 2), torch.randn(4, 2, 3)), (gru_ext.GRUCell(3, 7), torch.randn(2, 3))):
        torch._dynamo.reset()
        call = torch.compile(module, backend="eager", fullgraph=True) if compiled else module
        with torch.autocast("cpu"):
            result = call(input)
        state = result if isinstance(result, Tensor) else result[1]
        result = call(input, state)
        assert (result if isinstance(result, Tensor) else result[0]).dtype == torch.float32
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [7, 64])
def test_gate_under_autocast(hidden_size: int, dtype: torch.dtype) -> None:
    """Results and gradients no further from float64 than twice nn.GRU's own, both under autocast."""
    theirs, ours = twins(gru_ext.GRU, 5, hidden_size, 2, bidirectional=True)
    exact = nn.GRU(5, hidden_size, 2, bidirectional=True, dtype=torch.float64)
    exact.load_state_dict(theirs.state_dict())
    input, hx = torch.randn(20, 3, 5), torch.randn(4, 3, hidden_size)
    weights = torch.randn(20, 3, 2 * hidden_size)

    def run(module: nn.Module, of: torch.dtype) -> dict[str, Tensor]:
        leaf, state = (value.to(of, copy=True).requires_grad_() for value in (input, hx))
        with torch.autocast("cpu", dtype=dtype, enabled=of == torch.float32):
            output, h_n = module(leaf, state)
        ((output * weights.to(of)).sum() + h_n.sum()).backward()
        gradients = {f"grad {name}": value.grad for name, value in module.named_parameters()}
        return {"output": output, "h_n": h_n, "grad input": leaf.grad, "grad hx": state.grad, **gradients}

    truth, reference, candidate = run(exact, torch.float64), run(theirs, torch.float32), run(ours, torch.float32)
    detached = [{name: value.detach() for name, value in each.items()} for each in (candidate, reference, truth)]
    gate.check(*detached)
