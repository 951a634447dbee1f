"""The roofline: what a byte is, that no point lies above what was put in, the files, and the command."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from gru_ext.__main__ import main
from gru_ext.commands import roofline as command
from gru_ext.measure import harness, roofline
from gru_ext.measure.floor import Machine
from gru_ext.measure.measurements import read_csv
from gru_ext.measure.roofline import OURS, TORCHS, Ceiling, Point

CEILINGS = (Ceiling("arithmetic", 0, 2e11), Ceiling("L2", 1 << 18, 2e11), Ceiling("memory", 1 << 27, 3e10))
POINTS = tuple(
    Point(10**8, 10**6 * scale, name, shape, ms)
    for scale, shape in enumerate([(1, 100, 80, 256), (1, 512, 256, 512), (8, 128, 128, 128)], 1)
    for name, ms in ((OURS, 1.0), (TORCHS, 2.0))
)
FACTS = {"machine": "CPU, 2 cores", "torch": "2.13.0", "commit": "0123456789ab"}


@pytest.fixture
def known_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """10^9 operations and 10^9 bytes a second, at once."""
    monkeypatch.setattr(command, "Machine", lambda: Machine(lambda dtype, threads: 1e9, lambda size, threads: 1e9))


def test_work_by_hand() -> None:
    """W_hh at each of 7 steps, the rest once."""
    work = roofline.shape_work((4, 7, 6, 9), "float32", False)
    weight_ih, weight_hh, biases = 27 * 6, 27 * 9, 2 * 27
    assert work.operations == 2 * 28 * 27 * (6 + 9)
    assert work.bytes == 4 * (7 * weight_hh + weight_ih + biases + 28 * 6 + 28 * 9)
    training = roofline.shape_work((4, 7, 6, 9), "bfloat16", True)
    assert training.operations == 3 * work.operations and training.bytes > work.bytes
    assert work.intensity == work.operations / work.bytes
    point = Point(work.operations, work.bytes, OURS, (4, 7, 6, 9), 2.0)
    assert point.rate == pytest.approx(work.operations / 2e-3) and point.intensity == work.intensity


def test_ceilings() -> None:
    """Arithmetic, each cache with a buffer that fits into it, and memory with one that fits into none."""
    buffers: list[int] = []

    def reading(size: int, threads: int) -> float:
        buffers.append(size)
        return 1e9 / size

    values = roofline.ceilings(Machine(lambda dtype, threads: 5e9, reading), "float32", 2)
    assert [entry.name for entry in values] == ["arithmetic", *(name for name, _, _ in roofline.caches()), "memory"]
    assert values[0] == Ceiling("arithmetic", 0, 5e9) and [entry.bytes for entry in values[1:]] == buffers
    sizes = [size for _, size, _ in roofline.caches()]
    assert buffers[-1] >= 2 * sizes[-1] and buffers[0] <= 2 * sizes[0]


def test_caches_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Usual sizes; and what the system tells is taken, but for instructions."""
    monkeypatch.setattr(roofline, "CACHES", tmp_path)
    assert [name for name, _, _ in roofline.caches()] == ["L1", "L2", "L3"]
    for index, (level, kind, size, cores) in enumerate(
        [("1", "Data", "48K", "0"), ("1", "Instruction", "32K", "0"), ("2", "Unified", "2048K", "0-1")]
    ):
        (tmp_path / f"index{index}").mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", cores)):
            (tmp_path / f"index{index}" / name).write_text(text + "\n")
    assert roofline.caches() == (("L1", 48 << 10, True), ("L2", 2 << 20, False))


def test_files(tmp_path: Path) -> None:
    """The CSV holds every figure; the SVG the title, the ceilings and each shape, and is the same file each time."""
    pytest.importorskip("matplotlib")
    roofline.write_csv(tmp_path / "r.csv", CEILINGS, POINTS, FACTS)
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["ceiling"] * 3 + ["point"] * 6
    assert rows[3]["name"] == OURS and float(rows[3]["per_second"]) == pytest.approx(1e11)
    assert {row["commit"] for row in rows} == {"0123456789ab"}
    from gru_ext.measure import plots

    title = roofline.title("CPU, 2 cores", "float32", 2, False, "0123456789ab")
    for name in ("a.svg", "b.svg"):
        plots.save(plots.roofline_figure(CEILINGS, POINTS, title), tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    words = ("0123456789ab", "CPU, 2 cores", "arithmetic, 200 GFLOP/s", "L2, 256 KiB: 200 GB/s", "(1,512,256,512)")
    assert all(word in text for word in words), text
    assert "<text" in text and len(text) < 25_000 and text == (tmp_path / "b.svg").read_text()


def test_numbers_stand_away_from_their_neighbours() -> None:
    """Of two points side by side the left one's number is left."""
    pytest.importorskip("matplotlib")
    from gru_ext.measure.plots import number_sides

    sides = number_sides({(1, 1, 1, 1): 1.0, (2, 1, 1, 1): 10.0, (3, 1, 1, 1): 10.1, (4, 1, 1, 1): 50.0})
    assert list(sides.values()) == [-1, -1, 1, 1]


def test_command(tmp_path: Path, known_peaks: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A shape measured, drawn and tabled."""
    pytest.importorskip("matplotlib")
    files = [tmp_path / "r.png", tmp_path / "r.csv"]
    arguments = ["--shapes", "2,5,3,8", "--seconds", "0.01", "--output", str(files[0]), "--csv", str(files[1])]
    assert main(["roofline", *arguments, "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "(2,5,3,8)" in out and "1.00 GFLOP/s" in out and files[0].stat().st_size > 10_000
    with files[1].open() as file:
        points = [row for row in csv.DictReader(file) if row["kind"] == "point"]
    assert [row["name"] for row in points] == [OURS, TORCHS] and {row["threads"] for row in points} == {"1"}


def test_interrupted(
    tmp_path: Path, known_peaks: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The points that there are are written, and 130."""
    done = read_csv(Path(__file__).parent.parent / "benchmarks" / "results" / "cpu-avx2.csv", harness.Measurement)[:1]
    monkeypatch.setattr(command.harness, "run", lambda *_, **__: harness.Run(list(done), [], False))
    assert main(["roofline", "--csv", str(tmp_path / "r.csv")]) == 130
    assert sum(line.startswith("point") for line in (tmp_path / "r.csv").read_text().splitlines()) == 2
