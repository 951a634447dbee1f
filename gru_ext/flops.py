"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of the operators: their products, as of ``nn.GRU``."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gru_ext import ops


def _rows(input: Tensor, batch_sizes: Tensor | None) -> int:
    """Steps of all sequences together, of one member."""
    return math.prod(input.shape[-3:-1]) if batch_sizes is None else input.shape[-2]


def _gate_products(rows: int, features: int, hidden_size: int) -> int:
    """So many rows with a weight [3H, features]."""
    return 2 * rows * features * 3 * hidden_size


@register_flop_formula(torch.ops.gru_ext.forward, get_raw=True)
def _forward(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    *_: Any,
    **__: Any,
) -> int:
    directions = ops.directions_of(weights) if hx is None else hx.shape[-3]
    hidden_size = weights[1].shape[-1]
    features = input.shape[-1] + hidden_size
    return directions * _gate_products(_rows(input, batch_sizes), features, hidden_size)


@register_flop_formula(torch.ops.gru_ext.backward, get_raw=True)
def _backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    directions = ops.directions_of(weights) if hx is None else hx.shape[-3]
    each = len(weights) // directions
    input_size, hidden_size = input.shape[-1], weights[1].shape[-1]
    rows = _rows(input, batch_sizes)
    flops = 0
    for direction in range(directions):
        if batch_sizes is None:
            first = input.shape[-3 if batch_first else -2]
        else:
            first = int(batch_sizes[-direction])  # the reverse direction begins at the last step
        needs_weight_ih, needs_weight_hh = needs[2 + direction * each : 4 + direction * each]
        flops += (needs[0] + needs_weight_ih) * _gate_products(rows, input_size, hidden_size)
        carried = rows if needs[1] else rows - first
        flops += _gate_products(needs_weight_hh * rows + carried, hidden_size, hidden_size)
    if saved.shape[-1] == hidden_size:  # the gates are computed again
        flops += directions * _gate_products(rows, input_size + hidden_size, hidden_size)
    return flops


@register_flop_formula(torch.ops.gru_ext.forward_members, get_raw=True)
def _forward_members(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    members: int,
    *_: Any,
    **__: Any,
) -> int:
    return members * _forward(input, hx, weights, batch_sizes, batch_first)


@register_flop_formula(torch.ops.gru_ext.backward_members, get_raw=True)
def _backward_members(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    members: int,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    of_member = (grad_output, grad_h_n, input, hx, weights, saved, batch_sizes, batch_first, needs)
    return members * _backward(*of_member)
