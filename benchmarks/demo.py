"""Train the same model with torch.nn.GRU and with gru_ext.GRU on a real series, and compare losses and time.

    python benchmarks/demo.py                                    # weekly CO2, shipped with statsmodels
    python benchmarks/demo.py --csv my.csv --column temperature  # a series of your own

The model is the tutorials' classic: GRU(64) over (samples, time_steps, features), a dense output of 1 from the last
step, Adam on the mean squared error. Both start from the same weights, see the same batches in the same order and are
trained by turns, an epoch each, so that a change in the machine's speed meets both. The time is that of whole training
steps: forward, loss, backward and Adam.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from series import Series, SeriesError, Values, Windows, co2, from_csv, windows
from torch import Tensor, nn
from tqdm import tqdm

from gru_ext.measure.measurements import quartiles

BATCH_SIZE = 64
LEARNING_RATE = 3e-3


class Forecaster(nn.Module):
    """GRU and a dense output of 1 from its last step: [samples, time_steps, 1] -> [samples, 1]."""

    def __init__(self, gru: nn.RNNBase) -> None:
        super().__init__()
        self.gru = gru
        self.dense = nn.Linear(gru.hidden_size, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """One value for each sample."""
        output, _ = self.gru(inputs)
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

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """One training step; returns its loss."""
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def epoch(self, inputs: Tensor, targets: Tensor, order: Tensor, bar: tqdm[int]) -> None:
        """One pass over the training samples in the given order, timed."""
        self.model.train()
        total = 0.0
        begin = time.perf_counter()
        for batch in order.split(BATCH_SIZE):
            total += self.step(inputs[batch], targets[batch]) * len(batch)
        self.seconds.append(time.perf_counter() - begin)
        self.training.append(total / len(order))
        bar.update()

    def predict(self, inputs: Tensor) -> Tensor:
        """Predictions [samples, 1] without gradients."""
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self.model(part) for part in inputs.split(256)])


def contestants(ours: Callable[..., nn.RNNBase], hidden_size: int) -> tuple[Contestant, Contestant]:
    """The two, starting from the same weights."""
    pair: list[Contestant] = []
    named: list[tuple[str, Callable[..., nn.RNNBase]]] = [("torch.nn.GRU", nn.GRU), ("gru_ext.GRU", ours)]
    for name, gru in named:
        model = Forecaster(gru(1, hidden_size, batch_first=True))
        if pair:
            model.load_state_dict(pair[0].model.state_dict())
        pair.append(Contestant(name, model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)))
    return pair[0], pair[1]


def train(
    data: Windows, ours: Callable[..., nn.RNNBase], hidden_size: int, epochs: int
) -> tuple[Contestant, Contestant]:
    """Train both by turns, printing a line an epoch."""
    inputs, targets = data.inputs[data.training], data.targets[data.training]
    held_out, truth = data.inputs[data.held_out], data.targets[data.held_out]
    for spare in contestants(ours, hidden_size):  # warm-up on models that are thrown away
        for batch in torch.arange(len(inputs)).split(BATCH_SIZE)[:3]:
            spare.step(inputs[batch], targets[batch])

    pair = contestants(ours, hidden_size)
    losses = f"{'nn.GRU':>13}{'gru_ext':>13}"
    tqdm.write(f"{'':7}{'training loss':>26}   {'held-out loss':>26}   {'seconds':>15}")
    tqdm.write(f"{'epoch':7}{losses}   {losses}   {'nn.GRU':>7}{'gru_ext':>8}")
    with tqdm(total=2 * epochs, unit="epoch", disable=None, leave=False) as bar:
        for epoch in range(epochs):
            order = torch.randperm(len(inputs))
            for contestant in pair if epoch % 2 == 0 else reversed(pair):
                contestant.epoch(inputs, targets, order, bar)
                contestant.held_out.append(nn.functional.mse_loss(contestant.predict(held_out), truth).item())
            training = "".join(f"{contestant.training[-1]:13.8f}" for contestant in pair)
            after = "".join(f"{contestant.held_out[-1]:13.8f}" for contestant in pair)
            tqdm.write(f"{epoch + 1:<7}{training}   {after}   {pair[0].seconds[-1]:7.3f}{pair[1].seconds[-1]:8.3f}")
    return pair


def ahead(series: Series, horizon: int) -> str:
    """The horizon in words, such as "13 weeks ahead"."""
    return f"{horizon} {series.step}{'s' * (horizon > 1)} ahead"


def report(series: Series, data: Windows, pair: tuple[Contestant, Contestant], horizon: int) -> None:
    """Print how far the two differ, their times, and what the forecast is worth."""
    theirs, ours = pair
    differences = [
        abs(a - b)
        for first, second in ((theirs.training, ours.training), (theirs.held_out, ours.held_out))
        for a, b in zip(first, second, strict=True)
    ]
    print(f"\nlargest difference between the two in any loss: {max(differences):.2e}")
    first, median, third = quartiles([a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True)])
    print(f"training time: nn.GRU {sum(theirs.seconds):.2f} s, gru_ext {sum(ours.seconds):.2f} s")
    print(
        f"time ratio by epoch: median {median:.2f}, quartiles {first:.2f} to {third:.2f} (above 1: gru_ext is faster)"
    )
    truth = data.truth[data.held_out]
    unit = f" {series.unit}" if series.unit else ""

    def error(forecast: Values) -> str:
        return f"{float(((truth - forecast) ** 2).mean() ** 0.5):.3g}{unit}"

    print(f"root mean squared error of the held-out forecast, {ahead(series, horizon)}:")
    for contestant in pair:
        print(f"  {contestant.name:26}{error(data.forecast(contestant.predict(data.inputs[data.held_out])))}")
    print(f"  {'repeating the last value':26}{error(data.last[data.held_out])}")


def plot(series: Series, data: Windows, pair: tuple[Contestant, Contestant], horizon: int, path: Path) -> None:
    """Forecast against truth on the held-out part, and both loss curves, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    theirs, ours = pair
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(10, 8), layout="constrained")
    where = data.positions[data.held_out]
    above.plot(where, data.truth[data.held_out], color="0.3", linewidth=2.5, label="truth")
    inputs = data.inputs[data.held_out]
    above.plot(where, data.forecast(theirs.predict(inputs)), color="tab:blue", linewidth=1.6, label=theirs.name)
    above.plot(where, data.forecast(ours.predict(inputs)), "--", color="tab:orange", linewidth=1.2, label=ours.name)
    above.set(
        title=f"{series.name}: held-out part, forecast {ahead(series, horizon)}",
        xlabel=series.axis,
        ylabel=series.unit or series.name,
    )
    above.legend(loc="upper left")

    epochs = range(1, len(theirs.training) + 1)
    for what, style in (("training", "o"), ("held_out", "s")):
        label = what.replace("_", "-")
        below.plot(epochs, getattr(theirs, what), f"-{style}", color="tab:blue", label=f"{theirs.name}, {label}")
        below.plot(epochs, getattr(ours, what), f"--{style}", color="tab:orange", ms=3, label=f"{ours.name}, {label}")
    below.set(title="Mean squared error, same weights and batches", xlabel="epoch", ylabel="loss", yscale="log")
    below.xaxis.get_major_locator().set_params(integer=True)
    below.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def parse_arguments() -> argparse.Namespace:
    """The command line."""

    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
        return int(text)

    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--csv", type=Path, metavar="FILE", help="a CSV file with a header, one value a line, instead of weekly CO2")
    add("--column", metavar="NAME", help="the CSV file's column; needed when it has more than one")
    add("--epochs", type=positive, default=20, metavar="N")
    add("--hidden-size", type=positive, default=64, metavar="N")
    add("--time-steps", type=positive, default=52, metavar="N", help="length of the window that the model sees")
    add("--horizon", type=positive, default=13, metavar="N", help="how many steps ahead to forecast")
    add("--threads", type=positive, default=1, metavar="N", help="CPU threads, for both")
    add("--seed", type=int, default=0, metavar="N")
    add("--output", type=Path, default=Path("demo.png"), metavar="PNG")
    arguments = parser.parse_args()
    if arguments.column is not None and arguments.csv is None:
        parser.error("argument --column: needs --csv")
    if not arguments.output.parent.is_dir():
        parser.error(f"argument --output: there is no folder {arguments.output.parent}")
    return arguments


def main() -> int:
    """Load the series, train both, report, plot. Returns 2 when the data cannot be used."""
    arguments = parse_arguments()
    from gru_ext import GRU  # here, so that --help needs no build

    try:
        series = from_csv(arguments.csv, arguments.column) if arguments.csv else co2()
        data = windows(series, arguments.time_steps, arguments.horizon)
    except SeriesError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    held_out = len(data.truth[data.held_out])
    print(f"{series.name}: {len(series.values)} values; {data.training.stop} training and {held_out} held-out samples")
    print(
        f"GRU({arguments.hidden_size}) and a dense output of 1; Adam on the mean squared error; seed {arguments.seed}"
    )
    print(f"batches of (samples, time_steps, features) = ({BATCH_SIZE}, {arguments.time_steps}, 1)")
    print(f"torch {torch.__version__}, CPU threads: {torch.get_num_threads()}\n")
    pair = train(data, GRU, arguments.hidden_size, arguments.epochs)
    report(series, data, pair, arguments.horizon)
    plot(series, data, pair, arguments.horizon, arguments.output)
    print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
