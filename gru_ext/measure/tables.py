"""Measurements as they are printed: a table of at most 80 columns, and the closing lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gru_ext.measure.harness import Run
from gru_ext.measure.measurements import SMALL_FLOOR_MS, Measurement, by_group, geometric_mean, mean_over_floor
from gru_ext.measure.units import milliseconds, three_digits

NOISY = 1.5  # quartiles further apart than this factor say more about the machine than about the code


def over_floor(row: Measurement) -> str:
    """gru_ext's time over the floor, in brackets where the floor is small; empty without a floor."""
    if row.over_floor is None:
        return ""
    return f"({three_digits(row.over_floor)})" if row.small_floor else three_digits(row.over_floor)


def noisy(row: Measurement) -> bool:
    """Whether the rounds disagree so much that the machine cannot have been idle."""
    return row.ratio_q3 > NOISY * row.ratio_q1


def table(measurements: Sequence[Measurement]) -> Iterator[str]:
    """The printed table, at most 80 columns wide. The column floor is there where a floor was measured."""
    for (dtype, threads, mode), rows in by_group(measurements).items():
        where = f"{threads} thread{'s' * (threads > 1)}" if rows[0].device == "cpu" else rows[0].device
        floor = "floor" if any(row.floor_ms is not None for row in rows) else ""
        title = f"{dtype}, {where}, {mode}"
        yield f"{title:32}{'nn.GRU':>8}{'gru_ext':>8}{'ratio':>7}{floor:>7}  {'quartiles':10}{'rounds':>6}"
        for row in rows:
            times = f"{milliseconds(row.torch_ms):>8}{milliseconds(row.gru_ext_ms):>8}"
            spread = f"{three_digits(row.ratio_q1)}-{three_digits(row.ratio_q3)}{'?' * noisy(row)}"
            yield f"  {row.shape:30}{times}{three_digits(row.ratio):>7}{over_floor(row):>7}  {spread:10}{row.rounds:>6}"
        worst = min(rows, key=lambda row: row.ratio)
        mean, mean_floor = geometric_mean([row.ratio for row in rows]), mean_over_floor(rows)
        floor = three_digits(mean_floor) if mean_floor is not None else ""
        yield f"  {'geometric mean':46}{three_digits(mean):>7}{floor:>7}   worst {worst.ratio:.2f}"
        difference = max(row.largest_difference for row in rows)
        yield f"  worst at {worst.shape}; outputs differ by {difference:.1e} at most"
        yield ""


def verdict(measurements: Sequence[Measurement]) -> str:
    """The closing lines: in which cells gru_ext is slower."""
    slower = sorted((m for m in measurements if m.ratio < 1.0), key=lambda m: m.ratio)
    first = f"slower than torch.nn.GRU (ratio below 1): {len(slower) or 'none'} of {len(measurements)} cells"
    return "\n".join([first, *(f"  {m.ratio:.3f}  {m.dtype}, {m.threads}t, {m.mode}, {m.shape}" for m in slower)])


def closing_lines(result: Run, csv: Path | None = None) -> Iterator[str]:
    """What the table's columns mean, what was noisy, failed or written, and in which cells gru_ext is slower."""
    measurements = result.measurements
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
