"""The demo's data: a real series or a user's own, and its windows as (samples, time_steps, features)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gru_ext.measure import BadInput

Values = NDArray[np.float64]
MISSING = ("", "na", "nan", "null")


@dataclass(frozen=True)
class Series:
    """A series of evenly spaced values."""

    name: str
    unit: str  # of the values; may be empty
    step: str  # name of one step of time, such as "week"
    values: Values  # [N], finite
    positions: Values  # [N], where each value stands on the plot's axis
    axis: str  # label of that axis


def interpolated(values: Values) -> Values:
    """Values with the missing ones (NaN) at the ends cut off and those inside interpolated linearly."""
    present = np.flatnonzero(~np.isnan(values))
    if not len(present):
        return values[:0]
    cut = values[present[0] : present[-1] + 1]
    index = np.arange(len(cut))
    known = ~np.isnan(cut)
    return np.asarray(np.interp(index, index[known], cut[known]))


def co2() -> Series:
    """Weekly CO2 in the air at Mauna Loa, 1958 to 2001, as statsmodels ships it; 59 missing weeks are interpolated."""
    from statsmodels.datasets import co2 as dataset

    frame = dataset.load_pandas().data
    values = interpolated(frame["co2"].to_numpy(dtype=float))
    years = frame.index.year.to_numpy() + (frame.index.dayofyear.to_numpy() - 1) / 365.25
    return Series("CO2 at Mauna Loa", "ppm", "week", values, years.astype(float), "year")


def from_csv(path: Path, column: str | None) -> Series:
    """One column of a CSV file with a header line. Empty cells are interpolated. Raises BadInput."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} is not a CSV file in UTF-8: {error}") from None
    if not rows or not any(rows[0]):
        raise BadInput(f"{path} is empty; expected a header line and one value a line") from None
    names = [name.strip() for name in rows[0]]
    if column is None and len(names) > 1:
        raise BadInput(f"{path} has the columns {', '.join(names)}; choose one with --column")
    column = names[0] if column is None else column
    if column not in names:
        raise BadInput(f"{path} has no column {column!r}; it has {', '.join(names)}")

    index = names.index(column)
    values = np.full(len(rows) - 1, np.nan)
    for line, row in enumerate(rows[1:], start=2):
        text = row[index].strip() if index < len(row) else ""
        if text.lower() in MISSING:
            continue
        try:
            values[line - 2] = float(text)
        except ValueError:
            raise BadInput(f"{path}, line {line}: {text!r} in column {column!r} is not a number") from None
        if not np.isfinite(values[line - 2]):
            raise BadInput(f"{path}, line {line}: {text!r} in column {column!r} is not a finite number")
    values = interpolated(values)
    return Series(column, "", "step", values, np.arange(len(values), dtype=float), "step")


@dataclass(frozen=True)
class Windows:
    """Samples for a one-value forecast `horizon` steps after the last step of each window.

    Each window and its target are taken relative to the window's last value, so that a trend carries the held-out part
    no further from zero than the training part, and divided by `scale`, which only the training targets determine.
    """

    inputs: Tensor  # [samples, time_steps, 1] float32, on the device
    targets: Tensor  # [samples, 1] float32, on the device
    last: Values  # [samples], the value that was subtracted
    truth: Values  # [samples], what is to be forecast, in the series' own unit
    positions: Values  # [samples], where the truth stands on the plot's axis
    training: slice  # samples to learn from
    held_out: slice  # later samples, every window of which ends when all training targets are known
    scale: float

    def forecast(self, predicted: Tensor) -> Values:
        """Predictions [held-out samples, 1] in the series' own unit."""
        return np.asarray(predicted.cpu().double().numpy()[:, 0] * self.scale + self.last[self.held_out])


def windows(
    series: Series, time_steps: int, horizon: int, device: torch.device, training_fraction: float = 0.8
) -> Windows:
    """Cut a series into samples, the last in time held out. Raises BadInput when it is too short or flat."""
    count = len(series.values) - time_steps - horizon + 1
    least = time_steps + 6 * horizon + 9  # leaves at least one held-out sample
    if len(series.values) < least:
        raise BadInput(
            f"{series.name} has {len(series.values)} usable values; expected at least {least} for --time-steps "
            f"{time_steps} and --horizon {horizon}"
        )
    training = slice(0, int(count * training_fraction))
    steps = np.lib.stride_tricks.sliding_window_view(series.values, time_steps)[:count]
    truth = series.values[time_steps + horizon - 1 :]
    last = steps[:, -1]
    scale = float(np.std((truth - last)[training]))
    if not scale > 0:
        raise BadInput(
            f"{series.name} does not change in its first {training_fraction:.0%}, so there is nothing to learn"
        )
    return Windows(
        inputs=torch.from_numpy(((steps - last[:, None]) / scale).astype(np.float32))[..., None].to(device),
        targets=torch.from_numpy(((truth - last) / scale).astype(np.float32))[:, None].to(device),
        last=last,
        truth=truth,
        positions=series.positions[time_steps + horizon - 1 :],
        training=training,
        held_out=slice(training.stop + horizon - 1, count),
        scale=scale,
    )
