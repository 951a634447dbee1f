"""Tests of the tests: faults planted in a GRU must be caught by the very gate that the kernels pass.

The faulty GRU is nn.GRU's loop written out in Python, with one mistake. Without a mistake it must pass, otherwise being
caught would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import cases
import gate
import pytest
import torch
from cases import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class LoopGRU(nn.GRU):
    """A single-layer GRU in plain Python; ``fault`` names the mistake it makes."""

    fault = ""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """nn.GRU.forward for [T, B, I], [B, T, I] and PackedSequence."""
        packed = isinstance(input, PackedSequence)
        if packed:
            steps = list(input.data.split(input.batch_sizes.tolist()))
            if hx is not None and input.sorted_indices is not None:
                hx = hx.index_select(1, input.sorted_indices)
        else:
            steps = list(input.unbind(1 if self.batch_first else 0))
        directions = 2 if self.bidirectional else 1
        if hx is None:
            hx = steps[0].new_zeros(directions, steps[0].size(0), self.hidden_size)
        passes = [self.one_direction(steps, hx[d], d == 1) for d in range(directions)]
        outputs = [torch.cat(states, -1) for states in zip(*(states for states, _ in passes), strict=True)]
        h_n = torch.stack([final for _, final in passes])
        if packed:
            h_n = h_n if input.unsorted_indices is None else h_n.index_select(1, input.unsorted_indices)
            return PackedSequence(torch.cat(outputs), *input[1:]), h_n
        return torch.stack(outputs, 1 if self.batch_first else 0), h_n

    def one_direction(self, steps: list[Tensor], hx: Tensor, reverse: bool) -> tuple[list[Tensor], Tensor]:
        """All steps of one direction: states in the order of time, and the last one of each sequence."""
        suffix = "_reverse" if reverse else ""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weights = [getattr(self, name + suffix, None) for name in names]
        order = list(range(len(steps)))
        if reverse and self.fault != "reverse_runs_forward":
            order.reverse()
        state, states = hx, [hx] * len(steps)
        for index, time in enumerate(order):
            running = steps[time].size(0)
            new = self.cell(steps[time], state[:running], *weights)
            if self.fault == "missed_last_row" and index == len(order) - 1:
                new = torch.cat([new[:-1], state[running - 1 : running]])
            if self.fault == "dropped_last_unit":
                new = torch.cat([new[:, :-1], torch.zeros_like(new[:, -1:])], -1)
            if self.fault == "nan_swallowed":
                new = torch.nan_to_num(new)
            if self.fault == "rounded_state":
                new = new.to(torch.bfloat16).to(new.dtype)
            if self.fault == "h_n_of_ended_sequences" and not reverse:
                state = torch.cat([new, torch.zeros_like(state[running:])])
            else:
                state = torch.cat([new, state[running:]])
            states[time] = new
        if self.fault == "hx_ignored":
            states = [value + 0 * hx[: value.size(0)] for value in states]
        return states, state

    def cell(
        self, input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
    ) -> Tensor:
        """One step."""
        if self.fault == "gradient_without_b_hh" and b_hh is not None:
            b_hh = b_hh.detach() + 0 * b_hh
        if self.fault == "hx_ignored":
            hx = hx.detach()
        i_r, i_z, i_n = nn.functional.linear(input, w_ih, b_ih).chunk(3, -1)
        h_r, h_z, h_n = nn.functional.linear(hx, w_hh, b_hh).chunk(3, -1)
        if self.fault == "swapped_gates":
            i_r, i_z, h_r, h_z = i_z, i_r, h_z, h_r
        reset, update = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        if self.fault == "b_hn_outside" and b_hh is not None:
            b_hn = b_hh.chunk(3)[2]
            candidate = torch.tanh(i_n + reset * (h_n - b_hn) + b_hn)
        elif self.fault == "reset_before_product":
            weight = w_hh.chunk(3)[2]
            candidate = torch.tanh(
                i_n + nn.functional.linear(reset * hx, weight, None if b_hh is None else b_hh.chunk(3)[2])
            )
        else:
            candidate = torch.tanh(i_n + reset * h_n)
        if self.fault == "swapped_update":
            update = 1 - update
        if self.fault == "gradient_without_state_path":
            return (1 - update) * candidate + update * hx.detach()
        return (1 - update) * candidate + update * hx


FAULTS: dict[str, Callable[[Case], Case]] = {
    "swapped_gates": lambda case: case,
    "swapped_update": lambda case: case,
    "b_hn_outside": lambda case: case,
    "reset_before_product": lambda case: case,
    "missed_last_row": lambda case: case,
    "dropped_last_unit": lambda case: case,
    "reverse_runs_forward": lambda case: cases.replace(case, bidirectional=True),
    "gradient_without_b_hh": lambda case: case,
    "gradient_without_state_path": lambda case: case,
    "hx_ignored": lambda case: case,
    "h_n_of_ended_sequences": lambda case: cases.replace(case, packed="sorted"),
    "nan_swallowed": lambda case: cases.replace(case, special="nan"),
}


def faulty(fault: str) -> type[nn.Module]:
    """The loop with one mistake."""
    return type("FaultyGRU", (LoopGRU,), {"fault": fault})


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("hidden_size", [5, 17])
def test_fault_is_caught(fault: str, dtype: torch.dtype, hidden_size: int) -> None:
    """Every planted mistake shuts the gate in every dtype."""
    case = FAULTS[fault](Case(5, 4, 3, hidden_size, dtype, seed=7))
    with pytest.raises(gate.GateError):
        cases.check(faulty(fault), case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_wrong_precision_is_caught(dtype: torch.dtype) -> None:
    """A state kept in bfloat16 is no mistake of the formula and yet too far from the truth."""
    with pytest.raises(gate.GateError, match="allowed"):
        cases.check(faulty("rounded_state"), Case(5, 4, 3, 17, dtype, seed=7))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_loop_without_fault_passes(fault: str, dtype: torch.dtype) -> None:
    """The control: the same cases without the mistake pass, so it is the mistake that was caught."""
    case = FAULTS[fault](Case(5, 4, 3, 17, dtype, seed=7)) if fault else Case(4, 9, 3, 8, dtype, seed=8)
    cases.check(LoopGRU, case)


def test_small_tensors_are_not_a_way_out() -> None:
    """H = 1, where a failure is judged on several draws: the mistakes are still caught."""
    for fault in ("swapped_gates", "b_hn_outside", "missed_last_row", "gradient_without_b_hh"):
        with pytest.raises(gate.GateError):
            cases.check(faulty(fault), Case(3, 2, 1, 1, torch.bfloat16, seed=9))


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"output": torch.tensor([1.0, 2.5])}, r"at \(1,\) of \(2,\): candidate 2.5, reference 2, truth 2"),
        ({"output": torch.tensor([1.0, float("nan")])}, "1 positions of NaN differ"),
        ({"output": torch.tensor([float("inf"), 2.0])}, r"1 positions of \+inf differ"),
        ({"output": torch.tensor([[1.0, 2.0]])}, r"shape \(1, 2\), expected \(2,\)"),
        ({"output": torch.tensor([1.0, 2.0], dtype=torch.float64)}, "dtype torch.float64, expected torch.float32"),
        ({}, r"missing: \['output'\]"),
        ({"output": torch.tensor([1.0, 2.0]), "grad hx": torch.ones(1)}, r"unexpected: \['grad hx'\]"),
    ],
)
def test_message(candidate: dict[str, Tensor], message: str) -> None:
    """The message names the tensor, the worst coordinate and the three values."""
    reference = {"output": torch.tensor([1.0, 2.0])}
    truth = {"output": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    gate.check(reference, reference, truth)
    with pytest.raises(gate.GateError, match=message):
        gate.check(candidate, reference, truth)
