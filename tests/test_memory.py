"""The measurement of memory: what is counted, the table, and the script from its command line."""

from __future__ import annotations

from pathlib import Path

import memory
import pytest
import torch
from memory import MemoryMeasurement
from processes import python

from gru_ext.measure.measurements import is_kind, read_csv
from gru_ext.measure.memory import kept_bytes

SCRIPT = str(Path(memory.__file__).resolve())
ROW = MemoryMeasurement(
    device="cpu",
    dtype="float32",
    threads=1,
    mode="training",
    batch=100,
    seq_len=1000,
    input_size=1024,
    hidden_size=1024,
    layout="time-first",
    torch_peak_mib=20000.0,
    gru_ext_peak_mib=10000.0,
    torch_kept_mib=9000.0,
    gru_ext_kept_mib=3000.0,
    recompute=0,
    exact=1,
    date="2026-01-01",
    machine="CPU, 2 cores",
    system="Linux x86_64",
    python="3.11.0",
    torch="2.13.0",
    gru_ext="0.1.0",
    commit="0123456789ab",
)


@pytest.mark.parametrize("name", memory.MODULES)
def test_kept_bytes(name: str) -> None:
    """At least the gates of every step are kept; the parameters and the input are not counted."""
    batch, seq_len, hidden = 4, 50, 8
    module, data = memory.prepared(name, (batch, seq_len, 1000, hidden), torch.float32, False)
    state_of_all_steps = 4 * batch * seq_len * hidden
    most = 12 * state_of_all_steps
    assert min(data.nbytes, module.get_parameter("weight_ih_l0").nbytes) > most  # so that either would be noticed
    assert 4 * state_of_all_steps <= kept_bytes(module, (data,)) <= most


def test_table() -> None:
    """No line is wider than 80 columns; a peak too small to compare has no ratio."""
    lines = list(memory.table([ROW]))
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert lines[2].split()[1:] == ["20000.00", "10000.00", "2.00", "9000.00", "3000.00", "3.00"]
    assert memory.peak_ratio([MemoryMeasurement(**{**vars(ROW), "gru_ext_peak_mib": 0.5})]) == "-"
    assert memory.kept_ratio([MemoryMeasurement(**{**vars(ROW), "gru_ext_kept_mib": 0.0})]) == "-"


def test_script(tmp_path: Path) -> None:
    """Each module is measured in a process of its own; the CSV is of its own kind."""
    path = tmp_path / "memory.csv"
    done = python(SCRIPT, "--shapes", "16,64,32,64", "--dtypes", "float32", "--csv", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_csv(path, MemoryMeasurement)
    assert is_kind(path, MemoryMeasurement) and row.shape in done.stdout
    kept, gradients = row.torch_kept_mib, 16 * 64 * 32 * 4 / memory.MIB
    assert row.torch_peak_mib > kept + gradients > 1
    assert ("cannot count the peak anew" in done.stdout) == (not row.exact)
