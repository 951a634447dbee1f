"""``python -m gru_ext bench``: what is measured, when that ends, what an interrupted run keeps, files, plots."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from processes import python
from rows import LARGE, quartiles, row_of

from gru_ext import text
from gru_ext.__main__ import main
from gru_ext.commands import bench, options
from gru_ext.commands.options import read_shapes
from gru_ext.measure import BadInput, against, harness, machine, memory, tables, timing
from gru_ext.measure.floor import Machine
from gru_ext.measure.measurements import Measurement, MemoryMeasurement, read_csv
from gru_ext.measure.timing import Budget
from gru_ext.measure.workloads import MODES, SHAPES, GRUShape, Workload, parse_shape

Captured = pytest.CaptureFixture[str]


def fake_measure(workload: Workload, budget: Budget, lstm: bool = False, seed: int = 0) -> dict[str, Any]:
    """Times that follow from the workload, at once."""
    time = float(workload.gru.rows * workload.gru.hidden_size) * (3 if workload.mode == "training" else 1) / 1e4
    fields: dict[str, Any] = {"rounds": 7, "calls": 1, "largest_difference": 1e-7, **quartiles("ratio", 1.9, 2.0, 2.1)}
    for name, factor in (("torch", 2.0), ("gru_ext", 1.0), *((("lstm", 3.0),) if lstm else ())):
        fields |= quartiles(f"{name}_ms", *[factor * time] * 3)
    return fields


class Clock:
    """In place of timing.measure: keeps the workloads and options, and fails for GRUs of some hidden sizes."""

    def __init__(self) -> None:
        self.workloads: list[Workload] = []
        self.options: set[tuple[Budget, bool]] = set()
        self.failures: dict[int, BaseException] = {}

    def measure(self, workload: Workload, budget: Budget, lstm: bool = False, seed: int = 0) -> dict[str, Any]:
        if workload.gru.hidden_size in self.failures:
            raise self.failures[workload.gru.hidden_size]
        self.workloads.append(workload)
        self.options.add((budget, lstm))
        return fake_measure(workload, budget, lstm, seed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """No time is read: times and peaks are made up."""
    clock = Clock()
    monkeypatch.setattr(harness, "measure", clock.measure)
    monkeypatch.setattr(harness, "Machine", lambda: Machine(lambda *_: 1e10, lambda *_: 1e11))
    monkeypatch.setattr(text, "_hinted", set())
    return clock


def test_measured(tmp_path: Path) -> None:
    """A real run, of a packed bidirectional stack: right results, three contestants, a CSV that is read again."""
    file = tmp_path / "out.csv"
    words = "--batch 4 --time 6 --input-size 3 --hidden-size 5 --layers 2 --layout packed --bidirectional --threads 1"
    more = ["--seconds", "0", "--no-floor", "--csv", str(file), "--json"]
    done = python("-m", "gru_ext", "bench", *words.split(), *more)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["complete"] and not report["failures"] and report["facts"]["torch"] == torch.__version__
    rows = read_csv(file, Measurement)
    modes = [row.mode for row in rows], [entry["mode"] for entry in report["measurements"]]
    assert modes == (["inference", "training"],) * 2
    for row in rows:
        assert (row.layout, row.num_layers, row.bidirectional, row.floor_ms) == ("packed", 2, 1, None)
        assert row.largest_difference < 1e-5 and row.lstm_ms and row.rounds >= timing.LEAST_ROUNDS
        assert row.title == "(4,6,3,5) x2 bi packed"


def test_standard_preset(clock: Clock) -> None:
    """Eleven shapes, both dtypes, thread counts and modes, all of the time, without LSTM."""
    assert main(["bench", "--preset", "standard"]) == 0
    assert clock.options == {(Budget(4.0, timing.LEAST_ROUNDS, 0.0), False)}
    assert clock.workloads == [
        Workload(dtype, threads, mode, GRUShape(*shape))
        for dtype in ("float32", "bfloat16")
        for threads in (1, 2)
        for mode in MODES
        for shape in SHAPES
    ]


@pytest.mark.parametrize(
    ("words", "budget", "lstm", "cells"),
    [
        ("--preset standard --quick --threads 1 --recompute", Budget(0.2, 3, 0.0), False, 22),
        ("--preset standard --shapes 1,2,3,4 --seconds 9 --spread 0.1 --lstm", Budget(9.0, 7, 0.1), True, 8),
        ("--quick --seconds 0.1 --shapes 1,2,3,4 5,6,7,8", Budget(0.1, 3, 0.0), True, 4),
        ("--no-lstm --recompute --training", Budget(4.0, 7, 0.05), False, 2),
        ("--quick --seconds 9 --no-lstm", Budget(9.0, 3, 0.0), False, 2),
    ],
)
def test_options_replace_parts(clock: Clock, words: str, budget: Budget, lstm: bool, cells: int) -> None:
    """Of the preset, and of what is usual."""
    assert main(["bench", *words.split()]) == 0
    assert (clock.options, len(clock.workloads)) == ({(budget, lstm)}, cells)
    recompute = {workload.mode for workload in clock.workloads} & {"recompute"}
    assert bool(recompute) == ("--recompute" in words)


def test_gpu_workloads(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shape by shape, by graphs, with what TF32 may mean; a thread count makes no difference."""
    monkeypatch.setattr(options, "checked_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(bench, "facts", lambda _: machine.facts(torch.device("cpu")) | {"compute_capability": "9.0"})
    words = "--shapes 1,2,3,4 5,6,7,8 --device cuda --graph --dtype tf32 float32-vs-tf32 --inference --threads 1 2"
    assert main(["bench", *words.split()]) == 0
    assert [(workload.gru.batch, workload.dtype) for workload in clock.workloads] == [
        (1, "tf32"), (1, "float32-vs-tf32"), (5, "tf32"), (5, "float32-vs-tf32"),
    ]  # fmt: skip
    assert all(workload.graph and workload.threads == torch.get_num_threads() for workload in clock.workloads)


def test_recompute_and_equal_weights() -> None:
    """Ours alone keeps the states alone; both have the same weights."""
    for mode in ("training", "recompute"):
        (theirs, ours), _ = timing.contestants(Workload("float32", 1, mode, GRUShape(2, 3, 4, 5, layout="packed")))
        assert ours.recompute == (mode == "recompute") and not hasattr(theirs, "recompute")
        assert all(map(torch.equal, theirs.parameters(), ours.parameters()))


def test_memory(tmp_path: Path) -> None:
    """Each module's peak is of a process of its own; the CSV is of its own kind, and so are its ratios."""
    path = tmp_path / "memory.csv"
    done = python("-m", "gru_ext", "bench", "--memory", "--shapes", "16,64,32,64", "--csv", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_csv(path, MemoryMeasurement)
    assert (row.threads, row.mode, row.recompute) == (1, "training", 0) and row.shape in done.stdout
    kept, gradients = row.torch_kept_mib, 16 * 64 * 32 * 4 / memory.MIB
    assert row.torch_peak_mib > kept + gradients > 1 and "geometric mean" in done.stdout
    assert ("cannot count the peak anew" in done.stdout) == (not row.exact)


def test_memory_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and input are those of --seed."""
    seeds: list[int] = []
    monkeypatch.setattr(
        memory, "contestants", lambda workload, seed: seeds.append(seed) or timing.contestants(workload)
    )
    monkeypatch.setattr(memory, "peak", lambda *_: memory.Peak(1, True))
    for words in (["--seed", "3"], []):
        assert main(["bench", "--memory", "--shapes", "1,2,3,4", *words]) == 0
    assert seeds == [3, 0]


def test_memory_table() -> None:
    """No line is wider than 80 columns; what is too small to compare has no ratio."""
    sizes = {"torch_peak_mib": 20000.0, "gru_ext_peak_mib": 10000.0, "torch_kept_mib": 9000.0, "gru_ext_kept_mib": 3e3}
    row = row_of(MemoryMeasurement, LARGE, dtype="float32", mode="training", exact=0, **sizes)
    (table,) = tables.memory_tables([row, row])
    assert max(map(len, table.lines())) <= 80 and "cannot count the peak anew" in table.notes[1]
    assert table.rows[0][1:] == ["20000.00", "10000.00", "2.00", "9000.00", "3000.00", "3.00"]
    assert [table.rows[2][at] for at in (3, 6)] == ["2.00", "3.00"]
    assert tables.memory_ratio([replace(row, gru_ext_peak_mib=0.5)], "peak") == "-"
    assert tables.memory_ratio([replace(row, gru_ext_kept_mib=0.0)], "kept") == "-"


@pytest.mark.parametrize("kind", [0, 1])
def test_kept_bytes(kind: int) -> None:
    """At least the gates of every step are kept; the parameters and the input are not counted."""
    modules, data = timing.contestants(Workload("float32", 1, "training", GRUShape(4, 50, 1000, 8)))
    assert isinstance(data, torch.Tensor)
    states = 4 * 4 * 50 * 8
    assert min(data.nbytes, modules[kind].get_parameter("weight_ih_l0").nbytes) > 12 * states  # either would be noticed
    assert 4 * states <= memory.kept_bytes(modules[kind], (data.requires_grad_(),)) <= 12 * states


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A checkout from before there was anything but the modules, which are torch's."""
    (tmp_path / "gru_ext").mkdir()
    (tmp_path / "gru_ext" / "__init__.py").write_text("from torch.nn import GRU, GRUCell\n", encoding="utf-8")
    (tmp_path / "gru_ext" / "_C.cpython.so").touch()
    return tmp_path


OPTIONS = argparse.ArgumentParser(add_help=False)
bench.add_arguments(OPTIONS)
SIZES = "--batch --time --input-size --hidden-size --layers --shapes --file --bidirectional --layout --dtype --threads"
TAKEN = {  # the options that change something
    "": " ".join(option for action in OPTIONS._actions for option in action.option_strings),
    "--memory": f"{SIZES} --model --device --json --preset --recompute --training --seed --csv --memory",
    "--against .": f"{SIZES} --json --preset --quick --seconds --rounds --against --bits",
    "--against . --bits avx2": "--threads --json --against --bits",
    **{
        of: f"{SIZES} --device --json --preset --quick --seconds --spread --recompute --training --inference --seed "
        f"--csv {of.split()[0]}"
        for of in ("--resets 5", "--layout lengths")
    },
}
TAKEN[""] = TAKEN[""].replace("--rounds --bits", "")


@pytest.mark.parametrize("measured", TAKEN)
@pytest.mark.parametrize("action", OPTIONS._actions, ids=lambda action: action.option_strings[0])
def test_no_option_is_ignored(
    measured: str, action: argparse.Action, before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would change nothing is refused by its name, even where its value is the default."""
    monkeypatch.chdir(before)
    for option in action.option_strings:
        value = "1,2,3,4" if action.type is parse_shape else [*(action.choices or [action.default or "1"])][0]
        words = [*measured.split(), option, *([] if action.nargs == 0 else [str(value)])]
        if option in ("--against", "--plots"):
            words[-1] = "."
        arguments = OPTIONS.parse_args(words, argparse.Namespace(command="bench"))
        if option in TAKEN[measured].split():
            bench.check(arguments)
        else:
            with pytest.raises(
                BadInput, match=f"^({option}|--memory|--resets|--layout lengths) (needs|cannot be combined with) --"
            ):
                bench.check(arguments)


def test_quick_and_preset_against(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--quick is a few short rounds; --preset also says which dtypes and thread counts, but for --memory's one."""
    shown: list[Any] = []
    monkeypatch.setattr(against, "show_times", lambda _, workloads, *rest: shown.append((len(workloads), *rest)) or 0)
    for words in ("--quick", "--quick --rounds 20 --seconds 0", "--preset standard"):
        assert main(["bench", "--against", str(before), *words.split()]) == 0
    expected = [(3, 3, 0.2), (3, 20, 0.0), (4 * len(SHAPES), 20, 0.5)]
    assert shown == [(*of, False) for of in expected]


def test_against(before: Path, capsys: Captured) -> None:
    """Another gru_ext in processes: modules and cells, in three modes; torch's are the slower ones."""
    words = ["--against", str(before), "--shapes", "1,1,16,16", "--rounds", "2", "--seconds", "0"]
    assert main(["bench", *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = [f"{module} {mode}" for module in ("GRU", "GRUCell") for mode in ("inference", "forward", "training")]
    assert [row["call"] for row in report["measurements"]] == names and report["complete"]
    assert all(row["before_ms"] > row["after_ms"] > 0 for row in report["measurements"] if row["call"][:4] == "GRU ")


def test_rounds_against(before: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """By turns in alternating order; the ratio is after over before; a failing process fails its workload."""
    order: list[bool] = []

    def results_of(checkout: Path, task: list[Any]) -> dict[str, float]:
        if task[1][0] == 7:
            raise RuntimeError("no memory")
        order.append(checkout == before)
        return {"GRU inference": 2.0 + len(order) if checkout == before else 1.5}

    monkeypatch.setattr(against, "results_of", results_of)
    words = ["--against", str(before), "--shapes", "1,1,4,4", "7,1,4,4", "--rounds", "2"]
    assert main(["bench", *words]) == 1
    assert order == [True, False, False, True]
    out = capsys.readouterr().out
    assert re.search(r"\(1,1,4,4\) GRU inference +3\.00 ms +1\.50 ms +0\.312 0\.375 0\.438", out), out
    assert "failed: float32 1t training (7,1,4,4): no memory" in out and max(map(len, out.splitlines())) <= 80


def test_bits_against(before: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """The same code has the same bits; one that differs is named, and the exit code is 1."""
    assert main(["bench", "--against", str(against.ROOT), "--bits", "portable"]) == 0
    assert "portable, 1 thread: 240 of 240 results are the same" in capsys.readouterr().out
    monkeypatch.setattr(against, "results_of", lambda checkout, _: {"a": "0", "b": str(checkout == before)})
    assert main(["bench", "--against", str(before), "--bits", "--threads", "1", "2"]) == 1
    out = capsys.readouterr().out
    assert out.count("1 of 2 results are the same\n  not b\n") == 2 * len(against._C.cpu_targets())


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_cells_are_measured(mode: str) -> None:
    """GRUCells against each other, and LSTMCell."""
    fields = timing.measure(Workload("float32", 1, mode, GRUShape(3, 1, 4, 5, cell=True)), Budget(0.0), lstm=True)
    assert fields["largest_difference"] < 1e-5 and fields["lstm_ms"] > 0
    assert fields["ratio_q1"] <= fields["ratio_q3"] and fields["ratio"] > 0


def test_budget() -> None:
    """Rounds end by spread or by time, not before the least number of them; without a spread all time is used."""
    near, far = [1.0, 1.01] * 4, [1.0, 1.5] * 4
    budget = Budget(seconds=4, least_rounds=7, spread=0.05)
    assert not budget.spent(near[:6], 1) and budget.spent(near, 1)
    assert not budget.spent(far, 1) and budget.spent(far, 4)
    assert not Budget(seconds=4).spent(near, 1) and not Budget(seconds=4).spent([1.0] * 8, 1)
    assert not budget.spent(far[:6], 5) and budget.spent(far[:3], timing.LONG_SECONDS)
    assert Budget(seconds=1e9).spent([1.0] * timing.MOST_ROUNDS, 0)


def test_rounds_go_on_until_the_spread_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three contestants by turns, in alternating order."""
    timed = Mock(side_effect=[*[1.0, 2.0, 3.0, 3.0, 3.0, 1.0] * 3, *[1.0, 1.0, 1.0] * 100])
    monkeypatch.setattr(timing, "timed", timed)
    monkeypatch.setattr(timing, "warm_up", lambda call, device: 1)
    workload = Workload("float32", 1, "inference", GRUShape(2, 3, 4, 5))
    fields = timing.measure(workload, Budget(1e9, spread=0.01), lstm=True)
    order = [call.args[0] for call in timed.mock_calls[:6]]
    assert order[:3] == order[:2:-1] and len(set(order)) == 3
    assert fields["rounds"] > timing.LEAST_ROUNDS and fields["ratio_q1"] == fields["ratio_q3"] == 1.0


def test_interrupted_run_keeps_what_it_has(tmp_path: Path, capsys: Captured, clock: Clock) -> None:
    """Exit code 130; CSV, table and JSON of the workloads before."""
    clock.failures[16] = KeyboardInterrupt()
    file = tmp_path / "out.csv"
    sizes = ["bench", "--hidden-size", "4", "8", "16", "32", "--inference", "--csv", str(file)]
    assert main(sizes) == 130
    out, err = capsys.readouterr()
    assert "interrupted: 2 of 4 cells measured" in err and "(32,100,64,8)" in out and f"written: {file}" in out
    assert [row.hidden_size for row in read_csv(file, Measurement)] == [4, 8]
    assert main([*sizes, "--json"]) == 130
    report = json.loads(capsys.readouterr().out)
    assert not report["complete"] and len(report["measurements"]) == 2


def test_failed_cell_does_not_end_the_run(capsys: Captured, clock: Clock) -> None:
    """Such as for want of memory: it is named, the others are measured, and the exit code is 1."""
    clock.failures[8] = RuntimeError("can't allocate memory\nmore")
    assert main(["bench", "--hidden-size", "8", "16", "--inference", "--threads", "1"]) == 1
    out = capsys.readouterr().out
    assert "failed: float32 1t inference (32,100,64,8): can't allocate memory\n" in out and "(32,100,64,16)" in out


def test_no_memory_for_the_peaks(monkeypatch: pytest.MonkeyPatch, capsys: Captured, clock: Clock) -> None:
    """Then there is no floor, and the workloads are measured all the same."""
    monkeypatch.setattr(harness, "Machine", lambda: Machine(lambda *_: 1e10, lambda *_: bytearray(2**62) and 0.0))
    assert main(["bench", "--inference"]) == 0
    out = capsys.readouterr().out
    assert "no floor: there is no memory" in out and "(32,100,64,128)" in out


def test_model(capsys: Captured, clock: Clock) -> None:
    """Shapes lifted from a model, by name; its packed input stays packed."""
    assert main(["bench", "--model", "lifted:tagger", "--training", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["measurements"]
    assert [(entry["name"], entry["layout"], entry["bidirectional"], entry["cell"]) for entry in report] == [
        ("encoder", "packed", 1, 0),
        ("decoder", "time-first", 0, 1),
    ]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_table_fits(columns: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured, clock: Clock) -> None:
    """No line is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["bench", "--hidden-size", "64", "512", "--dtype", "float32", "bfloat16", "--threads", "1", "2"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= int(columns), out
    assert out.count("nn.LSTM") == 8 and "of floor" in out
    assert main(["bench", "--no-lstm", "--no-floor"]) == 0
    out = capsys.readouterr().out
    assert "nn.LSTM" not in out and "floor" not in out


def test_without_optional_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, clock: Clock
) -> None:
    """Plain text, no bar, no plots, exit code 0, and what to install."""
    for package in ("rich", "tqdm", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main(["bench", "--plots", str(tmp_path / "plots"), "--csv", str(tmp_path / "out.csv")]) == 0
    out, err = capsys.readouterr()
    assert "(32,100,64,128)" in out and (tmp_path / "out.csv").is_file()
    assert "missing: matplotlib" in err and "missing: rich, tqdm" in err and "pip install 'gru_ext[bench]'" in err
    assert not list((tmp_path / "plots").iterdir())


def test_plots(tmp_path: Path, capsys: Captured, clock: Clock) -> None:
    """Time over each size that varies, ratios, floors: SVG and PNG, named in the output."""
    pytest.importorskip("matplotlib")
    words = ["--batch", "1", "8", "--time", "10", "20", "40", "--hidden-size", "16", "64", "--threads", "1"]
    assert main(["bench", *words, "--plots", str(tmp_path)]) == 0
    names = ["time-over-batch", "time-over-time", "time-over-hidden-size", "ratio", "over-floor"]
    expected = {f"{name}.{ending}" for name in names for ending in ("svg", "png")}
    assert {path.name for path in tmp_path.iterdir()} == expected
    out = capsys.readouterr().out
    assert all(f"written: {tmp_path / name}" in out for name in expected)
    assert (tmp_path / "ratio.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "time-over-time.svg").read_text(encoding="utf-8")


def test_files_of_shapes(tmp_path: Path, capsys: Captured, clock: Clock) -> None:
    """Lines of four numbers, with comments; a CSV with its columns in any order and others besides; flags for all."""
    lines = tmp_path / "shapes.txt"
    lines.write_text("# B,T,I,H\n32,100,64,128\n\n(1, 2, 3, 4)\n32,100,64,128\n", encoding="utf-8")
    assert read_shapes(lines) == [GRUShape(32, 100, 64, 128), GRUShape(1, 2, 3, 4)]
    table = tmp_path / "shapes.csv"
    table.write_text(
        "name,hidden_size,batch,seq_len,input_size,num_layers,bidirectional\na,4,1,2,3,2,1\nb,8,1,2,3,,\n",
        encoding="utf-8",
    )
    assert read_shapes(table) == [GRUShape(1, 2, 3, 4, 2, True), GRUShape(1, 2, 3, 8)]
    assert main(["bench", "--file", str(table), "--layout", "packed", "--bidirectional", "--inference"]) == 0
    out = capsys.readouterr().out
    assert "(1,2,3,4) x2 bi packed" in out and "(1,2,3,8) bi packed" in out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no shape"),
        ("# nothing\n", "has no shape"),
        ("batch,seq_len,input_size,hidden_size\n", "has a header and no shape"),
        ("1,2,3\n", "line 1 .* expected B,T,I,H"),
        ("1,2,3,4\n1,2,x,4\n", "line 2 "),
        ("1,2,3,0\n", "at least 1"),
        ("batch,time\n1,2\n", "names batch, seq_len, input_size, hidden_size"),
        ("batch,seq_len,input_size,hidden_size\n1,2,3\n", "line 2 .* expected 4 values, got 3"),
        ("batch,seq_len,input_size,hidden_size,bidirectional\n1,2,3,4,maybe\n", "bidirectional of 0 or 1"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, said: str) -> None:
    """One sentence that names the line."""
    file = tmp_path / "shapes"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        read_shapes(file)
