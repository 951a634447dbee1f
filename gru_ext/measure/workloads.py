"""What is measured: a GRU and its input, dtypes, modes, and the workload that is one of each."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

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


@dataclass(frozen=True)
class GRUShape:
    """A GRU, all its layers, or a GRUCell, and the input that it is called with.

    Attributes:
        batch, seq_len, input_size, hidden_size: B, T, I, H; T of a GRUCell is 1
        lengths: of the sequences, longest first, when the input is packed; None: all have seq_len steps
        cell: whether it is a GRUCell
        name: what it is called in the user's model; empty for one that was asked for by its sizes
        calls: how often the model called it so
    """

    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    bias: bool = True
    lengths: tuple[int, ...] | None = None
    cell: bool = False
    name: str = ""
    calls: int = 1

    @property
    def shape(self) -> Shape:
        """B, T, I, H"""
        return (self.batch, self.seq_len, self.input_size, self.hidden_size)

    @property
    def packed(self) -> bool:
        """Whether the input is a PackedSequence."""
        return self.lengths is not None

    @property
    def layout(self) -> str:
        """One of LAYOUTS."""
        return LAYOUTS[2] if self.packed else LAYOUTS[1] if self.batch_first else LAYOUTS[0]

    @property
    def directions(self) -> int:
        """1 or 2"""
        return 2 if self.bidirectional else 1

    @property
    def rows(self) -> int:
        """Steps of all sequences together: T * B, fewer when packed."""
        return self.batch * self.seq_len if self.lengths is None else sum(self.lengths)

    @property
    def title(self) -> str:
        """As :func:`gru_title` has it."""
        return gru_title(self.name, self.shape, self.num_layers, self.bidirectional, self.packed, self.cell)

    def random_input(self, device: torch.device, dtype: torch.dtype) -> Tensor | PackedSequence:
        """Standard normal input in this layout: [T, B, I], [B, T, I], packed, or of a GRUCell [B, I]."""
        sizes = (self.batch,) if self.cell else (self.seq_len, self.batch)
        if self.batch_first and not self.packed:
            sizes = sizes[::-1]
        data = torch.randn(*sizes, self.input_size, device=device, dtype=dtype)
        return data if self.lengths is None else pack_padded_sequence(data, list(self.lengths))


@dataclass(frozen=True)
class Workload:
    """One row to measure: a GRU, as which dtype, with how many threads, in which mode, on which device.

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
    def shape(self) -> Shape:
        """B, T, I, H"""
        return self.gru.shape

    @property
    def torch_dtype(self) -> torch.dtype:
        """What the weights are stored as."""
        return DTYPES.get(self.dtype, torch.float32)


def packed_lengths(batch: int, seq_len: int) -> tuple[int, ...]:
    """Half of the sequences are whole, the others ever shorter, the last with half of the steps; at least one step."""
    return tuple(max(1, seq_len - max(0, 2 * index - batch) * seq_len // (2 * batch)) for index in range(batch))


def shape_name(shape: Shape) -> str:
    """(B,T,I,H)"""
    return f"({','.join(map(str, shape))})"


def gru_title(name: str, shape: Shape, num_layers: int, bidirectional: int, packed: bool, cell: int) -> str:
    """What tells a layer from others of a run: its name in the model, (B,T,I,H), and what else is not plain."""
    layers = f" x{num_layers}" if num_layers > 1 else ""
    words = " bi" * bidirectional + " packed" * packed + " cell" * cell
    return f"{name} {shape_name(shape)}{layers}{words}".strip()


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
