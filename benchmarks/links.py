"""The links of the Markdown pages, which pages.py checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def broken_links(root: Path) -> Iterator[str]:
    """Links of the Markdown pages below root that name no file, or no heading of a page."""
    for page in sorted([*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("benchmarks/*.md")]):
        text = re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.exists():
                yield f"{page.relative_to(root)}: {target} is no file"
            elif anchor and anchor not in anchors(file):
                yield f"{page.relative_to(root)}: {file.name} has no heading for #{anchor}"
