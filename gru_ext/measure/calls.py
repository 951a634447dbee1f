"""One call of a module: forward, and in training backward, as what is profiled and measured runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gru_ext.measure import BadInput


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors in lists, tuples, dicts and packed sequences, however deep."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return tensors_in(list(tree.values()))
    if isinstance(tree, (list, tuple)):  # a PackedSequence too
        return [tensor for branch in tree for tensor in tensors_in(branch)]
    return []


def call(module: nn.Module, inputs: tuple[Any, ...], training: bool) -> None:
    """Calls the module once.

    Args:
        training: backward too, from a gradient of ones in every output that has one, to every parameter and input that
            wants one, whose ``grad`` is new; else forward alone, under ``torch.no_grad()``

    Raises:
        BadInput: training, and no output has a gradient
    """
    if not training:
        with torch.no_grad():
            module(*inputs)
        return
    for tensor in (*module.parameters(), *tensors_in(inputs)):
        if tensor.is_leaf:  # of others grad is none of ours, and torch warns
            tensor.grad = None
    outputs = [tensor for tensor in tensors_in(module(*inputs)) if tensor.requires_grad]
    if not outputs:
        raise BadInput("no output of the module has a gradient: there is nothing to train")
    torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])
