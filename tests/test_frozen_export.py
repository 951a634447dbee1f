"""Frozen models in graphs: torch.export, torch.compile, and an AOTInductor package."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from processes import check_python
from test_frozen_models import FORMATS, Model
from torch import Tensor, nn

import gru_ext
from gru_ext import ops


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("weights", FORMATS)
def test_export(weights: str, strict: bool) -> None:
    """torch.export gives a program of any batch and length, that can be saved, with the same bits; so does compile."""
    frozen, data = gru_ext.freeze(Model(), weights), torch.randn(3, 7, 12)
    batch, seq_len = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("seq_len", min=1, max=512)
    program = torch.export.export(frozen, (data,), dynamic_shapes={"input": {0: batch, 1: seq_len}}, strict=strict)
    assert [node.target for node in program.graph.nodes].count(ops.forward) == 4
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    for shape in ((1, 1, 12), (4, 9, 12)):
        other = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(loaded(other), frozen(other))
            assert torch.equal(compiled(other), frozen(other))


RUN = """
import sys, torch
package, library, numbers = sys.argv[1:]
torch.ops.load_library(library)
model = torch._inductor.aoti_load_package(package)
data, expected = torch.load(numbers)
assert torch.equal(model(data), expected)
assert not any(name.startswith("gru_ext") for name in sys.modules), "gru_ext was imported"
print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++")
def test_aoti_package(tmp_path: Path) -> None:
    """Compiled to a package, it runs where only the compiled library is loaded."""
    frozen, data = gru_ext.freeze(nn.Sequential(nn.GRU(5, 20)), "int8")[0], torch.randn(4, 2, 5)
    with torch.no_grad():

        class First(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gru = frozen

            def forward(self, input: Tensor) -> Tensor:
                output: Tensor = self.gru(input)[0]
                return output

        package = torch._inductor.aoti_compile_and_package(
            torch.export.export(First(), (data,)),
            package_path=str(tmp_path / "model.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
        )
        torch.save((data, frozen(data)[0]), tmp_path / "numbers.pt")
    script = tmp_path / "run.py"
    script.write_text(RUN)
    code = f"import runpy, sys; sys.argv[:] = {[str(script), package, ops.LIBRARY, str(tmp_path / 'numbers.pt')]!r}; "
    assert "same" in check_python(code + "runpy.run_path(sys.argv[0])", cwd=tmp_path, timeout=300)
