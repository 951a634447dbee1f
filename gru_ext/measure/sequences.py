"""Lengths and resets: gru_ext, which takes them, against torch.nn.GRU, for which sequences are packed or split by hand.

By hand is what users write, and all of it is timed: lengths by packing without sorting, running and padding again;
resets, as in rollouts of reinforcement learning, by cutting the sequences there, one call for all pieces, and putting
the outputs back. The pieces are padded to the longest one, and packed where that is faster or both directions run.

Beside these run both modules without lengths or resets: with lengths that is the padded input as if all of it were
there. What lengths save and resets cost is a matter of per cent: gru_ext with and without them is timed again, by turns
alone, and the fastest rounds are compared, which nothing has disturbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gru_ext import _C
from gru_ext.measure.harness import timing_words
from gru_ext.measure.timing import Budget, by_turns, contestants, make_call, ratio_columns, time_columns, timed, values
from gru_ext.measure.workloads import TF32, TORCH_TF32, Shape, Workload

ROUNDINGS_OF_A_STEP = 8
PACKED, PADDED = "packed", "padded"
CONTESTANTS = ("torch", "gru_ext", "torch_plain", "gru_ext_plain")  # as SequenceMeasurement's columns of times begin


def tolerance(dtype: torch.dtype, shape: Shape) -> float:
    """The relative error, in the Euclidean norm, that the dtype explains in any result of a layer of (B, T, I, H).

    It is (8 + sqrt(T)) u + sqrt(max(I + H, T B)) v, u being the largest relative error of one rounding in the dtype, v
    that in float32. For a value of one time step passes through a handful of roundings, and those of T steps, whether
    in the state or in a weight's gradient summed over them, add up like a random walk; so do those inside the sums of
    the products, which are float32 in either dtype, and the longest of which is I + H or T B terms long.
    """
    batch, seq_len, input_size, hidden_size = shape
    stored = (ROUNDINGS_OF_A_STEP + math.sqrt(seq_len)) * torch.finfo(dtype).eps / 2
    return stored + math.sqrt(max(input_size + hidden_size, seq_len * batch)) * torch.finfo(torch.float32).eps / 2


def packed(module: nn.RNNBase, lengths: Tensor, data: Tensor) -> Tensor:
    """The padded output of torch's module for padded input whose sequences have these lengths, of at least 1."""
    batch_first = module.batch_first
    sequences = pack_padded_sequence(data, lengths.cpu(), batch_first, enforce_sorted=False)
    output, _ = pad_packed_sequence(module(sequences)[0], batch_first, total_length=data.size(1 if batch_first else 0))
    return output


def split(module: nn.RNNBase, resets: Tensor, pack: bool, data: Tensor) -> Tensor:
    """The output of torch's module for sequences that begin anew at the resets, from zero.

    Args:
        resets: bool [T, B], or [B, T] when batch_first
        pack: the padded pieces; needed where the module is bidirectional
        data: [T, B, I], or [B, T, I] when batch_first
    """
    batch_first = module.batch_first
    if not batch_first:
        data, resets = data.transpose(0, 1), resets.t()
    sizes, rows = data.shape[:2], data.flatten(0, 1)
    starts = resets.clone()
    starts[:, 0] = True
    starts = starts.flatten()
    begins = starts.nonzero()[:, 0]
    lengths = torch.diff(begins, append=begins.new_tensor([starts.numel()]))
    piece = starts.cumsum(0) - 1
    step = torch.arange(starts.numel(), device=data.device) - begins[piece]
    count, longest = begins.numel(), int(lengths.max())
    where, padded = ((piece, step), (count, longest)) if batch_first else ((step, piece), (longest, count))
    pieces = rows.new_zeros(*padded, rows.size(1)).index_put(where, rows)
    output = packed(module, lengths, pieces) if pack else module(pieces)[0]
    output = output[where].unflatten(0, sizes)
    return output if batch_first else output.transpose(0, 1)


def draw_resets(sizes: Sequence[int], every: int, seed: int) -> Tensor:
    """bool of these sizes, each true with the probability 1 / every."""
    return torch.rand(*sizes, generator=torch.Generator().manual_seed(seed)) < 1 / every


def measure_sequences(workload: Workload, budget: Budget, seed: int = 0) -> dict[str, Any]:
    """Time a workload with lengths or resets.

    Returns:
        those fields of a SequenceMeasurement that are measured

    Raises:
        RuntimeError: results of gru_ext and by hand differ by more than twice the :func:`tolerance` of each layer; and
            what torch raises, such as for want of memory
    """
    gru, device = workload.gru, workload.device
    (theirs, ours), data = contestants(workload, seed)
    assert isinstance(theirs, nn.RNNBase) and isinstance(data, Tensor)
    ways: dict[str, Callable[[Any], Any]]
    if gru.resets:
        resets = draw_resets(gru.outer_sizes, gru.resets, seed).to(device)
        ways = {PACKED: partial(split, theirs, resets, True)}
        ways |= {} if gru.bidirectional else {PADDED: partial(split, theirs, resets, False)}
        with_all: Callable[[Any], Any] = partial(ours, resets=resets)
    else:
        lengths = torch.tensor(gru.padded_lengths, device=device)
        ways = {PACKED: partial(packed, theirs, lengths)}
        with_all = partial(ours, lengths=lengths)
    grad_output = torch.randn(*data.shape[:2], gru.directions * gru.hidden_size).to(data)

    def call_of(module: nn.Module, run: Callable[[Any], Any] | None = None) -> Callable[[], object]:
        return make_call(module, workload.mode, data, grad_output, run)

    by_hand = {name: call_of(theirs, way) for name, way in ways.items()}
    call = call_of(ours, with_all)
    error = max(largest_error(workload, call(), way()) for way in by_hand.values())
    fastest = min(by_hand, key=lambda name: timed(by_hand[name], 1, device))
    plain = call_of(ours)
    calls, times = by_turns([by_hand[fastest], call, call_of(theirs), plain], budget, device)
    _, own = by_turns([plain, call], budget, device)  # many more rounds than with nn.GRU among them
    fields: dict[str, Any] = {"rounds": len(times[0]), "calls": calls, "largest_error": error, "by_hand": fastest}
    fields |= {"resets": gru.resets, "steps": gru.rows, "timing": timing_words(workload)}
    fields["simd"] = "" if device.type == "cuda" else _C.cpu_target()
    for name, of in zip(CONTESTANTS, times, strict=True):
        fields |= time_columns(name, of)
    saving = ratio_columns("saving", *own) | {"saving": min(own[0]) / min(own[1])}
    return fields | ratio_columns("ratio", times[0], times[1]) | saving


def largest_error(workload: Workload, ours: Any, theirs: Any) -> float:
    """The largest relative error of ours among outputs or gradients. Raises RuntimeError where it is too large."""
    gru = workload.gru
    # TF32 has as many digits as float16.
    dtype = torch.float16 if workload.dtype in (TF32, TORCH_TF32) else workload.torch_dtype
    bound = 2 * gru.num_layers * tolerance(dtype, gru.shape)
    pairs = [(values(ours), values(theirs))] if workload.mode == "inference" else zip(ours, theirs, strict=True)
    # The gradient of W_hh is zero where there is but one step, and only zero is near to it.
    errors = [
        float((our.double() - their.double()).norm() / their.double().norm().clamp_min(torch.finfo(torch.double).tiny))
        for our, their in pairs
    ]
    for error in errors:
        if not error <= bound:
            raise RuntimeError(f"results differ by {error:.1e} of their norm, where {bound:.1e} is allowed")
    return max(errors)
