"""How fast gru_ext is against torch.nn.GRU, torch.nn.LSTM and the machine's limit, on shapes of your own.

    python -m gru_ext bench --batch 32 --time 100 --input-size 64 --hidden-size 128 256 512 --plots plots
    python -m gru_ext bench --file shapes.csv --dtype float32 bfloat16 --threads 1 2 --csv measured.csv
    python -m gru_ext bench --model my_package.my_module:make_model --training

All are timed by turns in one process, inference and training, until the quartiles of the ratio to torch.nn.GRU are no
further apart than --spread, or the cell's time is up. A file has lines of B,T,I,H, or is a CSV whose header names
batch, seq_len, input_size, hidden_size and may name num_layers and bidirectional. Ctrl-C ends a run and keeps what it
has.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gru_ext.commands import options, shapes
from gru_ext.measure import BadInput, text
from gru_ext.measure.harness import Run
from gru_ext.measure.harness import run as measured
from gru_ext.measure.machine import facts
from gru_ext.measure.tables import closing_lines, tables
from gru_ext.measure.timing import Budget

SPREAD, SECONDS = 0.05, 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared options, and those of measuring."""
    options.add_arguments(parser)
    shapes.add_argument(parser)
    how = parser.add_argument_group("measuring")
    how.add_argument(
        "--spread",
        type=share,
        default=SPREAD,
        metavar="SHARE",
        help=f"a cell is done when the ratio's quartiles are so near (default: {SPREAD}; 0: use all the time)",
    )
    how.add_argument(
        "--seconds", type=share, default=SECONDS, help=f"time of a cell, beside the warm-up (default: {SECONDS:g})"
    )
    how.add_argument("--seed", type=int, default=0, help="of weights and input (default: 0)")
    how.add_argument("--no-lstm", action="store_true", help="do not time torch.nn.LSTM")
    how.add_argument("--no-floor", action="store_true", help="do not measure the machine's peaks")
    kept = parser.add_argument_group("results")
    kept.add_argument("--csv", type=Path, metavar="FILE", help="write the measurements here, with every cell")
    kept.add_argument("--plots", type=Path, metavar="FOLDER", help="draw them here, as SVG and PNG")


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
    """Measure, show, keep. 130 when interrupted, 1 when a workload could not be measured."""
    workloads = options.workloads(arguments, extra=shapes.asked(arguments))
    if arguments.csv and not arguments.csv.parent.is_dir():
        raise BadInput(f"--csv: there is no folder {arguments.csv.parent}")
    if arguments.plots:
        try:
            arguments.plots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--plots: {arguments.plots} cannot be made: {error.strerror}") from None
        text.hint(["matplotlib"], "plots")
    if not arguments.json:
        text.hint(["rich", "tqdm"], "tables in colour and a progress bar")
    result = measured(
        workloads,
        Budget(arguments.seconds, spread=arguments.spread),
        lstm=not arguments.no_lstm,
        floor=not arguments.no_floor,
        seed=arguments.seed,
        csv=arguments.csv,
        say=say_aside if arguments.json else print,
    )
    drawn = draw(result, arguments.plots) if arguments.plots else []
    if arguments.json:
        about = {"facts": facts(workloads[0].device), "complete": result.complete, "failures": result.failures}
        print(text.as_json({**about, "measurements": result.measurements}))
    else:
        text.show(*(part for table in tables(result.measurements) for part in ("", table)), "")
        text.show(*closing_lines(result, arguments.csv), *(f"written: {path}" for path in drawn))
    return result.exit_code


def say_aside(line: str) -> None:
    """To standard error, where standard output is for a program."""
    print(line, file=sys.stderr)


def draw(result: Run, folder: Path) -> list[Path]:
    """The plots' files; none where nothing was measured or matplotlib is missing, which was said at the start."""
    if not result.measurements or not text.installed("matplotlib"):
        return []
    from gru_ext.measure.plots import save_all  # here: it takes a second, and an optional package

    return save_all(result.measurements, folder)
