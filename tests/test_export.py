"""torch.export, and an AOTInductor package that runs in a process without gru_ext."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from cases import twins
from processes import check_python
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence

import gru_ext
from gru_ext import ops

SIZES = [(2, 6), (5, 11), (3, 2)]  # batch, seq_len


class Model(nn.Module):
    """A GRU, batch first, and a layer after it; training, it has dropout."""

    def __init__(self, gru: nn.Module) -> None:
        super().__init__()
        self.gru = gru
        self.last = nn.Linear(10, 4)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, h_n = self.gru(input, hx)
        return self.last(output), h_n


def models() -> tuple[Model, Model]:
    """With nn.GRU and with ours, of equal weights."""
    theirs, ours = twins(gru_ext.GRU, 3, 5, 2, bidirectional=True, batch_first=True)
    last = nn.Linear(10, 4)
    pair = Model(theirs).eval(), Model(ours).eval()
    for model in pair:
        model.last = last
    return pair


def export(model: Model, hx: bool, strict: bool) -> torch.export.ExportedProgram:
    """With a dynamic batch and length."""
    batch, seq_len = Dim("batch", min=1, max=512), Dim("seq_len", min=1, max=4096)
    example = (torch.randn(2, 6, 3), torch.randn(4, 2, 5) if hx else None)
    shapes = {"input": {0: batch, 1: seq_len}, "hx": {1: batch} if hx else None}
    return torch.export.export(model, example, dynamic_shapes=shapes, strict=strict)


@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("strict", [True, False])
def test_dynamic_batch_and_length(strict: bool, hx: bool) -> None:
    """One program for every batch and length, a node a layer, with the results of eager mode; sizes of 1 as well."""
    _, model = models()
    program = export(model, hx, strict)
    assert [node.target for node in program.graph.nodes].count(ops.forward) == 2
    for batch, seq_len in [*SIZES, (1, 1)]:
        input, state = torch.randn(batch, seq_len, 3), torch.randn(4, batch, 5) if hx else None
        torch.testing.assert_close(program.module()(input, state), model(input, state))


@pytest.mark.parametrize("strict", [True, False])
def test_torchs_own_has_a_fixed_length(strict: bool) -> None:
    """nn.GRU cannot be exported with a dynamic length: torch takes the example's for a constant, and says so."""
    theirs, _ = models()
    with pytest.raises(Exception, match="seq_len") as caught:
        export(theirs, False, strict)
    assert not isinstance(caught.value, AssertionError)


def test_packed() -> None:
    """Packed data with a dynamic number of rows and steps; its batch is read from batch_sizes."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru_ext.GRU(3, 5, bidirectional=True)

        def forward(self, data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
            output, h_n = self.gru(PackedSequence(data, batch_sizes))
            return output.data, h_n

    model = Packed().eval()
    shapes = {"data": {0: Dim.DYNAMIC}, "batch_sizes": {0: Dim.DYNAMIC}}
    program = torch.export.export(
        model, (torch.randn(7, 3), torch.tensor([3, 2, 2])), dynamic_shapes=shapes, strict=False
    )
    for sizes in ([3, 2, 2], [4, 4, 1, 1]):
        inputs = torch.randn(sum(sizes), 3), torch.tensor(sizes)
        torch.testing.assert_close(program.module()(*inputs), model(*inputs))


RUN = """
import sys, torch
package, library, numbers = sys.argv[1:]
assert "gru_ext" not in sys.modules
torch.ops.load_library(library)
model = torch._inductor.aoti_load_package(package)
for given, expected in torch.load(numbers):
    for result, other in zip(model(*given), expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-5, atol=1e-6)
assert not any(name.startswith("gru_ext") for name in sys.modules), "gru_ext was imported"
print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++")
def test_aoti_package_without_our_python(tmp_path: Path) -> None:
    """Compiled to a package, loaded and run where only the compiled library is loaded, none of our Python."""
    _, model = models()
    with torch.no_grad():
        program = export(model, True, False)
        package = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(tmp_path / "model.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # the quickest to compile
        )
        numbers = []
        for batch, seq_len in [*SIZES, (1, 1)]:
            inputs = torch.randn(batch, seq_len, 3), torch.randn(4, batch, 5)
            numbers.append((inputs, model(*inputs)))
    torch.save(numbers, tmp_path / "numbers.pt")
    script = tmp_path / "run.py"
    script.write_text(RUN)
    code = f"import runpy, sys; sys.argv[:] = {[str(script), package, ops.LIBRARY, str(tmp_path / 'numbers.pt')]!r}; "
    assert "same" in check_python(code + "runpy.run_path(sys.argv[0])", cwd=tmp_path, timeout=300)
