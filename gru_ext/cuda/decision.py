"""Which strategy and which of our kernels run a call on CUDA. csrc/cuda/decision.h says how that is decided."""

from typing import NamedTuple

import torch
from torch import Tensor

from gru_ext import _C, ops
from gru_ext.cuda import wavefront

native = _C  # the compiled functions; tests put those of the emulated GPU here


class Decision(NamedTuple):
    """What runs.

    Attributes:
        strategy: "library" (torch's own kernels), "wavefront" (our kernels, in stacked layers that overlap) or
            "kernels" (our kernels, layer by layer)
        kernel: "step" or "stationary": which of our kernels run; for "library", where torch's own cannot
        source: who decided, to stand behind "chosen by": "GRU_EXT_CUDA_KERNEL", "gru_ext.tune ...",
            "measurements ..." or "default ..."
    """

    strategy: str
    kernel: str
    source: str

    @property
    def stationary(self) -> int:
        """The option of that name of :class:`gru_ext.ops.Options`."""
        return int(self.kernel == "stationary")

    def where_possible(
        self, seq_len: int, directions: int, num_layers: int, packed: bool, recompute: bool, marked: bool = False
    ) -> "Decision":
        """The same, but layer by layer where the strategy cannot run such a call."""
        possible = True
        if self.strategy == "library":
            possible = torch.backends.cudnn.enabled and not recompute and not marked
        elif self.strategy == "wavefront":
            possible = num_layers > 1 and not marked and wavefront.fits(seq_len, directions, packed)
        return self if possible else self._replace(strategy="kernels")


def decide(
    dtype: torch.dtype,
    seq_len: int,
    batch: int,
    hidden_size: int,
    directions: int,
    packed: bool,
    training: bool,
    device: int = -1,
) -> Decision:
    """What was decided for such layers, wherever it can run.

    Args:
        seq_len: 0 for a cell
        training: whether a gradient is wanted
        device: number of the GPU, negative for the current one

    Raises:
        ValueError: GRU_EXT_CUDA_KERNEL is none of the words it may be, or a size is out of range
    """
    return Decision(*native.cuda_decide(dtype, seq_len, batch, hidden_size, directions, packed, training, device))


def decide_call(
    input: Tensor,
    hidden_size: int,
    directions: int,
    num_layers: int,
    batch_first: bool,
    batch_sizes: Tensor | None,
    training: bool,
    recompute: bool,
    marked: bool = False,
) -> Decision | None:
    """What runs an eager call without transforms; None where there are no CUDA kernels for it.

    Under autocast the input's dtype is the one that it will be cast to.

    Args:
        input: as for :func:`gru_ext.functional.gru`, or [B, I]: a cell's
        training: whether a gradient is wanted
        recompute: as for :func:`gru_ext.functional.gru`
        marked: whether there are lengths or resets, which are ours alone

    Raises:
        ValueError: GRU_EXT_CUDA_KERNEL is none of the words it may be
    """
    if not ops.on_cuda(input):
        return None
    dtype, device_type = input.dtype, input.device.type
    if dtype != torch.float64 and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    if dtype not in ops.DTYPES or input.dim() not in (2, 3) or hidden_size < 1:
        return None
    packed = batch_sizes is not None
    if batch_sizes is not None:
        seq_len, batch = batch_sizes.numel(), int(batch_sizes[0])
    elif input.dim() == 2:
        seq_len, batch = 0, input.size(0)
    else:
        seq_len, batch = input.size(1 if batch_first else 0), input.size(0 if batch_first else 1)
    decision = decide(dtype, seq_len, batch, hidden_size, directions, packed, training, input.get_device())
    return decision.where_possible(seq_len, directions, num_layers, packed, recompute, marked)
