"""What is measured: shapes, dtypes, modes, and the cell that is one of each."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

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
TF32 = "tf32"  # float32 with TF32 allowed in CUDA's matrix products
MODES = ("inference", "training")
RECOMPUTE = "recompute"  # training with recompute=True, against nn.GRU as it is


@dataclass(frozen=True)
class Cell:
    """One row to measure."""

    dtype: str
    threads: int
    mode: str
    shape: Shape


def shape_name(shape: Shape) -> str:
    """(B,T,I,H)"""
    return f"({','.join(map(str, shape))})"


def parse_shape(text: str) -> Shape:
    """B,T,I,H as four positive integers."""
    try:
        batch, seq_len, input_size, hidden_size = (int(part) for part in text.strip("()").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected B,T,I,H such as 32,128,256,256, got {text!r}") from None
    shape = (batch, seq_len, input_size, hidden_size)
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes of at least 1, got {text!r}")
    return shape
