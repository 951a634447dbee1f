"""Plots: of measurements time over a size, ratios, and the distance to the floor; bars of a profile; the roofline.

Needs matplotlib, which is optional: ask ``text.installed("matplotlib")`` before importing this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gru_ext.measure.measurements import Measurement, by_group
from gru_ext.measure.profiling import Profile
from gru_ext.measure.roofline import OURS, TORCHS, Ceiling, Point
from gru_ext.measure.tables import group_title, profile_title
from gru_ext.measure.workloads import Shape, shape_name
from gru_ext.text import duration, percent, size, three_digits

# Field, what it is called, and the file.
AXES = (
    ("batch", "batch size B", "time-over-batch"),
    ("seq_len", "sequence length T", "time-over-time"),
    ("input_size", "input size I", "time-over-input-size"),
    ("hidden_size", "hidden size H", "time-over-hidden-size"),
)
LETTERS = {"batch": "B", "seq_len": "T", "input_size": "I", "hidden_size": "H"}
# Field of the time, its name, colour, marker.
CONTESTANTS = (
    ("torch_ms", "nn.GRU", "#d95f02", "s"),
    ("lstm_ms", "nn.LSTM", "#7570b3", "^"),
    ("gru_ext_ms", "gru_ext", "#1b6ca8", "o"),
    ("floor_ms", "floor", "#444444", ""),
)
PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.4  # inches
ROW_HEIGHT = 0.28
MOST_COLUMNS = 2
LINE_STYLES = ("-", "--")  # more series in a panel cannot be told apart
LEAST_HEAT, GREATEST_HEAT = 2, 5  # binary logarithm of the ratio that has the full colour
SMALL = 8  # points
DPI = 150
PHASE_COLORS = {
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
CEILING_COLORS = ("#1b6ca8", "#4a9c6d", "#b8860b", "#a33b3b", "#6b4a8c")
POINT_FACES = {OURS: "#222222", TORCHS: "white"}


def save(figure: Figure, path: Path) -> None:
    """Writes the figure, as SVG, PNG or PDF by the name; equal figures are equal SVGs, whose text is text."""
    with rc_context({"svg.hashsalt": "gru_ext", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def save_all(measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    """Draws whatever these measurements, at least one, are enough for; the files that were written.

    Args:
        folder: exists
    """
    written = []
    figures = [*over_sizes(measurements), ("ratio", ratio_figure(measurements))]
    if any(row.floor_ms is not None for row in measurements):
        figures.append(("over-floor", floor_figure(measurements)))
    for name, figure in figures:
        for ending in ("svg", "png"):
            path = folder / f"{name}.{ending}"
            save(figure, path)
            written.append(path)
    return written


def over_sizes(measurements: Sequence[Measurement]) -> Iterator[tuple[str, Figure]]:
    """For each size that varies while the others stay: a panel for each group, a line for each contestant."""
    for field, name, file in AXES:
        panels = {group_title(rows[0]): series(rows, field) for rows in by_group(measurements).values()}
        panels = {title: lines for title, lines in panels.items() if lines}
        if not panels:
            continue
        figure, axes = grid(len(panels), PANEL_HEIGHT)
        for panel, (title, lines) in zip(axes, panels.items(), strict=True):
            time_panel(panel, title, lines, field)
            panel.set_xlabel(name, fontsize=SMALL + 1)
        drawn = [Line2D([], [], color=c, marker=m, label=n) for t, n, c, m in CONTESTANTS if has(measurements, t)]
        figure.legend(handles=drawn, loc="outside upper center", ncols=4, frameon=False)
        yield file, figure


def has(measurements: Sequence[Measurement], field: str) -> bool:
    """Whether any has a value there."""
    return any(getattr(row, field) is not None for row in measurements)


def sizes_text(row: Measurement, fields: Sequence[str]) -> str:
    """B=1, T=50"""
    return ", ".join(f"{LETTERS[field]}={getattr(row, field)}" for field in fields)


def series(rows: Sequence[Measurement], field: str) -> list[list[Measurement]]:
    """Rows that differ in this size alone, in its order: each at least two, the longest first."""
    by_others: dict[tuple[object, ...], dict[int, Measurement]] = {}
    for row in rows:
        others = tuple(getattr(row, other) for other, *_ in AXES if other != field)
        key = (*others, row.num_layers, row.bidirectional, row.layout, row.cell, row.name)
        by_others.setdefault(key, {})[getattr(row, field)] = row
    lines = [[of[size] for size in sorted(of)] for of in by_others.values() if len(of) > 1]
    return sorted(lines, key=len, reverse=True)


def time_panel(axes: Axes, title: str, lines: Sequence[Sequence[Measurement]], field: str) -> None:
    """The times over the size, of the first and the last series where there are several."""
    drawn = [lines[0], lines[-1]] if len(lines) > 1 else [lines[0]]
    others = [other for other in LETTERS if other != field]
    varying = [other for other in others if len({getattr(rows[0], other) for rows in drawn}) > 1]
    for style, rows in zip(LINE_STYLES, drawn, strict=False):
        for time, _, colour, marker in CONTESTANTS:
            points = [(getattr(row, field), getattr(row, time)) for row in rows if getattr(row, time) is not None]
            if points:
                width = 1.0 if time == "floor_ms" else 1.8
                axes.plot(*zip(*points, strict=True), style, color=colour, marker=marker, lw=width, ms=5)
    if len(drawn) > 1:
        handles = [
            Line2D([], [], color="black", ls=style, label=sizes_text(rows[0], varying) or rows[0].title)
            for style, rows in zip(LINE_STYLES, drawn, strict=False)
        ]
        axes.legend(handles=handles, fontsize=SMALL, loc="best")
    left_out = f"; {len(drawn)} of {len(lines)} series" if len(lines) > len(drawn) else ""
    fixed = sizes_text(drawn[0][0], [other for other in others if other not in varying])
    axes.set_title(f"{title}\n{fixed}{left_out}", fontsize=SMALL + 1)
    sizes = sorted({getattr(row, field) for rows in drawn for row in rows})
    if sizes[-1] >= 4 * sizes[0]:
        axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: decade(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=SMALL)
    axes.set_ylabel("time of a call", fontsize=SMALL + 1)
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def decade(value: float) -> str:
    """A power of ten of milliseconds: 10 us, 1 ms."""
    scaled, unit = (value * 1e3, "us") if value < 0.9 else (value, "ms") if value < 900 else (value / 1e3, "s")
    return f"{scaled:g} {unit}"


def ratio_figure(measurements: Sequence[Measurement]) -> Figure:
    """A heat map of the ratios: shapes down, groups across; blue where gru_ext is faster, red where it is slower."""
    groups = by_group(measurements)
    titles = list(dict.fromkeys(row.title for row in measurements))
    ratios = {(row.title, row.group): row.ratio for row in measurements}
    values = [[math.log2(ratios.get((title, group), math.nan)) for group in groups] for title in titles]
    longest = max(map(len, titles))
    width = 1.2 + 0.085 * longest + 1.15 * len(groups)
    figure = Figure(figsize=(max(width, 4.5), 1.9 + ROW_HEIGHT * len(titles)), layout="constrained")
    axes = figure.subplots()
    largest = max(abs(math.log2(row.ratio)) for row in measurements)
    limit = min(max(math.ceil(largest), LEAST_HEAT), GREATEST_HEAT)
    image = axes.imshow(values, aspect="auto", cmap="RdBu", norm=TwoSlopeNorm(0, -limit, limit))
    heads = [group_title(rows[0]).replace(", ", "\n") for rows in groups.values()]
    axes.set_xticks(range(len(groups)), heads, fontsize=SMALL)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(titles)), titles, fontsize=SMALL)
    axes.tick_params(length=0)
    for down, title in enumerate(titles):
        for across, group in enumerate(groups):
            if (title, group) in ratios:
                ratio = ratios[title, group]
                colour = "white" if abs(math.log2(ratio)) > 0.7 * limit else "black"
                axes.text(across, down, three_digits(ratio), ha="center", va="center", color=colour, fontsize=SMALL + 1)
    figure.suptitle("Time of nn.GRU over that of gru_ext", fontsize=11)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=30, extend="both")
    ticks = range(-limit, limit + 1)
    bar.set_ticks(ticks, labels=[f"{2**tick}" if tick >= 0 else f"1/{2**-tick}" for tick in ticks])
    bar.set_label("gru_ext slower                     gru_ext faster", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def floor_figure(measurements: Sequence[Measurement]) -> Figure:
    """For each shape how far nn.GRU and gru_ext are from what the machine allows: points right of 1."""
    groups = by_group(row for row in measurements if row.floor_ms is not None)
    most = max(map(len, groups.values()))
    figure, axes = grid(len(groups), 1.1 + ROW_HEIGHT * most)
    for panel, rows in zip(axes, groups.values(), strict=True):
        for down, row in enumerate(rows):
            assert row.floor_ms is not None
            times = [getattr(row, time) / row.floor_ms for time, *_ in (CONTESTANTS[0], CONTESTANTS[2])]
            panel.plot(times, [down, down], color="#bbbbbb", zorder=1, lw=1.5)
            for (_, _, colour, marker), value in zip((CONTESTANTS[0], CONTESTANTS[2]), times, strict=True):
                small = "none" if row.small_floor else colour
                panel.scatter(value, down, marker=marker, edgecolors=colour, facecolors=small, s=30, zorder=2)
        panel.axvline(1, color="#444444", lw=1.2)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=SMALL)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_title(group_title(rows[0]), fontsize=SMALL + 1)
        panel.tick_params(axis="x", labelsize=SMALL)
        panel.set_xlabel("time over the floor", fontsize=SMALL)
        panel.grid(axis="x", alpha=0.3)
    title = "Distance to what the machine allows (1); hollow: the floor is so low that a call's own price counts"
    figure.suptitle(title, fontsize=SMALL + 1)
    drawn = [Line2D([], [], color=c, marker=m, ls="", label=n) for _, n, c, m in (CONTESTANTS[0], CONTESTANTS[2])]
    figure.legend(handles=drawn, loc="outside lower center", ncols=2, frameon=False)
    return figure


def grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, each of this height."""
    across = min(MOST_COLUMNS, count)
    down = math.ceil(count / across)
    figure = Figure(figsize=(PANEL_WIDTH * across + 0.4, height * down + 0.7), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def profile_figure(profile: Profile) -> Figure:
    """Bars of the ranges' time in a call, and below them of the kernels' phases."""
    rows = len(profile.passes) + 1
    figure = Figure(
        figsize=(8, 1.1 + 0.36 * rows + (1.0 + 0.36 * len(profile.phases)) * bool(profile.phases)), layout="constrained"
    )
    heights = [rows + 1, len(profile.phases) + 1.5] if profile.phases else [rows + 1]
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    passes = axes[0]
    labels = [of_pass.range.split(",")[0] for of_pass in profile.passes] + ["outside these ranges"]
    times = [of_pass.ms / profile.calls for of_pass in profile.passes] + [profile.rest_ms / profile.calls]
    colors = [PHASE_COLORS["product"]] * len(profile.passes) + [PHASE_COLORS["rest"]]
    passes.barh(range(rows), times, color=colors, height=0.65)
    for row, of_pass in enumerate(profile.passes):
        if of_pass.floor_ms is not None:
            mark = of_pass.floor_ms * of_pass.calls / profile.calls
            passes.plot([mark, mark], [row - 0.42, row + 0.42], color="black", linewidth=2)
    for row, value in enumerate(times):
        at = (value, row)
        passes.annotate(duration(value), at, (4, 0), textcoords="offset points", va="center", fontsize=SMALL)
    passes.set_yticks(range(rows), labels, fontsize=SMALL)
    passes.invert_yaxis()
    passes.margins(x=0.15)
    with_floor = any(of_pass.floor_ms for of_pass in profile.passes)
    floors = "; black: the least that this machine allows" if with_floor else ""
    passes.set_xlabel(f"ms in a call{floors}", fontsize=SMALL)
    passes.tick_params(axis="x", labelsize=SMALL)
    passes.set_title(f"{profile_title(profile)}: {duration(profile.ms / profile.calls)} a call", fontsize=SMALL + 1)
    if profile.phases:
        phase_bars(figure, axes[1], profile)
    return figure


def phase_bars(figure: Figure, axes: Axes, profile: Profile) -> None:
    """A bar for each kernel, of its phases' shares."""
    for row, kernel in enumerate(profile.phases):
        left = 0.0
        for phase in kernel.phases:
            axes.barh(row, phase.share, left=left, color=PHASE_COLORS[phase.phase], height=0.65)
            if phase.share > 0.05:
                ink = "white" if phase.phase in DARK else "black"
                at = (left + phase.share / 2, row)
                axes.text(*at, percent(phase.share), ha="center", va="center", fontsize=SMALL, color=ink)
            left += phase.share
    taken = {phase.phase for kernel in profile.phases for phase in kernel.phases}
    names = [name for name in PHASE_COLORS if name in taken]
    handles: list[Any] = [axes.barh(0, 0, color=PHASE_COLORS[name]) for name in names]
    figure.legend(handles, names, ncols=len(names), fontsize=SMALL, loc="outside lower center", columnspacing=1.2)
    axes.set_yticks(range(len(profile.phases)), [f"{kernel.name} kernel" for kernel in profile.phases], fontsize=SMALL)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_title("phases of the CPU kernels: share of the time of their threads", fontsize=SMALL + 1)


def roofline_figure(limits: Sequence[Ceiling], points: Sequence[Point], title: str) -> Figure:
    """What each shape achieves over its operations per byte, below the machine's ceilings."""
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    axes = figure.subplots()
    arithmetic = next(limit.rate for limit in limits if limit.bytes == 0)
    left = min([0.25, *(0.6 * point.intensity for point in points)])
    right = max([100.0, *(2 * point.intensity for point in points)])
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.plot([left, right], [arithmetic / 1e9] * 2, color="black", linewidth=1.5)
    words, at = f"arithmetic, {three_digits(arithmetic / 1e9)} GFLOP/s", (right, arithmetic / 1e9)
    axes.annotate(words, at, (-4, 4), textcoords="offset points", ha="right", fontsize=SMALL)
    for color, limit in zip(CEILING_COLORS, [limit for limit in limits if limit.bytes], strict=False):
        end = min(right, arithmetic / limit.rate)
        name = f"{limit.name}, {size(limit.bytes)}: {three_digits(limit.rate / 1e9)} GB/s"
        rates = [x * limit.rate / 1e9 for x in (left, end)]
        axes.plot([left, end], rates, color=color, linewidth=1.2, label=name)
    by_shape = {point.shape: [other for other in points if other.shape == point.shape] for point in points}
    sides = number_sides({shape: both[0].intensity for shape, both in by_shape.items()})
    for number, (shape, both) in enumerate(by_shape.items(), 1):
        axes.plot([p.intensity for p in both], [p.rate / 1e9 for p in both], color="#888888", linewidth=0.8, zorder=2)
        beside: dict[str, Any] = {"va": "center", "ha": "left" if sides[shape] > 0 else "right", "fontsize": SMALL}
        for point in both:
            at = (point.intensity, point.rate / 1e9)
            axes.annotate(str(number), at, (6 * sides[shape], 0), textcoords="offset points", **beside)
    for name, face in POINT_FACES.items():
        of = [point for point in points if point.contestant == name]
        xy = [point.intensity for point in of], [point.rate / 1e9 for point in of]
        axes.plot(*xy, "o", ms=6, markerfacecolor=face, markeredgecolor="#222222", label=name)
    for number, shape in enumerate(by_shape, 1):
        axes.plot([], [], " ", label=f"{number:>2}  {shape_name(shape)}")
    axes.set_xlabel("operations per byte that the layer must read or write")
    axes.set_ylabel("GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=SMALL + 1)
    options: dict[str, Any] = {"fontsize": SMALL, "title_fontsize": SMALL, "title": "ceilings, and (B,T,I,H)"}
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", **options)
    return figure


def number_sides(intensities: dict[Shape, float]) -> dict[Shape, int]:
    """Where each shape's number stands, left (-1) or right (1) of its points: away from the nearer neighbour."""
    ordered = sorted(intensities, key=lambda shape: intensities[shape])
    values = [0.0, *(intensities[shape] for shape in ordered), math.inf]
    around = zip(values, values[1:], values[2:], strict=False)
    sides = [-1 if after * before < here**2 else 1 for before, here, after in around]
    return dict(zip(ordered, sides, strict=True))
