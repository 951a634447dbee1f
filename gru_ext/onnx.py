"""Export to ONNX: each layer becomes one standard ``GRU`` node.

::

    torch.onnx.export(model, (input,), "model.onnx", dynamo=True,
                      custom_translation_table=gru_ext.onnx.translation_table())

It needs the packages onnx and onnxscript (``pip install gru_ext[onnx]``), as ``torch.onnx.export`` itself does.
"""

from collections.abc import Callable, Sequence
from typing import Any

from gru_ext import ops


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export(..., dynamo=True)`` takes as ``custom_translation_table``.

    A layer becomes one node ``GRU`` with ``linear_before_reset=1``, both directions of a bidirectional one together.
    Around it stand what turns torch's layout into ONNX's: a transposition of the output (and of the input, when
    batch_first), and a re-ordering of the weights' gates from r, z, n to ONNX's z, r, h, which the exporter computes at
    once for small weights and ONNX Runtime for others, when it loads the model. Lengths are its ``sequence_lens``, and
    packed input goes through them, whichever way the model came by its ``batch_sizes``. Resets have no ONNX form.
    Weights frozen as float32 or bfloat16 become float32; int8 ones stay so, behind a ``DequantizeLinear``: ONNX then
    multiplies in float32, with an input and a state that are not quantised.

    To be merged with a table of one's own: ``{**gru_ext.onnx.translation_table(), ...}``.

    Raises:
        ImportError: onnxscript is not installed
    """
    try:
        import onnxscript  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(f"ONNX export needs the packages onnx and onnxscript: {error}") from error
    op = onnxscript.opset18

    def forward(*values: Any) -> tuple[Any, Any, Any]:
        *fields, save = values
        return _layer(op, ops.Arguments(*fields), save)

    return {ops.forward: forward}


def _layer(op: Any, arguments: ops.Arguments, save: bool) -> tuple[Any, Any, Any]:
    """The operator ``gru_ext::forward`` in ONNX's operators; its tensors are values of the graph."""
    if save:
        raise RuntimeError("a GRU that keeps what its backward pass needs has no ONNX form: export it under no_grad")
    input, hx, weights, batch_sizes, own_lengths, resets, *_ = arguments
    directions, batch_first = arguments.directions, arguments.batch_first
    if arguments.members is not None:
        raise RuntimeError("an ensemble of GRUs has no ONNX form: export its members one by one")
    if resets is not None:
        raise RuntimeError("a GRU with resets has no ONNX form, whose GRU knows none: split the sequences there")
    hidden_size = int(arguments.hidden_size)
    if weights[0].shape is not None and len(weights[0].shape) == 5:
        weights = _unpacked(op, weights, directions, hidden_size, input.shape[-1])
    running = None
    lengths = None if own_lengths is None else op.Cast(own_lengths, to=6)  # 6: int32
    if batch_sizes is not None:
        input, running, lengths = _padded(op, input, batch_sizes)
    elif batch_first:
        input = op.Transpose(input, perm=[1, 0, 2])
    output, h_n = op.GRU(
        input,
        *_weights(op, weights, directions, hidden_size),
        lengths,
        hx,
        direction="bidirectional" if directions == 2 else "forward",
        hidden_size=hidden_size,
        linear_before_reset=1,
    )  # output [T, D, B, H]
    first = batch_first and batch_sizes is None
    output = op.Transpose(output, perm=[2, 0, 1, 3] if first else [0, 2, 1, 3])
    output = op.Reshape(output, op.Constant(value_ints=[0, 0, directions * hidden_size]))
    if batch_sizes is not None:
        rows = op.Reshape(output, op.Constant(value_ints=[-1, directions * hidden_size]))
        output = op.Compress(rows, op.Reshape(running, op.Constant(value_ints=[-1])), axis=0)
    if lengths is not None and batch_sizes is None and hx is not None:  # what ONNX Runtime makes of no step is zero
        empty = op.Equal(op.Unsqueeze(lengths, op.Constant(value_ints=[1])), op.Cast(op.Constant(value_int=0), to=6))
        h_n = op.Where(empty, hx, h_n)
    return output, h_n, op.ConstantOfShape(op.Constant(value_ints=[0]))  # nothing is saved


def _weights(op: Any, weights: Sequence[Any], directions: int, hidden_size: int) -> list[Any]:
    """W [D, 3H, I], R [D, 3H, H] and, with biases, B [D, 6H], gates in the order z, r, h; no bias is None."""
    size = hidden_size
    order = op.Constant(value_ints=[*range(size, 2 * size), *range(size), *range(2 * size, 3 * size)])
    per_direction = len(weights) // directions
    first = op.Constant(value_ints=[0])
    stacks: list[list[Any]] = [[], [], []]
    for direction in range(directions):
        own = [op.Gather(weight, order, axis=0) for weight in weights[direction * per_direction :][:per_direction]]
        matrices, biases = own[:2], own[2:]
        if biases:
            matrices.append(op.Concat(*biases, axis=0))
        for stack, tensor in zip(stacks, matrices, strict=False):
            stack.append(op.Unsqueeze(tensor, first))
    return [op.Concat(*stack, axis=0) if stack else None for stack in stacks]


def _unpacked(op: Any, weights: Sequence[Any], directions: int, hidden_size: int, input_size: int) -> list[Any]:
    """Of weights packed as :func:`gru_ext.frozen.pack` does the plain ones of each direction, in float32."""
    each, plain = len(weights) // directions, []
    for first in range(0, len(weights), each):
        matrices, others = weights[first : first + 2], weights[first + 2 : first + each]
        int8 = matrices[0].shape[4] == 4
        biases, scales = (others[:-2], others[-2:]) if int8 else (others, [None, None])
        for packed, scale, columns in zip(matrices, scales, (input_size, hidden_size), strict=True):
            groups, words, gates, lanes, depth = packed.shape
            padded = op.Reshape(
                op.Transpose(packed, perm=[2, 0, 3, 1, 4]),
                op.Constant(value_ints=[gates, groups * lanes, words * depth]),
            )
            rows = op.Reshape(
                _first(op, _first(op, padded, hidden_size, 1), columns, 2), op.Constant(value_ints=[-1, columns])
            )
            if scale is None:
                plain.append(op.Cast(rows, to=1))  # 1: float32
                continue
            own = op.Reshape(
                op.Transpose(op.Gather(scale, op.Constant(value_int=0), axis=1), perm=[1, 0, 2]),
                op.Constant(value_ints=[gates, groups * lanes]),
            )
            own = op.Reshape(_first(op, own, hidden_size, 1), op.Constant(value_ints=[-1]))
            plain.append(op.DequantizeLinear(rows, own, None, axis=0))
        plain += biases
    return plain


def _first(op: Any, tensor: Any, count: int, axis: int) -> Any:
    """The first so many along an axis."""
    ints = [op.Constant(value_ints=[value]) for value in (0, count, axis)]
    return op.Slice(tensor, *ints)


def _padded(op: Any, data: Any, batch_sizes: Any) -> tuple[Any, Any, Any]:
    """From packed data [rows, I]: padded [T, B, I], which of its steps are data [T, B], and lengths [B] (int32)."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    offsets = op.CumSum(batch_sizes, zero, exclusive=1)
    batch = op.Range(zero, op.Gather(batch_sizes, zero, axis=0), one)  # batch_sizes[0] sequences
    sizes = op.Unsqueeze(batch_sizes, op.Constant(value_ints=[1]))
    running = op.Less(batch, sizes)
    positions = op.Where(running, op.Add(batch, op.Unsqueeze(offsets, op.Constant(value_ints=[1]))), zero)
    lengths = op.ReduceSum(op.Cast(running, to=6), op.Constant(value_ints=[0]), keepdims=0)  # 6: int32
    return op.Gather(data, positions, axis=0), running, lengths
