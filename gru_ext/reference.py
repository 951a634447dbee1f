"""The GRU in plain PyTorch: to read, to test against, and to run where there is no kernel.

Every function is differentiable any number of times, in forward mode too, and works under ``torch.func`` transforms.

    r_t = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)            reset gate
    z_t = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)            update gate
    n_t = tanh   (W_in x_t + b_in + r_t * (W_hn h_(t-1) + b_hn))    candidate
    h_t = (1 - z_t) * n_t + z_t * h_(t-1)

This is :class:`torch.nn.GRU` (Keras ``reset_after=True``, ONNX ``linear_before_reset=1``), after Cho et al., "Learning
Phrase Representations using RNN Encoder-Decoder" (2014). Gate order in every tensor of 3H rows is r, z, n.

Sizes: T seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions, rows = sum of batch_sizes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gru_ext.ops import Arguments, Options


def gru_cell(
    input: Tensor,
    hx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """One step.

    Args:
        input: [B, I]
        hx: [B, H], h_(t-1)
        weight_ih: [3H, I]
        weight_hh: [3H, H]
        bias_ih, bias_hh: [3H], or None

    Returns:
        h_t [B, H]
    """
    return _gates(F.linear(input, weight_ih, bias_ih), hx, weight_hh, bias_hh)


def _gates(projection: Tensor, hx: Tensor, weight_hh: Tensor, bias_hh: Tensor | None) -> Tensor:
    """One step from the input's projection W_ih x_t + b_ih [B, 3H]."""
    input_r, input_z, input_n = projection.chunk(3, dim=-1)
    hidden_r, hidden_z, hidden_n = F.linear(hx, weight_hh, bias_hh).chunk(3, dim=-1)
    reset = torch.sigmoid(input_r + hidden_r)
    update = torch.sigmoid(input_z + hidden_z)
    candidate = torch.tanh(input_n + reset * hidden_n)
    return (1 - update) * candidate + update * hx


def _direction(
    steps: Sequence[Tensor], hx: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, reverse: bool
) -> tuple[list[Tensor], Tensor]:
    """One direction of a layer.

    Args:
        steps: T projections [B_t, 3H]; B_t never increases with t, and B_0 = B
        hx: [B, H]

    Returns:
        T outputs [B_t, H] in the order of time, and h_n [B, H]
    """
    outputs: list[Tensor] = []
    if reverse:
        # Sequence b begins at its own last step: there it joins the running batch with its initial state.
        state = hx[:0]
        for projection in reversed(steps):
            if projection.size(0) > state.size(0):
                state = torch.cat((state, hx[state.size(0) : projection.size(0)]))
            state = _gates(projection, state, weight_hh, bias_hh)
            outputs.append(state)
        return outputs[::-1], state

    state = hx
    ended: list[Tensor] = []  # final states of sequences already over: the shortest, at the end of the batch, first
    for projection in steps:
        running = projection.size(0)
        if running < state.size(0):
            ended.append(state[running:])
            state = state[:running]
        state = _gates(projection, state, weight_hh, bias_hh)
        outputs.append(state)
    return outputs, torch.cat((state, *reversed(ended))) if ended else state


def _marked_direction(
    steps: Sequence[Tensor],
    hx: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    running: Sequence[Tensor] | None,
    resets: Sequence[Tensor] | None,
    reset_states: Sequence[Tensor] | None,
    reverse: bool,
) -> tuple[list[Tensor], Tensor]:
    """One direction of a layer with lengths or resets.

    Args:
        steps: T projections [B, 3H]
        hx: [B, H]
        running: T flags [B, 1], whether a sequence has that step; None: all have all
        resets: T flags [B, 1], whether its state is reset before that step (in reverse: after it); None: never
        reset_states: T states [B, H] to reset it to; None: zero

    Returns:
        T outputs [B, H] in the order of time, zero where there is no step, and h_n [B, H]
    """
    outputs: list[Tensor] = []
    state = hx
    times = range(len(steps))
    for t in reversed(times) if reverse else times:
        at = t + 1 if reverse else t  # where the reset would be that this step sees
        if resets is not None and at < len(steps):
            anew = resets[at] if running is None else resets[at] & running[at]
            state = torch.where(anew, torch.zeros_like(state) if reset_states is None else reset_states[at], state)
        following = _gates(steps[t], state, weight_hh, bias_hh)
        state = following if running is None else torch.where(running[t], following, state)
        outputs.append(state if running is None else torch.where(running[t], state, torch.zeros_like(state)))
    return outputs[::-1] if reverse else outputs, state


def gru_layer(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """One layer, both directions, as the operator ``gru_ext::forward`` computes it; not an ensemble of them.

    Args:
        arguments: of the layer, with hx

    Returns:
        output [..., D*H] laid out like input, and h_n [D, B, H]
    """
    input, hx, weights, batch_sizes, lengths, resets, reset_state, *_ = arguments
    assert hx is not None
    directions = arguments.directions
    per_direction = len(weights) // directions
    time_dim = 1 if arguments.batch_first else 0
    running: Sequence[Tensor] | None = None
    if lengths is not None:
        times = torch.arange(input.size(time_dim), device=input.device)
        running = [flags.unsqueeze(-1) for flags in (times.unsqueeze(-1) < lengths).unbind(0)]
        # Padding may hold anything, also what times zero is not zero.
        input = torch.where(torch.stack(list(running), time_dim), input, torch.zeros_like(input))
    flags = None if resets is None else [flags.unsqueeze(-1) for flags in resets.unbind(time_dim)]
    outputs: list[Tensor] = []
    finals: list[Tensor] = []
    for direction in range(directions):
        weight_ih, weight_hh, *biases = weights[direction * per_direction : (direction + 1) * per_direction]
        bias_ih, bias_hh = biases if biases else (None, None)
        projection = F.linear(input, weight_ih, bias_ih)
        steps = projection.unbind(time_dim) if batch_sizes is None else torch.split(projection, batch_sizes.tolist())
        recurrent = (steps, hx[direction], weight_hh, bias_hh)
        if running is None and flags is None:
            states, final = _direction(*recurrent, reverse=direction == 1)
        else:
            reset_states = None if reset_state is None else reset_state[direction].unbind(time_dim)
            states, final = _marked_direction(*recurrent, running, flags, reset_states, reverse=direction == 1)
        outputs.append(torch.stack(states, time_dim) if batch_sizes is None else torch.cat(states))
        finals.append(final)
    return torch.cat(outputs, dim=-1), torch.stack(finals)


def gru(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """Stacked layers, with dropout on the output of every layer but the last when training.

    Each mask is drawn time-first, as ``nn.GRU`` draws it: the same from the same seed.

    Args:
        input: [T, B, I]; [B, T, I] when batch_first; packed [rows, I] when batch_sizes is given
        hx: [L*D, B, H]
        weights: those of each layer in turn, as in :class:`gru_ext.ops.Arguments`
        batch_sizes: [T] int64 on the CPU, never increasing; None: not packed
        lengths, resets: [B] and [T, B], as in :class:`gru_ext.ops.Arguments`; [B, T] when batch_first
        reset_state: [L*D, T, B, H]; [L*D, B, T, H] when batch_first

    Returns:
        output [..., D*H] of the last layer, and h_n [L*D, B, H]
    """
    directions = hx.size(0) // num_layers
    per_layer = len(weights) // num_layers
    finals: list[Tensor] = []
    batch_first = batch_first and batch_sizes is None
    if batch_first:
        input = input.transpose(0, 1)
        resets = None if resets is None else resets.transpose(0, 1)
        reset_state = None if reset_state is None else reset_state.transpose(1, 2)
    for layer in range(num_layers):
        if layer > 0:
            input = F.dropout(input, dropout, training)
        states = slice(layer * directions, (layer + 1) * directions)
        own_reset_state = None if reset_state is None else reset_state[states]
        layer_weights = weights[layer * per_layer : (layer + 1) * per_layer]
        input, final = gru_layer(
            Arguments(
                input, hx[states], layer_weights, batch_sizes, lengths, resets, own_reset_state, Options(directions)
            )
        )
        finals.append(final)
    return input.transpose(0, 1) if batch_first else input, torch.cat(finals)
