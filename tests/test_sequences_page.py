"""The programs of docs/sequences.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sequences.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program(number: int) -> None:
    assert len(PROGRAMS) == 3
    exec(compile(PROGRAMS[number], f"{PAGE.name}, program {number}", "exec"), {})
