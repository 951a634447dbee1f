"""torch.compile without graph breaks, torch.export, and the operators' own checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import twins
from malformed import arguments, backward_arguments
from torch import Tensor, nn

import gru_ext
from gru_ext import functional, ops

KINDS = ("plain", "both", "first", "packed")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No graph of one test is found by another."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(module: Any, input: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Forward and backward of a (compiled) module."""
    input = input.detach().clone().requires_grad_()
    output, h_n = module(input)
    leaves = {"input": input, **parameters}
    gradients = torch.autograd.grad(output.sum() + h_n.pow(2).sum(), list(leaves.values()))
    return {"output": output, "h_n": h_n, **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("eager", {"num_layers": 2, "bidirectional": True}),
        ("aot_eager", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        ("aot_eager", {"bias": False}),
        pytest.param("inductor", {"num_layers": 2, "bidirectional": True}, marks=pytest.mark.slow),
    ],
)
def test_full_graph(backend: str, options: dict[str, Any]) -> None:
    """One graph, forward and backward, with the results of eager mode."""
    module = gru_ext.GRU(3, 5, **options)
    input = torch.randn(4, 2, 3)
    parameters = dict(module.named_parameters())
    expected = results(module, input, parameters)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for name, value in results(compiled, input, parameters).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_operator_stays_one_node() -> None:
    """The graph holds our operator, not its steps: a longer sequence makes no larger graph."""
    sizes = []
    for seq_len in (2, 50):
        graphs: list[torch.fx.GraphModule] = []

        def keep(graph: torch.fx.GraphModule, _: Any, graphs: list[torch.fx.GraphModule] = graphs) -> Any:
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(gru_ext.GRU(3, 5), fullgraph=True, backend=keep)(torch.randn(seq_len, 2, 3))
        assert len(graphs) == 1
        sizes.append(len(list(graphs[0].graph.nodes)))
        assert any("gru_ext" in str(node.target) for node in graphs[0].graph.nodes)
    assert sizes[0] == sizes[1]


def test_cell_and_functional() -> None:
    """GRUCell and functional.gru compile whole as well."""
    cell = gru_ext.GRUCell(3, 5)
    input = torch.randn(2, 3)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input), cell(input))
    weights = [torch.randn(15, 3), torch.randn(15, 5)]

    def call(input: Tensor) -> tuple[Tensor, Tensor]:
        return functional.gru(input, None, weights, bias=False)

    sequence = torch.randn(4, 2, 3)
    compiled_call = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled_call(sequence), call(sequence))


def test_changing_sizes() -> None:
    """dynamic=True serves all lengths and batches with at most two compilations.

    The second is torch's: it takes the batch of the first call for a constant wherever a tensor is made of that size.
    """
    theirs, ours = twins(gru_ext.GRU, 3, 5)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(ours, fullgraph=True, backend=counter, dynamic=True)
    with torch.no_grad():
        for seq_len, batch in ((4, 3), (7, 5), (9, 2), (2, 9), (30, 4), (5, 11)):
            input = torch.randn(seq_len, batch, 3)
            torch.testing.assert_close(compiled(input)[0], theirs(input)[0], rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 2


def test_export() -> None:
    """torch.export in strict mode and not, with a dynamic length, gives a program with the same results."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru_ext.GRU(3, 5, 2, bidirectional=True, batch_first=True)

        def forward(self, input: Tensor) -> Tensor:
            return self.gru(input)[0]

    model = Model().eval()
    dynamic = {"input": {1: torch.export.Dim("seq_len", min=2, max=100)}}
    for strict in (True, False):
        program = torch.export.export(model, (torch.randn(2, 6, 3),), dynamic_shapes=dynamic, strict=strict)
        for seq_len in (6, 11):
            input = torch.randn(2, seq_len, 3)
            torch.testing.assert_close(program.module()(input), model(input))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_operator(kind: str) -> None:
    """torch.library.opcheck: schema, fake implementation, dispatch; with and without what backward needs."""
    for save in (True, False):
        checked = torch.library.opcheck(ops.forward, (*arguments(kind).values(), save))
        assert set(checked.values()) == {"SUCCESS"}, checked


@pytest.mark.parametrize("kind", KINDS)
def test_backward_operator(kind: str) -> None:
    """The same for backward, with all and with some of the gradients."""
    given = backward_arguments(kind)
    count = len(given["needs"])
    for needs in ([True] * count, [index % 2 == 0 for index in range(count)]):
        checked = torch.library.opcheck(ops.backward, tuple({**given, "needs": needs}.values()))
        assert set(checked.values()) == {"SUCCESS"}, checked
    given["grad_output"] = None
    checked = torch.library.opcheck(ops.backward, tuple(given.values()))
    assert set(checked.values()) == {"SUCCESS"}, checked


@pytest.mark.parametrize("kind", KINDS)
def test_fake_shapes(kind: str) -> None:
    """The fake implementation tells the shape, dtype and strides that the kernels give."""
    given, backward_given = arguments(kind), backward_arguments(kind)
    real = [*ops.forward(*given.values(), True), *ops.backward(*backward_given.values())]
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fake = [*ops.forward(*given.values(), True), *ops.backward(*backward_given.values())]
    assert len(fake) == len(real)
    for one, other in zip(fake, real, strict=True):
        assert isinstance(one, torch._subclasses.FakeTensor)
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
