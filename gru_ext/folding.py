"""How the members of a vmap become sequences of a larger batch, or layers of an ensemble, and come apart again.

A vmap hands over each tensor with the dimension in which its members lie, ``dim``, or None where it is one for all.
Dimensions of the layer itself are counted from the last, since an ensemble has its own before them.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

Dims = Sequence[int | None]


def shape(tensor: Tensor, dim: int | None) -> tuple[int, ...]:
    """That of one member."""
    return tuple(size for index, size in enumerate(tensor.shape) if index != dim)


def fold(tensor: Tensor | None, dim: int | None, batch_dim: int, size: int) -> Tensor | None:
    """With the ``size`` members as part of the batch, member by member; None stays. batch_dim: negative."""
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(batch_dim - 1)
        sizes = list(tensor.shape)
        sizes[batch_dim - 1] = size
        tensor = tensor.expand(sizes)
    else:
        tensor = tensor.movedim(dim, batch_dim - 1)
    return tensor.flatten(batch_dim - 1, batch_dim)


def unfold(
    tensors: Iterable[Tensor], batch_dims: Iterable[int], size: int, batch: int
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The members again in a dimension of their own, before the batch's, and which that is."""
    unfolded = [
        (tensor.unflatten(dim, (size, batch)), tensor.dim() + dim)
        for tensor, dim in zip(tensors, batch_dims, strict=False)
    ]
    return tuple(tensor for tensor, _ in unfolded), tuple(dim for _, dim in unfolded)


def stack(tensor: Tensor | None, dim: int | None, size: int, members: int | None, dims: int) -> Tensor | None:
    """With the members of the vmap and those that the ensemble has already, if it is one, as its first dimension.

    None stays.

    Args:
        size: members of the vmap
        members: of the ensemble; None: a single layer
        dims: dimensions of the tensor in a single layer; what has no more, and is one for all, stays shared
    """
    if tensor is None:
        return None
    stacked = tensor.dim() - (dim is not None) > dims
    if dim is not None:
        tensor = tensor.movedim(dim, 0)
    elif stacked:
        tensor = tensor.unsqueeze(0).expand(size, *tensor.shape)
    else:
        return tensor
    if members is None:
        return tensor
    if not stacked:
        tensor = tensor.unsqueeze(1).expand(size, members, *tensor.shape[1:])
    return tensor.flatten(0, 1)


def unstack(tensors: Iterable[Tensor], size: int, members: int | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The members of the vmap again in a dimension of their own, and which that is."""
    unstacked = tuple(tensor if members is None else tensor.unflatten(0, (size, members)) for tensor in tensors)
    return unstacked, (0,) * len(unstacked)
