"""The programs of docs/ run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PROGRAMS = [
    (page, number, program)
    for page in ("sequences.md", "edge.md")
    for number, program in enumerate(
        re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize(("page", "number", "program"), PROGRAMS, ids=[f"{name}-{of}" for name, of, _ in PROGRAMS])
def test_program(page: str, number: int, program: str) -> None:
    """As a reader would copy it."""
    exec(compile(program, f"{page}, program {number}", "exec"), {})


def test_all_programs_are_there() -> None:
    """None is lost by a change of the pages' form."""
    assert [page for page, _, _ in PROGRAMS] == ["sequences.md"] * 3 + ["edge.md"]
