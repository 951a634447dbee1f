"""Stacked layers that overlap on a GPU: while one layer walks a chunk of the steps, the layer below walks the next one.

A layer whose weights stay on the chip, of few sequences, occupies some of the multiprocessors and spends its time on
latencies, so that several layers side by side take little longer than one. Each has a stream of its own and takes the
sequence in chunks:

    stream 0 (the caller's)   layer 0: chunk 0 | chunk 1 | chunk 2 | chunk 3
    stream 1                           layer 1: chunk 0 | chunk 1 | chunk 2 | chunk 3
    stream 2                                     layer 2: chunk 0 | chunk 1 | ...

C chunks and L layers take the time of (C + L - 1) chunks instead of C * L. Autograd runs each chunk's backward pass on
the stream of its forward pass, so that backward overlaps in the same way. Layers for which there is no room beside the
others wait until there is: a launch waits for others, never half of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gru_ext import ops

# Of a chunk. A chunk's launch loads the weights anew, for which some ten microseconds are predicted; a step takes more
# than one, by a count of its instructions (benchmarks/NOTES.md).
STEPS = 64

Layer = Callable[[Tensor, "Tensor | None", Sequence[Tensor], "Tensor | None", bool], tuple[Tensor, Tensor]]


def fits(seq_len: int, directions: int, packed: bool) -> bool:
    """Whether stacked layers can overlap: at least two chunks of one direction, not packed."""
    return directions == 1 and not packed and seq_len > STEPS


def runs(
    input: Tensor, hidden_size: int, directions: int, batch_first: bool, batch_sizes: Tensor | None, training: bool
) -> bool:
    """Whether stacked layers overlap: where they can, and plan has chosen it.

    The call is eager, on CUDA, and without transforms.

    Args:
        input: [T, B, I], or [B, T, I] with batch_first
        training: whether a gradient is asked for

    Raises:
        ValueError: as :func:`gru_ext.library.runs`
    """
    seq_len, batch = input.shape[1 if batch_first else 0], input.shape[0 if batch_first else 1]
    if not fits(seq_len, directions, batch_sizes is not None) or input.dtype not in ops.DTYPES:
        return False
    kind = (input.dtype, batch, hidden_size, 1, False, training, input.get_device(), seq_len)
    return ops.cuda_chosen(*kind) == "wavefront"


def gru(
    layer: Layer,
    input: Tensor,
    states: Sequence[Tensor | None],
    weights: Sequence[Sequence[Tensor]],
    batch_first: bool,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """All layers over all chunks.

    Args:
        layer: runs one layer: input, hx [1, B, H] or None, weights, batch_sizes, batch_first -> output, h_n
        input: [T, B, I], or [B, T, I] with batch_first
        states, weights: of each layer
        dropout: probability, between layers; 0 outside of training

    Returns:
        output [T, B, H], or [B, T, H] with batch_first, and h_n [L, B, H]
    """
    time = 1 if batch_first else 0
    # Of all steps at once, as without chunks. Only the masks are kept: a factor of 16 bits would be a rounded one.
    masks: list[Tensor | None] = [None] * len(weights)
    if dropout > 0:
        ones = input.new_ones((*input.shape[:2], weights[0][1].shape[-1]))
        masks[1:] = (torch.native_dropout(ones, dropout, True)[1] for _ in weights[1:])
    factor = 1 / (1 - dropout) if dropout < 1 else 0.0
    streams = _Streams(input.device, len(weights))
    finals: list[Tensor | None] = list(states)
    outputs: list[Tensor] = []
    for number, chunk in enumerate(input.split(STEPS, time)):
        for index, (of_layer, mask) in enumerate(zip(weights, masks, strict=True)):
            of_chunk = None if mask is None else mask.narrow(time, number * STEPS, chunk.shape[time])
            with streams.at(index, chunk, of_chunk):
                if of_chunk is not None:
                    chunk = chunk * of_chunk * factor
                chunk, finals[index] = layer(chunk, finals[index], of_layer, None, batch_first)
        outputs.append(chunk)
    known = [final for final in finals if final is not None]
    streams.join([*outputs, *known])
    return torch.cat(outputs, time), torch.cat(known)


class _Streams:
    """One stream a layer, the first of which is the caller's; joined to it at both ends."""

    def __init__(self, device: torch.device, count: int) -> None:
        self._streams: list[torch.cuda.Stream] = []
        if device.type != "cuda":
            return
        own = torch.cuda.current_stream(device)
        self._streams = [own, *(_side_stream(device, index) for index in range(1, count))]
        for stream in self._streams[1:]:
            stream.wait_stream(own)

    @contextmanager
    def at(self, index: int, *tensors: Tensor | None) -> Iterator[None]:
        """What is enqueued within it runs on a layer's stream, after the layer below has given the tensors."""
        if not self._streams:
            yield
            return
        stream = self._streams[index]
        if index > 0:
            stream.wait_stream(self._streams[index - 1])
            for tensor in tensors:
                if tensor is not None:
                    tensor.record_stream(stream)  # its memory is another stream's, which must not use it too soon
        with torch.cuda.stream(stream):
            yield

    def join(self, results: Sequence[Tensor]) -> None:
        """The caller's stream goes on when all others are done."""
        for stream in self._streams[1:]:
            self._streams[0].wait_stream(stream)
        if self._streams:
            for result in results:
                result.record_stream(self._streams[0])


_side_streams: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


def _side_stream(device: torch.device, index: int) -> torch.cuda.Stream:
    """The same in every call: each stream has memory of its own, which is kept for its next use."""
    found = _side_streams.get((device, index))
    if found is None:
        found = _side_streams.setdefault((device, index), torch.cuda.Stream(device))
    return found
