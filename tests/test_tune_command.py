"""``python -m gru_ext tune``, on the emulated GPU: the table, the file, what is left out, and how a run ends."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from test_decision import chosen

import gru_ext
from gru_ext.__main__ import main
from gru_ext.commands import options
from gru_ext.commands import tune as command
from gru_ext.cuda import choices, tuning
from gru_ext.measure import harness
from gru_ext.measure.workloads import GRUShape, Workload

SMALL = ["tune", "--batch", "2", "--time", "3", "--input-size", "3", "--rounds", "1"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def cuda(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The emulated GPU is what --device cuda means: the options see a GPU, and modules and inputs stay on the CPU."""
    monkeypatch.setattr(options, "checked_device", torch.device)
    make_module, drawn = command.make_module, GRUShape.random_input
    cpu = torch.device("cpu")
    monkeypatch.setattr(command, "make_module", lambda kind, layer, _, dtype: make_module(kind, layer, cpu, dtype))
    monkeypatch.setattr(GRUShape, "random_input", lambda layer, _, dtype: drawn(layer, cpu, dtype))
    monkeypatch.setattr(command, "facts", lambda _: {"machine": "emulated H100"})
    return gpu


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate takes half of the time of the one before, so that the last is the fastest."""
    count = iter(range(10**6))
    monkeypatch.setattr(tuning, "_milliseconds", lambda call, _: (call(), 2.0 ** -(next(count) % 3))[1])


@pytest.mark.usefixtures("faster")
def test_table_and_file(cuda: ModuleType, tmp_path: Path, capsys: Captured) -> None:
    """A row for each cell, in every mode and dtype; the same in the file, and used from then on."""
    file = tmp_path / "choices.json"
    assert main([*SMALL, "--hidden-size", "4", "17", "--dtype", "float32", "bfloat16", "--save", str(file)]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith("(2,3,3,")]
    assert [row[:4] for row in rows] == [
        [f"(2,3,3,{size})", dtype, mode, "stationary"]
        for dtype in ("float32", "bfloat16")
        for mode in ("inference", "training")
        for size in (4, 17)
    ]
    assert {tuple(row[4:]) for row in rows} == {("250", "us", "1.00", "ms", "4.00")}
    assert out.startswith("emulated H100") and f"GRU_EXT_CUDA_CHOICES={file}" in out
    assert [(kept.dtype, kept.training, kept.hidden_size, kept.ratio) for kept in choices.read(file)] == [
        (row[1], row[2] == "training", int(row[0][7:-1]), 4.0) for row in rows
    ]
    assert chosen((torch.bfloat16, 2, 17, 1, False, True)) == "stationary"


@pytest.mark.usefixtures("cuda", "faster")
@pytest.mark.parametrize("width", ["80", "120"])
def test_table_keeps_to_the_width(width: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stacked layers both ways, packed, with large sizes in their names."""
    monkeypatch.setenv("COLUMNS", width)
    words = "--batch 3 --hidden-size 5 --layers 2 --bidirectional --layout packed --inference".split()
    assert main(["tune", "--time", "4", "--input-size", "3", "--rounds", "1", *words]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= int(width) and "bi packed" in " ".join(out.split())
    assert "not kept: give --save FILE" in out


@pytest.mark.usefixtures("cuda")
def test_wrong_kernels_are_named(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """In a line of their own, for the table has what may be used; in JSON as candidates without a time."""
    sizes = [*SMALL, "--hidden-size", "4", "--inference"]
    times = {"library": 2.0, "step": None, "stationary": None}
    tried = tuple(tuning.Candidate(kernel, time, 0.5 if time else 2.0) for kernel, time in times.items())
    tuning_of_cell = gru_ext.Tuning("library", tried, False)
    monkeypatch.setattr(gru_ext, "tune", lambda *_, **__: tuning_of_cell)
    assert main(sizes) == 0
    out = capsys.readouterr().out
    assert "wrong results, not used: step, stationary in float32 inference (2,3,3,4)" in out and "  library  " in out
    assert main([*sizes, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (cell,) = report["choices"]
    assert report["complete"] and not report["failures"] and (cell["kernel"], cell["ratio"]) == ("library", 1.0)
    assert [candidate["milliseconds"] for candidate in cell["candidates"]] == [2.0, None, None]
    assert (cell["batch"], cell["seq_len"], cell["input_size"], cell["hidden_size"]) == (2, 3, 3, 4)


@pytest.mark.usefixtures("cuda", "faster")
def test_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Its GRUs are tuned as they are called; a GRUCell is left out, with a note."""
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "shapes.txt").write_text("2,3,3,4\n", encoding="utf-8")
    assert main(["tune", "--model", "lifted:tagger", "--rounds", "1", "--training"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "encoder (3,7,5,6) x2 bi packed float32 training stationary" in out
    assert "left out, a GRUCell: decoder (3,1,12,4) cell; gru_ext.tune is for GRUs" in out
    assert main(["tune", "--file", str(tmp_path / "shapes.txt"), "--rounds", "1", "--json"]) == 0
    assert [cell["mode"] for cell in json.loads(capsys.readouterr().out)["choices"]] == ["inference", "training"]


@pytest.mark.usefixtures("cuda", "faster")
def test_run_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """A failed cell is named, and the exit code 1; interrupted, it is 130. What was tuned is shown, and in the file."""
    tune, file = gru_ext.tune, tmp_path / "choices.json"
    errors = {5: torch.OutOfMemoryError("CUDA out of memory\nmore"), 6: KeyboardInterrupt()}

    def tune_or_fail(module: Any, *rest: Any, **options: Any) -> gru_ext.Tuning:
        if module.hidden_size in errors:
            raise errors[module.hidden_size]
        return tune(module, *rest, **options)

    monkeypatch.setattr(gru_ext, "tune", tune_or_fail)
    failed = "failed: float32 inference (2,3,3,5): CUDA out of memory\n"
    assert main([*SMALL, "--hidden-size", "5", "--inference"]) == 1
    assert capsys.readouterr().out == failed  # and no table
    assert main([*SMALL, "--hidden-size", "4", "5", "6", "7", "--inference", "--save", str(file)]) == 130
    out, err = capsys.readouterr()
    assert "interrupted: 1 of 4 cells tuned" in err and "(2,3,3,4)" in out and failed in out and "(2,3,3,7)" not in out
    assert [choice.hidden_size for choice in choices.read(file)] == [4]


@pytest.mark.usefixtures("cuda", "faster")
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """One sentence and exit code 2."""
    (tmp_path / "other").write_text("mine", encoding="utf-8")
    bad = [
        (["--device", "cpu"], "--device is cpu"),
        (["--save", str(tmp_path / "other")], "no file of gru_ext.tune's"),
    ]
    for words, said in bad:
        assert main([*SMALL, "--hidden-size", "4", *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err and err.startswith("python -m gru_ext tune: ")
    cells = [Workload("float32", 1, "training", GRUShape(1, 1, 2, 3, cell=True, name="decoder"), torch.device("cuda"))]
    with monkeypatch.context() as patched:
        patched.setattr(options, "workloads", lambda *_, **__: cells)
        assert main(["tune"]) == 2
    assert "there are only GRUCells: decoder (1,1,2,3) cell" in capsys.readouterr().err
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "step")
    assert main(SMALL) == 2 and "GRU_EXT_CUDA_KERNEL is set" in capsys.readouterr().err


@pytest.mark.usefixtures("cuda", "faster")
def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar, which names each cell and goes on by one."""
    bar = Mock()
    monkeypatch.setattr(harness, "progress_bar", lambda total: bar if total == 2 else None)
    assert main([*SMALL, "--hidden-size", "4"]) == 0
    cells = [call.set_description(f"float32 {mode} (2,3,3,4)") for mode in ("inference", "training")]
    assert bar.mock_calls == [cells[0], call.update(), cells[1], call.update(), call.close()]
