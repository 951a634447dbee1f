"""What is measured: a GRU and its input, dtypes, modes, and the workload that is one of each."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Shape = tuple[int, int, int, int]  # B, T, I, H
SHAPES: tuple[Shape, ...] = (
    (1, 1, 64, 64),
    (1, 100, 80, 256),
    (1, 512, 256, 512),
    (1, 100, 1024, 1024),
    (8, 128, 128, 128),
    (16, 64, 512, 512),
    (32, 100, 10, 64),
    (32, 128, 256, 256),
    (64, 50, 512, 1024),
    (128, 256, 128, 128),
    (64, 784, 1, 128),
)
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
# float32 on CUDA, by what may round matrix products to TF32: nothing ("float32"), or
TF32 = "tf32"  # both torch and gru_ext
TORCH_TF32 = "float32-vs-tf32"  # torch.nn.GRU alone: PyTorch's default
MODES = ("inference", "training")
RECOMPUTE = "recompute"  # training with recompute=True, against nn.GRU as it is
LAYOUTS = ("time-first", "batch-first", "packed")
# Padded, time-first, with lengths= in a random order: as many steps as packed has, or half of all.
LENGTHS, HALF_LENGTHS = "lengths", "half-lengths"


@dataclass(frozen=True)
class GRUShape:
    """A GRU, all its layers, or a GRUCell, and the input that it is called with.

    Attributes:
        batch, seq_len, input_size, hidden_size: B, T, I, H; T of a GRUCell is 1
        layout: one of LAYOUTS, LENGTHS or HALF_LENGTHS
        lengths: of the sequences, longest first, when the input is packed; None: those of :func:`packed_lengths`
        resets: each step begins anew with the probability 1 / resets; 0: none does
        cell: whether it is a GRUCell
        name: in the user's model; empty for sizes alone
        calls: how often the model calls it so
    """

    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    layout: str = LAYOUTS[0]
    lengths: tuple[int, ...] | None = None
    resets: int = 0
    bias: bool = True
    cell: bool = False
    name: str = ""
    calls: int = 1

    @property
    def shape(self) -> Shape:
        """B, T, I, H"""
        return (self.batch, self.seq_len, self.input_size, self.hidden_size)

    @property
    def packed(self) -> tuple[int, ...]:
        """The lengths of packed sequences; empty for other layouts."""
        return (self.lengths or packed_lengths(self.batch, self.seq_len)) if self.layout == "packed" else ()

    @property
    def padded_lengths(self) -> tuple[int, ...]:
        """What lengths= is given; empty for layouts without."""
        if self.layout not in (LENGTHS, HALF_LENGTHS):
            return ()
        drawn = (packed_lengths if self.layout == LENGTHS else half_lengths)(self.batch, self.seq_len)
        return tuple(random.Random(0).sample(drawn, len(drawn)))

    @property
    def directions(self) -> int:
        """1 or 2"""
        return 2 if self.bidirectional else 1

    @property
    def rows(self) -> int:
        """Steps of all sequences together: T * B, fewer when packed or with lengths."""
        return sum(self.packed or self.padded_lengths) or self.batch * self.seq_len

    @property
    def outer_sizes(self) -> tuple[int, ...]:
        """Of input and output, all but the last: (T, B), (B, T), of a GRUCell (B,), packed (rows,)."""
        if self.packed or self.cell:
            return (self.rows,)
        return (self.batch, self.seq_len) if self.layout == "batch-first" else (self.seq_len, self.batch)

    @property
    def title(self) -> str:
        """What tells it from others of a run: its name, (B,T,I,H), and what is not usual."""
        layers = f" x{self.num_layers}" if self.num_layers > 1 else ""
        layout = f" {self.layout}" if self.layout != LAYOUTS[0] else ""
        resets = f" resets {self.resets}" if self.resets else ""
        words = " bi" * self.bidirectional + layout + resets + " cell" * self.cell
        return f"{self.name} {shape_name(self.shape)}{layers}{words}".strip()

    def input(self, data: Tensor) -> Tensor | PackedSequence:
        """The input whose values are these, of the size (*outer_sizes, I)."""
        if not self.packed:
            return data
        steps = torch.arange(self.seq_len)[:, None]
        return PackedSequence(data, (torch.tensor(self.packed)[None] > steps).sum(dim=1))

    def random_input(self, device: torch.device, dtype: torch.dtype) -> Tensor | PackedSequence:
        """Standard normal input."""
        return self.input(torch.randn(*self.outer_sizes, self.input_size, device=device, dtype=dtype))


@dataclass(frozen=True)
class Workload:
    """What is measured: a GRU, as which dtype, with how many threads, in which mode, on which device.

    ``dtype`` is a name of DTYPES, TF32 or TORCH_TF32; ``mode`` is one of MODES, or RECOMPUTE; ``graph``, on CUDA: the
    call is captured in a CUDA graph, whose replays are timed.
    """

    dtype: str
    threads: int
    mode: str
    gru: GRUShape
    device: torch.device = torch.device("cpu")
    graph: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """What the weights are stored as."""
        return DTYPES.get(self.dtype, torch.float32)

    @property
    def title(self) -> str:
        """In a few words, for the progress bar and for messages."""
        threads = f"{self.threads}t " if self.device.type == "cpu" else ""
        return f"{self.dtype} {threads}{self.mode} {self.gru.title}"

    def columns(self) -> dict[str, Any]:
        """As every kind of result has it."""
        gru = self.gru
        return {
            "device": self.device.type,
            "dtype": self.dtype,
            "threads": self.threads,
            "mode": self.mode,
            **dict(zip(("batch", "seq_len", "input_size", "hidden_size"), gru.shape, strict=True)),
            "layout": gru.layout,
            "name": gru.name,
            "num_layers": gru.num_layers,
            "bidirectional": int(gru.bidirectional),
            "cell": int(gru.cell),
        }


def packed_lengths(batch: int, seq_len: int) -> tuple[int, ...]:
    """Half of the sequences are whole, the others ever shorter, the last with half of the steps; at least one step."""
    return tuple(max(1, seq_len - max(0, 2 * index - batch) * seq_len // (2 * batch)) for index in range(batch))


def half_lengths(batch: int, seq_len: int) -> tuple[int, ...]:
    """Evenly from nearly all of the steps down to nearly none, half of them on average; at least one step."""
    return tuple(max(1, round(seq_len * (batch - index - 0.5) / batch)) for index in range(batch))


def shape_name(shape: Shape) -> str:
    """(B,T,I,H)"""
    return f"({','.join(map(str, shape))})"


def parse_shape(text: str) -> Shape:
    """B,T,I,H as four positive integers."""
    try:
        batch, seq_len, input_size, hidden_size = (int(part) for part in text.strip("() ").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected B,T,I,H such as 32,128,256,256, got {text!r}") from None
    shape = (batch, seq_len, input_size, hidden_size)
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes of at least 1, got {text!r}")
    return shape
