"""Tests of the tests: faults with lengths and resets, planted in a GRU, must shut the gate that the kernels pass."""

from __future__ import annotations

import cases
import gate
import pytest
import torch
from cases import Case
from torch import Tensor, nn

from gru_ext import reference


class LoopGRU(nn.GRU):
    """One layer of padded input, time-first, in plain Python; ``fault`` names the mistake it makes."""

    fault = ""

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: Tensor, *, lengths: Tensor, resets: Tensor, reset_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What ``gru_ext.GRU`` gives; see there."""
        running = torch.arange(len(input)).unsqueeze(1) < lengths
        if self.fault == "padding_has_gradient":
            input = Leak.apply(input, ~running)
        if self.fault == "padding_is_read":
            input = input * running.unsqueeze(-1)
        else:
            input = torch.where(running.unsqueeze(-1), input, torch.zeros_like(input))
        if self.fault == "reset_state_without_gradient":
            reset_state = reset_state.detach() + 0 * torch.where(resets.unsqueeze(-1), reset_state, 0)
        directions = range(1 + self.bidirectional)
        passes = [self.one_direction(input, hx[d], running, resets, reset_state[d], d == 1) for d in directions]
        return torch.cat([output for output, _ in passes], -1), torch.stack([final for _, final in passes])

    def one_direction(
        self, input: Tensor, hx: Tensor, running: Tensor, resets: Tensor, reset_state: Tensor, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """All steps, [T, B, H], and the last state of each sequence."""
        suffix = "_reverse" if reverse else ""
        weights = [getattr(self, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        steps, state = len(input), hx
        outputs = [hx] * steps
        for t in reversed(range(steps)) if reverse else range(steps):
            on = running[t].unsqueeze(-1)
            before = state
            at = t + 1 if reverse and self.fault != "reverse_reset_on_the_wrong_side" else t
            if self.fault == "reset_a_step_late":
                at += 1 if reverse else -1
            if self.fault != "reset_ignored" and 0 <= at < steps:
                anew = resets[at] & running[at]
                if self.fault == "reset_at_step_0_ignored" and at == 0:
                    anew = anew & False
                begin = torch.zeros_like(state) if self.fault == "reset_state_ignored" else reset_state[at]
                state = torch.where(anew.unsqueeze(-1), begin, state)
            new = reference.gru_cell(input[t], state, *weights)
            begun_at_end = self.fault == "reverse_begins_at_T" and reverse
            state = new if begun_at_end else torch.where(on, new, before)
            behind = state if self.fault == "padding_holds_the_state" else torch.zeros_like(state)
            outputs[t] = torch.where(on, new, behind)
        if self.fault == "h_n_of_empty_sequences":
            state = torch.where(running[0].unsqueeze(-1), state, torch.zeros_like(state))
        if self.fault == "h_n_of_step_T" and not reverse:
            state = outputs[-1]
        return torch.stack(outputs), state


class Leak(torch.autograd.Function):
    """The same, with some gradient where there is none."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, input: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(padding)
        return input.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (padding,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient.masked_fill(padding.unsqueeze(-1), torch.finfo(gradient.dtype).tiny), None


FAULTS = (
    "padding_has_gradient", "padding_is_read", "padding_holds_the_state", "reset_ignored", "reset_a_step_late",
    "reset_at_step_0_ignored", "reset_state_ignored", "reset_state_without_gradient", "reverse_begins_at_T",
    "reverse_reset_on_the_wrong_side", "h_n_of_empty_sequences", "h_n_of_step_T",
)  # fmt: skip


def case(hidden_size: int, dtype: torch.dtype) -> Case:
    """Sequences of 0, 1, T and other lengths, both directions, resets in all of them."""
    marks = {"lengths": "random", "resets": "random", "reset_state": "full"}
    return Case(7, 9, 3, hidden_size, dtype, bidirectional=True, seed=13, **marks)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("hidden_size", [5, 17])
def test_fault_is_caught(fault: str, dtype: torch.dtype, hidden_size: int) -> None:
    """Every planted mistake shuts the gate in every dtype."""
    with pytest.raises(gate.GateError):
        cases.check(type("FaultyGRU", (LoopGRU,), {"fault": fault}), case(hidden_size, dtype))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_loop_without_fault_passes(dtype: torch.dtype) -> None:
    """The control: without the mistake the same cases pass."""
    for hidden_size in (5, 17):
        cases.check(LoopGRU, case(hidden_size, dtype))
