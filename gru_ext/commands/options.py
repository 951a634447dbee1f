"""The options that the commands share: which layers, by their sizes or of a model, how, where, and files to write."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from gru_ext.measure import BadInput
from gru_ext.measure.models import load, recorded_grus
from gru_ext.measure.workloads import (
    DTYPES,
    LAYOUTS,
    MODES,
    RECOMPUTE,
    TF32,
    TORCH_TF32,
    GRUShape,
    Workload,
    parse_shape,
)
from gru_ext.text import EXTRA, installed

# Option, GRUShape's field, default.
SIZES = (
    ("--batch", "batch", 32),
    ("--time", "seq_len", 100),
    ("--input-size", "input_size", 64),
    ("--hidden-size", "hidden_size", 128),
    ("--layers", "num_layers", 1),
)
NEEDED = ("batch", "seq_len", "input_size", "hidden_size")  # in the header of a file of shapes
COMMENT = "#"
PICTURES = (".png", ".svg", ".pdf")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def output_file(text: str) -> Path:
    """A file to write: before the work it is opened for appending; one that was not there is removed again."""
    path = Path(text)
    there = path.exists() or path.is_symlink()
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from None
    if not there:
        path.unlink()
    return path


def picture_file(text: str) -> Path:
    """A file for a plot, in a format of matplotlib's, which must be installed."""
    if not text.lower().endswith(PICTURES):
        raise argparse.ArgumentTypeError(f"expected a name that ends in {', '.join(PICTURES)}, got {text!r}")
    if not installed("matplotlib"):
        raise argparse.ArgumentTypeError(f"a plot needs matplotlib: pip install '{EXTRA}'")
    return output_file(text)


def add_arguments(
    parser: argparse.ArgumentParser, dtypes: Sequence[str] = (*DTYPES, TF32), layouts: Sequence[str] = LAYOUTS
) -> None:
    """The options that :func:`workloads` reads. Each size may have several values: all combinations are taken."""
    sizes = parser.add_argument_group("layers, by their sizes (several values: every combination)")
    for option, field, default in SIZES:
        sizes.add_argument(
            option, dest=field, nargs="+", type=positive, metavar="N", help=f"{field} (default: {default})"
        )
    sizes.add_argument("--shapes", nargs="+", type=parse_shape, metavar="B,T,I,H", help="in place of the sizes")
    sizes.add_argument(
        "--file", type=Path, help="in place of the sizes: lines of B,T,I,H, or a CSV whose header names them"
    )
    sizes.add_argument("--bidirectional", action="store_true", help="both directions")
    about = f"{', '.join(layouts)} (default: {LAYOUTS[0]}); packed: half of the sequences are shorter"
    sizes.add_argument("--layout", nargs="+", choices=layouts, metavar="LAYOUT", help=about)
    parser.add_argument(
        "--model",
        metavar="PACKAGE.MODULE:FACTORY",
        help="in place of sizes: the GRUs of the model that this function returns, alone or with its input, as they "
        "are called when it is run once",
    )
    how = parser.add_argument_group("how and where")
    about = f"{', '.join(dtypes)} (default: float32, or the model's)"
    how.add_argument("--dtype", nargs="+", choices=dtypes, metavar="DTYPE", help=about)
    how.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cpu, or the model's)")
    how.add_argument("--threads", nargs="+", type=positive, metavar="N", help="on the CPU (default: torch's)")
    how.add_argument("--training", action="store_true", help="calls that are recorded, and go backward")
    how.add_argument("--inference", action="store_true", help="calls without gradient")
    parser.add_argument("--json", action="store_true", help="print JSON")


def workloads(arguments: argparse.Namespace, modes: Sequence[str] = MODES) -> list[Workload]:
    """What was asked for: every GRU, as each dtype, with each thread count, in each mode.

    Args:
        arguments: parsed by a parser that :func:`add_arguments` has filled
        modes: when no mode was asked for

    Raises:
        BadInput: no such device, file or model, or options that exclude one another
    """
    sizes = [(option, getattr(arguments, field)) for option, field, _ in SIZES]
    sources = [option for option, values in sizes if values][:1]
    sources += [f"--{name}" for name in ("shapes", "file", "model") if getattr(arguments, name)]
    if len(sources) > 1:
        raise BadInput(f"{sources[0]} and {sources[1]} were given; expected one: sizes, --shapes, --file or --model")
    if arguments.model and (arguments.bidirectional or arguments.layout):
        raise BadInput("--model was given, which has all that --bidirectional and --layout would say")
    modes = [mode for mode in (*MODES, RECOMPUTE) if getattr(arguments, mode, False)] or list(modes)
    called: list[Workload] = []
    if arguments.model:
        with redirect_stdout(sys.stderr):  # what the model prints is not among the results
            called = recorded_grus(*load(arguments.model))
    else:
        called = [Workload("float32", 1, MODES[0], gru) for gru in with_flags(grus(arguments), arguments)]
    if arguments.device:
        device = checked_device(arguments.device)
        called = [replace(call, device=device) for call in called]
    graph = getattr(arguments, "graph", False)
    combinations = [
        replace(call, dtype=dtype or call.dtype, threads=threads, mode=mode, graph=graph)
        for dtype in arguments.dtype or [None]
        for threads in arguments.threads or [torch.get_num_threads()]
        for mode, call in product(modes, called)
    ]
    for workload in combinations:
        device = workload.device
        if workload.dtype not in (*DTYPES, TF32, TORCH_TF32):
            raise BadInput(f"{workload.gru.name} is {workload.dtype}; give one of {', '.join(DTYPES)} as --dtype")
        if device.type not in ("cpu", "cuda"):
            raise BadInput(f"{workload.gru.name} is on {device}: give cpu or cuda as --device")
        if device.type != "cuda" and (workload.graph or workload.dtype in (TF32, TORCH_TF32)):
            raise BadInput(f"{'--graph' if workload.graph else f'--dtype {workload.dtype}'} is for CUDA")
        if device != combinations[0].device:
            raise BadInput("the model is on several devices: give one as --device")
    if combinations[0].device.type == "cuda":  # the host's threads make no difference there
        combinations = [replace(workload, threads=torch.get_num_threads()) for workload in combinations]
    return list(dict.fromkeys(combinations))


def grus(arguments: argparse.Namespace) -> list[GRUShape]:
    """Those of --shapes or --file, or every combination of the sizes, with defaults for those that are not given."""
    if arguments.shapes:
        return [GRUShape(*shape) for shape in arguments.shapes]
    if arguments.file:
        return read_shapes(arguments.file)
    return [GRUShape(*sizes) for sizes in product(*(getattr(arguments, of) or [default] for _, of, default in SIZES))]


def with_flags(shapes: Sequence[GRUShape], arguments: argparse.Namespace) -> list[GRUShape]:
    """The GRUs in each layout, and bidirectional and with resets where that was asked for."""
    resets = getattr(arguments, "resets", None) or 0
    return [
        replace(gru, bidirectional=gru.bidirectional or arguments.bidirectional, layout=layout, resets=resets)
        for layout in arguments.layout or LAYOUTS[:1]
        for gru in shapes
    ]


def read_shapes(path: Path) -> list[GRUShape]:
    """The GRUs that a file names, each once, in its order; empty lines and those that begin with # say nothing.

    Lines are B,T,I,H, or those of a CSV whose header names the columns NEEDED, and may name num_layers and
    bidirectional.

    Raises:
        BadInput: no such file, no shape in it, or a line that is none; the message names the line
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--file: {path} cannot be read: {error}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and line[0] != COMMENT]
    if not numbered:
        raise BadInput(f"--file: {path} has no shape")
    names = [name.strip() for name in numbered[0][1].split(",")]
    with_header = not numbered[0][1].strip(" (")[0].isdigit()
    if with_header and not set(NEEDED) <= set(names):
        raise BadInput(f"--file: {path} must have lines of B,T,I,H, or a header that names {', '.join(NEEDED)}")
    shapes = []
    for number, line in numbered[with_header:]:
        try:
            shapes.append(_named(names, next(csv.reader([line]))) if with_header else GRUShape(*parse_shape(line)))
        except (ValueError, KeyError, argparse.ArgumentTypeError) as error:
            raise BadInput(f"--file: line {number} of {path}: {error}") from None
    if not shapes:
        raise BadInput(f"--file: {path} has a header and no shape")
    return list(dict.fromkeys(shapes))


def _named(names: Sequence[str], values: Sequence[str]) -> GRUShape:
    """The GRU of a row under a header."""
    if len(values) != len(names):
        raise ValueError(f"expected {len(names)} values, got {len(values)}")
    row = dict(zip(names, values, strict=True))
    sizes = parse_shape(",".join(row[name] for name in NEEDED))
    layers = int(row.get("num_layers") or 1)
    directions = (row.get("bidirectional") or "0").strip().lower()
    if layers < 1 or directions not in ("0", "1", "true", "false"):
        raise ValueError(f"expected num_layers of at least 1 and bidirectional of 0 or 1, got {layers}, {directions!r}")
    return GRUShape(*sizes, layers, directions in ("1", "true"))


def checked_device(name: str) -> torch.device:
    """The device of this name. Raises BadInput where there is none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"--device is {name!r}; expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            sees = "no GPU" if count == 0 else f"{count} GPU{'s' * (count > 1)}"
            raise BadInput(f"--device {name} was asked for, and torch sees {sees}")
    return device
