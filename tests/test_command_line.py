"""``python -m gru_ext``: exit codes, one sentence for bad input, JSON, plain text without optional packages."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from processes import python

import gru_ext
from gru_ext import __main__ as command_line
from gru_ext import text
from gru_ext.__main__ import main
from gru_ext.commands import explain
from gru_ext.measure import machine
from gru_ext.text import Table

SMALL = ["--batch", "3", "--time", "5", "--input-size", "4", "--hidden-size", "6"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def nothing_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hints are given once a process; every test is a process of its own in this."""
    monkeypatch.setattr(text, "_hinted", set())


SHARED = [
    (["--model", "lifted:no_gru"], "has no GRU"),
    (["--model", "lifted:tagger", "--batch", "3"], "--batch and --model were given"),
    (["--model", "lifted:tagger", "--layout", "packed"], "--model was given"),
    (["--device", "tpu"], "--device is 'tpu'; expected cpu, cuda or cuda:N"),
    (["--device", "cuda:99"], "was asked for"),
    (["--dtype", "tf32"], "--dtype tf32 is for CUDA"),
]
OWN = {
    "bench": [
        (["--file", "none"], "--file: none cannot be read"),
        (["--plots", __file__], "--plots: no file can be written in "),
        (["--against", str(Path(__file__).parent)], "is no checkout of gru_ext with its build in place"),
        (["--graph"], "--graph is for CUDA"),
        (["--shapes", "1,2,3,4", "--layers", "2"], "--layers and --shapes were given"),
    ],
    "tune": [(["--device", "cuda:99"], "--device cuda:99 was asked for, and torch sees ")],
    "profile": [
        (["--inference", "--training", "--trace", "t.json"], "--trace takes one profile, got 2"),
        (["--nvtx"], "give --device cuda"),
    ],
    "roofline": [
        (["--seconds", "0"], "--seconds is 0.0"),
    ],
}
WRITERS = [["bench", "--csv"], ["roofline", "--csv"], ["tune", "--save"], ["profile", "--trace"]]
UNWRITABLE = [("absent/file", "there is no folder absent"), (str(Path(__file__).parent), "cannot be written: Is a dir")]
if Path("/proc/self").exists():
    UNWRITABLE.append(("/proc/file.csv", "/proc/file.csv cannot be written: "))
REFUSED = [(command, *case) for command in ("explain", "bench", "profile") for case in SHARED]
REFUSED += [(command, *case) for command, cases in OWN.items() for case in cases]


@pytest.mark.parametrize(("command", "arguments", "said"), REFUSED)
def test_bad_input_is_one_sentence(command: str, arguments: list[str], said: str, capsys: Captured) -> None:
    """And exit code 2, with nothing on standard output."""
    assert main([command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err and err.startswith(f"python -m gru_ext {command}: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *(([*words, file], said) for words in WRITERS for file, said in UNWRITABLE),
        (["profile", "--plot", "bars.txt"], "argument --plot: expected a name that ends in .png, .svg, .pdf"),
        (["roofline", "--json"], "python -m gru_ext roofline: unrecognized arguments: --json; `python -m gru_ext roof"),
        (["--jason", "info"], "info: unrecognized arguments: --jason"),
        ([], "the commands are info, explain, bench, tune"),
        (["tune", "--rounds", "0"], "--rounds: expected a whole number of at least 1, got '0'"),
        (["infos"], "invalid choice: 'infos'"),
        (["explain", "--batch", "0"], "--batch: expected a whole number of at least 1, got '0'"),
        (["explain", "--hidden-size", "many"], "got 'many'"),
        (["bench", "--spread", "-1"], "--spread: expected a number of at least 0, got '-1'"),
        (["bench", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_bad_usage_is_one_sentence(arguments: list[str], said: str, capsys: Captured) -> None:
    """As argparse finds it."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err


def test_files_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Opened before the work: what was in them stays, and none is left where the work then fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.csv").write_text("kept")
    for name in ("old.csv", "new.csv"):
        assert main(["bench", "--csv", name, "--file", "absent"]) == 2 and "absent" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.csv", "kept")]


def test_version(capsys: Captured) -> None:
    """gru_ext's and torch's, which a report of a bug needs."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"gru_ext {gru_ext.__version__}, torch {torch.__version__}\n"


def test_process_exits_with_the_code() -> None:
    """From a shell, without a traceback."""
    done = python("-m", "gru_ext", "explain", "--model", "lifted:without_input")
    assert done.returncode == 2 and "let the factory return (model, input)" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_of_commands(capsys: Captured) -> None:
    """Each with the first line of its module."""
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = "".join(capsys.readouterr().out.split())
    for name in command_line.COMMANDS:
        first = (importlib.import_module(f"gru_ext.commands.{name}").__doc__ or "").splitlines()[0]
        assert "".join(f"{name} {first}".split()).rstrip(".") in listed


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Ctrl-C anywhere in a command is exit code 130 and no traceback."""

    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(explain, "run", interrupt)
    assert main(["explain"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_explain_is_what_the_function_tells(capsys: Captured) -> None:
    """The same plan as gru_ext.explain's, as JSON and as text."""
    arguments = ["explain", *SMALL, "--layers", "2", "--bidirectional", "--threads", "1"]
    assert main([*arguments, "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    torch.set_num_threads(1)
    expected = gru_ext.explain(gru_ext.GRU(4, 6, 2, bidirectional=True), (5, 3, 4), training=True)
    assert {name: report[name] for name in expected.to_dict()} == json.loads(json.dumps(expected.to_dict()))
    assert main(arguments) == 0
    assert expected.text(80) in capsys.readouterr().out


def test_explain_shows_the_floor(capsys: Captured) -> None:
    """The peaks that it rests on first; not in JSON, nor where it is not asked for."""
    words = ["explain", "--shapes", "2,3,4,16", "--threads", "1", "--dtype", "float64"]
    assert main([*words, "--floor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("peaks of this machine     1 thread\n  float64 ") and "  reading 6 KiB" in out
    assert out.count("floor ") == 2 and max(map(len, out.splitlines())) <= 80
    for more in (["--json", "--floor"], []):
        assert main([*words, *more]) == 0
        assert "peaks" not in capsys.readouterr().out


def test_explain_takes_every_combination(capsys: Captured) -> None:
    """Sizes, dtypes and modes with several values."""
    arguments = ["explain", "--batch", "1", "4", "--hidden-size", "4", "8", "--dtype", "float32", "bfloat16", "--json"]
    assert main([*arguments, "--inference", "--training", "--layout", "packed"]) == 0
    report = json.loads(capsys.readouterr().out)
    distinct = {(entry["batch"], entry["hidden_size"], entry["dtype"], entry["training"]) for entry in report}
    assert len(distinct) == len(report) == 16
    assert {entry["rows"] for entry in report} == {100, 375} and all(entry["packed"] for entry in report)


def test_explain_model(capsys: Captured) -> None:
    """A model with a packed bidirectional GRU and a cell, each under its name."""
    assert main(["explain", "--model", "lifted:tagger", "--inference"]) == 0
    out = capsys.readouterr().out
    assert "encoder: GRU, one call" in out and "decoder: GRUCell, 4 calls" in out
    assert "batch 3 packed into 14 rows" in out and "layer 1, input_size 12, both directions" in out
    assert main(["explain", "--model", "lifted:batch_first", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["dtype"], report["seq_len"], report["batch"], report["name"]) == ("float64", 9, 2, "gru")


def test_info_reads_explain(capsys: Captured) -> None:
    """The paths that info prints are those of explain."""
    assert main(["info"]) == 0
    report = gru_ext.explain(gru_ext.GRU(256, 256), (128, 32, 256))
    out = capsys.readouterr().out
    for entry in report.layers[0].passes:
        assert f"cpu  float32  training {entry.name:8}  {entry.kernel}: {entry.reason}" in out


def test_plain_text_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """The same words, and once what to install."""
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for words in (["explain"], ["profile", "--calls", "1", "--no-memory"]):
        assert main([*words, *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "layer 0, input_size 4" in out and "outside these ranges" in out
    assert err.count("pip install 'gru_ext[bench]'") == 1 and "missing: rich" in err


@pytest.mark.parametrize("words", [["roofline", "--output", "r.svg"], ["profile", *SMALL, "--plot", "bars.png"]])
def test_no_plot_without_matplotlib(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """What to install, before anything is measured."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        main(words)
    assert f"argument {words[-2]}: a plot needs matplotlib: pip install 'gru_ext[bench]'" in capsys.readouterr().err


def test_rich_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rich is there and the output is a terminal, its table is shown, brackets and all; else plain lines."""
    pytest.importorskip("rich")
    table = Table(("shape", "ratio"), [("[bold](1,2)", "1.5")], "a title", ("a note",))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    shown, plain = Terminal(), io.StringIO()
    for file in (shown, plain):
        text.show(table, "a line [1]", file=file)
        for word in ("a title", "[bold](1,2)", "1.5", "a note", "a line [1]"):
            assert word in file.getvalue()
    assert "─" in shown.getvalue() and "─" not in plain.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_plain_table(width: int) -> None:
    """Numbers stand to the right, words are broken into lines where the table is too wide."""
    rows = [("a long name of many words that does not fit", "1.5", "12"), ("short", "100", "3")]
    lines = list(Table(("name", "ratio", "rounds"), rows, "title", ("note " * 30,)).lines(width))
    assert max(map(len, lines)) <= width
    (short,) = [line for line in lines if line.startswith("short")]
    assert short.endswith("  100       3") and lines[0] == "title"
    assert " ".join(" ".join(lines).split()).count("note") == 30


def test_commit_of_an_installed_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a checkout the commit is unknown, within somebody else's repository too, or what COMMIT says."""
    monkeypatch.delenv("COMMIT", raising=False)
    package = machine.ROOT / "gru_ext" / "measure"  # within a repository, and not its root
    for root in (tmp_path, package):
        monkeypatch.setattr(machine, "ROOT", root)
        assert machine.commit() == "unknown"
    monkeypatch.setenv("COMMIT", "0123456789ab")
    assert machine.commit() == "0123456789ab"
