"""torch's own GRU kernels, on CUDA those of cuDNN.

They serve plain eager calls alone. In a graph of torch.compile or torch.export, under ``torch.func`` transforms and
wherever cuDNN is switched off (``torch.backends.cudnn.flags(enabled=False)``, as for second derivatives, which cuDNN
refuses), the operators of :mod:`gru_ext.ops` run.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


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


gru_cell: Callable[..., Tensor] = torch._VF.gru_cell  # as nn.GRUCell calls it
