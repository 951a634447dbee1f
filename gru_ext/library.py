"""torch's own GRU kernels, which run on CUDA (there cuDNN's) where ``plan`` has chosen them over ours.

They serve plain eager calls alone. In a graph of torch.compile or torch.export, under ``torch.func`` transforms and
wherever cuDNN is switched off (``torch.backends.cudnn.flags(enabled=False)``, as for second derivatives, which cuDNN
refuses), the operators of :mod:`gru_ext.ops` run.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gru_ext import ops


def runs(
    input: Tensor,
    hidden_size: int,
    directions: int,
    batch_first: bool,
    batch_sizes: Tensor | None,
    training: bool,
    recompute: bool = False,
) -> bool:
    """Whether torch's own kernels run a call, which is plain, eager and without transforms.

    Args:
        input: as for :func:`gru_ext.functional.gru`, or [B, I]: a cell's
        directions: 1 or 2
        training: whether a gradient is asked for
        recompute: as for :func:`gru_ext.functional.gru`: torch's kernels cannot

    Raises:
        ValueError: the environment variable GRU_EXT_CUDA_KERNEL is none of the words it may be
    """
    if not ops.on_cuda(input) or recompute or not torch.backends.cudnn.enabled:
        return False
    dtype = input.dtype
    if torch.is_autocast_enabled(input.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
    if dtype not in ops.DTYPES or input.dim() not in (2, 3):
        return False
    packed = batch_sizes is not None
    if batch_sizes is not None:
        seq_len, batch = batch_sizes.numel(), int(batch_sizes[0])
    elif input.dim() == 2:
        seq_len, batch = 0, input.size(0)
    else:
        seq_len, batch = input.size(1 if batch_first else 0), input.size(0 if batch_first else 1)
    kind = (dtype, batch, hidden_size, directions, packed, training, input.get_device(), seq_len)
    return ops.cuda_chosen(*kind) == "library"


def gru(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *,
    num_layers: int,
    bias: bool,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    needs_gradient: bool,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Stacked layers as ``nn.GRU`` runs them; arguments and results as for :func:`gru_ext.functional.gru`.

    Args:
        needs_gradient: whether backward may follow. cuDNN prepares for it in training mode only; so that it may follow
            in eval mode too, the mode is then training without dropout
    """
    train = training or needs_gradient
    dropout = dropout if training else 0.0
    flat = list(weights)
    if batch_sizes is not None:
        output, h_n = torch._VF.gru(input, batch_sizes, hx, flat, bias, num_layers, dropout, train, bidirectional)
    else:
        output, h_n = torch._VF.gru(input, hx, flat, bias, num_layers, dropout, train, bidirectional, batch_first)
    return output, h_n


def gru_cell(
    input: Tensor,
    hx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> Tensor:
    """One step as ``nn.GRUCell`` runs it; arguments and results as for :func:`gru_ext.functional.gru_cell`."""
    h_t: Tensor = torch._VF.gru_cell(input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    return h_t
