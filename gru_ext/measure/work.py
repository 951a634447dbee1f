"""What a pass has to do: its operations, and the bytes that it has to move, from ``gru_ext.explain``.

Operations are those of the products, two for a multiply-add; the gates count for nothing.

Bytes are what the algorithm must read and write, wherever it lies, in the dtype of the tensors: W_hh, all directions',
once at every step, for it has to be read again for each; and once every other tensor that the pass takes and makes.
That is in forward the input, W_ih, the biases, the output and what is kept for backward; in backward the same, the
gradient of the output in place of the output, and the gradients of the input and of all weights.

They are no traffic that was measured: a cache may have held W_hh, and a kernel may move something twice. At a small
batch W_hh is nearly all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gru_ext import cost
from gru_ext.explanation import Explanation
from gru_ext.measure.workloads import DTYPES
from gru_ext.planning import PassPlan


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


def pass_work(call: Explanation, plan: PassPlan) -> Work | None:
    """The work of a pass of the explained call; None where torch's own kernels or the reference run it."""
    if plan.read_bytes is None or plan.written_bytes is None:
        return None
    weight_hh = call.directions * cost.weight_hh_bytes(call.hidden_size, DTYPES[call.dtype].itemsize)
    again = (call.seq_len - 1) * weight_hh  # explain counts it once, and it is read at every step
    return Work(plan.operations, plan.read_bytes + plan.written_bytes + again)
