"""How fast gru_ext is against torch.nn.GRU, torch.nn.LSTM and the machine's limit, on shapes of your own.

    python -m gru_ext bench --batch 32 --time 100 --input-size 64 --hidden-size 128 256 512 --plots plots
    python -m gru_ext bench --file shapes.csv --dtype float32 bfloat16 --threads 1 2 --csv measured.csv
    python -m gru_ext bench --model my_package.my_module:make_model --training
    python -m gru_ext bench --preset standard --quick
    python -m gru_ext bench --preset standard --memory --csv memory.csv
    python -m gru_ext bench --frozen --threads 1 --csv frozen.csv
    python -m gru_ext bench --against ../before --shapes 1,100,80,256 --threads 1 2
    python -m gru_ext bench --against ../before --bits portable avx2

All are timed by turns in one process, inference and training, until the quartiles of the ratio to torch.nn.GRU are no
further apart than --spread, or the cell's time is up. A file has lines of B,T,I,H, or is a CSV whose header names
batch, seq_len, input_size, hidden_size and may name num_layers and bidirectional. Ctrl-C ends a run and keeps what it
has.

--preset standard is the published table: 11 shapes, float32 and bfloat16, 1 and 2 threads, all of a cell's time, no
LSTM. Options beside it replace parts of it.

--dtype tf32 is float32 with TF32 allowed in CUDA's matrix products, for both; float32 is without; float32-vs-tf32 is
PyTorch's default: allowed to torch.nn.GRU alone.

--layout lengths and half-lengths measure gru_ext with lengths= against torch.nn.GRU on packed input, packing and
padding included: lengths has as many steps as packed, half-lengths half of all. --resets EVERY measures it with
resets=, one at each step with the probability 1 / EVERY, against torch.nn.GRU whose sequences are split there. Both are
also timed without.

--frozen measures gru_ext.freeze in float32, bfloat16 and int8, for inference, against the module it was made from,
torch.nn.GRU, torch.ao's quantised GRU and, where it is installed with onnx and onnxscript, ONNX Runtime. Without sizes
these are one sequence of 1, 20 and 100 steps by layers of 64 to 1,024 units, on one thread.

--memory measures a training step on one thread: peak, what it needs for a while beyond what was there, and kept, what
autograd keeps from forward to backward.

--against runs this gru_ext and that of another checkout by turns, each in processes of its own. A process takes the
fastest of many short timings, for whatever else the machine does makes a timing longer, never shorter. It prints the
fastest of all rounds and the quartiles of the rounds' own ratios, after (this one) over before (CHECKOUT): 1.00 is no
difference. Two processes of the same checkout differ by a per cent or two, for memory lies elsewhere: compare one with
itself first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gru_ext import text
from gru_ext.commands import options
from gru_ext.measure import BadInput, against, frozen, harness, tables
from gru_ext.measure.machine import facts
from gru_ext.measure.measurements import Measurement, MemoryMeasurement, Row, SequenceMeasurement
from gru_ext.measure.memory import compared
from gru_ext.measure.sequences import measure_sequences
from gru_ext.measure.timing import LEAST_ROUNDS, LEAST_ROUNDS_QUICK, Budget
from gru_ext.measure.workloads import (
    DTYPES,
    HALF_LENGTHS,
    LAYOUTS,
    LENGTHS,
    MODES,
    RECOMPUTE,
    SHAPES,
    TF32,
    TORCH_TF32,
    Workload,
)

SPREAD, SECONDS, QUICK_SECONDS = 0.05, 4.0, 0.2
ROUNDS, PASS_SECONDS = 20, 0.5
STANDARD = {"dtype": ["float32", "bfloat16"], "threads": [1, 2], "spread": 0.0, "lstm": False}
SMALL_SHAPES = [(1, 1, 64, 64), (1, 100, 80, 256), (32, 100, 10, 64)]  # where an overhead shows
# The arguments that would change nothing or cannot be, by what is measured; of --bits those that do. Layouts that are
# no mere arrangement of the input are among them by their names.
SEQUENCES = {"model", "graph", "lstm", "no_floor", "memory", "frozen", "rounds", "bits", "plots", "packed"}
IGNORED = {
    "": {"rounds", "bits"},
    "--memory": {
        "inference", "quick", "spread", "seconds", "graph", "lstm", "no_floor", "rounds", "bits", "plots", "resets",
        "frozen",
        LENGTHS, HALF_LENGTHS,
    },
    "--against": {
        "model", "device", "training", "inference", "spread", "recompute", "graph", "seed", "lstm", "no_floor",
        "memory", "frozen", "csv", "plots", "resets", LENGTHS, HALF_LENGTHS,
    },
    "--frozen": {
        "training", "graph", "lstm", "no_floor", "recompute", "memory", "rounds", "bits", "plots", "resets", "device",
        "preset", LENGTHS, HALF_LENGTHS,
    },
    "--resets": {*SEQUENCES, LENGTHS, HALF_LENGTHS},
    **{f"--layout {lengths}": {*SEQUENCES, *LAYOUTS} for lengths in (LENGTHS, HALF_LENGTHS)},
}  # fmt: skip
OF_BITS = {"command", "against", "bits", "threads", "json"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared options, and those of measuring."""
    options.add_arguments(parser, [*DTYPES, TF32, TORCH_TF32], [*LAYOUTS, LENGTHS, HALF_LENGTHS])
    how = parser.add_argument_group("measuring")
    add = how.add_argument
    add("--preset", choices=["standard"], help="what is published; options beside it replace parts of it")
    add(
        "--quick",
        action="store_true",
        help=f"a cell: {QUICK_SECONDS} s, at least {LEAST_ROUNDS_QUICK} rounds; with --against {LEAST_ROUNDS_QUICK} "
        f"rounds of {QUICK_SECONDS} s",
    )
    about = f"a cell is done when the ratio's quartiles are so near (default: {SPREAD}; 0: use all the time)"
    add("--spread", type=share, metavar="SHARE", help=about)
    about = f"of a cell, beside the warm-up (default: {SECONDS:g}); with --against of each round ({PASS_SECONDS})"
    add("--seconds", type=share, help=about)
    add("--recompute", action="store_true", help="training with recompute=True, against nn.GRU as it is")
    add("--graph", action="store_true", help="on CUDA: time replays of a CUDA graph of each call")
    add("--seed", type=int, help="of weights and input (default: 0)")
    add("--lstm", action=argparse.BooleanOptionalAction, help="time torch.nn.LSTM too (default, but for --preset)")
    add("--no-floor", action="store_true", help="do not measure the machine's peaks")
    about = "sequences begin anew, each step with the probability 1 / EVERY"
    add("--resets", type=options.positive, metavar="EVERY", help=about)
    other = parser.add_argument_group("in place of times against nn.GRU")
    add = other.add_argument
    add("--frozen", action="store_true", help="frozen GRUs, against the module, torch.ao and ONNX Runtime")
    add("--memory", action="store_true", help="memory of a training step, against nn.GRU's")
    add("--against", type=Path, metavar="CHECKOUT", help="times against another gru_ext, with its build in place")
    add("--rounds", type=options.positive, metavar="N", help=f"with --against (default: {ROUNDS})")
    about = "with --against: compare every bit of results by these SIMD targets (default: all), and no times"
    add("--bits", nargs="*", metavar="TARGET", help=about)
    files = parser.add_argument_group("results")
    files.add_argument(
        "--csv", type=options.output_file, metavar="FILE", help="write the measurements here, with every cell"
    )
    files.add_argument("--plots", type=Path, metavar="FOLDER", help="draw them here, as SVG and PNG")


def share(value: str) -> float:
    """A number of at least 0."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {value!r}")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep. 130 when interrupted, 1 when a workload could not be measured or a bit differs."""
    check(arguments)
    if arguments.against and arguments.bits is not None:
        return against.show_bits(arguments.against, arguments.bits, arguments.threads or [1], arguments.json)
    fill(arguments)
    modes = MODES[:1] if arguments.frozen else MODES[1:] if arguments.memory or arguments.against else MODES
    workloads = options.workloads(arguments, modes)
    if arguments.frozen and any(workload.dtype != "float32" for workload in workloads):
        raise BadInput("--frozen is of float32 modules alone")
    if arguments.against:
        return against.show_times(arguments.against, workloads, arguments.rounds, arguments.seconds, arguments.json)
    if workloads[0].device.type == "cuda":  # shape by shape: a run that is cut short has all of the shapes it came to
        grus = list(dict.fromkeys(workload.gru for workload in workloads))
        workloads.sort(key=lambda workload: grus.index(workload.gru))
    if not arguments.json:
        text.hint(["rich", "tqdm"], "tables in colour and a progress bar")
    about = facts(workloads[0].device)
    gru = workloads[0].gru
    kind = 1 if arguments.memory else 2 if gru.resets or gru.padded_lengths else 3 if arguments.frozen else 0
    measure: Any = (times, memory, sequences, frozen_grus)[kind]
    shown: Any = (tables.tables, tables.memory_tables, tables.sequence_tables, frozen.frozen_tables)[kind]
    closing: Any = (tables.closing_lines, lambda _: (), tables.sequence_lines, frozen.frozen_lines)[kind]
    result = measure(arguments, workloads, about)
    drawn = draw(result.measurements, arguments.plots) if arguments.plots else []
    if arguments.json:
        report = {"facts": about, "complete": result.complete, "failures": result.failures}
        print(text.as_json({**report, "measurements": result.measurements}))
        return int(result.exit_code)
    text.show(*(part for table in shown(result.measurements) for part in ("", table)), "")
    text.show(*tables.written_lines(result, [*([arguments.csv] if arguments.csv else []), *drawn]))
    text.show(*closing(result))
    return int(result.exit_code)


def explicit_options(arguments: argparse.Namespace) -> dict[str, str]:
    """The options that were given, by their arguments' names. A flag is False without, but for --lstm: --no-lstm."""
    sizes = {field: option for option, field, _ in options.SIZES}
    return {
        name: sizes.get(name, f"--{'no-' if value is False else ''}{name.replace('_', '-')}")
        for name, value in vars(arguments).items()
        if value is not None and (value is not False or name == "lstm")
    }


def check(arguments: argparse.Namespace) -> None:
    """Raises BadInput for an option that would be ignored, and for what could not be written after the work."""
    of = explicit_options(arguments)
    measured = next((way for way in ("--against", "--memory", "--frozen", "--resets") if way in of.values()), "")
    lengths = [layout for layout in arguments.layout or () if layout in (LENGTHS, HALF_LENGTHS)]
    if not measured and lengths:
        measured = f"--layout {lengths[0]}"
    if measured == "--against" and "bits" in of:
        measured = "--against --bits"
    ignored = IGNORED.get(measured, of.keys() - OF_BITS)
    of |= {layout: f"--layout {layout}" for layout in arguments.layout or ()}
    for name, option in of.items():
        if name in ignored:
            raise BadInput(f"{option} cannot be combined with {measured}" if measured else f"{option} needs --against")
    if arguments.against:
        against.check(arguments.against)
    if arguments.plots:
        try:
            arguments.plots.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=arguments.plots).close()
        except OSError as error:
            raise BadInput(f"--plots: no file can be written in {arguments.plots}: {error.strerror}") from None
        text.hint(["matplotlib"], "plots")


def fill(arguments: argparse.Namespace) -> None:
    """What was not given: as usual, by the preset, by --quick; --memory is of one thread, and usually --against."""
    usual: dict[str, Any] = {"spread": SPREAD, "lstm": True, "seed": 0, "rounds": ROUNDS, "seconds": SECONDS}
    usual |= {"threads": [1], "seconds": PASS_SECONDS} if arguments.against else {}
    usual |= STANDARD if arguments.preset else {}
    usual |= {"threads": [1]} if arguments.memory or arguments.frozen else {}
    usual |= {"spread": 0.0, "rounds": LEAST_ROUNDS_QUICK, "seconds": QUICK_SECONDS} if arguments.quick else {}
    explicit = explicit_options(arguments).keys()
    for name, value in usual.items():
        if name not in explicit:
            setattr(arguments, name, value)
    if not explicit & {"shapes", "file", "model", *(field for _, field, _ in options.SIZES)}:
        shapes = SHAPES if arguments.preset else frozen.SHAPES if arguments.frozen else SMALL_SHAPES
        arguments.shapes = list(shapes) if arguments.preset or arguments.frozen or arguments.against else None


def times(arguments: argparse.Namespace, workloads: list[Workload], about: dict[str, str]) -> harness.Run[Measurement]:
    """Of every workload, against nn.GRU."""
    return harness.run(
        workloads,
        budget_of(arguments),
        about,
        lstm=arguments.lstm,
        floor=not arguments.no_floor,
        seed=arguments.seed,
        csv=arguments.csv,
        say=say_aside if arguments.json else print,
    )


def memory(
    arguments: argparse.Namespace, workloads: list[Workload], about: dict[str, str]
) -> harness.Run[MemoryMeasurement]:
    """Of every workload's training step, against nn.GRU."""

    def row(workload: Workload) -> MemoryMeasurement:
        columns: dict[str, Any] = {**workload.columns(), "mode": "training", **about}
        columns.pop("compute_capability", None)
        return MemoryMeasurement(
            recompute=int(workload.mode == RECOMPUTE), **columns, **compared(workload, arguments.seed)
        )

    return kept(arguments, workloads, about, row)


def sequences(
    arguments: argparse.Namespace, workloads: list[Workload], about: dict[str, str]
) -> harness.Run[SequenceMeasurement]:
    """Of every workload with lengths or resets, against nn.GRU by hand."""
    harness.use(workloads[0].device)
    budget = budget_of(arguments)

    def row(workload: Workload) -> SequenceMeasurement:
        columns: dict[str, Any] = {**workload.columns(), **about, **measure_sequences(workload, budget, arguments.seed)}
        del columns["cell"]
        return SequenceMeasurement(**columns)

    return kept(arguments, workloads, about, row)


def frozen_grus(
    arguments: argparse.Namespace, workloads: list[Workload], about: dict[str, str]
) -> harness.Run[frozen.FrozenMeasurement]:
    """Of every workload, frozen in each format."""
    text.hint(frozen.NEEDS, "ONNX Runtime among them")
    budget = budget_of(arguments)

    def row(workload: Workload) -> frozen.FrozenMeasurement:
        columns: dict[str, Any] = {
            **workload.columns(),
            **about,
            **frozen.measure_frozen(workload, budget, arguments.seed),
        }
        return frozen.FrozenMeasurement(**columns)

    return kept(arguments, workloads, about, row)


def budget_of(arguments: argparse.Namespace) -> Budget:
    """Of a cell."""
    least = LEAST_ROUNDS_QUICK if arguments.quick else LEAST_ROUNDS
    return Budget(arguments.seconds, least, arguments.spread)


def kept(
    arguments: argparse.Namespace, workloads: list[Workload], about: dict[str, str], row: Callable[[Workload], Row]
) -> harness.Run[Row]:
    """A row for each workload, behind the lines that say where they are measured."""
    for line in list(harness.heading(workloads, about))[:2]:
        (say_aside if arguments.json else print)(line)
    return harness.kept(workloads, row, arguments.csv)


def say_aside(line: str) -> None:
    """To standard error, where standard output is for a program."""
    print(line, file=sys.stderr)


def draw(measurements: list[Measurement], folder: Path) -> list[Path]:
    """The plots' files; none where nothing was measured or matplotlib is missing, which was said at the start."""
    if not measurements or not text.installed("matplotlib"):
        return []
    from gru_ext.measure.plots import save_all  # here: it takes a second, and an optional package

    return save_all(measurements, folder)
