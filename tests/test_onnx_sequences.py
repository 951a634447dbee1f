"""ONNX export of a GRU with lengths; resets have no ONNX form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import twins
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gru_ext

onnx = pytest.importorskip("test_onnx", reason="onnx, onnxscript or onnxruntime is missing: make test-onnx")


class Sequences(nn.Module):
    """A GRU with lengths or resets."""

    def __init__(self, gru: nn.Module, name: str) -> None:
        super().__init__()
        self.gru, self.name = gru, name

    def forward(self, input: Tensor, hx: Tensor, marks: Tensor) -> Any:
        return self.gru(input, hx, **{self.name: marks})


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_lengths(batch_first: bool) -> None:
    """Unsorted, with none and all steps: output, zero in the padding, and every layer's and direction's h_n."""
    theirs, ours = twins(gru_ext.GRU, 3, 5, 2, bidirectional=True, batch_first=batch_first)
    lengths = torch.tensor([2, 6, 0, 5])
    shape = (4, 6, 3) if batch_first else (6, 4, 3)
    input, hx = torch.randn(shape), torch.randn(4, 4, 5)
    time, batch = (1, 0) if batch_first else (0, 1)
    dims = {time: torch.export.Dim("time", min=2, max=99), batch: torch.export.Dim("batch", min=2, max=99)}
    shapes = (dims, {1: dims[batch]}, {0: dims[batch]})
    program = onnx.export(Sequences(ours, "lengths"), (input, hx, lengths), shapes)
    assert len(onnx.gru_nodes(program)) == 2
    with torch.no_grad():
        output, h_n = onnx.run(program, input, hx, lengths)
        torch.testing.assert_close((output, h_n), ours(input, hx, lengths=lengths), rtol=1e-5, atol=1e-6)
        present = torch.tensor([0, 1, 3])
        packed = pack_padded_sequence(input.index_select(batch, present), lengths[present], batch_first, False)
        expected, final = theirs(packed, hx[:, present])
        padded = pad_packed_sequence(expected, batch_first, total_length=6)[0]
        torch.testing.assert_close(output.index_select(batch, present), padded, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(h_n[:, present], final, rtol=1e-5, atol=1e-6)
        assert torch.equal(h_n[:, 2], hx[:, 2]) and not output.select(batch, 2).any()
        longer = torch.randn((7, 9, 3) if batch_first else (9, 7, 3)), torch.randn(4, 7, 5), torch.arange(7) + 2
        results = onnx.run(program, *longer)
        torch.testing.assert_close(tuple(results), ours(*longer[:2], lengths=longer[2]), rtol=1e-5, atol=1e-6)


def test_resets_have_no_form() -> None:
    """A clear sentence, not a graph without them."""
    module = Sequences(gru_ext.GRU(3, 5), "resets")
    with pytest.raises(Exception, match="resets has no ONNX form"):
        onnx.export(module, (torch.randn(6, 4, 3), torch.randn(1, 4, 5), torch.zeros(6, 4, dtype=torch.bool)), None)
