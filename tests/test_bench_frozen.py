"""``python -m gru_ext bench --frozen``: every way is timed and compared with float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import LARGE

from gru_ext.__main__ import main
from gru_ext.measure import frozen
from gru_ext.measure.frozen import FrozenMeasurement
from gru_ext.measure.measurements import read_csv
from gru_ext.text import installed

Captured = pytest.CaptureFixture[str]
QUICK = ["bench", "--frozen", "--spread", "0", "--seconds", "0"]


def test_a_cell(tmp_path: Path, capsys: Captured) -> None:
    """Times, errors and bytes of every way, in the CSV and in two tables; ONNX Runtime where it is installed."""
    file = tmp_path / "frozen.csv"
    sizes = "--batch 1 --time 3 --input-size 8 --hidden-size 40 --layers 2".split()
    assert main([*QUICK, *sizes, "--csv", str(file)]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if str(file) not in line) <= 80, shown
    (row,) = read_csv(file, FrozenMeasurement)
    assert row.num_layers == 2
    assert row.gru_ext_bytes == 4 * 3 * 40 * (8 + 40 + 40 + 40 + 4)
    assert 0.24 * row.gru_ext_bytes < row.int8_bytes < row.bfloat16_bytes < row.float32_bytes
    assert row.float32_error < 1e-6 < row.bfloat16_error < row.int8_error < 0.1
    assert row.torch_ao_error > row.bfloat16_error
    for way in frozen.WAYS:
        if way != "onnxruntime" or all(map(installed, frozen.NEEDS)):
            assert getattr(row, f"{way}_ms") > 0
    assert "geometric mean" in shown


def test_as_json(capsys: Captured) -> None:
    """One object for a program."""
    assert main([*QUICK, "--shapes", "2,1,8,8", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["measurements"]
    assert row["int8_ms"] > 0


@pytest.mark.parametrize("words", ["--dtype bfloat16", "--training", "--plots x", "--resets 3", "--layout lengths"])
def test_what_it_cannot_measure(words: str, capsys: Captured) -> None:
    """One sentence."""
    assert main([*QUICK, *words.split()]) == 2
    assert "--frozen" in capsys.readouterr().err


def test_without_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes are one sequence of 1, 20 and 100 steps, and each fits the table."""
    assert {shape[0] for shape in frozen.SHAPES} == {1}
    assert {shape[1] for shape in frozen.SHAPES} == {1, 20, 100}
    assert max(shape[3] for shape in frozen.SHAPES) <= LARGE[3]


def test_a_frozen_model_is_refused(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workloads would be measured unfrozen; --frozen takes the model as it was, and freezes its layers."""
    import lifted

    from gru_ext import freeze

    model, data = lifted.tagger()
    monkeypatch.setattr(lifted, "tagger", lambda: (freeze(model), data))
    assert main(["bench", "--model", "lifted:tagger", "--quick"]) == 2
    assert "is frozen: name the model" in capsys.readouterr().err
    monkeypatch.setattr(lifted, "tagger", lambda: (model, data))
    assert main([*QUICK, "--model", "lifted:tagger"]) == 0
