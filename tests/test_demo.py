"""benchmarks/demo.py and series.py: what is compared, what is printed and drawn, what is refused."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed: make test installs it")
pytest.importorskip("tqdm", reason="tqdm is not installed: make test installs it")

import demo  # noqa: E402
from conftest import THREADS  # noqa: E402
from series import Series, from_csv, windows  # noqa: E402

from gru_ext import __main__ as command_line  # noqa: E402
from gru_ext.measure.phases import phase_times  # noqa: E402

CPU = torch.device("cpu")
SMALL = ["--epochs", "3", "--hidden-size", "6", "--time-steps", "7", "--horizon", "2", "--threads", str(THREADS)]
WIDTH = 80
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def unchanged_tf32(full_float32: None) -> None:
    """The demo switches it off for its process."""


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """A wave, in the second of two columns."""
    path = tmp_path / "wave.csv"
    path.write_text("day,height\n" + "".join(f"{day},{math.sin(day / 3)}\n" for day in range(120)))
    return path


def run(csv: Path, *words: str) -> int:
    """The demo on the wave's column, with a small model."""
    wave = ["--csv", str(csv), "--column", "height", "--output", str(csv.with_name("demo.png"))]
    return demo.main([*SMALL, *wave, *words])


def losses(printed: str) -> list[list[str]]:
    """Of each epoch: training and held-out loss, three each."""
    rows = [line.split() for line in printed.splitlines()]
    return [row[1:7] for row in rows if len(row) == 10 and row[0].isdigit()]


def test_all_three_are_compared(csv: Path, capsys: Captured) -> None:
    """The GRUs' losses agree, the LSTM has its own; every time and ratio is there; nothing is wider than a terminal."""
    assert run(csv) == 0
    printed = capsys.readouterr().out
    assert not [line for line in printed.splitlines() if len(line) > WIDTH and not line.startswith("written")]
    table = losses(printed)
    assert len(table) == 3
    for training_lstm, training, training_ours, lstm, theirs, ours in table:
        assert float(training) == pytest.approx(float(training_ours), abs=2e-5) != float(training_lstm)
        assert float(theirs) == pytest.approx(float(ours), abs=2e-5) != float(lstm)
    difference = re.search(r"largest difference .*: (\S+)\n", printed)
    assert difference is not None and 0 <= float(difference[1]) < 1e-5
    assert re.search(r"\ntraining time: nn.LSTM \S+ s, nn.GRU \S+ s, gru_ext \S+ s\n", printed)
    for pair in ("nn.GRU / gru_ext", "nn.LSTM / nn.GRU", "nn.LSTM / gru_ext"):
        assert re.search(rf"\n  {pair} +median \d+\.\d\d, quartiles \d+\.\d\d to \d+\.\d\d\n", printed)
    assert csv.with_name("demo.png").read_bytes().startswith(b"\x89PNG")


def test_where_time_goes_adds_up_and_its_command_runs(csv: Path, capsys: Captured) -> None:
    """The shares are the clock's, of one whole; the command profiles the sizes of the demo's own GRU."""
    assert run(csv) == 0
    printed = capsys.readouterr().out
    shown = re.search(r"step of (\S+) ms:\n  forward (\d+)%, backward (\d+)%, all else (\d+)% ", printed)
    assert shown is not None
    whole = 1e-3 * float(shown[1]) * demo.TIMED_STEPS
    shares = [int(share) for share in shown.groups()[1:]]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert shares[:2] == pytest.approx([100 * of_pass.seconds / whole for of_pass in phase_times()], abs=1)
    command = re.search(r"more: (python -m gru_ext .*\\\n.*)\n", printed)
    assert command is not None
    words = shlex.split(command[1].replace("\\\n", ""))[3:]
    assert command_line.main([*words, "--calls", "1", "--no-memory"]) == 0
    assert "batch 64, seq_len 7, input_size 1, hidden_size 6" in " ".join(capsys.readouterr().out.split())


def test_a_seed_repeats_every_loss(csv: Path, capsys: Captured) -> None:
    """The same seed, the same losses; another seed, others."""
    tables = []
    for seed in ("5", "5", "6"):
        assert run(csv, "--seed", seed) == 0
        tables.append(losses(capsys.readouterr().out))
    assert tables[0] == tables[1] != tables[2]


def test_both_grus_start_from_the_same_weights() -> None:
    """Whatever was drawn from the generator before; so does each in another set of contestants."""
    sets = [{entrant.name: entrant.model.state_dict() for entrant in demo.contestants(6, 3, CPU)} for _ in range(2)]
    assert list(sets[0]) == ["nn.LSTM", "nn.GRU", "gru_ext"]
    for weights in (sets[0]["gru_ext"], sets[1]["gru_ext"]):
        assert weights.keys() == sets[0]["nn.GRU"].keys()
        assert all(torch.equal(weights[name], sets[0]["nn.GRU"][name]) for name in weights)


def test_every_contestant_is_first_in_turn(csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By turns, so that none always comes after the same pause; all see the same order."""
    names: list[str] = []
    orders: list[torch.Tensor] = []
    epoch = demo.Contestant.epoch

    def noted(entrant: demo.Contestant, inputs: torch.Tensor, targets: torch.Tensor, order: torch.Tensor) -> None:
        names.append(entrant.name)
        orders.append(order)
        epoch(entrant, inputs, targets, order)

    monkeypatch.setattr(demo.Contestant, "epoch", noted)
    assert run(csv) == 0
    assert sorted(names[::3]) == sorted(demo.KINDS)
    for turn in range(0, 9, 3):
        assert sorted(names[turn : turn + 3]) == sorted(demo.KINDS)
        assert all(torch.equal(order, orders[turn]) for order in orders[turn : turn + 3])
    assert not torch.equal(orders[0], orders[3])


REFUSED = [
    ("", ["--device", "cuda"], "--device cuda was asked for, and torch sees no GPU"),
    ("", ["--device", "tpu"], "--device is 'tpu'; expected cpu, cuda or cuda:N"),
    ("", ["--column", "depth"], "has no column 'depth'; it has day, height"),
    ("", ["--csv", "absent.csv"], "absent.csv cannot be read"),
    ("", ["--horizon", "20"], "has 120 usable values; expected at least 136 for --time-steps 7 and --horizon 20"),
    ("day,height\n1,high\n", [], "line 2: 'high' in column 'height' is not a number"),
    ("day,height\n1,2\n2,inf\n", [], "line 3: 'inf' in column 'height' is not a finite number"),
    ("day,height\n" + "1,2\n" * 99, [], "height does not change in its first 80%"),
    ("\n", [], "is empty; expected a header line"),
]


@pytest.mark.parametrize(("text", "words", "said"), REFUSED)
def test_bad_input_is_one_sentence(
    csv: Path, text: str, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """And exit code 2, before anything is trained."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if text:
        csv.write_text(text)
    assert run(csv, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("demo: ") and said in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--column", "height"], "argument --column: needs --csv"),
        (["--output", "demo.jpg"], "argument --output: expected a name that ends in .png, got 'demo.jpg'"),
        (["--output", "absent/demo.png"], "argument --output: there is no folder absent"),
        (["--epochs", "0"], "argument --epochs: expected a whole number of at least 1, got '0'"),
    ],
)
def test_bad_usage_is_said_before_the_work(words: list[str], said: str, capsys: Captured) -> None:
    """By argparse, with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        demo.main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_column_must_be_chosen_of_two(csv: Path, capsys: Captured) -> None:
    """The sentence lists them."""
    assert demo.main(["--csv", str(csv)]) == 2
    assert "has the columns day, height; choose one with --column" in capsys.readouterr().err


def test_missing_values_are_interpolated(tmp_path: Path) -> None:
    """Inside linearly; at the ends they are cut off."""
    path = tmp_path / "gaps.csv"
    path.write_text("value\nNA\n1\n\nnan\n4\nnull\n")
    assert from_csv(path, None).values.tolist() == [1, 2, 3, 4]


@pytest.fixture
def ramp() -> Iterator[Series]:
    """Values that name their own position."""
    path = torch.arange(60, dtype=torch.float64).numpy() ** 2
    yield Series("ramp", "", "step", path, torch.arange(60, dtype=torch.float64).numpy(), "step")


def test_nothing_held_out_is_known_in_training(ramp: Series) -> None:
    """A perfect prediction is the truth; every held-out window ends where all training targets are known."""
    steps, horizon = 5, 3
    data = windows(ramp, steps, horizon, CPU)
    assert data.forecast(data.targets[data.held_out]) == pytest.approx(data.truth[data.held_out], rel=1e-6)
    last_learned = data.positions[data.training][-1]
    ends_of_held_out = data.positions[data.held_out] - horizon
    assert ends_of_held_out[0] == last_learned
    assert data.held_out.stop == len(data.inputs) == 60 - steps - horizon + 1


@pytest.mark.cuda
def test_on_a_gpu(csv: Path, capsys: Captured) -> None:
    """Trains there, from the weights that the seed leads to everywhere."""
    tables = []
    for device in ("cpu", "cuda"):
        assert run(csv, "--device", device) == 0
        tables.append([[float(loss) for loss in row] for row in losses(capsys.readouterr().out)])
    for on_cpu, on_gpu in zip(*tables, strict=True):
        assert on_gpu == pytest.approx(on_cpu, rel=1e-2)


def test_frozen_forecasts(csv: Path, capsys: Captured) -> None:
    """Weights of 16 and of 8 bits cost less than a hundredth of the held-out loss."""
    assert run(csv, "--hidden-size", "64", "--time-steps", "20") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("held-out loss, frozen")]
    rises = [float(part) for part in re.findall(r"([+-][\d.]+)%", line)]
    assert len(rises) == 2
    assert max(rises) < 1
