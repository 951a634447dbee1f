"""``python -m gru_ext bench`` with lengths and resets: what it measures is checked first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rows import LARGE, quartiles, row_of

import gru_ext
from gru_ext.__main__ import main
from gru_ext.measure import harness, sequences, tables
from gru_ext.measure.measurements import SequenceMeasurement, read_csv
from gru_ext.measure.timing import Budget
from gru_ext.measure.workloads import GRUShape, Workload

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
    assert max(len(line) for line in shown.splitlines() if str(file) not in line) <= 80, shown


def test_lengths_are_drawn() -> None:
    """As many steps as packed input has, or half of all; in an order that is not theirs, and the same every time."""
    packed, lengths, half = (GRUShape(40, 100, 3, 4, layout=of) for of in ("packed", "lengths", "half-lengths"))
    assert sorted(lengths.padded_lengths, reverse=True) == list(packed.packed) != list(lengths.padded_lengths)
    assert (lengths.rows, half.rows) == (packed.rows, 40 * 100 // 2)
    assert half.padded_lengths == GRUShape(40, 100, 3, 4, layout="half-lengths").padded_lengths
    assert lengths.outer_sizes == (100, 40) and not packed.padded_lengths
    assert GRUShape(3, 1, 2, 2, layout="half-lengths").padded_lengths == (1, 1, 1)


@pytest.mark.parametrize(("bidirectional", "pack"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_split_by_hand(batch_first: bool, bidirectional: bool, pack: bool) -> None:
    """Piece by piece, every sequence alone."""
    module = torch.nn.GRU(3, 4, 1, batch_first=batch_first, bidirectional=bidirectional)
    data, resets = torch.randn(6, 5, 3), sequences.draw_resets((6, 5), 3, 0)
    assert resets[1:].any() and not resets.all()
    expected = torch.empty(6, 5, 8 if bidirectional else 4)
    for b in range(5):
        begins = [0, *(t for t in range(1, 6) if resets[t, b]), 6]
        for begin, end in zip(begins, begins[1:], strict=False):
            expected[begin:end, b] = module(data[begin:end, b])[0]
    arranged = [tensor.transpose(0, 1) if batch_first else tensor for tensor in (resets, data, expected)]
    output = sequences.split(module, arranged[0], pack, arranged[1])
    torch.testing.assert_close(output, arranged[2])


def measured(**values: Any) -> SequenceMeasurement:
    """A row, as wide as they are printed."""
    times = {f"{of}_ms": quartiles(f"{of}_ms", 99.95, 99.95, 99.95) for of in sequences.CONTESTANTS}
    columns = {name: time for of in times.values() for name, time in of.items()}
    columns |= quartiles("ratio", 50.25, 100.5, 200.5) | quartiles("saving", 1.5, 1.75, 2.0)
    usual = {"dtype": "bfloat16", "threads": 2, "mode": "training", "num_layers": 1, "bidirectional": 0, "resets": 0}
    return row_of(SequenceMeasurement, LARGE, **{**usual, **columns, **values})


def test_tables() -> None:
    """A table for each layout, no line wider than 80 columns; the worst cell is named."""
    rows = [measured(layout="lengths"), measured(layout="half-lengths", saving=1.5, gru_ext_plain_ms=9.995)]
    for table in tables.sequence_tables(rows):
        assert max(map(len, table.lines())) <= 80 and table.columns[-3:] == ["padded", "gain", "saving"]
    lines = list(tables.sequence_lines(harness.Run(rows)))
    assert max(map(len, lines)) <= 80
    at = f"bfloat16, 2 threads, training, half-lengths, {rows[1].title}"
    assert lines[-4:] == [
        "gain of at least 1.50: 2 of 2 cells; the least:",
        f"  10.05  {at}",
        "saving of at least 1.67: 0 of 1 half-lengths cells; the least:",
        f"  1.50  {at}",
    ]
    rows = [measured(resets=30, layout="time-first", saving=saving) for saving in (0.99, 0.8, 1.25)]
    (table,) = tables.sequence_tables(rows)
    assert [row[-1] for row in table.rows] == ["+1.0%", "+25.0%", "-20.0%"] and table.title.endswith("every 30 steps")
    *_, count, worst = tables.sequence_lines(harness.Run(rows))
    assert count == "cost of at most 3%: 2 of 3 cells; the most:" and worst.startswith("  +25.0%  bfloat16")


def test_the_faster_way_by_hand_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the pieces packed and the pieces padded; by turns run those four, by hand first, and again ours alone."""
    first: list[object] = []

    def timed(call: Any, calls: int, device: torch.device) -> float:
        first.append(call)
        return 3.0 - len(first)

    rounds: list[int] = []
    monkeypatch.setattr(sequences, "timed", timed)

    def by_turns(calls: list[Any], *_: Any) -> tuple[int, list[list[float]]]:
        rounds.append(len(calls))
        return 1, [[4.0], [2.0], [3.0], [1.0]] if len(calls) == 4 else [[5.0, 1.5, 4.0], [6.0, 9.0, 3.0]]

    monkeypatch.setattr(sequences, "by_turns", by_turns)
    workload = Workload("float32", 1, "inference", GRUShape(3, 5, 4, 6, resets=2))
    fields = sequences.measure_sequences(workload, Budget(0.0))
    assert fields["by_hand"] == "padded" and rounds == [4, 2]
    assert (fields["ratio"], fields["saving"], fields["torch_plain_ms"]) == (2.0, 0.5, 3.0)
    assert (fields["saving_q1"], fields["saving_q3"]) == (0.5, pytest.approx(13 / 12))


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Lengths that reach the module wrong are noticed before the clock starts."""
    forward = gru_ext.GRU.forward

    def late(self: Any, input: Any, hx: Any = None, *, lengths: Any = None) -> Any:
        return forward(self, input, hx, lengths=None if lengths is None else lengths.clamp(min=2))

    monkeypatch.setattr(gru_ext.GRU, "forward", late)
    assert main(["bench", *"--shapes 3,5,4,6 --threads 1 --quick --layout half-lengths --inference".split()]) == 1
    assert "results differ by" in "".join(capsys.readouterr())
