"""GRUCell against nn.GRUCell: construction, results, gradients, unbatched input."""

from __future__ import annotations

import copy
import pickle

import cases
import gate
import pytest
import torch
from cases import twins
from torch import Tensor, nn

import gru_ext


def run(cell: nn.Module, input: Tensor, hx: Tensor | None, grad: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Forward and backward of a cell in one dtype."""
    cell = copy.deepcopy(cell).to(dtype)
    leaves = {"input": input.detach().to(dtype, copy=True).requires_grad_()}
    if hx is not None:
        leaves["hx"] = hx.detach().to(dtype, copy=True).requires_grad_()
    output = cell(*leaves.values())
    output.backward(grad.to(dtype))
    leaves |= dict(cell.named_parameters())
    return {"output": output.detach(), **{f"grad {name}": leaf.grad for name, leaf in leaves.items()}}


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("batch", "input_size", "hidden_size"), [(1, 1, 1), (3, 5, 9), (8, 3, 16), (9, 17, 33), (None, 5, 7)]
)
def test_gate(batch: int | None, input_size: int, hidden_size: int, bias: bool, dtype: torch.dtype) -> None:
    """Output and every gradient through the gate, batched and not, with hx and without."""
    generator = torch.Generator().manual_seed(hidden_size)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).double()

    theirs = nn.GRUCell(input_size, hidden_size, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(draw(*parameter.shape) * hidden_size**-0.5).copy_(parameter.to(dtype).double())
    ours = gru_ext.GRUCell(input_size, hidden_size, bias=bias, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    leading = () if batch is None else (batch,)
    input, hx, grad = draw(*leading, input_size), draw(*leading, hidden_size), draw(*leading, hidden_size)
    for state in (hx, None):
        truth = run(theirs, input, state, grad, torch.float64)
        candidate = run(ours, input, state, grad, dtype)
        if dtype != torch.float64:
            gate.check(candidate, run(theirs, input, state, grad, dtype), truth)
            continue
        single = [value if value is None else value.float() for value in (input, state, grad)]
        rounded = copy.deepcopy(theirs).float().double()
        exact = [value if value is None else value.double() for value in single]
        errors = gate.float64_errors(run(theirs, *single, torch.float32), run(rounded, *exact, torch.float64))
        gate.raise_failures(gate.measure(candidate, truth, truth, errors))


def test_construction_and_copies() -> None:
    """repr, state_dict both ways, deepcopy and pickle."""
    for options in ({}, {"bias": False}, {"dtype": torch.float64}):
        theirs, ours = twins(gru_ext.GRUCell, 3, 4, **options)
        assert repr(ours) == repr(theirs)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert type(other) is gru_ext.GRUCell
            assert all(torch.equal(a, b) for a, b in zip(other.parameters(), ours.parameters(), strict=True))
    assert isinstance(ours, nn.RNNCellBase)


def test_loop_of_cells_is_the_layer() -> None:
    """A GRU's sequence and the same steps one by one."""
    layer = gru_ext.GRU(3, 9)
    cell = gru_ext.GRUCell(3, 9)
    cell.load_state_dict({name[:-3]: value for name, value in layer.state_dict().items()}, strict=True)
    input = torch.randn(6, 4, 3)
    state = torch.zeros(4, 9)
    outputs = []
    for step in input:
        state = cell(step, state)
        outputs.append(state)
    torch.testing.assert_close(torch.stack(outputs), layer(input)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_graph(mode: type) -> None:
    """no_grad and inference_mode give the same bits and no graph; B = 0 gives an empty result."""
    cell = gru_ext.GRUCell(3, 4)
    input = torch.randn(2, 3)
    expected = cell(input)
    with mode():
        output = cell(input)
    assert expected.requires_grad and not output.requires_grad and gate.same_bits(output, expected)
    assert cell(torch.empty(0, 3)).shape == (0, 4)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("how", ["eager", "compiled", "no hx", "unbatched", "autocast"])
@pytest.mark.parametrize("sizes", [(3, 0), (0, 4), (0, 0)])
def test_sizes_of_zero(sizes: tuple[int, int], how: str, no_warning: None) -> None:
    """No features, no units, neither: what nn.GRUCell gives, and no warning of a slow path."""
    input_size, hidden_size = sizes
    theirs = nn.GRUCell(input_size, hidden_size)
    ours = gru_ext.GRUCell(input_size, hidden_size)
    ours.load_state_dict(theirs.state_dict())
    leading = () if how == "unbatched" else (5,)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(0)
        input = torch.randn(*leading, input_size, requires_grad=True)
        hx = torch.randn(*leading, hidden_size, requires_grad=True)
        call = torch.compile(module, backend="eager") if how == "compiled" and module is ours else module
        with torch.autocast("cpu", enabled=how == "autocast"):
            output = call(input) if how == "no hx" else call(input, hx)
        output.pow(2).sum().backward()
        leaves = (input, *module.parameters()) if how == "no hx" else (input, hx, *module.parameters())
        results.append([output, *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)])
    tolerance = 0.02 if how == "autocast" else 1e-6  # two computations in bfloat16
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)
    torch._dynamo.reset()
