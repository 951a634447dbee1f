"""Measurements and profiles as they are shown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gru_ext.measure.harness import Run
from gru_ext.measure.measurements import (
    NOISY,
    SMALL_FLOOR_MS,
    Measurement,
    MemoryMeasurement,
    Result,
    SequenceMeasurement,
    by_group,
    geometric_mean,
    mean_over_floor,
)
from gru_ext.measure.phases import PassPhases
from gru_ext.measure.profiling import Profile
from gru_ext.measure.workloads import HALF_LENGTHS
from gru_ext.text import Table, counted, duration, known, percent, size, three_digits

# What lengths and resets are to reach: LEAST_GAIN, at half of the steps LEAST_SAVING, and with resets MOST_COST.
LEAST_GAIN, LEAST_SAVING, MOST_COST = 1.5, 1 / 0.6, 0.03
SMALLEST_PEAK_MIB = 1.0  # one below it says more about what the heap had left over than about the step


def where(row: Result | Profile) -> str:
    """2 threads; of a GPU: cuda."""
    return counted(row.threads) if row.device == "cpu" else row.device


def group_title(row: Result) -> str:
    """Of the rows with the same: float32, 1 thread, training."""
    return f"{row.dtype}, {where(row)}, {row.mode}"


def over_floor(row: Measurement) -> str:
    """gru_ext's time over the floor, in brackets where the floor is small; empty without a floor."""
    if row.over_floor is None:
        return ""
    return f"({three_digits(row.over_floor)})" if row.small_floor else three_digits(row.over_floor)


def ratio_quartiles(row: Measurement | SequenceMeasurement) -> str:
    """Of the rounds' own ratios, and a question mark where they are far apart."""
    return f"{three_digits(row.ratio_q1)}-{three_digits(row.ratio_q3)}{'?' * row.noisy}"


def sequence_tables(measurements: Sequence[SequenceMeasurement]) -> Iterator[Table]:
    """A table for each group, of lengths or resets, at most 80 columns wide."""
    for (dtype, _, what), rows in by_group(measurements).items():
        columns = {
            "(B,T,I,H)": lambda row: row.title,
            "nn.GRU": lambda row: duration(row.torch_ms),
            "gru_ext": lambda row: duration(row.gru_ext_ms),
            "ratio": lambda row: three_digits(row.ratio),
            "quartiles": ratio_quartiles,
        }
        means = ["ratio"]
        if rows[0].resets:
            columns |= {
                "without": lambda row: duration(row.gru_ext_plain_ms),
                "cost": lambda row: f"{row.cost:+.1%}",
            }
        else:
            columns |= {
                "padded": lambda row: three_digits(row.torch_plain_ms / row.gru_ext_ms),
                "gain": lambda row: three_digits(row.gain),
                "saving": lambda row: three_digits(row.saving),
            }
            means += ["gain", "saving"]
        cells = [tuple(written(row) for written in columns.values()) for row in rows]
        of_all = (f"{of} {three_digits(geometric_mean([getattr(row, of) for row in rows]))}" for of in means)
        note = (
            f"geometric mean of {', '.join(of_all)}; results differ by {max(r.largest_error for r in rows):.1e} at most"
        )
        yield Table(list(columns), cells, f"{dtype}, {where(rows[0])}, {what}", (note,))


def sequence_lines(result: Run[SequenceMeasurement]) -> Iterator[str]:
    """What the columns mean, and how many cells are as they are to be."""
    rows = result.measurements
    if not rows:
        return
    yield "ratio: nn.GRU's median time over gru_ext's; quartiles: of the rounds' own ratios"
    if rows[0].resets:
        yield "nn.GRU: split at the resets by hand; without: gru_ext's time without resets"
        yield "cost: how much longer the fastest round takes with resets"
        good, worst = sum(row.cost <= MOST_COST for row in rows), max(rows, key=lambda row: row.cost)
        yield f"cost of at most {MOST_COST:.0%}: {good} of {len(rows)} cells; the most:"
        yield f"  {worst.cost:+.1%}  {in_words(worst)}"
        return
    yield "nn.GRU: packed, run and padded again"
    yield "padded: nn.GRU's time for padded input over gru_ext's with lengths"
    yield "gain: the ratio over that for padded input"
    yield "saving: gru_ext's fastest round of padded input over that with lengths"
    half = [row for row in rows if row.layout == HALF_LENGTHS]
    for name, least, of in (("gain", LEAST_GAIN, rows), ("saving", LEAST_SAVING, half)):
        if of:
            figures = [getattr(row, name) for row in of]
            among = "" if of is rows else f" {HALF_LENGTHS}"
            good = sum(figure >= least for figure in figures)
            yield f"{name} of at least {least:.2f}: {good} of {len(of)}{among} cells; the least:"
            yield f"  {min(figures):.2f}  {in_words(of[figures.index(min(figures))])}"


def in_words(row: SequenceMeasurement) -> str:
    """Its cell."""
    return f"{row.dtype}, {where(row)}, {row.group[2]}, {row.title}"


def tables(measurements: Sequence[Measurement]) -> Iterator[Table]:
    """A table for each group, at most 80 columns wide; nn.LSTM and the floor have columns where they were measured."""
    for rows in by_group(measurements).values():
        lstm, floor = (any(getattr(row, of) is not None for row in rows) for of in ("lstm_ms", "floor_ms"))
        left_out = {"rounds" if lstm else "nn.LSTM", "" if floor else "floor"}  # beside LSTM's there is no room
        cells = [
            {
                "(B,T,I,H)": row.title,
                "nn.GRU": duration(row.torch_ms),
                "nn.LSTM": "" if row.lstm_ms is None else duration(row.lstm_ms),
                "gru_ext": duration(row.gru_ext_ms),
                "ratio": three_digits(row.ratio),
                "quartiles": ratio_quartiles(row),
                "floor": over_floor(row),
                "rounds": str(row.rounds),
            }
            for row in rows
        ]
        columns = [name for name in cells[0] if name not in left_out]
        worst = min(rows, key=lambda row: row.ratio)
        mean, mean_floor = geometric_mean([row.ratio for row in rows]), mean_over_floor(rows)
        over = f", of floor {three_digits(mean_floor)}" if mean_floor is not None else ""
        difference = max(row.largest_difference for row in rows)
        note = (
            f"geometric mean of ratio {three_digits(mean)}{over}; worst ratio {worst.ratio:.2f} at {worst.title}; "
            f"outputs differ by {difference:.1e} at most"
        )
        shown = [tuple(row[name] for name in columns) for row in cells]
        yield Table(columns, shown, group_title(rows[0]), (note,))


def closing_lines(result: Run[Measurement]) -> Iterator[str]:
    """What the table's columns mean, what was noisy, and in which cells gru_ext is slower."""
    measurements = result.measurements
    if not measurements:
        return
    yield "ratio: nn.GRU's median time over gru_ext's; quartiles: of the rounds' own ratios"
    if any(row.floor_ms is not None for row in measurements):
        yield f"floor: time over what the machine allows; in brackets where that is below {SMALL_FLOOR_MS} ms"
    disturbed = sum(row.noisy for row in measurements)
    if disturbed:
        yield f"{disturbed} of {len(measurements)} cells marked ?: quartiles {NOISY} times apart, machine not idle?"
    slower = sorted((row for row in measurements if row.ratio < 1.0), key=lambda row: row.ratio)
    yield f"slower than torch.nn.GRU (ratio below 1): {len(slower) or 'none'} of {len(measurements)} cells"
    for row in slower:
        yield f"  {row.ratio:.3f}  {row.dtype}, {row.threads}t, {row.mode}, {row.title}"


def written_lines(result: Run[Measurement] | Run[MemoryMeasurement], paths: Sequence[Path]) -> Iterator[str]:
    """What failed, and the files of what did not."""
    yield from (f"failed: {failure}" for failure in result.failures)
    yield from (f"written: {path}" for path in paths if result.measurements)


def memory_ratio(rows: Sequence[MemoryMeasurement], kind: str) -> str:
    """Geometric mean of torch's over gru_ext's "peak" or "kept"; a dash where neither is large enough to compare."""
    pairs = [(getattr(row, f"torch_{kind}_mib"), getattr(row, f"gru_ext_{kind}_mib")) for row in rows]
    least = SMALLEST_PEAK_MIB if kind == "peak" else 1e-9  # recomputing, gru_ext may keep nothing
    ratios = [theirs / ours for theirs, ours in pairs if min(theirs, ours) >= least]
    return f"{geometric_mean(ratios):.2f}" if ratios else "-"


def memory_tables(measurements: Sequence[MemoryMeasurement]) -> Iterator[Table]:
    """A table for each group of the memory of a training step, at most 80 columns wide."""
    for (dtype, _, _), rows in by_group(measurements).items():
        cells = []
        for name, members in [*((row.title, [row]) for row in rows), ("geometric mean", rows)]:
            line = [name]
            for kind in ("peak", "kept"):
                both = [f"{getattr(members[0], f'{of}_{kind}_mib'):.2f}" for of in ("torch", "gru_ext")]
                line += [*(both if members is not rows else ["", ""]), memory_ratio(members, kind)]
            cells.append(line)
        notes = ["peak: of the step, kept: from forward to backward, in MiB; peaks below 1 MiB are not compared"]
        if not all(row.exact for row in rows):
            notes.append(
                "This system cannot count the peak anew for the step, as Linux can: peak is the rise of the process's "
                "own peak, which is too small where importing and making the input needed more for a while."
            )
        heads = ("(B,T,I,H)", "peak nn.GRU", "gru_ext", "ratio", "kept nn.GRU", "gru_ext", "ratio")
        yield Table(heads, cells, f"{dtype}, {where(rows[0])}, memory of a training step", notes)


def profile_heading(title: str, facts: Mapping[str, str], width: int) -> list[str]:
    """Lines that say what was run and where. facts: those of machine.py."""
    where = f"{facts['machine']}; torch {facts['torch']}, gru_ext at commit {facts['commit']}"
    return [line for text in (title, where) for line in textwrap.wrap(text, width)]


def profile_parts(profile: Profile) -> Iterator[Table | str]:
    """The whole report: passes, phases, memory."""
    yield pass_table(profile)
    for kernel in profile.phases:
        yield ""
        yield phase_table(kernel)
    memory = memory_table(profile)
    if memory.rows:
        yield ""
        yield memory
    if profile.interrupted:
        yield ""
        yield f"interrupted: the figures are those of {profile.calls} completed calls"


def profile_title(profile: Profile) -> str:
    """What was run."""
    return f"{'training' if profile.training else 'inference'}, {where(profile)}"


def pass_table(profile: Profile) -> Table:
    """One row a pass, then what is outside of all, and all; "each" of the last two is of a call of the module."""
    rows = [
        {
            "range": of_pass.range,
            "calls": str(of_pass.calls),
            "each": duration(of_pass.ms_per_call),
            "fastest": known(of_pass.fastest_ms, duration),
            "share": percent(of_pass.share),
            "GFLOP/s": known(of_pass.gflops, three_digits),
            "GB/s": known(of_pass.gbytes, three_digits),
            "floor": known(of_pass.of_floor, percent),
        }
        for of_pass in profile.passes
    ]
    rest, calls = profile.rest_ms, profile.calls
    for name, count, ms in (("outside these ranges", "", rest), ("a call of the module", str(calls), profile.ms)):
        share = percent(ms / profile.ms)
        rows.append({"range": name, "calls": count, "each": duration(ms / calls), "share": share})
    columns = ["range", "calls", "each", "fastest", "share", "GFLOP/s", "GB/s", "floor"]
    if all(of_pass.fastest_ms is None for of_pass in profile.passes):  # a file from before there was this column
        columns.remove("fastest")
    return Table(columns, [[row.get(name, "") for name in columns] for row in rows], profile_title(profile))


def phase_table(kernel: PassPhases) -> Table:
    """Where the time of the kernels goes: "each" sums to what a call of the kernel takes."""
    each_ms = 1e3 * kernel.seconds / kernel.calls
    rows = [
        (
            phase.phase,
            duration(each_ms * phase.share),
            percent(phase.share),
            duration(1e3 * phase.slowest_seconds / kernel.calls) if phase.slowest_seconds else "",
        )
        for phase in kernel.phases
    ]
    rows.append(("all", duration(each_ms), percent(1.0), ""))
    head = f"{kernel.name} kernel, {counted(kernel.threads)}"
    notes = (f"{kernel.calls} calls, each of one direction of a layer",)
    return Table(("phase", "each", "share", "slowest thread"), rows, head, notes)


def memory_table(profile: Profile) -> Table:
    """Ours beside torch's, in a call."""
    memories = profile.memory

    def row(name: str, field: str) -> tuple[str, ...]:
        return (name, *(known(getattr(memory, field), size) for memory in memories.values()))

    rows = [row("kept for backward", "kept_bytes")] if profile.training and memories else []
    if profile.training and any(memory.saved_bytes is not None for memory in memories.values()):
        rows.append(row("  of that by gru_ext, beside inputs", "saved_bytes"))
    if any(memory.peak_bytes is not None or memory.why for memory in memories.values()):
        rows.append(row("peak", "peak_bytes"))
    notes = [f"{name}: no peak: {memory.why}" for name, memory in memories.items() if memory.why]
    notes += [
        f"{name}: this system cannot count the peak anew for a call, so it may be too small"
        for name, memory in memories.items()
        if not memory.exact
    ]
    return Table(("memory of a call", *memories), rows, notes=notes)
