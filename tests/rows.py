"""Rows of results, with placeholders where a test does not care."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from gru_ext.measure.measurements import Row

PLACEHOLDERS = {"int": 1, "float": 1.0, "str": "any"}
USUAL = {"device": "cpu", "layout": "time-first", "machine": 'Some "CPU", 2 cores', "commit": "0123456789ab"}
SIZES = ("batch", "seq_len", "input_size", "hidden_size")
LARGE = (100, 1000, 1024, 1024)  # as wide as they are printed


def row_of(kind: type[Row], shape: tuple[int, int, int, int], **values: Any) -> Row:
    """A row of this kind and shape (B, T, I, H); what no value is given for has its default or a placeholder."""
    needed = {field.name: str(field.type) for field in fields(kind) if field.default is MISSING}
    others = {name: USUAL.get(name, PLACEHOLDERS[type_name]) for name, type_name in needed.items()}
    return kind(**{**others, **dict(zip(SIZES, shape, strict=True)), **values})


def quartiles(name: str, first: float, median: float, third: float) -> dict[str, float]:
    """The three columns of a time or a ratio."""
    return {f"{name}_q1": first, name: median, f"{name}_q3": third}
