"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of the operators: their products, as of ``nn.GRU``."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gru_ext import cost
from gru_ext.ops import Arguments


def _rows(arguments: Arguments) -> int:
    """Steps of all sequences together, and of all members."""
    rows = math.prod(arguments.input.shape[-arguments.dims_of_layer()[0] : -1])
    return rows if arguments.members is None else rows * arguments.members


@register_flop_formula(torch.ops.gru_ext.forward, get_raw=True)
def _forward(*values: Any, **_: Any) -> int:
    arguments = Arguments(*values[:-1])
    sizes = (_rows(arguments), arguments.input.shape[-1], arguments.weights[1].shape[-1])
    return arguments.directions * cost.forward_operations(*sizes)


@register_flop_formula(torch.ops.gru_ext.backward, get_raw=True)
def _backward(
    grad_output: Tensor | None, grad_h_n: Tensor | None, saved: Tensor, needs: Sequence[bool], *values: Any, **_: Any
) -> int:
    arguments = Arguments(*values)
    roles = (len(needs) - 2) // arguments.directions
    sizes = (_rows(arguments), arguments.input.shape[-1], arguments.weights[1].shape[-1])
    flops = 0
    for direction in range(arguments.directions):
        if arguments.batch_sizes is None:
            first = arguments.input.shape[-3 if arguments.batch_first else -2]
        else:
            first = int(arguments.batch_sizes[-direction])  # the reverse direction begins at the last step
        weight_ih, weight_hh = needs[2 + direction * roles : 4 + direction * roles]
        flops += cost.backward_operations(
            *sizes,
            input=needs[0],
            weight_ih=weight_ih,
            weight_hh=weight_hh,
            first_rows=0 if needs[1] else first * (1 if arguments.members is None else arguments.members),
        )
        flops += arguments.recompute * cost.forward_operations(*sizes)
    return flops
