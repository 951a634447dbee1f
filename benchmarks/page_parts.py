"""What the generated pages are written with: tables, and where figures come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gru_ext.measure.measurements import Result, geometric_mean

ROOT = Path(__file__).resolve().parent.parent
# What a processor is called: "AMD EPYC" is the name of many generations.
GENERATIONS = {
    "family 25 model 1": "Zen 3",
    "family 25 model 17": "Zen 4",
    "family 26 model 2": "Zen 5",
    "family 6 model 207": "Emerald Rapids, AMX",
}


def every(rows: Sequence[Result], field: str) -> str:
    """The values of the rows in this field, each once."""
    return " / ".join(dict.fromkeys(str(getattr(row, field)) for row in rows))


def machine_name(rows: Sequence[Result]) -> str:
    """AMD EPYC (Zen 4), 2 cores"""
    name = every(rows, "machine").split(", CUDA ")[0]
    for numbers, generation in GENERATIONS.items():
        name = name.replace(f"({numbers})", f"({generation})")
    return name


def source(path: Path, rows: Sequence[Result], more: str = "") -> str:
    """A sentence on where, when and with what the file's rows were measured."""
    simd = f", {every(rows, 'simd')}" if getattr(rows[0], "simd", "") else ""
    relative = path.relative_to(ROOT).as_posix()
    return (
        f"{every(rows, 'machine')}{simd}, {every(rows, 'system')}, Python {every(rows, 'python')}, torch "
        f"{every(rows, 'torch')}; commit {every(rows, 'commit')}, {every(rows, 'date')}{more}. "
        f"[All figures](../{relative})."
    )


def table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def spread(ratios: Sequence[float]) -> list[str]:
    """Cells of a geometric mean, and of the lowest and the highest."""
    return [f"**{geometric_mean(ratios):.2f}**", f"{min(ratios):.2f} to {max(ratios):.2f}"] if ratios else ["", ""]
