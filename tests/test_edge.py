"""benchmarks/edge.py: a denoiser frozen loses next to nothing, and what the program prints and keeps."""

from __future__ import annotations

import csv
from pathlib import Path

import edge
import pytest


def test_denoiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After little training: losses within 1 % of nn.GRU's, a half and a quarter of the bytes, a row each."""
    path = tmp_path / "edge.csv"
    assert edge.main(["--frames", "300", "--steps", "12", "--csv", str(path)]) == 0
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ["nn.GRU", "gru_ext.GRU", "frozen float32", "frozen bfloat16", "frozen int8"]
    assert [row["model"] for row in rows] == names
    loss, weights = float(rows[0]["loss"]), int(rows[0]["weight_bytes"])
    for row, share, error in zip(rows, (1, 1, 1.01, 0.51, 0.27), (1e-5, 1e-5, 1e-5, 0.01, 0.05), strict=True):
        assert abs(float(row["loss"]) / loss - 1) < 0.01
        assert int(row["weight_bytes"]) <= share * weights
        assert float(row["error"]) < error
        assert int(row["frames"]) == 300
        assert 0 < float(row["p50_ms"]) <= float(row["p99_ms"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert max(map(len, printed.splitlines())) <= 100
