"""A streaming denoiser on one thread: frozen in 32, 16 and 8 bits, beside nn.GRU.

    python benchmarks/edge.py
    python benchmarks/edge.py --frames 1000 --steps 20 --csv edge.csv

Speech enhancement as devices run it: a frame of 10 ms in, a frame out. Three GRU layers of 256 units turn the log
magnitudes of 161 frequencies into a mask for them. The speech is made up: harmonics of a gliding pitch below moving
formants, in syllables with pauses, in coloured noise. The model is trained on it for a minute, so that the loss on
sequences it has not seen says what rounding the weights costs; then every frame of a long stream is timed, one at a
time, the state handed from each to the next, all models by turns in blocks of frames.

Printed of each model: the loss and by how much it is above that of nn.GRU, the output's relative error against
float64, the bytes of the GRU's weights, the median and 99th percentile of a frame's time, and the real-time factor, the
mean time of a frame over the 10 ms that it lasts.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gru_ext
from gru_ext.commands.options import output_file, positive
from gru_ext.measure.machine import facts
from gru_ext.packed_weights import FORMATS
from gru_ext.text import Table, duration, show, size

FREQUENCIES, HIDDEN_SIZE, LAYERS = 161, 256, 3
FRAME_MS = 10.0
BATCH, SEQ_LEN = 16, 100
BLOCK = 250  # frames of one model in a row, before it is another's turn


class Denoiser(nn.Module):
    """log magnitudes [T, B, 161] -> masks from 0 to 1 of the same shape, and the state for the next frames."""

    def __init__(self, gru: type[nn.Module]) -> None:
        super().__init__()
        self.gru = gru(FREQUENCIES, HIDDEN_SIZE, LAYERS)
        self.mask = nn.Linear(HIDDEN_SIZE, FREQUENCIES)

    def forward(self, frames: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Any number of frames, one included."""
        output, state = self.gru(frames, state)
        assert state is not None
        return torch.sigmoid(self.mask(output)), state


def speech(seq_len: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Magnitudes of made-up speech, and of the same in noise: [T, B, 161] each."""

    def smooth(low: float, high: float, over: int, count: int = 1) -> Tensor:
        """[T, B, count] that glide between random values ``over`` frames apart."""
        knots = torch.rand(count * batch, 1, seq_len // over + 2, generator=generator) * (high - low) + low
        curve = nn.functional.interpolate(knots, seq_len, mode="linear", align_corners=True)
        return curve.view(batch, count, seq_len).permute(2, 0, 1)

    bins = torch.arange(FREQUENCIES) / (FREQUENCIES - 1) * 8000  # Hz
    pitch = smooth(90, 260, 25)
    harmonics = torch.exp(-(((bins / pitch).frac() - 0.5).abs() - 0.5).square() * 25)
    formants = smooth(300, 3500, 12, 3).unsqueeze(-1)
    envelope = torch.exp(-((bins - formants) / 350).square()).sum(2) + 0.05
    loudness = torch.sigmoid(12 * smooth(-1, 1, 15)) * smooth(0.4, 1.5, 40)
    clean = 2 * harmonics * envelope * loudness
    colour = (bins + 200).pow(-0.4) * 6 * smooth(0.02, 0.4, 60)
    noise = colour * torch.rand(seq_len, batch, FREQUENCIES, generator=generator).clamp_min(1e-3).log().neg().sqrt()
    return clean, (clean.square() + noise.square()).sqrt()


def loss_of(model: nn.Module, clean: Tensor, noisy: Tensor) -> Tensor:
    """Mean squared error of compressed magnitudes."""
    mask, _ = model(noisy.add(1e-3).log())
    return nn.functional.mse_loss((mask * noisy).add(1e-3).pow(0.3), clean.add(1e-3).pow(0.3))


def trained(steps: int) -> Denoiser:
    """A denoiser after so many steps of Adam."""
    model, generator = Denoiser(gru_ext.GRU), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = loss_of(model, *speech(SEQ_LEN, BATCH, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def models(ours: Denoiser) -> dict[str, nn.Module]:
    """The same as nn.GRU, as gru_ext.GRU, and frozen."""
    theirs = Denoiser(nn.GRU).eval()
    theirs.load_state_dict(ours.state_dict())
    frozen = {f"frozen {weights}": gru_ext.freeze(ours, weights) for weights in FORMATS}
    return {"nn.GRU": theirs, "gru_ext.GRU": ours, **frozen}


def stream(model: nn.Module, frames: Tensor, state: Tensor | None) -> tuple[list[float], Tensor | None]:
    """Milliseconds of each frame, and the last state."""
    times = []
    for frame in frames:
        begin = time.perf_counter()
        _, state = model(frame, state)
        times.append((time.perf_counter() - begin) * 1e3)
    return times, state


def weight_bytes(model: Any) -> int:
    """Of the GRU's weights and biases."""
    if isinstance(model.gru, gru_ext.FrozenGRU):
        return sum(model.gru.weight_bytes())
    return sum(parameter.nbytes for parameter in model.gru.parameters())


def measured(contestants: dict[str, nn.Module], frame_count: int) -> list[dict[str, Any]]:
    """A row for each model."""
    generator = torch.Generator().manual_seed(1)
    held_out = speech(1000, 8, generator)
    _, noisy = speech(frame_count, 1, generator)
    frames = noisy.add(1e-3).log().unsqueeze(1)
    with torch.inference_mode():
        wide = Denoiser(nn.GRU).double().eval()
        wide.load_state_dict(contestants["nn.GRU"].state_dict())
        part = frames[:1000].squeeze(1)
        truth, _ = wide(part.double())
        times: dict[str, list[float]] = {name: [] for name in contestants}
        states: dict[str, Tensor | None] = dict.fromkeys(contestants)
        for model in contestants.values():
            stream(model, frames[:BLOCK], None)  # warm-up
        for block in frames.split(BLOCK):
            for name, model in contestants.items():
                of_block, states[name] = stream(model, block, states[name])
                times[name] += of_block
        rows = []
        for name, model in contestants.items():
            ordered = sorted(times[name])
            row = {
                "model": name,
                "loss": float(loss_of(model, *held_out)),
                "error": float((model(part)[0] - truth).norm() / truth.norm()),
                "weight_bytes": weight_bytes(model),
                "frames": len(ordered),
                "p50_ms": ordered[len(ordered) // 2],
                "p99_ms": ordered[len(ordered) * 99 // 100],
                "real_time_factor": sum(ordered) / len(ordered) / FRAME_MS,
            }
            rows.append(row)
    return rows


COLUMNS: dict[str, Callable[[dict[str, Any], dict[str, Any]], str]] = {
    "": lambda row, _: str(row["model"]),
    "loss": lambda row, first: f"{row['loss']:.5f} ({row['loss'] / first['loss'] - 1:+.2%})",
    "error": lambda row, _: f"{row['error']:.1e}",
    "weights": lambda row, _: size(int(row["weight_bytes"])),
    "p50": lambda row, _: duration(row["p50_ms"]),
    "p99": lambda row, _: duration(row["p99_ms"]),
    "real-time factor": lambda row, _: f"{row['real_time_factor']:.4f}",
}


def cells(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows for reading."""
    return [tuple(column(row, rows[0]) for column in COLUMNS.values()) for row in rows]


def main(words: list[str] | None = None) -> int:
    """Trains, measures, prints, keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--frames", type=positive, default=10_000, metavar="N", help="of the stream")
    add("--steps", type=positive, default=300, metavar="N", help="of training")
    add("--threads", type=positive, default=1, metavar="N", help="of torch")
    add("--csv", type=output_file, metavar="FILE", help="write the rows here")
    arguments = parser.parse_args(words)
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    about = facts(torch.device("cpu"))
    print(f"{about['machine']}; torch {about['torch']}, gru_ext at commit {about['commit']}")
    rows = measured(models(trained(arguments.steps)), arguments.frames)
    title = f"{LAYERS} layers of {HIDDEN_SIZE}, one frame of {FRAME_MS:g} ms a call, threads: {arguments.threads}"
    show(Table(tuple(COLUMNS), cells(rows), title))
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0], "threads", *about], lineterminator="\n")
            writer.writeheader()
            for row in rows:
                rounded = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
                writer.writerow({**rounded, "threads": arguments.threads, **about})
    return 0


if __name__ == "__main__":
    sys.exit(main())
