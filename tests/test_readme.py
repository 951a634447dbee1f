"""What the README shows of results: tables of floors and of peers, and the example of a profile."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import readme_profile
import readme_table
from test_floor import WITHOUT, measurement
from test_peers import ROW, SLOWER
from test_roofline import FACTS

from gru_ext.measure import measurements
from gru_ext.measure.floor import READING
from gru_ext.measure.measurements import write_csv
from gru_ext.measure.profiling import MemoryProfile, PassProfile, Profile


def test_floors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more table for each dtype whose rows have floors, and the peaks they rest on; for older rows nothing."""
    rows = [
        measurement(),
        measurement(mode="training", floor_ms=0.25, floor_cause=READING),
        measurement(dtype="bfloat16"),
    ]
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path)
    write_csv(tmp_path / "cpu.csv", [replace(row, **WITHOUT) for row in rows])  # type: ignore[arg-type]
    old = readme_table.results()
    assert "floor" not in old
    write_csv(tmp_path / "cpu.csv", rows)
    new = readme_table.results()
    assert new.startswith(old), "a floor changes nothing of what is there without"
    added = new[len(old) :]
    assert "| (32,128,256,256) | 1.25 | (20.0) w |" in added
    assert "| float32, time over floor: (B,T,I,H) |" in added and "| bfloat16, time over floor: (B,T,I,H) |" in added
    assert "1 thread: float32 125, bfloat16 125" in added


def test_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of peers is a table of its own, behind those of compare.py's files."""
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path)
    assert "No measurement" in readme_table.results()
    measurements.write_csv(tmp_path / "a-peers.csv", [ROW, SLOWER])
    shown = readme_table.results()
    assert "[All figures](benchmarks/results/a-peers.csv)" in shown and ROW.peer_version in shown
    assert "| onnxruntime, bfloat16, forward + backward | **0.50** | 0.50, 0.50 | **1998.50** |" in shown
    committed = Path(readme_table.__file__).with_name("results") / "cpu.csv"
    (tmp_path / "cpu.csv").write_bytes(committed.read_bytes())
    both = readme_table.results()
    assert both.index("cpu.csv") < both.index("a-peers.csv") and both.endswith(shown)


def test_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The example is what the committed run printed; a README that says something else is found."""
    entry = PassProfile(
        "gru_forward_avx2 fp32 T=100 B=8 I=80 H=256 D=1, 1 thread", "forward", 10, 40.0, 0.8, 10**8, 10**7
    )
    memory = {"gru_ext": MemoryProfile(2**20, 2**20, 2**21), "nn.GRU": MemoryProfile(2**21, None, 2**22)}
    made = Profile("cpu", True, 2, 10, 50.0, (entry,), (), memory)
    report: dict[str, Any] = {"title": "GRU, float32", **FACTS, **made.to_dict()}
    assert Profile.from_dict(json.loads(json.dumps(report))) == made
    (tmp_path / "cpu.json").write_text(json.dumps([report]))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{readme_profile.BEGIN}\n{readme_profile.END}\nafter\n")
    monkeypatch.setattr(readme_profile, "RESULT", tmp_path / "cpu.json")
    monkeypatch.setattr(readme_profile, "README", readme)
    monkeypatch.setattr(sys, "argv", ["readme_profile", "--check"])
    assert readme_profile.main() == 1
    monkeypatch.setattr(sys, "argv", ["readme_profile"])
    assert readme_profile.main() == 0
    text = readme.read_text()
    for words in ("python -m gru_ext profile --batch 8", "gru_forward_avx2", "4.00 ms", "1 MiB", "commit 0123456789ab"):
        assert words in text, words
    assert text.startswith("before\n") and text.endswith("after\n")
    monkeypatch.setattr(sys, "argv", ["readme_profile", "--check"])
    assert readme_profile.main() == 0
    readme.write_text("no markers")
    assert readme_profile.main() == 1 and "needs the lines" in capsys.readouterr().err
