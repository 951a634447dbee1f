"""Measurements as they are shown: a table for each dtype, thread count and mode, and the closing lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gru_ext.measure.harness import Run
from gru_ext.measure.measurements import SMALL_FLOOR_MS, Measurement, by_group, geometric_mean, mean_over_floor
from gru_ext.measure.text import Table
from gru_ext.measure.units import counted, milliseconds, three_digits

NOISY = 1.5  # quartiles further apart than this factor say more about the machine than about the code


def over_floor(row: Measurement) -> str:
    """gru_ext's time over the floor, in brackets where the floor is small; empty without a floor."""
    if row.over_floor is None:
        return ""
    return f"({three_digits(row.over_floor)})" if row.small_floor else three_digits(row.over_floor)


def noisy(row: Measurement) -> bool:
    """Whether the rounds disagree so much that the machine cannot have been idle."""
    return row.ratio_q3 > NOISY * row.ratio_q1


def tables(measurements: Sequence[Measurement]) -> Iterator[Table]:
    """A table for each group, at most 80 columns wide; nn.LSTM and the floor have columns where they were measured."""
    for (dtype, threads, mode), rows in by_group(measurements).items():
        where = counted(threads) if rows[0].device == "cpu" else rows[0].device
        lstm, floor = (any(getattr(row, of) is not None for row in rows) for of in ("lstm_ms", "floor_ms"))
        columns = ["(B,T,I,H)", "nn.GRU", "nn.LSTM", "gru_ext", "ratio", "quartiles", "floor", "rounds"]
        left_out = {"rounds" if lstm else "nn.LSTM", *(() if floor else ("floor",))}  # beside LSTM's there is no room
        cells = []
        for row in rows:
            shown = {
                "(B,T,I,H)": row.title,
                "nn.GRU": milliseconds(row.torch_ms),
                "nn.LSTM": "" if row.lstm_ms is None else milliseconds(row.lstm_ms),
                "gru_ext": milliseconds(row.gru_ext_ms),
                "ratio": three_digits(row.ratio),
                "quartiles": f"{three_digits(row.ratio_q1)}-{three_digits(row.ratio_q3)}{'?' * noisy(row)}",
                "floor": over_floor(row),
                "rounds": str(row.rounds),
            }
            cells.append(tuple(shown[name] for name in columns if name not in left_out))
        worst = min(rows, key=lambda row: row.ratio)
        mean, mean_floor = geometric_mean([row.ratio for row in rows]), mean_over_floor(rows)
        over = f", of floor {three_digits(mean_floor)}" if mean_floor is not None else ""
        difference = max(row.largest_difference for row in rows)
        notes = (
            f"geometric mean of ratio {three_digits(mean)}{over}; worst ratio {worst.ratio:.2f} at {worst.title}; "
            f"outputs differ by {difference:.1e} at most",
        )
        heads = tuple(name for name in columns if name not in left_out)
        yield Table(heads, cells, f"{dtype}, {where}, {mode}", notes)


def verdict(measurements: Sequence[Measurement]) -> str:
    """The closing lines: in which cells gru_ext is slower."""
    slower = sorted((m for m in measurements if m.ratio < 1.0), key=lambda m: m.ratio)
    first = f"slower than torch.nn.GRU (ratio below 1): {len(slower) or 'none'} of {len(measurements)} cells"
    return "\n".join([first, *(f"  {m.ratio:.3f}  {m.dtype}, {m.threads}t, {m.mode}, {m.title}" for m in slower)])


def closing_lines(result: Run, csv: Path | None = None) -> Iterator[str]:
    """What the table's columns mean, what was noisy, failed or written, and in which cells gru_ext is slower."""
    measurements = result.measurements
    if measurements:
        yield "ratio: nn.GRU's median time over gru_ext's; quartiles: of the rounds' own ratios"
    if any(row.floor_ms is not None for row in measurements):
        yield f"floor: time over what the machine allows; in brackets where that is below {SMALL_FLOOR_MS} ms"
    disturbed = sum(map(noisy, measurements))
    if disturbed:
        yield f"{disturbed} of {len(measurements)} cells marked ?: quartiles {NOISY} times apart, machine not idle?"
    for failure in result.failures:
        yield f"failed: {failure}"
    if measurements and csv:
        yield f"written: {csv}"
    if measurements:
        yield verdict(measurements)
