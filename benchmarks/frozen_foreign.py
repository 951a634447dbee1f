"""A published speech enhancer before and after gru_ext.freeze: DeepFilterNet3, unmodified, on one thread.

    pip install loguru && pip install --no-deps deepfilternet deepfilterlib
    python benchmarks/frozen_foreign.py --seconds 10

Its sizes are those that its authors publish: three GRUs, five layers of 256 units, hold 92% of the parameters. It is
trained for a minute on made-up voices in noise, so that the GRUs matter. One table: the relative error of the spectrum
that it gives, and of the worst of its GRUs' outputs, against the float64 model; the gain in signal over noise, of a
voice that it was not trained on; the times of df.enhance.enhance for a clip, which is how the package is used from
Python, and of the GRUs alone: for the clip, and for one frame of 10 ms with the states before it, as in live sound.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import gru_ext
from gru_ext.commands.options import positive
from gru_ext.measure.machine import facts
from gru_ext.measure.timing import Budget, by_turns
from gru_ext.packed_weights import FORMATS
from gru_ext.text import Table, duration, show, size

# What reads and writes files of sound: it needs parts of torchaudio that left it in 2.9, and nothing here needs it.
_files: Any = types.ModuleType("df.io")
_files.load_audio = _files.save_audio = _files.resample = None
sys.modules.setdefault("df.io", _files)
try:
    from df.config import config
    from df.enhance import df_features, enhance
    from df.model import init_model
    from libdf import DF
    from loguru import logger
except ImportError as missing:
    need = "pip install loguru && pip install --no-deps deepfilternet deepfilterlib (for Python up to 3.11)"
    raise SystemExit(f"{missing}: {need}") from None

RATE, BINS = 48_000, 96  # samples a second; frequencies that are filtered deeply
PUBLISHED: dict[str, Any] = {  # of DeepFilterNet3, where the package's defaults are others
    "conv_lookahead": 2, "conv_ch": 64, "convt_depthwise": False, "emb_num_layers": 3, "enc_linear_groups": 32,
    "linear_groups": 16, "df_num_layers": 2, "df_gru_skip": "groupedlinear", "df_pathway_kernel_size_t": 5,
}  # fmt: skip


def enhancer() -> tuple[nn.Module, Any]:
    """DeepFilterNet3 with random weights, and what turns sound into its spectrum and back."""
    logger.disable("df")
    config.use_defaults(allow_reload=True)
    for name, value in PUBLISHED.items():
        config.set(name.upper(), value, type(value), section="deepfilternet")
    config.set("DF_LOOKAHEAD", 2, int, section="DF")
    config.set("DEVICE", "cpu", str, section="train")
    spectra = DF(sr=RATE, fft_size=960, hop_size=480, nb_bands=32)
    return init_model(spectra).eval(), spectra


def voices(count: int, seconds: float) -> tuple[Tensor, Tensor]:
    """Sound [count, samples] of gliding harmonics in syllables, and the same in noise."""
    samples = int(seconds * RATE)

    def smooth(low: float, high: float, every: float) -> Tensor:
        """Random values so many seconds apart, and lines between them."""
        knots = torch.rand(count, 1, int(seconds / every) + 2) * (high - low) + low
        return nn.functional.interpolate(knots, samples, mode="linear").squeeze(1)

    phase, formant = (smooth(90, 260, 0.25) * (math.tau / RATE)).cumsum(1), smooth(3, 12, 0.12)
    waves = [(phase * k).sin() * (1 - ((k - formant) / 6).abs()).clamp_min(0.1) / k**0.5 for k in range(1, 24)]
    clean = torch.stack(waves).sum(0) * torch.sigmoid(12 * smooth(-1, 1, 0.15)) * 0.1
    return clean, clean + torch.randn(count, samples) * smooth(0.01, 0.06, 0.6)


def train(model: nn.Module, spectra: Any, steps: int) -> None:
    """So many steps of Adam. GRUs learn more slowly, else they saturate: to constants, which no rounding changes."""
    of_grus = {parameter for gru in grus(model) for parameter in gru.parameters()}
    groups = [{"params": list(set(model.parameters()) - of_grus)}, {"params": list(of_grus)}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [2e-3, 1e-4], total_steps=steps)
    model.train()
    for _ in range(steps):
        (clean, *_), noisy = (df_features(sound, spectra, BINS) for sound in voices(4, 0.7))
        errors = (model(*noisy)[0] - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
        optimizer.zero_grad()
        errors.log().mean().mul(2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def grus(model: nn.Module) -> list[Any]:
    """Its GRUs, whatever they have become."""
    return [module for module in model.modules() if isinstance(module, (nn.GRU, gru_ext.GRU))]


def observed(model: nn.Module, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The spectrum that it gives, and what its GRUs take and give."""
    calls: list[tuple[Tensor, Tensor]] = []
    hooks = [gru.register_forward_hook(lambda _, a, result: calls.append((a[0], result[0]))) for gru in grus(model)]
    with torch.inference_mode():
        spectrum = model(*features)[0]
    for hook in hooks:
        hook.remove()
    return spectrum, [taken for taken, _ in calls], [result for _, result in calls]


def variants(model: nn.Module) -> dict[str, nn.Module]:
    """As it is, replaced and frozen."""
    gru_ext.replace(replaced := copy.deepcopy(model))
    frozen = {f"frozen {weights}": gru_ext.freeze(model, weights) for weights in FORMATS}
    return {"as it is": model, "gru_ext.replace": replaced, **frozen}


def apart(result: Tensor, truth: Tensor) -> float:
    """The relative error, by Euclidean norms."""
    return float((result - truth).norm() / truth.norm())


def alone(model: nn.Module, inputs: Sequence[Tensor], states: Sequence[Tensor | None]) -> Callable[[], list[Any]]:
    """A call of its GRUs."""
    calls = list(zip(grus(model), inputs, states, strict=True))
    return lambda: [gru(taken, state) for gru, taken, state in calls]


def main() -> int:
    """Trains, measures by turns and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("seconds", 2), ("steps", 100), ("budget", 15), ("threads", 1)):
        parser.add_argument(f"--{name}", type=positive, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, spectra = enhancer()
    train(model, spectra, arguments.steps)
    clean, noisy = voices(1, float(arguments.seconds))
    features = df_features(noisy, spectra, BINS)
    truth, _, truths = observed(copy.deepcopy(model).double(), [part.double() for part in features])
    several = variants(model)
    _, inputs, _ = observed(model, features)
    frames, cold = [taken[:, -1:] for taken in inputs], [None] * len(inputs)
    with torch.inference_mode():
        states = [state for _, state in alone(model, inputs, cold)()]
        calls: dict[str, list[Callable[[], object]]] = {
            "a clip": [partial(enhance, each, spectra, noisy) for each in several.values()],
            "GRUs, a clip": [alone(each, inputs, cold) for each in several.values()],
            "GRUs, a frame": [alone(each, frames, states) for each in several.values()],
        }
        rounds = [by_turns(of_all, Budget(arguments.budget), torch.device("cpu"))[1] for of_all in calls.values()]
    rows = []
    for (name, each), *times in zip(several.items(), *rounds, strict=True):
        spectrum, _, outputs = observed(each, features)
        gain = 20 * math.log10(apart(noisy, clean) / apart(enhance(each, spectra, noisy), clean))
        numbers = (f"{apart(spectrum, truth):.1e}", f"{max(map(apart, outputs, truths)):.1e}", f"{gain:.3f} dB")
        weights = sum(tensor.nbytes for gru in grus(each) for tensor in (*gru.parameters(), *gru.buffers()))
        rows.append((name, *numbers, *(duration(statistics.median(of)) for of in times), size(weights)))
    about = facts(torch.device("cpu"))
    title = ", ".join(str(about[name]) for name in ("machine", "torch", "gru_ext", "commit", "date"))
    note = f"A clip of {arguments.seconds} s, threads: {arguments.threads}; medians of {arguments.budget} s of rounds."
    show(Table(("DeepFilterNet3", "error", "GRUs' error", "gain", *calls, "weights"), rows, title, [note]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
