"""The parts of the README that are generated: each between two markers, rewritten or checked."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def rewrite(readme: Path, markers: tuple[str, str], part: str, check: bool, source: Path) -> int:
    """Puts a part between its markers, or says whether it is there already. Returns the exit code.

    Args:
        readme: the file
        markers: the lines before and after the part
        part: lines, without a newline at the end
        check: change nothing; 1 when the file says something else
        source: the folder that the part is generated from, for the messages
    """
    begin, end = markers
    text = readme.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        print(f"{readme.name} needs the lines {begin} and {end}", file=sys.stderr)
        return 1
    fresh = f"{before}{begin}\n{part}\n{end}{after}"
    if not check:
        readme.write_text(fresh, encoding="utf-8")
        return 0
    folder = source.relative_to(ROOT).as_posix() if source.is_relative_to(ROOT) else source.name
    if fresh != text:
        print(f"{readme.name} and {folder}/ disagree; run make readme-table", file=sys.stderr)
        return 1
    print(f"{readme.name} agrees with {folder}/")
    return 0
