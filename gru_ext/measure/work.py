"""What a pass has to do: its operations, and the bytes that it has to move, from what ``gru_ext.explain`` tells.

Operations are those of the products, two for a multiply-add; the gates count for nothing.

Bytes are what the algorithm must read and write, wherever it lies, in the dtype of the tensors, each direction's own:

    forward    W_hh at every step, for it has to be read again for each; W_ih and the biases once; input; output; what
               is kept for backward, written
    backward   W_hh at every step; W_ih once; input, the gradient of output and what was kept, read; the gradients of
               the input and of all weights and biases, written once

They are no traffic that was measured: a cache may have held W_hh, and a kernel may move something twice. At a small
batch W_hh is nearly all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gru_ext.explanation import Explanation, LayerPlan
from gru_ext.measure.cells import DTYPES

PASSES = ("forward", "backward")
GATES = 3


@dataclass(frozen=True)
class Work:
    """Of one pass of a layer, all its directions.

    Attributes:
        operations: two for a multiply-add
        bytes: read and written, as the module's text defines them
    """

    operations: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)


def pass_work(explanation: Explanation, layer: LayerPlan, name: str) -> Work:
    """The work of a layer's "forward" or "backward" pass in the call that was explained."""
    told = explanation
    element = DTYPES[told.dtype].itemsize
    weight_hh = GATES * told.hidden_size**2 * element * told.directions
    # Three times forward's operations make a training step: backward has twice as many.
    forward = layer.operations // 3 if told.training else layer.operations
    saved = layer.saved_bytes or 0
    if name == "forward":
        others = layer.weight_bytes - weight_hh
        return Work(forward, told.seq_len * weight_hh + others + layer.input_bytes + layer.output_bytes + saved)
    weight_ih = GATES * told.hidden_size * layer.input_size * element * told.directions
    read = told.seq_len * weight_hh + weight_ih + layer.input_bytes + layer.output_bytes + saved
    return Work(2 * forward, read + layer.input_bytes + layer.weight_bytes)
