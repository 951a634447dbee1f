"""A report for reading: plain lines or rich's tables, and how its numbers are written."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

INDENT = 12


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title, footer: a line each
        columns: by name, the facts of each, in order: what it is, and words. The first two make one line of plain text
    """

    title: str
    columns: Sequence[tuple[str, dict[str, str]]]
    footer: str


def lines(title: str, sections: Sequence[Section], width: int) -> Iterator[str]:
    """A few lines for each section, none longer than ``width``."""
    yield from textwrap.wrap(title, width, subsequent_indent="  ")
    for section in sections:
        yield from textwrap.wrap(section.title, width)
        for column, facts in section.columns:
            first, second, *others = facts.items()
            sentences = [f"{first[1]}: {second[1]}", *(f"{name} {words}" for name, words in others)]
            for index, sentence in enumerate(sentences):
                head = f"  {column if index == 0 else '':{INDENT - 2}}"
                yield from textwrap.wrap(head + sentence, width, subsequent_indent=" " * INDENT)
        yield from textwrap.wrap("  " + section.footer, width, subsequent_indent="  ")


def rich_tables(title: str, sections: Sequence[Section]) -> Any:
    """A table for each section. Needs rich."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(title, style="bold")]
    for section in sections:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        for column, _ in section.columns:
            table.add_column(column, overflow="fold")
        for name in dict.fromkeys(name for _, facts in section.columns for name in facts):
            table.add_row(name, *(Text(facts.get(name, "")) for _, facts in section.columns))
        parts += [Text(section.title), table, Text(section.footer), Text("")]
    return Group(*parts[:-1])


def times(count: int) -> str:
    """once, twice, 3 times."""
    return "once" if count == 1 else "twice" if count == 2 else f"{count:,} times"


def operations(count: int) -> str:
    """96, 5.9 million."""
    if count >= 1e6:
        return f"{count / 1e6:,.{1 if count < 1e9 else 0}f} million"
    return f"{count:,}"


def duration(microseconds: float) -> str:
    """5.9 us, 12.34 ms."""
    return f"{microseconds:.3g} us" if microseconds < 1e3 else f"{microseconds / 1e3:,.4g} ms"


def size(count: float) -> str:
    """96 bytes, 1.5 KiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
