"""What lengths and resets mean, by ``torch.nn.GRU`` itself: cut into pieces, run, and put together again.

A piece ends where its sequence does or is reset. It begins with hx, with reset_state or with zeros, never with what
another piece ended with, so that all pieces of a layer and direction are the sequences of one packed call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Piece = tuple[int, int, int]  # sequence, first step, step behind the last


def cut(lengths: list[int], resets: Tensor | None) -> list[Piece]:
    """The pieces of all sequences, in the order of time within each. resets: [T, B]."""
    pieces = []
    for sequence, length in enumerate(lengths):
        marked = [] if resets is None else resets[1:length, sequence].nonzero().flatten() + 1
        starts = [0, *map(int, marked)] if length > 0 else []
        pieces += [(sequence, *ends) for ends in zip(starts, [*starts[1:], length], strict=False)]
    return pieces


def run(
    module: nn.GRU,
    input: Tensor,
    hx: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What ``gru_ext.GRU`` gives for these arguments, with the weights of ``module``, which has no dropout."""
    unbatched, turned = input.dim() == 2, module.batch_first and input.dim() == 3
    if turned:
        input, resets = input.transpose(0, 1), None if resets is None else resets.t()
        reset_state = reset_state.transpose(1, 2) if reset_state is not None and reset_state.dim() == 4 else reset_state
    if unbatched:
        input, hx = input.unsqueeze(1), None if hx is None else hx.unsqueeze(1)
        resets = None if resets is None else resets.unsqueeze(1)
        reset_state = reset_state.unsqueeze(2) if reset_state is not None and reset_state.dim() == 3 else reset_state
    steps, batch, _ = input.shape
    states, hidden_size = module.num_layers * (1 + module.bidirectional), module.hidden_size
    hx = input.new_zeros(states, batch, hidden_size) if hx is None else hx
    if reset_state is None:
        reset_state = input.new_zeros(states, hidden_size)
    for _ in range(4 - reset_state.dim()):
        reset_state = reset_state.unsqueeze(1)
    reset_state = reset_state.expand(states, steps, batch, hidden_size)
    pieces = cut([steps] * batch if lengths is None else lengths.reshape(-1).tolist(), resets)
    finals = []
    for _ in range(module.num_layers):
        outputs = []
        for direction in range(1 + module.bidirectional):
            own = len(finals)
            weights = module._all_weights[own]
            named = [getattr(module, name) for name in weights]
            output, final = _direction(input, hx[own], named, pieces, resets, reset_state[own], reverse=direction == 1)
            outputs.append(output)
            finals.append(final)
        input = torch.cat(outputs, -1)
    h_n = torch.stack(finals)
    if unbatched:
        return input.squeeze(1), h_n.squeeze(1)
    return input.transpose(0, 1) if turned else input, h_n


def _direction(
    input: Tensor,
    hx: Tensor,
    weights: list[Tensor],
    pieces: list[Piece],
    resets: Tensor | None,
    reset_state: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """One direction of a layer: output [T, B, H] and h_n [B, H] from input [T, B, I], hx [B, H], [T, B, H]."""
    steps, batch, _ = input.shape
    rows, begins, ends = [], [], list(range(len(pieces), len(pieces) + batch))
    for index, (sequence, start, end) in enumerate(pieces):
        times = list(range(start, end))
        rows.append(torch.tensor(times[::-1] if reverse else times) * batch + sequence)
        last = index + 1 == len(pieces) or pieces[index + 1][0] != sequence
        at = end if reverse else start  # of the reset with which the piece begins
        from_hx = last if reverse else start == 0 and not (resets is not None and resets[0, sequence])
        begins.append(sequence if from_hx else batch + at * batch + sequence)
        if start == 0 if reverse else last:
            ends[sequence] = index
    sizes = torch.tensor([len(of_piece) for of_piece in rows])
    index = nn.utils.rnn.pad_sequence(rows)
    packed = pack_padded_sequence(input.reshape(steps * batch, -1)[index], sizes, enforce_sorted=False)
    data, batch_sizes, order, back = packed
    state = torch.cat([hx, reset_state.reshape(steps * batch, -1)])[begins][order]
    output, h_n = torch.gru(data, batch_sizes, state.unsqueeze(0), weights, len(weights) == 4, 1, 0.0, False, False)
    apart, _ = pad_packed_sequence(PackedSequence(output, batch_sizes, order, back))
    valid = torch.arange(len(index)).unsqueeze(1) < sizes
    every = output.new_zeros(steps * batch, output.shape[-1]).index_put((index[valid],), apart[valid])
    return every.reshape(steps, batch, -1), torch.cat([h_n[0][back], hx])[ends]
