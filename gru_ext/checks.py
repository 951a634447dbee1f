"""What is wrong with a call: exceptions, texts and their order are those of ``nn.GRU`` and ``nn.GRUCell``.

The operators check again, and alone check the weights: of those torch reports whatever its products trip over.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def input_dtype(input: Tensor, weight: Tensor) -> None:
    """The first check of a layer, which any autocast leaves to :func:`product`; a cell does so always."""
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )


def layers(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    states: int,
    batch_sizes: Tensor | None,
    batch_first: bool,
) -> tuple[int, int, int] | None:
    """Sizes and devices of input and hx.

    Args:
        states: L*D

    Returns:
        the shape of hx; None where nothing asks for it, and of a packed input it would have to be read
    """
    shape = input.shape
    dims = 3 if batch_sizes is None else 2
    if len(shape) != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {len(shape)}")
    input_size = weights[0].shape[-1]
    if shape[-1] != input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {shape[-1]}")
    expected = None
    if hx is not None or batch_sizes is not None:
        expected = (states, batch(input, hx, batch_sizes, batch_first), weights[1].shape[-1])
    if hx is not None and expected is not None:
        hidden_size(hx, expected)
        same_device(input, hx, "hidden")
    for weight in weights:
        same_device(input, weight, "parameter")
    seq_len = batch_sizes.numel() if batch_sizes is not None else shape[1 if batch_first else 0]
    if seq_len == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    return expected


def cell(input: Tensor, hx: Tensor | None, weight_ih: Tensor, weight_hh: Tensor, reset: Tensor | None) -> None:
    """All of a cell's call."""
    if input.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {input.dim()}")
    if input.size(1) != weight_ih.shape[-1]:
        raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {weight_ih.shape[-1]}")
    if hx is not None:
        if hx.size(0) != input.size(0):
            raise RuntimeError(f"Input batch size {input.size(0)} doesn't match hidden0 batch size {hx.size(0)}")
        expected = weight_hh.shape[-1]
        if hx.size(1) != expected:
            raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {hx.size(1)}, expected {expected}")
        if hx.dim() != 2:  # torch would broadcast it
            raise RuntimeError(f"hidden0 must have 2 dimensions, got {hx.dim()}")
        same_device(input, hx, "hidden")
    same_device(input, weight_ih, "parameter")
    product(input, weight_ih)
    if hx is not None:
        product(hx, weight_hh)
    if reset is not None:
        are_tensors(reset=reset)
        if reset.dtype != torch.bool:
            raise RuntimeError(f"reset must be bool, got {reset.dtype}")
        _shape("reset", reset, (input.size(0),))
        same_device(input, reset, "reset")


def product(tensor: Tensor, weight: Tensor) -> None:
    """What torch says of two dtypes only when it multiplies them."""
    if tensor.dtype != weight.dtype:
        names = [factor.type().rpartition(".")[2].removesuffix("Tensor") for factor in (tensor, weight)]
        raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {names[0]} and {names[1]}")


def hidden_size(hx: Tensor, expected: tuple[int, int, int]) -> None:
    """The shape of hx."""
    if hx.shape != expected:
        raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.shape)}")


def sequences(
    input: Tensor,
    weight_hh: Tensor,
    states: int,
    batch_sizes: Tensor | None,
    batch_first: bool,
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_state: Tensor | None,
) -> None:
    """What ``nn.GRU`` does not know: dtypes, sizes and devices of lengths, resets and reset_state.

    Args:
        states: L*D
    """
    are_tensors(lengths=lengths, resets=resets, reset_state=reset_state)
    if batch_sizes is not None:
        raise RuntimeError("lengths and resets are for padded input, not for a PackedSequence, which has its own")
    steps = tuple(input.shape[:2])
    if lengths is not None:
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
            raise RuntimeError(f"lengths must be integers, got {lengths.dtype}")
        _shape("lengths", lengths, (steps[0 if batch_first else 1],))
        same_device(input, lengths, "lengths")
    if resets is None:
        if reset_state is not None:
            raise RuntimeError("reset_state needs resets, which say where it is to be")
        return
    if resets.dtype != torch.bool:
        raise RuntimeError(f"resets must be bool, got {resets.dtype}")
    _shape("resets", resets, steps)
    same_device(input, resets, "resets")
    if reset_state is not None:
        _shape("reset_state", reset_state, (states, *steps, weight_hh.shape[-1]))
        same_device(input, reset_state, "reset_state")
        if reset_state.dtype != weight_hh.dtype:
            raise RuntimeError(f"reset_state must be {weight_hh.dtype}, as the weights are, got {reset_state.dtype}")


def are_tensors(**arguments: object) -> None:
    """What ``nn.GRU`` does not know and is not None."""
    for name, argument in arguments.items():
        if argument is not None and not isinstance(argument, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(argument).__name__}")


def lengths_in_range(lengths: Tensor, seq_len: int) -> None:
    """Of lengths on the CPU, where the kernels did not see to it; what is on a device the host does not read."""
    while torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        lengths = torch._C._functorch.get_unwrapped(lengths)
    if lengths.is_cpu:
        for index, length in enumerate(lengths.flatten().tolist()):
            if not 0 <= length <= seq_len:
                raise RuntimeError(f"lengths[{index}] is {length}; expected 0 to {seq_len}, the steps of input")


def _shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise RuntimeError(f"Expected {name} of shape {expected}, got {list(tensor.shape)}")


def zero_hx(input: Tensor, shape: Sequence[int]) -> Tensor:
    """What an absent hx stands for."""
    return torch.zeros(shape, dtype=input.dtype, device=input.device)


def same_device(input: Tensor, other: Tensor, name: str) -> None:
    """Where input is there must be the others."""
    if input.device != other.device:
        raise RuntimeError(
            f"Input and {name} tensors are not at the same device, "
            f"found input tensor at {input.device} and {name} tensor at {other.device}"
        )


def batch(input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None, batch_first: bool) -> int:
    """B. Of a packed input it stands in batch_sizes, which a graph in the making reads only where it must."""
    if batch_sizes is None:
        return input.shape[0] if batch_first else input.shape[1]
    if not torch.compiler.is_compiling():
        return int(batch_sizes[0])
    if hx is not None and hx.dim() == 3:
        return hx.shape[1]
    # item(), not int(), which torch.export would want to know at once.
    if torch.compiler.is_dynamo_compiling():
        with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):  # otherwise the next line breaks the graph
            size: int = batch_sizes[0].item()  # type: ignore[assignment]
    else:
        size = batch_sizes[0].item()  # type: ignore[assignment]
    torch._check(size >= 0)
    return size
