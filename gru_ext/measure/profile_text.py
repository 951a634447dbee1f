"""A profile for reading: tables, and a bar plot."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gru_ext.measure.phases import PassPhases
from gru_ext.measure.profiling import Profile
from gru_ext.measure.text import EXTRA, Table
from gru_ext.measure.units import counted, milliseconds, size_name, three_digits

PLOT_NEEDS = f"pip install '{EXTRA}'"
COLORS = {
    "product": "#1b6ca8",
    "gates": "#e08e45",
    "gradients": "#4a9c6d",
    "projection": "#7fb2d9",
    "packing": "#a08bbd",
    "recompute": "#c9b458",
    "waiting": "#c8553d",
    "rest": "#c4c4c4",
}
DARK = {"product", "gradients", "waiting"}  # of these colors


def heading(what: str, facts: Mapping[str, str], width: int) -> list[str]:
    """Lines that say what was run and where. facts: those of machine.py."""
    where = f"{facts['machine']}; torch {facts['torch']}, gru_ext at commit {facts['commit']}"
    return [line for text in (what, where) for line in textwrap.wrap(text, width)]


def parts(profile: Profile) -> Iterator[Table | str]:
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


def pass_table(profile: Profile) -> Table:
    """One row a pass, then what is outside of all, and all; "each" of the last two is of a call of the module."""
    rows = [
        (
            of_pass.range,
            str(of_pass.calls),
            milliseconds(of_pass.ms_per_call),
            percent(of_pass.share),
            _number(of_pass.gflops),
            _number(of_pass.gbytes),
            percent(of_pass.of_floor),
        )
        for of_pass in profile.passes
    ]
    rest, calls = profile.rest_ms, profile.calls
    rows.append(("outside these ranges", "", milliseconds(rest / calls), percent(rest / profile.ms), "", "", ""))
    rows.append(("a call of the module", str(calls), milliseconds(profile.ms / calls), percent(1.0), "", "", ""))
    columns = ("range", "calls", "each", "share", "GFLOP/s", "GB/s", "of floor")
    return Table(columns, rows, title(profile))


def title(profile: Profile) -> str:
    """What was run."""
    where = counted(profile.threads) if profile.device == "cpu" else profile.device
    return f"{'training' if profile.training else 'inference'}, {where}"


def phase_table(kernel: PassPhases) -> Table:
    """Where the time of the kernels goes: "each" sums to what a call of the kernel takes."""
    each_ms = 1e3 * kernel.seconds / kernel.calls
    rows = [
        (
            phase.phase,
            milliseconds(each_ms * phase.share),
            percent(phase.share),
            milliseconds(1e3 * phase.slowest_seconds / kernel.calls) if phase.slowest_seconds else "",
        )
        for phase in kernel.phases
    ]
    rows.append(("all", milliseconds(each_ms), percent(1.0), ""))
    head = f"{kernel.name} kernel, {counted(kernel.threads)}"
    notes = (f"{kernel.calls} calls, each of one direction of a layer",)
    return Table(("phase", "each", "share", "slowest thread"), rows, head, notes)


def memory_table(profile: Profile) -> Table:
    """Ours beside torch's."""
    memories = profile.memory
    rows = []
    if profile.training:
        rows.append(("kept for backward", *(_size(memory.kept_bytes) for memory in memories.values())))
        if any(memory.saved_bytes is not None for memory in memories.values()):
            rows.append(
                ("  of that by gru_ext, beside inputs", *(_size(memory.saved_bytes) for memory in memories.values()))
            )
    if any(memory.peak_bytes is not None or memory.why for memory in memories.values()):
        rows.append(("peak", *(_size(memory.peak_bytes) for memory in memories.values())))
    notes = [f"{name}: no peak: {memory.why}" for name, memory in memories.items() if memory.why]
    notes += [
        f"{name}: this system cannot count the peak anew for a call, so it may be too small"
        for name, memory in memories.items()
        if not memory.exact
    ]
    return Table(("memory of a call", *memories), rows, notes=tuple(notes))


def _size(size: int | None) -> str:
    return "-" if size is None else size_name(size)


def _number(value: float | None) -> str:
    return "-" if value is None else three_digits(value)


def percent(value: float | None) -> str:
    """Of a share, 0 to 1: 42%, 4.2%."""
    return "-" if value is None else f"{100 * value:.{0 if value >= 0.1 else 1}f}%"


def plot(profile: Profile, path: Path) -> None:
    """Bars of the ranges' time in a call, and below them of the kernels' phases, as PNG, SVG or PDF by the name.

    Raises:
        ImportError: matplotlib is not installed; the message says how to.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"a plot needs matplotlib: {PLOT_NEEDS}") from error
    rows = len(profile.passes) + 1
    figure = Figure(figsize=(8, 1.1 + 0.36 * rows + (1.0 + 0.36 * len(profile.phases)) * bool(profile.phases)))
    figure.set_layout_engine("constrained")
    heights = [rows + 1, len(profile.phases) + 1.5] if profile.phases else [rows + 1]
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    passes = axes[0]
    labels = [of_pass.range.split(",")[0] for of_pass in profile.passes] + ["outside these ranges"]
    times = [of_pass.ms / profile.calls for of_pass in profile.passes] + [profile.rest_ms / profile.calls]
    colors = [COLORS["product"]] * len(profile.passes) + [COLORS["rest"]]
    passes.barh(range(rows), times, color=colors, height=0.65)
    for row, of_pass in enumerate(profile.passes):
        if of_pass.floor_ms is not None:
            mark = of_pass.floor_ms * of_pass.calls / profile.calls
            passes.plot([mark, mark], [row - 0.42, row + 0.42], color="black", linewidth=2)
    for row, value in enumerate(times):
        passes.annotate(milliseconds(value), (value, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    passes.set_yticks(range(rows), labels, fontsize=8)
    passes.invert_yaxis()
    passes.margins(x=0.15)
    floors = (
        "; black: the least that this machine allows" if any(of_pass.floor_ms for of_pass in profile.passes) else ""
    )
    passes.set_xlabel(f"ms in a call{floors}", fontsize=8)
    passes.tick_params(axis="x", labelsize=8)
    passes.set_title(f"{title(profile)}: {milliseconds(profile.ms / profile.calls)} a call", fontsize=9)
    if profile.phases:
        shares = axes[1]
        for row, kernel in enumerate(profile.phases):
            left = 0.0
            for phase in kernel.phases:
                shares.barh(row, phase.share, left=left, color=COLORS[phase.phase], height=0.65)
                if phase.share > 0.05:
                    ink = "white" if phase.phase in DARK else "black"
                    where = (left + phase.share / 2, row)
                    shares.text(*where, percent(phase.share), ha="center", va="center", fontsize=8, color=ink)
                left += phase.share
        used = [
            name for name in COLORS if any(name == phase.phase for kernel in profile.phases for phase in kernel.phases)
        ]
        handles = [shares.barh(0, 0, color=COLORS[name]) for name in used]
        figure.legend(handles, used, ncols=len(used), fontsize=8, loc="outside lower center", columnspacing=1.2)
        shares.set_yticks(
            range(len(profile.phases)), [f"{of_pass.name} kernel" for of_pass in profile.phases], fontsize=8
        )
        shares.invert_yaxis()
        shares.set_xlim(0, 1)
        shares.set_xticks([])
        shares.set_title("phases of the CPU kernels: share of the time of their threads", fontsize=9)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes the figure; an SVG without its date and with names of its own, so that equal figures are equal files."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "gru_ext"}):
        figure.savefig(path, dpi=150, **({"metadata": {"Date": None}} if path.suffix.lower() == ".svg" else {}))
