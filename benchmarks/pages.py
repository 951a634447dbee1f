"""Generate what README and docs show of measurements, from benchmarks/results, and check the pages.

    python benchmarks/pages.py              # rewrite README's table, docs/results.md, the table of docs/edge.md, the
                                            # example of docs/profiling.md
    python benchmarks/pages.py --measure    # first run that example on this machine, which should be idle
    python benchmarks/pages.py --check      # rewrite nothing; exit code 1 if a page is stale, a link is broken, or the
                                            # results of this machine are too old

A CSV's header says what it holds: measurements of `bench`, of `bench --memory` or of peers.py. Those of a GPU lie in a
folder, and are summed up where GRU_EXT_CUDA_KERNEL named the kernel.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from links import broken_links
from page_parts import ROOT, every, machine_name, source, spread, table
from pages_frozen import edge_table, frozen_section

from gru_ext.measure.floor import READING
from gru_ext.measure.frozen import FrozenMeasurement
from gru_ext.measure.harness import GRAPH_TIMING
from gru_ext.measure.machine import cpu_model
from gru_ext.measure.measurements import (
    SMALL_FLOOR_MS,
    Measurement,
    MemoryMeasurement,
    PeerMeasurement,
    Row,
    SequenceMeasurement,
    by_group,
    geometric_mean,
    is_kind,
    mean_over_floor,
    read_csv,
)
from gru_ext.measure.profiling import Profile
from gru_ext.measure.tables import memory_ratio, over_floor, profile_heading, profile_parts
from gru_ext.measure.workloads import RECOMPUTE
from gru_ext.text import counted, three_digits

RESULTS = ROOT / "benchmarks" / "results"
EXAMPLE_RESULT = RESULTS / "profile" / "cpu.json"
EDGE_RESULT = RESULTS / "edge" / "cpu.csv"
EXAMPLE = "profile --batch 8 --time 100 --input-size 80 --hidden-size 256 --training --threads 2"
WIDTH = 80
MODES = {"inference": "inference", "training": "training", RECOMPUTE: "training, recompute=True"}
NOT_MEASURED = ("NVIDIA GPU, current kernels",)
# Results may be this many commits to these files older than HEAD on the machine that could measure them again.
MOST_COMMITS = 25
KERNELS = {
    "cpu": ("csrc/gru.h", "csrc/cell.h", "csrc/torch", "csrc/cpu"),
    "cuda": ("csrc/gru.h", "csrc/cell.h", "csrc/torch", "csrc/cuda"),
}


# ----------------------------------------------------------------------------------------------------------------------
# README: a row a machine
# ----------------------------------------------------------------------------------------------------------------------


def summary() -> str:
    """Geometric means on each machine."""
    heads = ["", *(f"{dtype}, {mode}" for dtype in ("float32", "bfloat16") for mode in ("inference", "training"))]
    heads += ["lowest of all", "commit"]

    def rows() -> Iterator[Sequence[str]]:
        for _, measured in standard_files():
            cells = []
            for dtype in ("float32", "bfloat16"):
                for mode in ("inference", "training"):
                    groups = [of for key, of in by_group(measured).items() if (key[0], key[2]) == (dtype, mode)]
                    cells.append(" / ".join(f"{geometric_mean([row.ratio for row in of]):.1f}" for of in groups))
            lowest = f"{min(row.ratio for row in measured):.2f}"
            yield [machine_name(measured), *cells, lowest, f"{measured[0].commit:.7}"]
        for name in NOT_MEASURED:
            yield [name, "not measured yet", *[""] * (len(heads) - 2)]

    return table(heads, rows())


def results_of(kind: type[Row], pattern: str = "*.csv") -> list[tuple[Path, list[Row]]]:
    """The files of this kind with their rows, by name."""
    return [(path, read_csv(path, kind)) for path in sorted(RESULTS.glob(pattern)) if is_kind(path, kind)]


def standard_files() -> list[tuple[Path, list[Measurement]]]:
    """The CPUs' files of `bench --preset standard`, the newest first."""
    files = [(path, rows) for path, rows in results_of(Measurement) if rows[0].mode != RECOMPUTE]
    return sorted(files, key=lambda file: file[1][0].date, reverse=True)


# ----------------------------------------------------------------------------------------------------------------------
# docs/results.md
# ----------------------------------------------------------------------------------------------------------------------

HEAD = """# Results

How fast is `gru_ext.GRU`? A ratio is the median time of the other over that of `gru_ext.GRU`: above 1, gru_ext is
faster. Shapes are (B,T,I,H): batch, seq_len, input_size, hidden_size. Training is forward, and backward to the input
and every parameter. Both are timed by turns in one process, on an otherwise idle machine.

`make bench` measures the standard table on your machine in some ten minutes; `BENCH_ARGS="--quick"` takes a shorter
look, and [profiling](profiling.md#bench) has the options. This page is generated by
[benchmarks/pages.py](../benchmarks/pages.py) from [benchmarks/results](../benchmarks/results)."""


def results_page() -> str:
    """All of docs/results.md."""
    parts = [HEAD]
    for path, rows in standard_files():
        parts += standard_section(path, rows)
    parts += recompute_section()
    parts += sequence_section()
    for path, frozen in results_of(FrozenMeasurement):
        parts += frozen_section(path, frozen)
    parts += memory_section()
    parts += peer_section()
    parts += gpu_section()
    return "\n\n".join(parts) + "\n"


def shape_table(rows: list[Measurement], cell: Callable[[Measurement], str], foot: dict[str, list[str]]) -> str:
    """Shapes down, (mode, threads) across, and closing rows by their names."""
    groups = by_group(rows)
    cells = {(row.shape, row.group): cell(row) for row in rows}

    def lines() -> Iterator[Sequence[str]]:
        for shape in dict.fromkeys(row.shape for row in rows):
            yield [shape, *(cells.get((shape, group), "") for group in groups)]
        for name, values in foot.items():
            yield [name, *values]

    return table([rows[0].dtype, *(f"{MODES[mode]}, {counted(threads)}" for _, threads, mode in groups)], lines())


def ratio_tables(rows: list[Measurement]) -> Iterator[str]:
    """A table for each dtype, with the quartiles of the rounds' own ratios in brackets."""
    for dtype in dict.fromkeys(row.dtype for row in rows):
        of_dtype = [row for row in rows if row.dtype == dtype]
        ratios = [[row.ratio for row in group] for group in by_group(of_dtype).values()]
        foot = {
            "**geometric mean**": [f"**{geometric_mean(group):.2f}**" for group in ratios],
            "worst": [f"{min(group):.2f}" for group in ratios],
        }
        yield shape_table(of_dtype, lambda row: f"{row.ratio:.2f} ({row.ratio_q1:.2f}–{row.ratio_q3:.2f})", foot)


def floor_tables(rows: list[Measurement]) -> Iterator[str]:
    """A table for each dtype of the times over the floor, behind a paragraph that explains them."""
    rows = [row for row in rows if row.floor_ms is not None]
    if not rows:
        return
    peaks = dict.fromkeys(
        f"{row.dtype}, {counted(row.threads)}: {three_digits((row.operations_per_second or 0) / 1e9)}" for row in rows
    )
    yield (
        "Time over the floor, the least that this machine allows for a shape "
        f"([definition](../gru_ext/measure/floor.py)), by peaks measured in the same run ({'; '.join(peaks)} GFLOP/s). "
        "w: reading W_hh at every step limits the recurrence, elsewhere arithmetic. In brackets: the floor is below "
        f"{SMALL_FLOOR_MS} ms, and the cost of the call itself counts."
    )
    for dtype in dict.fromkeys(row.dtype for row in rows):
        of_dtype = [row for row in rows if row.dtype == dtype]
        means = map(mean_over_floor, by_group(of_dtype).values())
        foot = {
            "**geometric mean, without brackets**": [
                f"**{three_digits(mean)}**" if mean is not None else "" for mean in means
            ]
        }
        yield shape_table(of_dtype, lambda row: over_floor(row) + " w" * (row.floor_cause == READING), foot)


def standard_section(path: Path, rows: list[Measurement]) -> Iterator[str]:
    """A machine against nn.GRU."""
    yield f"## {machine_name(rows)}: against nn.GRU"
    yield source(path, rows, f"; {min(row.rounds for row in rows)} to {max(row.rounds for row in rows)} rounds a cell")
    yield "In brackets: the quartiles of the single rounds' ratios."
    yield from ratio_tables(rows)
    yield from floor_tables(rows)


def recompute_section() -> Iterator[str]:
    """`recompute=True` against nn.GRU as it is."""
    for path, rows in results_of(Measurement):
        if rows[0].mode != RECOMPUTE:
            continue
        yield "## With recompute=True"
        yield source(path, rows)
        yield from ratio_tables(rows)


def sequence_section() -> Iterator[str]:
    """Lengths and resets, a row a group."""
    for path, rows in results_of(SequenceMeasurement):
        resets = rows[0].resets > 0
        columns: dict[str, Callable[[SequenceMeasurement], float]] = {"nn.GRU / gru_ext": lambda row: row.ratio}
        if not resets:
            columns["gain"] = lambda row: row.gain
        columns["gru_ext with / without"] = lambda row: 1 / row.saving
        yield f"## {machine_name(rows)}: with {'resets' if resets else 'lengths'}"
        by_hand = "split at the resets" if resets else "packed, run and padded again"
        gain = "" if resets else " Gain: beyond the same quotient of padded calls without lengths."
        shapes = counted(len({row.shape for row in rows}), "shape")
        yield (
            f"Quotients of times over {shapes}. nn.GRU's sequences are {by_hand}, by hand.{gain} With / without: the "
            f"fastest rounds, by turns. {source(path, rows)}"
        )

        def lines(rows: list[SequenceMeasurement] = rows, columns: Any = columns) -> Iterator[Sequence[str]]:
            for (dtype, threads, what), group in by_group(rows).items():
                cells = [spread([of(row) for row in group]) for of in columns.values()]
                yield [f"{dtype}, {counted(threads)}, {what}", *(cell for pair in cells for cell in pair)]

        yield table(["", *(head for name in columns for head in (name, "range"))], lines())


def memory_section() -> Iterator[str]:
    """Memory of a training step."""
    for path, rows in results_of(MemoryMeasurement, "*/*.csv"):
        yield "## Memory of a training step"
        yield (
            "MiB of nn.GRU / gru_ext. Peak: the most resident during the step beyond what was there before. Kept: what "
            f"autograd keeps from forward to backward. `bench --memory` measures it. {source(path, rows)}"
        )

        def lines(rows: list[MemoryMeasurement] = rows) -> Iterator[Sequence[str]]:
            for row in rows:
                kept = f"{row.torch_kept_mib:.2f} / {row.gru_ext_kept_mib:.2f}"
                yield [row.dtype, row.shape, f"{row.torch_peak_mib:.2f} / {row.gru_ext_peak_mib:.2f}", kept]
            yield ["", "**geometric mean of the ratio**", *(f"**{memory_ratio(rows, of)}**" for of in ("peak", "kept"))]

        yield table(["dtype", "shape", "peak", "kept for backward"], lines())


def peer_section() -> Iterator[str]:
    """Against other frameworks."""
    for path, rows in results_of(PeerMeasurement):
        threads = sorted({row.threads for row in rows})
        resets = f"torchrl, resets every {rows[0].resets} steps"
        yield f"## Against {resets if rows[0].resets else 'ONNX Runtime, OpenVINO and JAX'}"
        versions = "; ".join(dict.fromkeys(row.peer_version for row in rows))
        shapes = len({row.shape for row in rows})
        yield f"{versions}. `make peers` measures them, over {counted(shapes, 'shape')}. {source(path, rows)}"

        def lines(rows: list[PeerMeasurement] = rows, threads: list[int] = threads) -> Iterator[Sequence[str]]:
            for key in dict.fromkeys((row.peer, row.dtype, row.mode) for row in rows):
                of = [row for row in rows if (row.peer, row.dtype, row.mode) == key]
                cells = [spread([row.ratio for row in of if row.threads == count]) for count in threads]
                yield [", ".join(key), *(cell for pair in cells for cell in pair)]

        heads = [head for count in threads for head in (f"{counted(count)}, geometric mean", "lowest to highest")]
        yield table(["", *heads], lines())


def gpu_section() -> Iterator[str]:
    """The files in which the environment named the kernel, a folder for each GPU."""
    yield "## On GPUs"
    yield (
        "The CUDA kernels have been rewritten since these measurements, and **the current ones have not run on a GPU "
        "yet**. [csrc/cuda/measured.h](../csrc/cuda/measured.h) selects ours where no ratio below is under 1, and "
        "torch's kernels elsewhere."
    )
    files = results_of(Measurement, "*/*.csv")
    for folder in dict.fromkeys(path.parent for path, _ in files):
        rows = [row for path, of_file in files if path.parent == folder for row in of_file]
        yield (
            f"Kernels that keep the weights on the chip (`GRU_EXT_CUDA_KERNEL={every(rows, 'kernel')}`), hidden sizes "
            f"{min(row.hidden_size for row in rows)} to {max(row.hidden_size for row in rows)}, batches "
            f"{min(row.batch for row in rows)} to {max(row.batch for row in rows)}: as a program calls the module, "
            "where torch's many launches wait for the host, and by replays of a CUDA graph, where they do not. "
            f"{source(folder, rows)}"
        )
        modes = list(dict.fromkeys(row.mode for row in rows))

        def kind(row: Measurement) -> tuple[str, str, int, str]:
            clock = "CUDA graph" if row.timing == GRAPH_TIMING else "as called"
            return (clock, row.layout + " bidirectional" * row.bidirectional, row.seq_len, row.dtype)

        def lines(rows: list[Measurement] = rows, modes: list[str] = modes) -> Iterator[Sequence[str]]:
            for key in sorted({kind(row) for row in rows}, key=lambda key: (key[:2], -key[2], key[3])):
                of = [row for row in rows if kind(row) == key]
                cells = [spread([row.ratio for row in of if row.mode == mode]) for mode in modes]
                title = "{}: {}, {} steps, {}".format(*key)
                yield [title, str(len({row.shape for row in of})), *(cell for pair in cells for cell in pair)]

        heads = [head for mode in modes for head in (f"{MODES[mode]}, geometric mean", "lowest to highest")]
        yield table(["", "sizes", *heads], lines())


# ----------------------------------------------------------------------------------------------------------------------
# The example of docs/profiling.md
# ----------------------------------------------------------------------------------------------------------------------


def measure_example() -> None:
    """Runs the example and keeps what it prints."""
    command = [sys.executable, "-m", "gru_ext", *EXAMPLE.split(), "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    EXAMPLE_RESULT.write_text(done.stdout, encoding="utf-8")


def example() -> str:
    """The command, and what it printed."""
    (report,) = json.loads(EXAMPLE_RESULT.read_text(encoding="utf-8"))
    lines = [*profile_heading(report["title"], report, WIDTH), ""]
    for part in profile_parts(Profile.from_dict(report)):
        lines += [part] if isinstance(part, str) else part.lines(WIDTH)
    return "\n".join(["```sh", f"python -m gru_ext {EXAMPLE}", "```", "", "```text", *lines, "```"])


# ----------------------------------------------------------------------------------------------------------------------
# Checks
# ----------------------------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Every generated page as it should be."""
    return {
        ROOT / "README.md": between(ROOT / "README.md", "speed", summary()),
        ROOT / "docs" / "results.md": results_page(),
        ROOT / "docs" / "edge.md": between(ROOT / "docs" / "edge.md", "edge", edge_table(EDGE_RESULT)),
        ROOT / "docs" / "profiling.md": between(ROOT / "docs" / "profiling.md", "example", example()),
    }


def between(page: Path, name: str, part: str) -> str:
    """The page with this part between the markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, marker, after = rest.partition(end)
    if not marker:
        raise SystemExit(f"{page.name} needs the lines {begin} and {end}")
    return f"{before}{begin}\n{part}\n{end}{after}"


def commits_since(commit: str, device: str) -> int | None:
    """Commits to the device's kernels since this one; None where git is missing or does not know it."""
    command = ["git", "-C", str(ROOT), "rev-list", "--count", f"{commit}..HEAD", "--", *KERNELS[device]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return int(done.stdout) if commit and done.returncode == 0 else None


def origins() -> Iterator[tuple[str, str, str, str]]:
    """(file, machine, commit, device) of all results, each once."""
    for path in sorted([*RESULTS.glob("*.csv"), *RESULTS.glob("*/*.csv")]):
        name = path.relative_to(RESULTS).as_posix()
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if "commit" in rows[0]:
            yield from dict.fromkeys((name, row["machine"], row["commit"], row.get("device", "cpu")) for row in rows)
    (report,) = json.loads(EXAMPLE_RESULT.read_text(encoding="utf-8"))
    yield EXAMPLE_RESULT.relative_to(RESULTS).as_posix(), report["machine"], report["commit"], "cpu"


def too_old(machine: str) -> Iterator[str]:
    """Prints the age of all results; yields a sentence for those that this machine should measure again."""
    history = commits_since("HEAD", "cpu") is not None
    for name, measured_on, commit, device in origins():
        age = commits_since(commit.removesuffix("-dirty"), device)
        shown = "unknown here" if age is None else f"{counted(age, 'commit')} to kernels since"
        print(f"{name}: commit {commit}, {shown}")
        if measured_on == machine and history and (age is None or age > MOST_COMMITS):
            why = "of a commit that git does not know" if age is None else f"{age} commits to kernels old"
            yield (
                f"{name} is {why}, and this is the machine that measured it: measure it again (CONTRIBUTING.md; at "
                f"most {MOST_COMMITS} commits, in a clone with its history)"
            )


def check() -> list[str]:
    """What is wrong with the pages, a sentence each."""
    stale = [page for page, fresh in pages().items() if not page.exists() or page.read_text(encoding="utf-8") != fresh]
    wrong = [f"{page.relative_to(ROOT)} and {RESULTS.name}/ disagree: run make pages" for page in stale]
    return [*wrong, *broken_links(ROOT), *too_old(cpu_model())]


def main() -> int:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="run the example of docs/profiling.md first")
    parser.add_argument("--check", action="store_true", help="rewrite nothing; exit code 1 if something is wrong")
    arguments = parser.parse_args()
    if arguments.measure:
        measure_example()
    if arguments.check:
        wrong = check()
        print("\n".join(wrong) or "pages, links and results are up to date", file=sys.stderr if wrong else sys.stdout)
        return int(bool(wrong))
    for page, fresh in pages().items():
        page.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
