"""Frozen modules as ONNX: float32 gives the results of the module as it was, int8 keeps its bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gru_ext

pytest.importorskip("onnx", reason="onnx is not installed: make test-onnx installs it")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: make test-onnx installs it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: make test-onnx installs it")

from test_onnx import Only, export, run  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bidirectional": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False},
    "large": {"hidden_size": 96},
}


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_frozen(options: dict[str, Any], weights: str) -> None:
    """Float32 as unfrozen, bfloat16 by its rounded weights, int8 by bytes that ONNX multiplies out: all to rounding."""
    sizes: dict[str, Any] = {"input_size": 7, "hidden_size": 21} | options
    module, data = gru_ext.GRU(**sizes), torch.randn(5, 3, 7)
    frozen: Any = gru_ext.freeze(module, weights)
    plain = gru_ext.GRU(**sizes)
    state = frozen.state_dict()
    quantized = [name for name, value in state.items() if value.dtype == torch.int8]
    scales = {name: state[name.replace("weight", "scale")][:, None] for name in quantized}
    plain.load_state_dict(
        {name: value.float() * scales.get(name, 1) for name, value in state.items() if not name.startswith("scale")}
    )
    with torch.no_grad():
        program = export(Only(frozen), (data,), None)
        (output,) = run(program, data)
        expected = plain(data)[0]
        torch.testing.assert_close(output, expected, rtol=0, atol=2e-6)
        if weights == "float32":
            (unfrozen,) = run(export(Only(module), (data,), None), data)
            assert torch.equal(output, unfrozen)
    kinds = [node.op_type for node in program.model_proto.graph.node]
    assert kinds.count("GRU") == sizes.get("num_layers", 1)
    assert ("DequantizeLinear" in kinds) == (weights == "int8")


def test_int8_weights_stay_bytes() -> None:
    """The file is about a quarter of float32's, and its weights are int8."""
    module, data = nn.GRU(64, 128), torch.randn(2, 1, 64)
    sizes = {}
    for weights in ("float32", "int8"):
        with torch.no_grad():
            program = export(Only(gru_ext.freeze(module, weights)), (data,), None)
        sizes[weights] = len(program.model_proto.SerializeToString())
    assert sizes["int8"] < 0.35 * sizes["float32"]


def test_frozen_cell() -> None:
    """One GRU node of one step."""
    cell, data, hx = nn.GRUCell(5, 12), torch.randn(3, 5), torch.randn(3, 12)
    frozen = gru_ext.freeze(cell)
    with torch.no_grad():
        (output,) = run(export(frozen, (data, hx), None), data, hx)
        torch.testing.assert_close(output, cell(data, hx), rtol=0, atol=2e-6)


def test_resets_are_refused() -> None:
    """As those of a module that is not frozen."""

    class WithResets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru: Any = gru_ext.freeze(nn.GRU(3, 4))

        def forward(self, data: torch.Tensor, resets: torch.Tensor) -> torch.Tensor:
            return self.gru(data, resets=resets)[0]  # type: ignore[no-any-return]

    with torch.no_grad(), pytest.raises(Exception, match=r"resets has no ONNX form|no ONNX form"):
        export(WithResets(), (torch.randn(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)), None)
