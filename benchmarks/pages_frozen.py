"""The parts of the generated pages about frozen models."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge import COLUMNS, cells
from page_parts import ROOT, machine_name, source, spread, table

from gru_ext.measure.frozen import FrozenMeasurement
from gru_ext.text import counted, duration

GAINS = {
    "frozen float32": ("float32", "gru_ext"),
    "bfloat16": ("bfloat16", "gru_ext"),
    "int8": ("int8", "gru_ext"),
    "int8 / frozen float32": ("int8", "float32"),
    "int8 / torch.ao": ("int8", "torch_ao"),
    "int8 / ONNX Runtime": ("int8", "onnxruntime"),
}


def frozen_section(path: Path, rows: list[FrozenMeasurement]) -> Iterator[str]:
    """Frozen layers on a machine."""
    yield f"## {machine_name(rows)}: frozen"
    versions = next((f" {row.onnxruntime}" for row in rows if row.onnxruntime), "")
    errors = ", ".join(
        f"{way} {max(getattr(row, f'{way}_error') for row in rows):.1e}"
        for way in ("float32", "bfloat16", "int8", "torch_ao")
    )
    yield (
        "float32 input, inference. Time of a call of gru_ext.GRU, and by how much [frozen](edge.md) ones are faster; "
        "the last three compare int8 with frozen float32, with torch.ao's quantised GRU and with ONNX Runtime"
        f"{versions} in float32. Largest relative error: {errors}. {source(path, rows)}"
    )
    gains = [[row.gain(*of) for of in GAINS.values()] for row in rows]

    def lines() -> Iterator[Sequence[str]]:
        for row, of_row in zip(rows, gains, strict=True):
            shown = ["" if gain is None else f"{gain:.2f}" for gain in of_row]
            yield [row.shape, counted(row.threads), duration(row.gru_ext_ms), *shown]
        columns = [[gain for gain in column if gain is not None] for column in zip(*gains, strict=True)]
        yield ["**geometric mean**", "", "", *(spread(column)[0] for column in columns)]

    yield table(["shape", "", "gru_ext.GRU", *GAINS], lines())


def edge_table(path: Path) -> str:
    """What benchmarks/edge.py measured."""
    with path.open(newline="", encoding="utf-8") as file:
        texts = list(csv.DictReader(file))
    numbers = ("loss", "error", "weight_bytes", "frames", "p50_ms", "p99_ms", "real_time_factor")
    rows = [{name: float(text) if name in numbers else text for name, text in row.items()} for row in texts]
    first = texts[0]
    where = (
        f"{first['machine']}, {counted(int(first['threads']))}, torch {first['torch']}; commit {first['commit']}, "
        f"{first['date']}. [All figures](../{path.relative_to(ROOT).as_posix()})."
    )
    return f"{table([*COLUMNS], iter(cells(rows)))}\n\n{where}"
