"""What ``torch.autocast`` makes of a call's tensors, as it does of those of ``nn.GRU``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gru_ext import ops
from gru_ext.marks import constant


def enabled(device_type: str) -> bool:
    """Whether autocast is on for tensors of this device type."""
    # Of a device type that knows no autocast, such as meta, is_autocast_enabled is not asked: it raises.
    return _knows_autocast(device_type) and torch.is_autocast_enabled(device_type)


@constant  # the torch.compile of torch 2.11 cannot trace the call within
def _knows_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def result_dtype(device_type: str, input: Tensor, hx: Tensor | None) -> torch.dtype:
    """The dtype of what ``nn.GRU`` returns under autocast: on the CPU the wider one of its products and the state's."""
    dtype = torch.get_autocast_dtype(device_type)
    state = input.dtype if hx is None else hx.dtype
    return torch.promote_types(dtype, state) if device_type == "cpu" or state == torch.float64 else dtype


def cast(
    input: Tensor, hx: Tensor | None, reset_state: Tensor | None, weights: Sequence[Tensor], keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor]]:
    """The arguments in the autocast dtype; like autocast itself this leaves float64 and whatever is not floating.

    Parameters are cast once for all calls within the outermost autocast block, unless they change in it; not in a
    graph, where keep is False.
    """
    dtype = torch.get_autocast_dtype(input.device.type)

    def in_dtype(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    kept: Sequence[Tensor | None] = ops.kept_casts(weights) if keep else (None,) * len(weights)
    casts = [in_dtype(weight) if known is None else known for weight, known in zip(weights, kept, strict=True)]
    states = (None if state is None else in_dtype(state) for state in (hx, reset_state))
    return in_dtype(input), *states, casts  # type: ignore[return-value]
