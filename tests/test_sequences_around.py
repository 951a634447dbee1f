"""Lengths and resets with what surrounds a call: tensor subclasses, modes, pickles, graphs, two processes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import two_processes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import gru_ext

LENGTHS, RESETS = torch.tensor([3, 0, 6, 1]), torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.4
Named = dict[str, Tensor]


class Like(Tensor):
    """Treats every function as torch.Tensor does."""


class Seeing(Tensor):
    """Wants to see every function."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(function, types, args, kwargs or {})


class FunctionMode(TorchFunctionMode):
    """Sees every function of torch."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    """Sees every operator."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def within(mode: Callable[[], AbstractContextManager[Any]]) -> Callable[[nn.Module, Tensor, Named], Any]:
    """A call in a mode."""

    def call(module: nn.Module, input: Tensor, named: Named) -> Any:
        with mode():
            return module(input, **named)

    return call


def exported(module: nn.Module, input: Tensor, named: Named) -> Any:
    """Through a file."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (input,), named), file)
    file.seek(0)
    return torch.export.load(file).module()(input, **named)


WAYS: dict[str, Callable[[nn.Module, Tensor, Named], Any]] = {
    "input of a subclass": lambda module, input, named: module(input.as_subclass(Like), **named),
    "marks of a subclass": lambda module, input, named: module(
        input, **{name: value.as_subclass(Like) for name, value in named.items()}
    ),
    "a subclass that sees": lambda module, input, named: module(input.as_subclass(Seeing), **named),
    "marks that see": lambda module, input, named: module(
        input, **{name: value.as_subclass(Seeing) for name, value in named.items()}
    ),
    "function mode": within(FunctionMode),
    "dispatch mode": within(DispatchMode),
    "no_grad": within(torch.no_grad),
    "inference": within(torch.inference_mode),
    "profiler": within(torch.profiler.profile),
    "functional_call": lambda module, input, named: torch.func.functional_call(
        module, dict(module.named_parameters()), (input,), named
    ),
    "pickle": lambda module, input, named: pickle.loads(pickle.dumps(module))(input, **named),
    "export": exported,
    "compile": lambda module, input, named: torch.compile(module, fullgraph=True, backend="aot_eager")(input, **named),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways(way: str) -> None:
    """Every way of a call gives what a plain one does."""
    torch._dynamo.reset()
    module, input = gru_ext.GRU(3, 5, 2, bidirectional=True), torch.randn(6, 4, 3)
    named = {"lengths": LENGTHS, "resets": RESETS, "reset_state": torch.randn(4, 6, 4, 5)}
    results = WAYS[way](module, input, named)
    for result, expected in zip(results, module(input, **named), strict=True):
        torch.testing.assert_close(result.as_subclass(Tensor).clone(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "export"])
def test_ways_of_a_cell(way: str) -> None:
    """The same of GRUCell."""
    torch._dynamo.reset()
    cell, input, named = gru_ext.GRUCell(3, 5), torch.randn(4, 3), {"hx": torch.randn(4, 5), "reset": RESETS[0]}
    expected = cell(input, **named)
    assert not torch.equal(expected, cell(input, named["hx"]))
    result = WAYS[way](cell, input, named).as_subclass(Tensor).clone()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_derivatives_of_a_cell() -> None:
    """First and second, against differences."""
    cell = gru_ext.GRUCell(3, 5, dtype=torch.float64)
    inputs = [torch.randn(4, size, dtype=torch.float64, requires_grad=True) for size in (3, 5)]

    def call(input: Tensor, hx: Tensor) -> Tensor:
        return cell(input, hx, reset=RESETS[0])

    assert torch.autograd.gradcheck(call, inputs) and torch.autograd.gradgradcheck(call, inputs)


# As test_training.WORKER, of a model whose batch has lengths and resets.
WORKER = """
import sys, torch, torch.distributed as distributed
import gru_ext
rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
model = gru_ext.GRU(3, 5, 2, bidirectional=True)
data, lengths, resets = torch.randn(7, 4, 3), torch.tensor([3, 0, 7, 1]), torch.rand(7, 4) < 0.3
model(data, lengths=lengths, resets=resets)[0].pow(2).mean().backward()
expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
model.zero_grad()
wrapped = torch.nn.parallel.DistributedDataParallel(model)
own = slice(2 * rank, 2 * rank + 2)
wrapped(data[:, own], lengths=lengths[own], resets=resets[:, own])[0].pow(2).mean().backward()
for name, parameter in model.named_parameters():
    torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7, msg=name)
print("equal", len(expected))
distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes(tmp_path: Path) -> None:
    """DistributedDataParallel, half of the batch each: the gradients of the whole batch."""
    two_processes(tmp_path, "all used", WORKER, 16)


@pytest.mark.parametrize("hidden_size", [17, 512])
@pytest.mark.parametrize("batch_first", [False, True])
def test_cut_at_resets(batch_first: bool, hidden_size: int) -> None:
    """A single sequence, and a few of many units, are cut at their resets: the bits of a batch that is not."""
    seq_len, batch = 60, 9
    module = gru_ext.GRU(5, hidden_size, 2, bidirectional=True, batch_first=batch_first)
    input, hx = torch.randn(seq_len, batch, 5), torch.randn(4, batch, hidden_size)
    resets, reset_state = torch.rand(seq_len, batch) < 0.15, torch.randn(4, seq_len, batch, hidden_size)
    resets[0] = torch.arange(batch) % 2 == 0
    lengths = torch.randint(30, seq_len + 1, (batch,))

    def results(part: slice) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (input[:, part], hx[:, part], reset_state[:, :, part])]
        turned = (leaves[0], resets[:, part], leaves[2])
        if batch_first:
            turned = (leaves[0].transpose(0, 1), resets[:, part].t(), leaves[2].transpose(1, 2))
        named = {"lengths": lengths[part], "resets": turned[1], "reset_state": turned[2]}
        output, h_n = module(turned[0], leaves[1], **named)
        gradients = torch.autograd.grad(output.sum() + h_n.square().sum(), leaves)
        return [output.transpose(0, 1) if batch_first else output, h_n, *gradients]

    whole = results(slice(0, batch))
    for part in (slice(0, 1), slice(3, 4), slice(4, 7)):
        for of_all, own, dim in zip(whole, results(part), (1, 1, 1, 1, 2), strict=True):
            assert torch.equal(of_all.narrow(dim, part.start, part.stop - part.start), own)
