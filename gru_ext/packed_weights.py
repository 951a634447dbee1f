"""Weights as the CPU's kernels read them, packed ahead of the call: csrc/cpu/packed.h in Python."""

import torch
import torch.nn.functional as F
from torch import Tensor

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
MOST_BYTE_COLUMNS = 65536  # of int8: sums have 32 bits
_DEPTH = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}  # of a word


def pack(weight: Tensor, lanes: int) -> Tensor:
    """[3H, K] as the kernels read it: [groups, words, 3, lanes, depth] (csrc/cpu/packed.h)."""
    depth, hidden_size, columns = _DEPTH[weight.dtype], weight.size(0) // 3, weight.size(1)
    groups, words = -(-hidden_size // lanes), -(-columns // depth)
    padding = (0, words * depth - columns, 0, groups * lanes - hidden_size)
    padded = F.pad(weight.view(3, hidden_size, columns), padding)
    return padded.view(3, groups, lanes, words, depth).permute(1, 3, 0, 2, 4).contiguous()


def unpack(packed: Tensor, hidden_size: int, columns: int) -> Tensor:
    """The reverse of :func:`pack`."""
    groups, words, gates, lanes, depth = packed.shape
    padded = packed.permute(2, 0, 3, 1, 4).reshape(gates, groups * lanes, words * depth)
    return padded[:, :hidden_size, :columns].reshape(gates * hidden_size, columns)


def pack_scale(scale: Tensor, weight: Tensor, lanes: int) -> Tensor:
    """Of int8 weights [3H, K] and the scale [3H] of their rows what the kernels read: [groups, 2, 3, lanes]."""
    hidden_size = scale.numel() // 3
    groups = -(-hidden_size // lanes)
    both = torch.stack((scale, weight.sum(1, dtype=torch.int32).float())).view(2, 3, hidden_size)
    return F.pad(both, (0, groups * lanes - hidden_size)).view(2, 3, groups, lanes).permute(2, 0, 1, 3).contiguous()


def unpack_scale(packed: Tensor, hidden_size: int) -> Tensor:
    """The scale [3H] of what :func:`pack_scale` gave."""
    return packed[:, 0].permute(1, 0, 2).flatten(1)[:, :hidden_size].flatten()


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [3H, K] and scale [3H]: each row is about ``scale * int8``.

    Raises:
        ValueError: a weight is not finite
    """
    largest = weight.abs().amax(1)
    if not torch.isfinite(largest).all():
        raise ValueError("weights that are not finite cannot be quantised")
    scale = largest / 127
    inverse = torch.where(scale > 0, 127 / largest, 0)
    return (weight * inverse[:, None]).round().clamp(-127, 127).to(torch.int8), scale
