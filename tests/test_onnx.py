"""ONNX export: one standard GRU node a layer, and ONNX Runtime's results held to the gate."""

from __future__ import annotations

import warnings
from typing import Any

import gate
import pytest
import torch
from cases import twins
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gru_ext

pytest.importorskip("onnx", reason="onnx is not installed: make test-onnx installs it")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: make test-onnx installs it")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: make test-onnx installs it")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch_first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False},
    "no bias, bidirectional": {"bias": False, "bidirectional": True, "batch_first": True},
    "large": {"hidden_size": 96},  # weights that the exporter leaves for ONNX Runtime to fold
}


def export(module: nn.Module, inputs: tuple[Any, ...], shapes: Any, **options: Any) -> Any:
    """An ONNX program; the warnings of torch's exporter are its own."""
    table = gru_ext.onnx.translation_table()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            verbose=False,
            dynamic_shapes=shapes,
            custom_translation_table=table,
            **options,
        )


def run(program: Any, *inputs: Tensor) -> list[Tensor]:
    """What ONNX Runtime makes of it on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    names = [value.name for value in session.get_inputs()]
    assert len(names) == len(inputs)
    return [
        torch.from_numpy(tensor)
        for tensor in session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))
    ]


class Only(nn.Module):
    """The output of a GRU."""

    def __init__(self, gru: nn.Module) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, input: Tensor) -> Tensor:
        return self.gru(input)[0]


def gru_nodes(program: Any) -> list[Any]:
    """The nodes GRU."""
    return [node for node in program.model.graph if node.op_type == "GRU"]


@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_one_node_a_layer(name: str, hx: bool) -> None:
    """Standard nodes with ONNX's gate order; batch and length dynamic; each size passes the gate."""
    options = dict(OPTIONS[name])
    hidden_size = options.pop("hidden_size", 8)
    theirs, ours = twins(gru_ext.GRU, 6, hidden_size, **options)
    layers, directions = ours.num_layers, 2 if ours.bidirectional else 1

    def draw(batch: int, seq_len: int) -> tuple[Tensor, ...]:
        input = torch.randn(batch, seq_len, 6) if ours.batch_first else torch.randn(seq_len, batch, 6)
        return (input, torch.randn(layers * directions, batch, hidden_size)) if hx else (input,)

    dims = {0: "batch", 1: "seq_len"} if ours.batch_first else {0: "seq_len", 1: "batch"}
    program = export(ours.eval(), draw(3, 5), {"input": dims, **({"hx": {1: "batch"}} if hx else {})})
    nodes = gru_nodes(program)
    assert len(nodes) == layers
    for node in nodes:
        assert node.domain == "" and node.attributes["linear_before_reset"].value == 1
        assert node.attributes["hidden_size"].value == hidden_size
        assert node.attributes["direction"].value == ("bidirectional" if directions == 2 else "forward")
    assert {node.domain for node in program.model.graph} == {""}
    exact = nn.GRU(6, hidden_size, **options, dtype=torch.float64)
    exact.load_state_dict(theirs.state_dict())
    for batch, seq_len in ((3, 5), (1, 1), (7, 11)):
        inputs = draw(batch, seq_len)
        with torch.no_grad():
            truth, reference = exact(*(tensor.double() for tensor in inputs)), theirs(*inputs)
        names = ("output", "h_n")
        gate.check(*(dict(zip(names, results, strict=True)) for results in (run(program, *inputs), reference, truth)))


def test_exported_program() -> None:
    """A program that torch.export made translates the same way, and stays one that torch can run."""
    model = gru_ext.GRU(6, 8).eval()
    input = torch.randn(5, 3, 6)
    exported = torch.export.export(model, (input,))
    program = export(exported, (), None)
    assert len(gru_nodes(program)) == 1
    torch.testing.assert_close(run(program, input)[0], exported.module()(input)[0], rtol=1e-5, atol=1e-6)


def test_torchs_own_has_a_fixed_length() -> None:
    """nn.GRU becomes a GRU node too, but for the example's length: with a dynamic length and batch torch refuses.

    Or, in the first export of a process, it writes a model that calls its length dynamic and fails with another.
    """
    module = Only(nn.GRU(6, 8)).eval()
    with warnings.catch_warnings(), pytest.raises(Exception, match="static shape of 5|cannot be reshaped"):
        warnings.simplefilter("ignore")
        shapes = {"input": {0: "seq_len", 1: "batch"}}
        program = torch.onnx.export(module, (torch.randn(5, 2, 6),), dynamo=True, verbose=False, dynamic_shapes=shapes)
        run(program, torch.randn(9, 2, 6))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed(bidirectional: bool) -> None:
    """Packed data goes through sequence_lens: still one node a layer, with any lengths."""
    theirs, ours = twins(gru_ext.GRU, 3, 5, 2, bidirectional=bidirectional)

    class Packed(nn.Module):
        def __init__(self, gru: nn.Module) -> None:
            super().__init__()
            self.gru = gru

        def forward(self, data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
            output, h_n = self.gru(PackedSequence(data, batch_sizes))
            return output.data, h_n

    inputs = torch.randn(7, 3), torch.tensor([3, 2, 2])
    program = export(Packed(ours).eval(), inputs, {"data": {0: "rows"}, "batch_sizes": {0: "seq_len"}})
    assert len(gru_nodes(program)) == 2
    for sizes in ([3, 2, 2], [4, 4, 1, 1, 1], [1]):
        inputs = torch.randn(sum(sizes), 3), torch.tensor(sizes)
        with torch.no_grad():
            expected = Packed(theirs)(*inputs)
        torch.testing.assert_close(tuple(run(program, *inputs)), expected, rtol=1e-5, atol=1e-6)


def test_without_the_table_torch_refuses() -> None:
    """The operator is unknown to torch's exporter: an error that names it, not a wrong model."""
    with warnings.catch_warnings(), pytest.raises(Exception, match="gru_ext.forward"):
        warnings.simplefilter("ignore")
        torch.onnx.export(gru_ext.GRU(3, 5).eval(), (torch.randn(2, 1, 3),), dynamo=True, verbose=False)
