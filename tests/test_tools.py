"""PyTorch's tools on a model with our modules: tracers, the flop counter, per-sample gradients, tensor subclasses."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from cases import twins
from processes import check_python
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import gru_ext
from gru_ext import ops


class Model(nn.Module):
    """Nested GRU, called twice, by keyword too, and a cell on what does not come from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"gru": nn.GRU(4, 6, 2, batch_first=True, bidirectional=True)})
        self.cell = nn.GRUCell(6, 6)

    def forward(self, input: Tensor) -> Tensor:
        """[B, T, 4] -> [B, 6]."""
        gru = self.inner["gru"]
        _, h_n = gru(torch.relu(input))
        output, h_n = gru(input, hx=h_n)
        step = self.cell(torch.ones(3, 6), h_n[0])
        return self.cell(output[:, -1, :6], step)


def pair() -> tuple[Model, Model]:
    """With torch's and with our modules, of equal weights."""
    theirs = Model()
    ours = copy.deepcopy(theirs)
    gru_ext.replace(ours)
    return theirs, ours


def test_symbolic_trace() -> None:
    """torch.fx takes ours for leaves, as it does torch's: the same graph, the same numbers, and it trains."""
    theirs, ours = pair()
    expected, traced = torch.fx.symbolic_trace(theirs), torch.fx.symbolic_trace(ours)
    names = [[(node.op, node.name) for node in each.graph.nodes] for each in (expected, traced)]
    assert names[0] == names[1] and sum(op == "call_module" for op, _ in names[0]) == 4
    input = torch.randn(3, 5, 4)
    torch.testing.assert_close(traced(input), theirs(input))
    traced(input).sum().backward()
    theirs(input).sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(dict(ours.named_parameters())[name].grad, parameter.grad)


LOAD = """
import sys, torch
path, library = sys.argv[1:]
try:
    torch.jit.load(path)
except RuntimeError as error:
    assert "gru_ext::forward" in str(error)
else:
    raise AssertionError("loaded without the operator")
torch.ops.load_library(library)
print(torch.jit.load(path)(torch.ones(3, 5, 4)).sum().item())
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace(tmp_path: Any) -> None:
    """Traced with grad mode on, saved, loaded: the same numbers, and gradients. Elsewhere it wants the library."""
    theirs, ours = pair()
    input, path = torch.randn(3, 5, 4), tmp_path / "model.pt"
    torch.jit.save(torch.jit.trace(ours, input), path)
    loaded = torch.jit.load(path)
    input = torch.randn(3, 5, 4)
    torch.testing.assert_close(loaded(input), theirs(input))
    loaded(input).sum().backward()
    theirs(input).sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(dict(loaded.named_parameters())[name].grad, parameter.grad)
    printed = check_python(f"import sys; sys.argv[1:] = {[str(path), ops.LIBRARY]!r}\n" + LOAD)
    assert float(printed) == pytest.approx(ours(torch.ones(3, 5, 4)).sum().item(), rel=1e-4)


@pytest.mark.parametrize("way", ["strict", "non-strict", "no_grad", "decomposed"])
def test_exported_program_trains(way: str) -> None:
    """torch.export keeps no trace of a backward pass, yet the module that it gives has the gradients."""
    theirs, ours = twins(gru_ext.GRU, 4, 6, 2, batch_first=True, bidirectional=True)
    input = torch.randn(3, 5, 4)
    with torch.set_grad_enabled(way != "no_grad"):
        exported = torch.export.export(copy.deepcopy(ours), (input,), strict=way == "strict")
    module = (exported.run_decompositions() if way == "decomposed" else exported).module()
    for each in (module, theirs):
        sum(result.pow(2).sum() for result in each(input)).backward()
    gradients = dict(module.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad)


def flops(module: nn.Module, input: Tensor, hx: Tensor | None, packed: bool, before: bool) -> int:
    """Of a call and its backward pass, or of the backward pass alone when the call comes before."""

    def call() -> Tensor:
        results = module(pack_padded_sequence(input, [5, 3, 2]) if packed else input, hx)
        results = (results,) if isinstance(results, Tensor) else results
        return sum(value.data.sum() if isinstance(value, PackedSequence) else value.sum() for value in results)

    loss = call() if before else None
    with FlopCounterMode(display=False) as counter:
        loss = call() if loss is None else loss
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["time first", "batch first", "unbatched", "packed", "cell"])
@pytest.mark.parametrize("needs", ["weights", "all", "input", "hx"])
def test_flop_counter(needs: str, kind: str) -> None:
    """What nn.GRU counts, forward and backward, for the gradients that are asked for."""
    if kind == "cell":
        modules: tuple[nn.Module, nn.Module] = nn.GRUCell(4, 6), gru_ext.GRUCell(4, 6)
        input, hx = torch.randn(3, 4), torch.randn(3, 6)
    else:
        modules = twins(gru_ext.GRU, 4, 6, 2, bidirectional=True, batch_first=kind == "batch first")
        input, hx = torch.randn(5, 3, 4), torch.randn(4, 5 if kind == "batch first" else 3, 6)
        if kind == "unbatched":
            input, hx = input[:, 0], hx[:, 0]
    input.requires_grad_(needs in ("all", "input"))
    state = None if needs == "input" else hx.requires_grad_(needs in ("all", "hx"))
    for module in modules:
        module.requires_grad_(needs in ("all", "weights"))
    for before in (False, True):
        theirs, ours = (flops(module, input, state, kind == "packed", before) for module in modules)
        assert ours == theirs > 0


@pytest.mark.parametrize("packed", [False, True])
def test_per_sample_gradients(packed: bool) -> None:
    """torch.nn.utils' gradients of each sample: those of nn.GRU; and for a cell its refusal."""
    theirs, ours = twins(gru_ext.GRU, 3, 5, 2, bidirectional=True, batch_first=True)
    input = torch.randn(4, 6, 3)
    data = pack_padded_sequence(input, [6, 5, 3, 2], batch_first=True) if packed else input
    for module in (theirs, ours):
        output = call_for_per_sample_grads(module, batch_size=4)(data)[0]
        output.data.sum().backward() if packed else output.sum().backward()
    for value, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(value.grad_sample, other.grad_sample, rtol=0, atol=0)
    for cell in (nn.GRUCell(3, 5), gru_ext.GRUCell(3, 5)):
        with pytest.raises(RuntimeError, match="cannot handle function gru_cell"):
            call_for_per_sample_grads(cell, batch_size=4)(torch.randn(4, 3))


class Tagged(torch.Tensor):
    """Carries a type through the model, nothing else."""


class Recorder(torch.Tensor):
    """Writes down the functions that it meets."""

    names: list[str] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.names.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", ["one layer", "two layers", "unbatched", "packed", "cell"])
def test_subclass_changed_in_place(kind: str, index: int) -> None:
    """In training: the results have the input's class, may be changed in place, and then have nn.GRU's gradients."""
    if kind == "cell":
        modules: tuple[nn.Module, nn.Module] = nn.GRUCell(4, 6), gru_ext.GRUCell(4, 6)
        modules[1].load_state_dict(modules[0].state_dict())
        plain = torch.randn(3, 4)
    else:
        modules = twins(gru_ext.GRU, 4, 6, 2 if kind == "two layers" else 1)
        plain = torch.randn(5, 4) if kind == "unbatched" else torch.randn(5, 3, 4)
    gradients = []
    for module in modules:
        input: Any = plain.as_subclass(Tagged)
        results = module(pack_padded_sequence(input, [5, 4, 2]) if kind == "packed" else input)
        results = (results, results) if kind == "cell" else results
        results = [value.data if isinstance(value, PackedSequence) else value for value in results]
        assert all(type(value) is Tagged for value in results)
        results[index][..., 2:] = 0
        sum(value.pow(2).sum() for value in results).backward()
        gradients.append([value.grad.as_subclass(Tensor) for value in module.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_subclass_with_a_rule_of_its_own() -> None:
    """It meets what it meets of nn.GRU: torch.gru and torch.gru_cell, not a function that it cannot know."""
    for theirs, ours, plain in (
        (*twins(gru_ext.GRU, 4, 6, 2), torch.randn(5, 3, 4)),
        (nn.GRUCell(4, 6), gru_ext.GRUCell(4, 6), torch.randn(3, 4)),
    ):
        ours.load_state_dict(theirs.state_dict())
        outputs, met = [], []
        for module in (theirs, ours):
            Recorder.names.clear()
            result = module(plain.as_subclass(Recorder))
            met.append({name for name in Recorder.names if "gru" in name})
            outputs.append((result if isinstance(result, Tensor) else result[0]).as_subclass(Tensor))
        assert met[0] == met[1] and len(met[0]) == 1
        torch.testing.assert_close(outputs[1], outputs[0])


def test_modes_of_other_kinds_see_the_call() -> None:
    """A default device leaves a call direct, also within another such; with a mode that looks on, it is not."""

    class Looks(torch.overrides.TorchFunctionMode):
        seen = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Looks.seen += "gru_ext" in str(func)
            return func(*args, **(kwargs or {}))

    gru, input = gru_ext.GRU(4, 6), torch.randn(5, 3, 4, requires_grad=True)
    with torch.device("cpu"), torch.device("meta"):
        output, _ = gru(input)
        assert "LayerFunction" in output.grad_fn.name() and output.device.type == "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            output.sum().backward()
    with torch.device("cpu"), Looks():
        gru(input)
    assert Looks.seen > 0
