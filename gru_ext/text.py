"""Results for reading: numbers, tables by rich on a terminal where it is installed, else plain; JSON; hints.

Imports neither torch nor :mod:`gru_ext.measure`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

EXTRA = "gru_ext[bench]"
GAP = 2  # blanks between two columns
LEAST_TEXT = 16  # a column of words is not made narrower than this
INDENT = 12

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
        words: how many of the first columns hold words, which stand to the left; the others hold numbers. The first is
            broken into lines where the table is too wide; rich breaks all of them in a table of words alone
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()
    words: int = 1

    def lines(self, width: int = 80) -> Iterator[str]:
        """The table as plain text, no wider than ``width`` unless its numbers are."""
        cells = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        excess = sum(widths) + GAP * (len(widths) - 1) - width
        if excess > 0:
            widths[0] = max(min(LEAST_TEXT, widths[0]), widths[0] - excess)
        yield from textwrap.wrap(self.title, width) if self.title else ()
        for number, (first, *others) in enumerate(cells):
            for index, part in enumerate(textwrap.wrap(first, widths[0]) or [""]):
                shown = [part, *(others if index == 0 else [""] * len(others))]
                aligned = (
                    f"{cell:{'<' if column < self.words else '>'}{widths[column]}}" for column, cell in enumerate(shown)
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
            justify: Any = "left" if column < self.words else "right"
            fixed = column > 0 and self.words < len(self.columns)
            table.add_column(Text(heading), justify=justify, no_wrap=fixed, overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))  # Text: brackets in a cell are no markup
        return Group(table, *map(Text, self.notes))


@dataclass(frozen=True)
class Section:
    """A part of a report of sentences.

    Attributes:
        title, footer: a line each
        columns: by name, the facts of each, in order: what it is, and words. The first two make one line of plain text
    """

    title: str
    columns: Sequence[tuple[str, dict[str, str]]]
    footer: str

    def lines(self, width: int) -> Iterator[str]:
        """A few lines, none longer than ``width``."""
        yield from textwrap.wrap(self.title, width)
        for column, facts in self.columns:
            first, second, *others = facts.items()
            sentences = [f"{first[1]}: {second[1]}", *(f"{name} {words}" for name, words in others)]
            for index, sentence in enumerate(sentences):
                head = f"  {column if index == 0 else '':{INDENT - 2}}"
                yield from textwrap.wrap(head + sentence, width, subsequent_indent=" " * INDENT)
        yield from textwrap.wrap("  " + self.footer, width, subsequent_indent="  ")

    def table(self) -> Table:
        """A row for each kind of fact."""
        names = dict.fromkeys(name for _, facts in self.columns for name in facts)
        rows = [(name, *(facts.get(name, "") for _, facts in self.columns)) for name in names]
        heads = ("", *(column for column, _ in self.columns))
        return Table(heads, rows, self.title, (self.footer, ""), words=len(heads))


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


def three_digits(value: float) -> str:
    """1.23, 12.3, 123."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def duration(milliseconds: float) -> str:
    """Three digits in the unit that keeps them readable: 8.31 us, 12.4 ms, 1.82 s."""
    for unit, scale in (("us", 1e3), ("ms", 1.0)):
        if milliseconds * scale < 1e3:
            return f"{three_digits(milliseconds * scale)} {unit}"
    return f"{three_digits(milliseconds / 1e3)} s"


def size(count: float) -> str:
    """Bytes: 96 bytes, 768 KiB, 1.5 MiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.{4 if count >= 1000 * scale else 3}g} {unit}"
    return f"{count:.0f} bytes"


def percent(share: float) -> str:
    """Of a share, 0 to 1: 42%, 4.2%."""
    return f"{100 * share:.{0 if share >= 0.1 else 1}f}%"


def known(value: float | None, written: Callable[[float], str]) -> str:
    """The value as the function writes it; a dash for None."""
    return "-" if value is None else written(value)


def counted(count: int, what: str = "thread") -> str:
    """1 thread, 2 threads."""
    return f"{count} {what}{'s' * (count != 1)}"


def listed(words: Sequence[str]) -> str:
    """one, two and three."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def times(count: int) -> str:
    """once, twice, 3 times."""
    return "once" if count == 1 else "twice" if count == 2 else f"{count:,} times"


def operations(count: int) -> str:
    """96, 5.9 million."""
    if count >= 1e6:
        return f"{count / 1e6:,.{1 if count < 1e9 else 0}f} million"
    return f"{count:,}"
