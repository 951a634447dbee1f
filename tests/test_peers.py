"""The comparison with other frameworks: its parts that need none of them, and each framework where it is installed."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import peer_worker
import peers
import pytest
import torch
from peer_frameworks import PEERS, GruExt, require
from peer_problem import GRADIENTS, Absent, Peer, Prepared, Problem, Wrong, check, make_problem
from peer_worker import Contestant, Request, decode, encode
from rows import LARGE, quartiles, row_of
from torch import Tensor

from gru_ext.measure import measurements
from gru_ext.measure.measurements import PeerMeasurement
from gru_ext.measure.sequences import tolerance
from gru_ext.measure.workloads import SHAPES

ROW = row_of(
    PeerMeasurement,
    LARGE,
    **{"dtype": "bfloat16", "threads": 2, "mode": "training", "rounds": 1000, "timing": "wall", "tolerance": 0.03125},
    **{"peer": "onnxruntime", "variant": "hand-written in float32", "peer_version": "onnxruntime 1.2.3, onnx 4.5.6"},
    **quartiles("peer_ms", 998.5, 999.25, 1000.5),
    **quartiles("gru_ext_ms", 0.25, 0.5, 0.75),
    **quartiles("ratio", 1500.25, 1998.5, 2250.75),
)
SLOWER = replace(ROW, ratio=0.5, ratio_q1=0.25, ratio_q3=0.75, threads=1, variant="")


ABSENTEE: Any = SimpleNamespace(
    name="absentee", version=lambda: require("no_such_framework"), prepare=Mock(side_effect=AssertionError)
)


class Mistaken(GruExt):
    """A peer with a right way to be asked, a wrong one, and one that is right but slow."""

    name = "mistaken"

    def prepare(self, problem: Problem, threads: int) -> list[Prepared]:
        """The three ways."""
        right = super().prepare(problem, threads)[0]

        def wrong(answer: object) -> dict[str, Tensor]:
            return {name: 1.5 * tensor for name, tensor in right.results(answer).items()}

        ways = {
            "right": {},
            "wrong": {"results": wrong},
            "slow": {"call": lambda: [right.call() for _ in range(5)][-1]},
        }
        return [replace(right, variant=name, **changes) for name, changes in ways.items()]


def test_table() -> None:
    """Every row is there, no line is wider than 80 columns, and the closing lines name the slower cells."""
    lines = list(peers.table([ROW, SLOWER]))
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    text = "\n".join(lines)
    assert "training, resets every 33 steps" in next(peers.table([replace(ROW, resets=33)]))
    for words in ("onnxruntime: bfloat16, 2 threads, training", "1998.50", "999 ms", "500 us", "1 thread,"):
        assert words in text
    assert "fastest: hand-written in float32 1" in text
    assert text.count("geometric mean") == 2 and "0.25-0.75?" in text
    first, *slower = peers.verdict([ROW, SLOWER])
    assert "1 of 2" in first and len(slower) == 1 and "0.500" in slower[0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--threads", "0"], "--threads: expected counts from 1"),
        (["--peers", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["--resets", "0"], "--resets: expected a whole number of at least 1"),
        (["--dtypes", "float64"], "invalid choice: 'float64'"),
        (["--shapes", "1,2,3"], "expected B,T,I,H"),
        (["--csv", "no/such/folder/peers.csv"], "there is no folder"),
    ],
)
def test_argument_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong argument is told by name."""
    with pytest.raises(SystemExit) as ended:
        peers.parse_arguments(arguments)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_events() -> None:
    """An event survives its line; anything else is told apart."""
    line = encode("measured", row=asdict(ROW))
    assert "\n" not in line
    assert PeerMeasurement(**decode(line)["row"]) == ROW
    for wrong in ("", "a framework's chatter", "[1]", '"end"', '{"event": "measured"}', '{"event": "lunch"}'):
        with pytest.raises(ValueError, match="expected an event"):
            decode(wrong)
    request = Request(1, ["float32"], ["training"], [(1, 2, 3, 4)], ["jax"], 0.5, 0, {"machine": "any"})
    assert Request.from_json(request.to_json()) == request


def collected(code: str, path: Path | None = None) -> peers.Board:
    """What a measuring process that runs this code reports; path: the CSV."""
    board = peers.Board(path)
    try:
        peers.collect([sys.executable, "-c", code], 1, board)
    finally:
        board.close()
    return board


def test_process_reports(capsys: pytest.CaptureFixture[str]) -> None:
    """Events of a process become measurements, failures and sentences; a sentence is said once."""
    absent = encode("absent", reason="jax is not installed here")
    lines = [encode("cells", count=1), absent, absent, encode("cell", title="any"), encode("measured", row=asdict(ROW))]
    lines += [encode("failed", reason="jax: wrong"), encode("end")]
    board = collected(f"print({chr(10).join(lines)!r})")
    assert board.measurements == [ROW] and board.failures == ["jax: wrong"] and board.complete
    assert capsys.readouterr().out.count("not measured: jax is not installed here") == 1


@pytest.mark.parametrize(
    "code, words",
    [
        ("raise SystemExit(3)", "exit status 3"),
        ("", "ended early"),
        ("print('chatter', flush=True); import time; time.sleep(60)", "chatter"),
    ],
)
def test_process_ends_early(code: str, words: str, tmp_path: Path) -> None:
    """A process that dies, stops short or talks nonsense is a failure; what it measured before is in the file."""
    measured = f"{encode('cells', count=2)}\n{encode('measured', row=asdict(ROW))}"
    board = collected(f"print({measured!r}, flush=True); {code}", tmp_path / "peers.csv")
    assert not board.complete and words in board.failures[0]
    assert measurements.read_csv(tmp_path / "peers.csv", PeerMeasurement) == [ROW]


def test_absent_peer() -> None:
    """A missing framework is one sentence, and the others are not affected."""
    events: list[tuple[str, dict[str, str]]] = []
    others: list[Peer] = [ABSENTEE, GruExt()]
    versions = peer_worker.present(others, lambda event, **values: events.append((event, values)))
    assert list(versions) == ["gru_ext"]
    assert events == [("absent", {"reason": "no_such_framework is not installed here; make peers installs it"})]


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check(dtype: torch.dtype, mode: str) -> None:
    """gru_ext is within the tolerance; results that are off, misshapen, missing or not numbers are not."""
    problem = make_problem((3, 7, 5, 9), dtype, mode, 0)
    prepared = GruExt().prepare(problem, 1)[0]
    results = dict(prepared.results(prepared.call()))
    assert set(results) == ({"output", *GRADIENTS} if mode == "training" else {"output", "h_n"})
    assert 0 < check(problem, results) < tolerance(dtype, problem.shape)
    off = results["output"].double() * (1 + 2 * tolerance(dtype, problem.shape))
    for wrong in (off, results["output"][1:], results["output"] * torch.nan):
        with pytest.raises(Wrong, match="output"):
            check(problem, {**results, "output": wrong})
    with pytest.raises(Wrong, match="expected"):
        check(problem, {"output": results["output"]})


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_check_of_resets(mode: str) -> None:
    """gru_ext is right with the problem's resets, and would not be without them."""
    problem = make_problem((3, 7, 5, 9), torch.float32, mode, 0, 3)
    assert problem.resets is not None and problem.resets[1:].any()
    right, wrong = (GruExt().prepare(of, 1)[0] for of in (problem, replace(problem, resets=None)))
    check(problem, right.results(right.call()))
    with pytest.raises(Wrong, match="output has a relative error"):
        check(problem, wrong.results(wrong.call()))


def test_resets_are_for_those_that_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are not asked with resets, and torchrl is not asked without."""
    asked: list[list[str]] = []
    monkeypatch.setattr(peer_worker, "present", lambda peers, _: asked.append([peer.name for peer in peers]) or {})
    for resets in (0, 33):
        request = Request(1, ["float32"], ["training"], [(1, 2, 3, 4)], ["jax", "torchrl"], 0.5, 0, {}, resets)
        peer_worker.work(request, Mock())
    assert asked == [["jax"], ["torchrl"]]
    shapes = [peers.parse_arguments(words).shapes for words in ([], ["--resets", "33"])]
    assert shapes == [list(SHAPES), [peers.TORCHRL_SHAPE]]


def test_gates_swapped_is_wrong() -> None:
    """The bound of bfloat16 catches a gate mistaken for another even over the longest sequence that is measured."""
    problem = make_problem((2, 784, 3, 8), torch.bfloat16, "inference", 0)
    swapped = {name: torch.cat([w.chunk(3)[i] for i in (1, 0, 2)]) for name, w in problem.weights.items()}
    prepared = GruExt().prepare(replace(problem, weights=swapped), 1)[0]
    with pytest.raises(Wrong, match="relative error"):
        check(problem, prepared.results(prepared.call()))


def test_measured_cell() -> None:
    """The wrong variant is reported and not timed, of the right ones the faster counts."""
    request = Request(1, ["float32"], ["training"], [(4, 50, 16, 32)], ["mistaken"], 0.05, 0, {})
    failures: list[str] = []
    measured = peer_worker.measure(
        request, "float32", "training", (4, 50, 16, 32), [Mistaken()], lambda _, reason: failures.append(reason)
    )
    assert [row["peer"] for row in measured] == ["mistaken"] and measured[0]["variant"] == "right"
    assert measured[0]["rounds"] >= 7 and measured[0]["peer_ms"] > 0
    assert len(failures) == 1 and "mistaken wrong, float32, 1t, training, (4,50,16,32)" in failures[0]


def test_failing_peer() -> None:
    """An exception of a framework is reported as one sentence."""
    failures: list[str] = []
    problem = make_problem((1, 2, 3, 4), torch.float32, "inference", 0)
    right = peer_worker.contestants_of(ABSENTEE, problem, 1, "here", lambda _, reason: failures.append(reason))
    assert right == [] and failures == ["absentee, here: AssertionError: no message"]


def test_hopeless_variant_is_left_out() -> None:
    """Only variants of the same peer are held against one another."""
    slow, fast = (
        Contestant("jax", name, lambda s=s: time.sleep(s), 0.0) for name, s in (("slow", 0.02), ("fast", 0.002))
    )
    other = Contestant("other", "", lambda: time.sleep(0.02), 0.0)
    assert peer_worker.without_hopeless([slow, fast, other]) == [fast, other]


@pytest.mark.parametrize("shape", [(1, 1, 5, 4), (3, 7, 5, 9), (8, 33, 16, 24)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_installed_peer_is_right(peer: Peer, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    """Every way to ask an installed framework gives the right answer, with resets if it takes them."""
    try:
        peer.version()
    except Absent as absent:
        pytest.skip(str(absent))
    modes = [mode for mode in ("inference", "training") if peer.supports(mode, dtype)]
    if not modes:
        pytest.skip(f"{peer.name} has no {dtype}")
    for mode in modes:
        problem = make_problem(shape, dtype, mode, 0, 3 if peer.takes_resets else 0)
        for prepared in peer.prepare(problem, 1):
            check(problem, prepared.results(prepared.call()))
