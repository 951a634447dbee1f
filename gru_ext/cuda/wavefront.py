"""Stacked layers that overlap on a GPU: while one layer walks a chunk of the steps, the layer below walks the next one.

A layer whose weights stay on the chip, of few sequences, occupies some of the multiprocessors and spends its time on
latencies, so that several layers side by side take little longer than one. Each has its own stream and takes the
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

from gru_ext.ops import Arguments

# Of a chunk. A chunk's launch loads the weights again, which is predicted to take some ten microseconds; a step takes
# more than one, by a count of its instructions (benchmarks/NOTES.md).
STEPS = 64

LayerFunction = Callable[[Arguments], tuple[Tensor, Tensor]]


def fits(seq_len: int, directions: int, packed: bool) -> bool:
    """Whether stacked layers can overlap: at least two chunks of one direction, not packed."""
    return directions == 1 and not packed and seq_len > STEPS


def gru(layer: LayerFunction, layers: Sequence[Arguments], dropout: float) -> tuple[Tensor, Tensor]:
    """All layers over all chunks.

    Args:
        layer: runs one layer
        layers: of each, what it is called with, but for the input, which all have from the first
        dropout: probability, between layers; 0 outside of training

    Returns:
        output [T, B, H], or [B, T, H] with batch_first, and h_n [L, B, H]
    """
    input, batch_first = layers[0].input, layers[0].batch_first
    time = 1 if batch_first else 0
    # Of all steps at once, as without chunks. Only the masks are kept: a factor of 16 bits would be a rounded one.
    masks: list[Tensor | None] = [None] * len(layers)
    if dropout > 0:
        ones = input.new_ones((*input.shape[:2], layers[0].weights[1].shape[-1]))
        masks[1:] = (torch.native_dropout(ones, dropout, True)[1] for _ in layers[1:])
    factor = 1 / (1 - dropout) if dropout < 1 else 0.0
    streams = _Streams(input.device, len(layers))
    finals: list[Tensor | None] = [arguments.hx for arguments in layers]
    outputs: list[Tensor] = []
    for number, chunk in enumerate(input.split(STEPS, time)):
        for index, (arguments, mask) in enumerate(zip(layers, masks, strict=True)):
            chunk_mask = None if mask is None else mask.narrow(time, number * STEPS, chunk.shape[time])
            with streams.at(index, chunk, chunk_mask):
                if chunk_mask is not None:
                    chunk = chunk * chunk_mask * factor
                chunk, finals[index] = layer(arguments._replace(input=chunk, hx=finals[index]))
        outputs.append(chunk)
    h_n = [final for final in finals if final is not None]
    streams.join([*outputs, *h_n])
    return torch.cat(outputs, time), torch.cat(h_n)


class _Streams:
    """One stream a layer, the first of which is the caller's; joined to it at both ends."""

    def __init__(self, device: torch.device, count: int) -> None:
        self._streams: list[torch.cuda.Stream] = []
        if device.type != "cuda":
            return
        current = torch.cuda.current_stream(device)
        self._streams = [current, *(_side_stream(device, index) for index in range(1, count))]
        for stream in self._streams[1:]:
            stream.wait_stream(current)

    @contextmanager
    def at(self, index: int, *tensors: Tensor | None) -> Iterator[None]:
        """Work enqueued within it runs on a layer's stream, after the layer below has computed the tensors."""
        if not self._streams:
            yield
            return
        stream = self._streams[index]
        if index > 0:
            stream.wait_stream(self._streams[index - 1])
            for tensor in tensors:
                if tensor is not None:
                    tensor.record_stream(stream)  # its memory is another stream's, which must not reuse it too soon
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
    """The same in every call: the allocator keeps a pool of memory for each stream."""
    stream = _side_streams.get((device, index))
    if stream is None:
        stream = _side_streams.setdefault((device, index), torch.cuda.Stream(device))
    return stream
