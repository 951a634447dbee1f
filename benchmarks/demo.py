"""Train one forecaster as nn.LSTM, nn.GRU and gru_ext.GRU on a real series, and compare losses and time.

    python benchmarks/demo.py                                    # weekly CO2, shipped with statsmodels
    python benchmarks/demo.py --csv my.csv --column temperature  # a series of your own

The model is the tutorials' classic: GRU(64) over (samples, time_steps, features), a dense output of 1 from the last
step, Adam on the mean squared error. Both GRUs start from the same weights. All three see the same batches in the same
order and train by turns, an epoch each, so that a change in the machine's speed meets all. The time is that of whole
training steps, Adam's part included. Tutorials say that a GRU trains faster than an LSTM; on the CPU the reverse may be
true of torch's layers, for nn.LSTM runs by oneDNN and nn.GRU does not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from series import Series, Values, Windows, co2, from_csv, windows
from torch import Tensor, nn
from tqdm import tqdm

import gru_ext
from gru_ext.commands.options import checked_device, output_file, positive
from gru_ext.measure import BadInput
from gru_ext.measure.machine import device_name
from gru_ext.measure.measurements import quartiles
from gru_ext.measure.phases import phase_clock, phase_times
from gru_ext.measure.profiling import profile
from gru_ext.measure.timing import timed

BATCH_SIZE = 64
LEARNING_RATE = 3e-3
TIMED_STEPS = 20
# Each layer by its name, and how its lines are drawn: gru_ext's, thin and dashed, lie on those of nn.GRU.
KINDS: dict[str, tuple[Callable[..., nn.RNNBase], dict[str, Any]]] = {
    "nn.LSTM": (nn.LSTM, {"color": "tab:green", "linewidth": 1.2}),
    "nn.GRU": (nn.GRU, {"color": "tab:blue", "linewidth": 2.2}),
    "gru_ext": (gru_ext.GRU, {"color": "tab:orange", "linewidth": 1.2, "linestyle": "--"}),
}


class Forecaster(nn.Module):
    """A recurrent layer and a dense output of 1 from its last step: [samples, time_steps, 1] -> [samples, 1]."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.dense = nn.Linear(layer.hidden_size, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """One value for each sample."""
        output, _ = self.layer(inputs)
        predicted: Tensor = self.dense(output[:, -1])
        return predicted


@dataclass
class Contestant:
    """A model in training, and what it has shown so far."""

    name: str
    model: Forecaster
    optimizer: torch.optim.Optimizer
    training: list[float] = field(default_factory=list)  # mean squared error of each epoch, while training
    held_out: list[float] = field(default_factory=list)  # after each epoch
    seconds: list[float] = field(default_factory=list)  # of each epoch's training steps

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One training step; returns its loss."""
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def epoch(self, inputs: Tensor, targets: Tensor, order: Tensor) -> None:
        """One pass over the training samples in the given order, timed."""
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=inputs.device)
        begin = time.perf_counter()
        for batch in order.split(BATCH_SIZE):
            total.add_(self.step(inputs[batch], targets[batch]), alpha=len(batch))
        self.training.append(total.item() / len(order))  # item() waits for the GPU
        self.seconds.append(time.perf_counter() - begin)

    def predict(self, inputs: Tensor) -> Tensor:
        """Predictions [samples, 1] without gradients."""
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self.model(part) for part in inputs.split(256)])


def contestants(hidden_size: int, seed: int, device: torch.device) -> list[Contestant]:
    """A new one of each kind, from the weights that the seed leads to: the same in both GRUs, and on each device."""
    entrants = []
    for name, (kind, _) in KINDS.items():
        torch.manual_seed(seed)
        model = Forecaster(kind(1, hidden_size, batch_first=True)).to(device)
        entrants.append(Contestant(name, model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)))
    return entrants


def cells(values: Iterable[str]) -> str:
    """A group of columns."""
    return "".join(f"{value:>8}" for value in values)


def train(data: Windows, hidden_size: int, seed: int, epochs: int) -> list[Contestant]:
    """Train all by turns, printing a line an epoch."""
    inputs, targets = data.inputs[data.training], data.targets[data.training]
    for spare in contestants(hidden_size, seed, inputs.device):  # warm-up on models that are thrown away
        for batch in torch.arange(len(inputs)).split(BATCH_SIZE)[:3]:
            spare.step(inputs[batch], targets[batch])

    entrants = contestants(hidden_size, seed, inputs.device)
    tqdm.write(f"{'':10}{'training loss':20}{'held-out loss':24}seconds\n{'epoch':5}{' '.join([cells(KINDS)] * 3)}")
    with tqdm(total=3 * epochs, unit="epoch", disable=None, leave=False) as bar:
        for epoch in range(epochs):
            order = torch.randperm(len(inputs)).to(inputs.device)
            for entrant in entrants[epoch % 3 :] + entrants[: epoch % 3]:
                entrant.epoch(inputs, targets, order)
                predicted = entrant.predict(data.inputs[data.held_out])
                entrant.held_out.append(nn.functional.mse_loss(predicted, data.targets[data.held_out]).item())
                bar.update()
            training = cells(f"{entrant.training[-1]:.5f}"[:7] for entrant in entrants)  # cut: a loss may be above 10
            held_out = cells(f"{entrant.held_out[-1]:.5f}"[:7] for entrant in entrants)
            seconds = cells(f"{entrant.seconds[-1]:.3f}" for entrant in entrants)
            tqdm.write(f"{epoch + 1:<5}{training} {held_out} {seconds}")
    return entrants


def report(series: Series, data: Windows, entrants: list[Contestant], ahead: str) -> None:
    """Print how far the two GRUs differ, all times, and what the forecasts are worth; `ahead` is how far they look."""
    lstm, theirs, ours = entrants
    pairs = zip(theirs.training + theirs.held_out, ours.training + ours.held_out, strict=True)
    print(f"\nlargest difference between nn.GRU and gru_ext in any loss: {max(abs(a - b) for a, b in pairs):.2e}")
    print("training time:", ", ".join(f"{entrant.name} {sum(entrant.seconds):.2f} s" for entrant in entrants))
    print("ratio of times by epoch (above 1: the second is faster):")
    for slower, faster in ((theirs, ours), (lstm, theirs), (lstm, ours)):
        first, median, third = quartiles([a / b for a, b in zip(slower.seconds, faster.seconds, strict=True)])
        print(f"  {f'{slower.name} / {faster.name}':26}median {median:.2f}, quartiles {first:.2f} to {third:.2f}")

    def error(forecast: Values) -> str:
        return f"{float(((data.truth[data.held_out] - forecast) ** 2).mean() ** 0.5):.3g} {series.unit}".rstrip()

    print(f"root mean squared error of the held-out forecast, {ahead}:")
    for entrant in entrants:
        print(f"  {entrant.name:26}{error(data.forecast(entrant.predict(data.inputs[data.held_out])))}")
    print(f"  {'repeating the last value':26}{error(data.last[data.held_out])}")


def frozen_losses(entrant: Contestant, data: Windows) -> dict[str, float]:
    """How far the held-out loss rises when the model is frozen in bfloat16 and in int8, as a share of it."""
    inputs, targets = data.inputs[data.held_out].cpu(), data.targets[data.held_out].cpu()
    model = entrant.model.cpu()

    def loss(model: nn.Module) -> float:
        with torch.inference_mode():
            return nn.functional.mse_loss(model(inputs), targets).item()

    return {weights: loss(gru_ext.freeze(model, weights)) / loss(model) - 1 for weights in ("bfloat16", "int8")}


def where_time_goes(entrant: Contestant, data: Windows) -> None:
    """Take more training steps; print the GRU's share of their time, and the command that says more."""
    inputs, targets = (tensor[data.training][:BATCH_SIZE] for tensor in (data.inputs, data.targets))
    with phase_clock():
        step_ms = timed(partial(entrant.step, inputs, targets), TIMED_STEPS, inputs.device)
    passes = {of_pass.name: 1e3 * of_pass.seconds / TIMED_STEPS for of_pass in phase_times()}
    if inputs.device.type == "cuda":  # the clock is that of the CPU's kernels
        passes = {of_pass.name: of_pass.ms_per_call for of_pass in profile(entrant.model, inputs, peaks=False).passes}
    forward, backward = (passes[name] / step_ms for name in ("forward", "backward"))
    rest = f"{max(0, 1 - forward - backward):.0%} (dense layer, loss, Adam, Python)"
    print(f"where gru_ext's time goes, in a training step of {step_ms:.3g} ms:")
    print(f"  forward {forward:.0%}, backward {backward:.0%}, all else {rest}")
    print(f"more: python -m gru_ext profile --training --device {inputs.device} --threads {torch.get_num_threads()} \\")
    sizes = (*inputs.shape, entrant.model.layer.hidden_size)
    print("    --batch {} --time {} --input-size {} --hidden-size {}".format(*sizes))


def plot(series: Series, data: Windows, entrants: list[Contestant], ahead: str, path: Path) -> None:
    """Forecast against truth on the held-out part, and all loss curves, as one PNG."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    above, below = figure.subplots(2, 1)
    where = data.positions[data.held_out]
    above.plot(where, data.truth[data.held_out], color="0.3", linewidth=2.5, label="truth")
    epochs = range(1, len(entrants[0].training) + 1)
    for entrant in entrants:
        style = KINDS[entrant.name][1]
        above.plot(where, data.forecast(entrant.predict(data.inputs[data.held_out])), label=entrant.name, **style)
        below.plot(epochs, entrant.training, marker="o", label=f"{entrant.name}, training", ms=4, **style)
        below.plot(epochs, entrant.held_out, marker="s", label=f"{entrant.name}, held-out", ms=4, **style)
    above.set(title=f"{series.name}: held-out forecast, {ahead}", xlabel=series.axis, ylabel=series.unit or series.name)
    above.legend(loc="upper left")
    below.set(
        title="Mean squared error: same batches, both GRUs from the same weights",
        xlabel="epoch",
        ylabel="loss",
        yscale="log",
    )
    below.xaxis.get_major_locator().set_params(integer=True)
    below.legend(ncols=3)
    figure.savefig(path, dpi=110)


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--csv", type=Path, metavar="FILE", help="a CSV file with a header, one value a line, instead of weekly CO2")
    add("--column", metavar="NAME", help="the CSV file's column; needed when it has more than one")
    add("--epochs", type=positive, default=20, metavar="N", help="passes over the training samples")
    add("--hidden-size", type=positive, default=64, metavar="N", help="of all three layers")
    add("--time-steps", type=positive, default=52, metavar="N", help="length of the window that the models see")
    add("--horizon", type=positive, default=13, metavar="N", help="how many steps ahead to forecast")
    add("--device", default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:N")
    add("--threads", type=positive, default=1, metavar="N", help="on the CPU")
    add("--seed", type=int, default=0, metavar="N", help="of the initial weights and the order of the batches")
    add("--output", type=output_file, default="demo.png", metavar="PNG", help="the plot")
    arguments = parser.parse_args(words)
    if arguments.column is not None and arguments.csv is None:
        parser.error("argument --column: needs --csv")
    if arguments.output.suffix != ".png":
        parser.error(f"argument --output: expected a name that ends in .png, got {str(arguments.output)!r}")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Load the series, train all, report, plot. Returns 2 when device or data cannot be used."""
    arguments = parse_arguments(words)
    try:
        device = checked_device(arguments.device)
        series = from_csv(arguments.csv, arguments.column) if arguments.csv else co2()
        data = windows(series, arguments.time_steps, arguments.horizon, device)
    except BadInput as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2

    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # which is torch's default for its layers alone, not for gru_ext's
    held_out = len(data.truth[data.held_out])
    print(f"{series.name}: {len(series.values)} values; {data.training.stop} training and {held_out} held-out samples")
    print(f"LSTM or GRU({arguments.hidden_size}) and a dense output of 1; Adam on the mean squared error")
    print(f"batches of (samples, time_steps, features) = ({BATCH_SIZE}, {arguments.time_steps}, 1)")
    print(device_name(device))
    print(f"torch {torch.__version__}, no TF32, CPU threads: {arguments.threads}, seed {arguments.seed}\n")
    entrants = train(data, arguments.hidden_size, arguments.seed, arguments.epochs)
    ahead = f"{arguments.horizon} {series.step}{'s' * (arguments.horizon > 1)} ahead"
    report(series, data, entrants, ahead)
    plot(series, data, entrants, ahead, arguments.output)
    where_time_goes(entrants[-1], data)
    rises = frozen_losses(entrants[-1], data)
    print("held-out loss, frozen:", ", ".join(f"{weights} {rise:+.2%}" for weights, rise in rises.items()))
    print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
