"""Output, h_n and every gradient held to the gate, over dtypes, shapes and options."""

from __future__ import annotations

import cases
import gate
import pytest
import torch
from cases import Case
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import gru_ext
from gru_ext import _C, ops


def test_cases_cover_the_options() -> None:
    """The draw is worth its name: every value of every option occurs in it, in every dtype where it matters."""
    drawn = cases.options(180)
    for name, values in (
        ("dtype", cases.DTYPES),
        ("layers", (1, 2, 3)),
        ("layout", cases.LAYOUTS),
        ("needs", cases.NEEDS),
        ("used", cases.USED),
        ("packed", ("", "sorted", "unsorted")),
        *((flag, (False, True)) for flag in ("bidirectional", "bias", "batch_first", "hx", "unbatched")),
    ):
        for value in values:
            assert sum(getattr(case, name) == value for case in drawn) >= 4, f"{name}={value} is hardly drawn"
    hidden_sizes = {(case.dtype, case.hidden_size) for case in cases.shapes()}
    assert {(dtype, size) for dtype in cases.DTYPES for size in cases.HIDDEN_SIZES} <= hidden_sizes


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_other_sequences_do_not_see_a_nan(dtype: torch.dtype) -> None:
    """A NaN in one sequence, also beside it in the same vector register, leaves the others alone."""
    module = gru_ext.GRU(3, 17, dtype=dtype)
    clean = torch.randn(4, 9, 3).to(dtype)
    expected, _ = module(clean)
    for sick in (0, 4, 8):
        dirty = clean.clone()
        dirty[1, sick, 0] = float("nan")
        output, _ = module(dirty)
        others = [b for b in range(9) if b != sick]
        assert gate.same_bits(output[:, others], expected[:, others]), f"NaN in sequence {sick} reached another one"
        assert output[1:, sick].isnan().all() and not output[0].isnan().any()


def test_packed_by_hand_and_not_contiguous() -> None:
    """A PackedSequence that the user made from data with other strides."""
    module, ours = cases.twins(gru_ext.GRU, 3, 5)
    wide = torch.randn(9, 7)
    sizes = torch.tensor([4, 3, 1, 1])
    expected, expected_h_n = module(PackedSequence(wide[:, ::2][:, :3].contiguous(), sizes))
    data = wide[:, ::2][:, :3]
    assert not data.is_contiguous()
    output, h_n = ours(PackedSequence(data, sizes))
    torch.testing.assert_close(output.data, expected.data, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(h_n, expected_h_n, rtol=1e-5, atol=1e-6)


def test_backward_twice_gives_the_same_bits() -> None:
    """What forward keeps is still there, and unchanged, after one backward pass with retain_graph."""
    module = gru_ext.GRU(3, 9, 2, bidirectional=True)
    input = torch.randn(4, 3, 3, requires_grad=True)
    output, _ = module(input)
    leaves = [input, *module.parameters()]
    first = torch.autograd.grad(output.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(output.sum(), leaves)
    assert all(gate.same_bits(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_accumulate() -> None:
    """Two backward passes add up in .grad."""
    module = gru_ext.GRU(3, 4)
    input = torch.randn(4, 3, 3)
    module(input)[0].sum().backward()
    once = {name: p.grad.clone() for name, p in module.named_parameters()}
    module(input)[0].sum().backward()
    for name, parameter in module.named_parameters():
        assert gate.same_bits(parameter.grad, 2 * once[name]), name


@pytest.mark.parametrize("changed", ["weight_hh_l0", "input"])
def test_change_between_forward_and_backward_is_an_error(changed: str) -> None:
    """A tensor that backward needs and that was written to in between raises, as everywhere in torch."""
    module = gru_ext.GRU(3, 4)
    input = torch.randn(4, 3, 3)
    output, h_n = module(input)
    loss = output.sum() + h_n.sum()
    with torch.no_grad():
        (input if changed == "input" else module.weight_hh_l0).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("layers", [1, 2])
def test_results_may_be_changed_in_place(layers: int) -> None:
    """As with nn.GRU on the CPU: an in-place activation after the layer neither raises nor changes its gradients."""
    module = gru_ext.GRU(3, 4, layers, bidirectional=True)
    input = torch.randn(5, 2, 3)
    gradients = []
    for in_place in (False, True):
        module.zero_grad()
        output, h_n = module(input)
        if in_place:
            output.mul_(2).relu_()
            h_n.mul_(3)
        else:
            output, h_n = (output * 2).relu(), h_n * 3
        (output.sum() + h_n.sum()).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in module.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gate.same_bits(gradient, gradients[1][name]), name


@pytest.mark.parametrize("needed", [False, True])
def test_gates_are_kept_only_when_asked_for(needed: bool) -> None:
    """The compiled forward allocates nothing for backward without save."""
    weights = [torch.randn(12, 3), torch.randn(12, 4)]
    _, _, saved = _C.forward(*ops.Arguments(torch.randn(5, 2, 3), torch.randn(1, 2, 4), weights), needed)
    assert tuple(saved.shape) == ((1, 5, 2, 20) if needed else (0,))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_graph_when_no_gradient_can_be_asked(context: type) -> None:
    """no_grad, inference_mode and frozen everything give the same bits and no graph."""
    module = gru_ext.GRU(3, 5, 2, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(4, 3, 3), [4, 2, 1])
    for input in (torch.randn(4, 3, 3), packed):
        expected, expected_h_n = module(input)
        with context():
            output, h_n = module(input)
        if isinstance(input, PackedSequence):
            output, expected = output.data, expected.data
        assert expected.requires_grad and not output.requires_grad and not h_n.requires_grad
        assert gate.same_bits(output, expected) and gate.same_bits(h_n, expected_h_n)
    module.requires_grad_(False)
    assert not module(torch.randn(4, 3, 3))[0].requires_grad


def test_results_are_not_views_of_each_other() -> None:
    """Writing to one result changes neither the other one nor an argument."""
    module = gru_ext.GRU(3, 5)
    input, hx = torch.randn(1, 2, 3), torch.randn(1, 2, 5)
    kept_input, kept_hx = input.clone(), hx.clone()
    with torch.no_grad():
        output, h_n = module(input, hx)
        kept = h_n.clone()
        output.zero_()
    assert torch.equal(h_n, kept) and torch.equal(input, kept_input) and torch.equal(hx, kept_hx)


def test_long_sequence() -> None:
    """T = 20,000 forward and backward: no recursion, no growth of the error."""
    cases.check(gru_ext.GRU, Case(20_000, 1, 2, 3, torch.float32, seed=5))


MANY_ROWS = [
    *(Case(1, 1_000_000, 1, 2, dtype, seed=7) for dtype in cases.DTYPES),
    *(Case(60, 2_000, 2, 3, dtype, packed="unsorted", seed=6) for dtype in cases.DTYPES),
    Case(2, 32_768, 8, 16, seed=8),
]


@pytest.mark.parametrize("case", MANY_ROWS, ids=str)
def test_sums_over_many_rows(case: Case) -> None:
    """Gradients of weights and biases are sums over T * B rows, whose errors must not grow as a long chain's do."""
    cases.check(gru_ext.GRU, case)


# Packed, and of few rows, which read the weights as they lie. Not in float64, where torch's own product sums a row in
# one chain: the truth would be wrong by 35 to 70 units in the last place.
WIDE_ROWS = [
    Case(*sizes, dtype, scale=0.02, seed=10)
    for sizes in ((5, 3, 40_000, 5), (2, 2, 20_000, 80))
    for dtype in cases.DTYPES
    if dtype != torch.float64
]


@pytest.mark.parametrize("case", WIDE_ROWS, ids=str)
def test_sums_over_wide_rows(case: Case) -> None:
    """The same of sums over input_size."""
    cases.check(gru_ext.GRU, case)


def test_unused_results_give_no_gradient() -> None:
    """A loss that sees neither result leaves .grad alone; one that sees h_n alone reaches every leaf."""
    module = gru_ext.GRU(3, 4)
    unused = nn.Parameter(torch.ones(()))
    module(torch.randn(2, 2, 3))
    unused.backward()
    assert all(parameter.grad is None for parameter in module.parameters())
    module(torch.randn(2, 2, 3))[1].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
