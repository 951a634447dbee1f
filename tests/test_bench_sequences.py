"""``python -m gru_ext bench`` with lengths and resets: what it measures is checked first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gru_ext
from gru_ext.__main__ import main
from gru_ext.measure.measurements import SequenceMeasurement, read_csv

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("words", ["--layout lengths half-lengths", "--resets 3", "--resets 3 --bidirectional"])
def test_lengths_and_resets(words: str, tmp_path: Path, capsys: Captured) -> None:
    """Checked against nn.GRU packed or split by hand, then timed; every cell is in the CSV."""
    file = tmp_path / "measured.csv"
    arguments = f"--shapes 3,5,4,6 --threads 1 --spread 0 --seconds 0 {words} --csv {file}".split()
    assert main(["bench", *arguments]) == 0
    shown = capsys.readouterr().out
    rows = read_csv(file, SequenceMeasurement)
    assert len(rows) == 2 * (1 + ("half-lengths" in words))
    assert {row.by_hand for row in rows} <= {"packed", "padded"}
    for row in rows:
        assert row.ratio > 0 and row.saving > 0 and 0 < row.steps <= 15
    assert ("cost of at most 3%" if "--resets" in words else "gain of at least 1.5") in shown


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Lengths that reach the module wrong are noticed before the clock starts."""
    forward = gru_ext.GRU.forward

    def late(self: Any, input: Any, hx: Any = None, *, lengths: Any = None) -> Any:
        return forward(self, input, hx, lengths=None if lengths is None else lengths.clamp(min=2))

    monkeypatch.setattr(gru_ext.GRU, "forward", late)
    assert main(["bench", *"--shapes 3,5,4,6 --threads 1 --quick --layout half-lengths --inference".split()]) == 1
    assert "results differ by" in "".join(capsys.readouterr())
