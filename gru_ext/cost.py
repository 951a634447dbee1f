"""What a pass of one layer costs: its matrix products, their operations, and the bytes of its tensors.

Every count in gru_ext comes from here: what ``explain`` prints, the floor, the roofline, torch's flop counter.

T steps of B sequences, I inputs, H units; rows are the steps of all sequences together: T * B, or fewer when packed.
Each direction has the products

    forward    the gates of the input, rows x I @ I x 3H, and of the state, step by step, B x H @ H x 3H
    backward   the gradient of the state, step by step, B x 3H @ 3H x H; of the input, rows x 3H @ 3H x I;
               of W_ih, 3H x rows @ rows x I; of W_hh, 3H x rows @ rows x H

and each of them has two operations for a multiply-add. Elementwise operations are not counted.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

GATES = 3


class MatrixProduct(NamedTuple):
    """[rows, depth] @ [depth, columns], so many times."""

    rows: int
    columns: int
    depth: int
    times: int


@dataclass(frozen=True)
class PassCost:
    """One pass of a layer, all its directions.

    Attributes:
        products: when packed, later steps have fewer rows than the first, which are listed
        operations: of all products, two for a multiply-add
        read_bytes, written_bytes: of the tensors that the pass reads and writes, each counted once
    """

    products: tuple[MatrixProduct, ...]
    operations: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class LayerCost:
    """One layer, all its directions.

    Attributes:
        forward, backward: the passes
        weight_bytes: of weights and biases
        input_bytes, output_bytes: of the layer's input and output
    """

    forward: PassCost
    backward: PassCost
    weight_bytes: int
    input_bytes: int
    output_bytes: int

    def with_weights(self, weight_bytes: int) -> "LayerCost":
        """The same with weights of so many bytes, of which the forward pass alone is meant."""
        read = self.forward.read_bytes - self.weight_bytes + weight_bytes
        return replace(self, forward=replace(self.forward, read_bytes=read), weight_bytes=weight_bytes)


@dataclass(frozen=True)
class PackingCost:
    """What ``pack_padded_sequence`` before a call and ``pad_packed_sequence`` behind it do, and ``lengths`` does not.

    Attributes:
        input_bytes, output_bytes: that they copy at least, of input and output; backward copies the gradients likewise
        sorts: whether they sort the sequences, and copy all, padding included, once more for that
    """

    input_bytes: int
    output_bytes: int
    sorts: bool


@dataclass(frozen=True)
class Limits:
    """Lower bounds of the time of a pass, each as if it were the only one, in microseconds.

    Attributes:
        floor_us: the floor, by the formula at the head of gru_ext/measure/floor.py
        cause: the largest: "arithmetic"; "cache": reading W_hh at every step, or all tensors once, from a cache;
            "memory": the same from memory; "latency"
        arithmetic_us: of all products
        reading_us: of W_hh, at every step
        traffic_us: of all tensors, read and written once
        latency_us: of the smallest possible layer with as many steps
    """

    floor_us: float
    cause: str
    arithmetic_us: float
    reading_us: float
    traffic_us: float
    latency_us: float


def gate_operations(rows: int, features: int, hidden_size: int) -> int:
    """Operations of a product of [rows, features] with a weight [3H, features], or of one of its two gradients."""
    return 2 * rows * features * GATES * hidden_size


def forward_operations(rows: int, input_size: int, hidden_size: int) -> int:
    """Operations of the forward pass of one direction."""
    return gate_operations(rows, input_size + hidden_size, hidden_size)


def backward_operations(
    rows: int,
    input_size: int,
    hidden_size: int,
    *,
    input: bool = True,
    weight_ih: bool = True,
    weight_hh: bool = True,
    first_rows: int = 0,
) -> int:
    """Operations of the backward pass of one direction.

    Args:
        input, weight_ih, weight_hh: whether their gradients are wanted
        first_rows: sequences of the first step when the gradient of hx is not wanted: it ends there
    """
    of_input = gate_operations(rows, input_size, hidden_size)
    of_state = gate_operations(rows - first_rows, hidden_size, hidden_size)
    return (input + weight_ih) * of_input + of_state + weight_hh * gate_operations(rows, hidden_size, hidden_size)


def weight_hh_bytes(hidden_size: int, element_size: int) -> int:
    """Bytes of W_hh [3H, H] of one direction, which are read again at every step."""
    return GATES * hidden_size**2 * element_size


def layer_cost(
    seq_len: int,
    batch: int,
    rows: int,
    input_size: int,
    hidden_size: int,
    directions: int,
    *,
    bias: bool,
    element_size: int,
    saved_bytes: int,
    recompute: bool = False,
) -> LayerCost:
    """The cost of one layer.

    Args:
        element_size: bytes of an element of every tensor
        saved_bytes: of what forward keeps for backward, beside input and weights
        recompute: whether backward computes the gates again
    """
    gates, steps = GATES * hidden_size, seq_len * directions
    weight_bytes = directions * gates * (input_size + hidden_size + 2 * bias) * element_size
    input_bytes, output_bytes = rows * input_size * element_size, rows * directions * hidden_size * element_size
    forward = PassCost(
        (
            MatrixProduct(rows, gates, input_size, directions),
            MatrixProduct(batch, gates, hidden_size, steps),
        ),
        directions * forward_operations(rows, input_size, hidden_size),
        input_bytes + weight_bytes,
        output_bytes + saved_bytes,
    )
    backward = PassCost(
        (
            *(forward.products if recompute else ()),
            MatrixProduct(batch, hidden_size, gates, steps),
            MatrixProduct(rows, input_size, gates, directions),
            MatrixProduct(gates, input_size, rows, directions),
            MatrixProduct(gates, hidden_size, rows, directions),
        ),
        directions * backward_operations(rows, input_size, hidden_size) + recompute * forward.operations,
        input_bytes + weight_bytes + output_bytes + saved_bytes,
        input_bytes + weight_bytes,
    )
    return LayerCost(forward, backward, weight_bytes, input_bytes, output_bytes)


def packing_cost(
    seq_len: int, batch: int, rows: int, input_size: int, output_size: int, *, element_size: int, sorts: bool
) -> PackingCost:
    """The cost of packing and padding around a call of all layers; output_size is D*H."""
    copied = (rows + sorts * seq_len * batch) * element_size
    return PackingCost(copied * input_size, copied * output_size, sorts)
