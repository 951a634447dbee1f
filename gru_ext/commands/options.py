"""The options that the commands share: which layers, given by their sizes or lifted from a model, how, and where."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import product

import torch

from gru_ext.measure import BadInput
from gru_ext.measure.models import load, recorded_grus
from gru_ext.measure.workloads import DTYPES, MODES, TF32, GRUShape, Workload, packed_lengths

# Option, GRUShape's field, default.
SIZES = (
    ("--batch", "batch", 32),
    ("--time", "seq_len", 100),
    ("--input-size", "input_size", 64),
    ("--hidden-size", "hidden_size", 128),
    ("--layers", "num_layers", 1),
)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`workloads` reads. Each size may have several values: all combinations are taken."""
    sizes = parser.add_argument_group("layers, by their sizes (several values: every combination)")
    for option, field, default in SIZES:
        sizes.add_argument(
            option, dest=field, nargs="+", type=positive, metavar="N", help=f"{field} (default: {default})"
        )
    sizes.add_argument("--bidirectional", action="store_true", help="both directions")
    sizes.add_argument("--packed", action="store_true", help="packed input, half of whose sequences are shorter")
    parser.add_argument(
        "--model",
        metavar="PACKAGE.MODULE:FACTORY",
        help="in place of sizes: the GRUs of the model that this function returns, alone or with its input, as they "
        "are called when it is run once",
    )
    how = parser.add_argument_group("how and where")
    names = [*DTYPES, TF32]
    about = f"{', '.join(names)} (default: float32, or the model's)"
    how.add_argument("--dtype", nargs="+", choices=names, metavar="DTYPE", help=about)
    how.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cpu, or the model's)")
    how.add_argument("--threads", nargs="+", type=positive, metavar="N", help="on the CPU (default: torch's)")
    how.add_argument("--training", action="store_true", help="calls that are recorded, and go backward")
    how.add_argument("--inference", action="store_true", help="calls without gradient")
    parser.add_argument("--json", action="store_true", help="print JSON")


def workloads(
    arguments: argparse.Namespace, modes: Sequence[str] = MODES, extra: Sequence[GRUShape] = ()
) -> list[Workload]:
    """What was asked for: every GRU, as each dtype, with each thread count, in each mode.

    Args:
        arguments: parsed by a parser that :func:`add_arguments` has filled
        modes: when neither --training nor --inference was given
        extra: GRUs that the command has read from a file

    Raises:
        BadInput: no such device or model, or options that exclude one another
    """
    asked = [option for option, name, _ in SIZES if getattr(arguments, name) is not None]
    if (arguments.model or extra) and asked:
        raise BadInput(f"{asked[0]} was given, and {'--model' if arguments.model else '--file'}, which has all sizes")
    if arguments.model and (extra or arguments.bidirectional or arguments.packed):
        raise BadInput("--model was given, which has all that --file, --bidirectional and --packed would say")
    modes = [mode for mode in MODES if getattr(arguments, mode)] or list(modes)
    grus: list[tuple[GRUShape, str, torch.device]] = []
    if arguments.model:
        with redirect_stdout(sys.stderr):  # what the model prints is not among the results
            grus = [(record.gru, record.dtype, record.device) for record in recorded_grus(*load(arguments.model))]
    else:
        grus = [(with_flags(gru, arguments), "float32", torch.device("cpu")) for gru in extra or sizes_asked(arguments)]
    if arguments.device:
        device = checked_device(arguments.device)
        grus = [(gru, dtype, device) for gru, dtype, _ in grus]
    asked_for = []
    for dtype in arguments.dtype or [None]:
        for threads in arguments.threads or [torch.get_num_threads()]:
            for mode, (gru, own, device) in product(modes, grus):
                name = dtype or own
                if name not in DTYPES and name != TF32:
                    raise BadInput(f"{gru.name} is {name}; give one of {', '.join(DTYPES)} as --dtype")
                if name == TF32 and device.type != "cuda":
                    raise BadInput("--dtype tf32 is for CUDA")
                if device.type not in ("cpu", "cuda"):
                    raise BadInput(f"{gru.name} is on {device}: give cpu or cuda as --device")
                asked_for.append(Workload(name, threads, mode, gru, device))
    if len({workload.device for workload in asked_for}) > 1:
        raise BadInput("the model is on several devices: give one as --device")
    return list(dict.fromkeys(asked_for)) if asked_for[0].device.type == "cpu" else one_thread_count(asked_for)


def one_thread_count(workloads: list[Workload]) -> list[Workload]:
    """Without those that differ in threads alone, which are the CPU's."""
    first: dict[tuple[object, ...], Workload] = {}
    for workload in workloads:
        first.setdefault((workload.dtype, workload.mode, workload.gru), workload)
    return list(first.values())


def sizes_asked(arguments: argparse.Namespace) -> list[GRUShape]:
    """Every combination of the sizes given, with defaults for the others."""
    values = [getattr(arguments, field) or [default] for _, field, default in SIZES]
    return [GRUShape(*sizes) for sizes in product(*values)]


def with_flags(gru: GRUShape, arguments: argparse.Namespace) -> GRUShape:
    """The GRU, bidirectional and packed where that was asked for."""
    lengths = packed_lengths(gru.batch, gru.seq_len) if arguments.packed else gru.lengths
    return replace(gru, bidirectional=gru.bidirectional or arguments.bidirectional, lengths=lengths)


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
