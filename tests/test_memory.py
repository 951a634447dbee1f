"""The measurement of memory: what is counted, the table, and the script from its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import training_memory
from processes import python
from rows import LARGE, row_of
from training_memory import MemoryMeasurement

from gru_ext.measure.measurements import is_kind, read_csv
from gru_ext.measure.memory import kept_bytes

SCRIPT = str(Path(training_memory.__file__).resolve())
ROW = row_of(
    MemoryMeasurement,
    LARGE,
    dtype="float32",
    mode="training",
    **{"torch_peak_mib": 20000.0, "gru_ext_peak_mib": 10000.0, "torch_kept_mib": 9000.0, "gru_ext_kept_mib": 3000.0},
)


@pytest.mark.parametrize("name", training_memory.MODULES)
def test_kept_bytes(name: str) -> None:
    """At least the gates of every step are kept; the parameters and the input are not counted."""
    batch, seq_len, hidden = 4, 50, 8
    module, data = training_memory.prepared(name, (batch, seq_len, 1000, hidden), torch.float32, False)
    state_of_all_steps = 4 * batch * seq_len * hidden
    most = 12 * state_of_all_steps
    assert min(data.nbytes, module.get_parameter("weight_ih_l0").nbytes) > most  # so that either would be noticed
    assert 4 * state_of_all_steps <= kept_bytes(module, (data,)) <= most


def test_table() -> None:
    """No line is wider than 80 columns; a peak too small to compare has no ratio."""
    lines = list(training_memory.table([ROW]))
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert lines[2].split()[1:] == ["20000.00", "10000.00", "2.00", "9000.00", "3000.00", "3.00"]
    assert training_memory.peak_ratio([MemoryMeasurement(**{**vars(ROW), "gru_ext_peak_mib": 0.5})]) == "-"
    assert training_memory.kept_ratio([MemoryMeasurement(**{**vars(ROW), "gru_ext_kept_mib": 0.0})]) == "-"


def test_script(tmp_path: Path) -> None:
    """Each module is measured in a process of its own; the CSV is of its own kind."""
    path = tmp_path / "memory.csv"
    done = python(SCRIPT, "--shapes", "16,64,32,64", "--dtypes", "float32", "--csv", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_csv(path, MemoryMeasurement)
    assert is_kind(path, MemoryMeasurement) and row.shape in done.stdout
    kept, gradients = row.torch_kept_mib, 16 * 64 * 32 * 4 / training_memory.MIB
    assert row.torch_peak_mib > kept + gradients > 1
    assert ("cannot count the peak anew" in done.stdout) == (not row.exact)
