"""Shapes from a file: lines of B,T,I,H, or a CSV whose header names its columns."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from gru_ext.measure import BadInput
from gru_ext.measure.workloads import GRUShape, parse_shape

NEEDED = ("batch", "seq_len", "input_size", "hidden_size")
COMMENT = "#"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The option that :func:`asked` reads."""
    parser.add_argument("--file", type=Path, metavar="FILE", help="in place of sizes: read them here")


def asked(arguments: argparse.Namespace) -> list[GRUShape]:
    """The GRUs of --file; none where it was not given."""
    return read_shapes(arguments.file) if arguments.file else []


def read_shapes(path: Path) -> list[GRUShape]:
    """The GRUs that a file names, each once, in its order; empty lines and those that begin with # say nothing.

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
    grus = []
    for number, line in numbered[with_header:]:
        try:
            grus.append(_named(names, next(csv.reader([line]))) if with_header else GRUShape(*parse_shape(line)))
        except (ValueError, KeyError, argparse.ArgumentTypeError) as error:
            raise BadInput(f"--file: line {number} of {path}: {error}") from None
    if not grus:
        raise BadInput(f"--file: {path} has a header and no shape")
    return list(dict.fromkeys(grus))


def _named(names: Sequence[str], values: Sequence[str]) -> GRUShape:
    """The GRU of a row under a header."""
    if len(values) != len(names):
        raise ValueError(f"expected {len(names)} values, got {len(values)}")
    row = dict(zip(names, values, strict=True))
    batch, seq_len, input_size, hidden_size = parse_shape(",".join(row[name] for name in NEEDED))
    layers = int(row.get("num_layers") or 1)
    directions = (row.get("bidirectional") or "0").strip().lower()
    if layers < 1 or directions not in ("0", "1", "true", "false"):
        raise ValueError(f"expected num_layers of at least 1 and bidirectional of 0 or 1, got {layers}, {directions!r}")
    return GRUShape(batch, seq_len, input_size, hidden_size, layers, directions in ("1", "true"))
