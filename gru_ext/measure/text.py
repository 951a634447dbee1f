"""Tables for people, by rich on a terminal where it is installed, else plain; JSON for programs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

EXTRA = "gru_ext[bench]"
GAP = 2  # blanks between two columns
LEAST_TEXT = 16  # a column of words is not made narrower than this

_hinted: set[str] = set()


class Readable(Protocol):
    """What :func:`show` can show: a Table, an Explanation."""

    def text(self, width: int = 80) -> str:
        """Plain lines, none longer than width."""

    def __rich__(self) -> Any:
        """What rich shows."""


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers.

    Attributes:
        columns: the headings
        rows: as many cells each
        title: above, and notes: below, a line each
        words: how many of the first columns hold words, which stand to the left; the others hold numbers
        wrapped: the column of words that is broken into lines where the table is too wide; None: the first
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    notes: tuple[str, ...] = ()
    words: int = 1
    wrapped: int = 0

    def lines(self, width: int = 80) -> Iterator[str]:
        """The table as plain text, no wider than ``width`` unless its numbers are."""
        cells = [self.columns, *self.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns))]
        excess = sum(widths) + GAP * (len(widths) - 1) - width
        if excess > 0:
            widths[self.wrapped] = max(min(LEAST_TEXT, widths[self.wrapped]), widths[self.wrapped] - excess)
        yield from textwrap.wrap(self.title, width) if self.title else ()
        for number, row in enumerate(cells):
            broken = textwrap.wrap(row[self.wrapped], widths[self.wrapped]) or [""]
            for index, part in enumerate(broken):
                shown = [
                    part if column == self.wrapped else text if index == 0 else "" for column, text in enumerate(row)
                ]
                aligned = (
                    f"{text:<{widths[column]}}" if column < self.words else f"{text:>{widths[column]}}"
                    for column, text in enumerate(shown)
                )
                yield (" " * GAP).join(aligned).rstrip()
            if number == 0:
                yield (" " * GAP).join("-" * size for size in widths)
        for note in self.notes:
            yield from textwrap.wrap(note, width)

    def text(self, width: int = 80) -> str:
        """The lines, put together."""
        return "\n".join(self.lines(width))

    def __rich__(self) -> Any:
        """The table as rich shows it."""
        from rich import box
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column, heading in enumerate(self.columns):
            of_words = column < self.words
            table.add_column(
                Text(heading), justify="left" if of_words else "right", no_wrap=column != self.wrapped, overflow="fold"
            )
        for row in self.rows:
            table.add_row(*map(Text, row))  # Text: brackets in a cell are no markup
        return Group(table, *map(Text, self.notes))


def installed(package: str) -> bool:
    """Whether an optional package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # such as sys.modules[package] = None
        return False


def width() -> int:
    """Columns of the terminal, or what COLUMNS says, or 80."""
    return shutil.get_terminal_size((80, 24)).columns


def show(*parts: Readable | str, file: TextIO | None = None) -> None:
    """Prints tables and lines, by rich where it is installed and the file is a terminal, else no wider than that."""
    file = file or sys.stdout
    if file.isatty() and installed("rich"):
        from rich.console import Console
        from rich.text import Text

        console = Console(file=file)
        for part in parts:
            console.print(Text(part) if isinstance(part, str) else part)
        return
    for part in parts:
        print(part if isinstance(part, str) else part.text(width()), file=file)


def as_json(value: Any) -> str:
    """JSON of dataclasses, torch's objects by name, lists and dicts, with two blanks to a level."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        return str(item)

    return json.dumps(value, default=plain, indent=2)


def hint(packages: Sequence[str], purpose: str) -> None:
    """Says on standard error, once, what to install for more; nothing where all these packages are there."""
    missing = [package for package in packages if not installed(package) and package not in _hinted]
    if missing:
        _hinted.update(missing)
        print(f"For {purpose}: pip install '{EXTRA}' (missing: {', '.join(missing)})", file=sys.stderr)
