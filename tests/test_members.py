"""Ensembles: what the operators compute of all members in one call is what each member's own call gives."""

from __future__ import annotations

from dataclasses import replace

import ensembles
import gate
import pytest
import torch
from ensembles import VARIANTS, Ensemble

from gru_ext import _C, ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_the_bits_of_each_members_own_call(case: Ensemble, dtype: torch.dtype, threads: int) -> None:
    """On any number of threads, with everything kept and with the states alone."""
    torch.set_num_threads(threads)
    case = replace(case, dtype=dtype)
    for recompute in (False, True):
        found = ensembles.together(ops, case, recompute)
        expected = ensembles.in_turn(case, ensembles.by_operator(ops, recompute))
        gate.assert_same_bits(found, expected, str(case))


@pytest.mark.parametrize(("members", "hidden_size"), [(4, 64), (2, 64), (3, 200), (7, 48)])
def test_larger_members(members: int, hidden_size: int) -> None:
    """Where each would take more than one thread, members run at once or one after the other."""
    case = Ensemble(members, 12, 8, 40, hidden_size, bidirectional=members % 2 == 0)
    expected = ensembles.in_turn(case, ensembles.by_operator(ops))
    gate.assert_same_bits(ensembles.together(ops, case), expected, str(case))


def test_plan() -> None:
    """Threads take whole members where there are enough of them, and share a member where there are not."""
    torch.set_num_threads(2)
    if _C.cpu_plan(100, 3200, 64, 64, False, 1)["threads"] < 2:
        pytest.skip("this process may use one core only")
    assert _C.cpu_plan(100, 3200, 64, 64, False, 1, 1)["split"] == "batch"
    assert _C.cpu_plan(100, 3200, 64, 64, False, 1, 2)["split"] == "members"
    assert _C.cpu_plan(100, 3200, 64, 64, False, 1, 3)["split"] == "batch"  # one thread would wait for the other
    assert _C.cpu_plan(100, 3200, 64, 64, False, 1, 1000) == {
        **_C.cpu_plan(100, 3200, 64, 64, False, 1, 1000),
        "split": "members",
        "threads": 2,
    }
    assert _C.cpu_plan(1, 1, 4, 4, False, 1, 10)["threads"] == 1  # too little to wake a thread for
    with pytest.raises(ValueError, match="members of at least 1, got 0"):
        _C.cpu_plan(1, 1, 4, 4, False, 1, 0)


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_operators(case: Ensemble) -> None:
    """torch.library.opcheck: schema, fake implementation, dispatch."""
    given = ensembles.arguments(case)
    for save, recompute in ((True, False), (True, True), (False, False)):
        checked = torch.library.opcheck(ops.forward_members, (*given.values(), case.members, save, recompute))
        assert set(checked.values()) == {"SUCCESS"}, checked
    output, h_n, saved = ops.forward_members(*given.values(), case.members, True)
    input, hx, weights, batch_sizes, batch_first = given.values()
    count = 2 + len(weights)
    for needs in ([True] * count, [index % 2 == 0 for index in range(count)]):
        arguments = (*ensembles.incoming(case, output, h_n), input, hx, weights, saved, batch_sizes, batch_first)
        checked = torch.library.opcheck(ops.backward_members, (*arguments, case.members, needs))
        assert set(checked.values()) == {"SUCCESS"}, checked


@pytest.mark.parametrize("case", [VARIANTS[1], VARIANTS[3], VARIANTS[6]], ids=str)
def test_recorded_operator(case: Ensemble) -> None:
    """The operator as such has gradients, second ones too, and adds up those of what all members share."""
    case = replace(case, dtype=torch.float64, hidden_size=3, members=2)
    given = ensembles.arguments(case)
    input, hx, weights, batch_sizes, batch_first = given.values()

    def call(input: torch.Tensor, hx: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = ops.forward_members(input, hx, weights, batch_sizes, batch_first, case.members, True)
        return tuple(results[:2])

    leaves = [one.requires_grad_() for one in (input, hx, *weights)]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
    checked = torch.library.opcheck(ops.forward_members, (*given.values(), case.members, True))
    assert set(checked.values()) == {"SUCCESS"}, checked
    not_saved = ops.forward_members(*given.values(), case.members, False)[0]
    with pytest.raises(RuntimeError, match="saved"):
        not_saved.sum().backward()


def test_memory_as_it_comes() -> None:
    """Members that lie apart, transposed or overlapping in memory."""
    case = Ensemble(dtype=torch.float64)
    given = ensembles.arguments(case)
    expected = ops.forward_members(*given.values(), case.members, True)
    given["input"] = given["input"].transpose(0, 3).contiguous().transpose(0, 3)
    given["hx"] = torch.stack([given["hx"], given["hx"]], 1)[:, 1]
    given["weights"] = [one.movedim(0, -1).contiguous().movedim(-1, 0) for one in given["weights"]]
    found = ops.forward_members(*given.values(), case.members, True)
    for one, other in zip(found, expected, strict=True):
        assert gate.same_bits(one, other)
    given["hx"] = given["hx"][:1].expand(case.members, -1, -1, -1)
    shared = {**given, "hx": given["hx"][0]}
    for one, other in zip(
        ops.forward_members(*given.values(), case.members, True),
        ops.forward_members(*shared.values(), case.members, True),
        strict=True,
    ):
        assert gate.same_bits(one, other)


@pytest.mark.parametrize("empty", ["members", "batch"])
def test_nothing(empty: str) -> None:
    """No members, or members without sequences: results of the right shapes, gradients of zeros."""
    case = replace(Ensemble(bidirectional=True), **{empty: 0})
    results = ensembles.together(ops, case)
    given = ensembles.arguments(case)
    steps = (case.members, case.seq_len, case.batch)
    assert results["output"].shape == (*steps, 2 * case.hidden_size)
    assert results["h_n"].shape == given["hx"].shape
    for index, one in enumerate((given["input"], given["hx"], *given["weights"])):
        assert torch.equal(results[f"gradient {index}"], torch.zeros_like(one))


def test_what_does_not_fit() -> None:
    """Messages name the argument, what it was and what was expected."""
    case = Ensemble()
    given = ensembles.arguments(case)
    with pytest.raises(RuntimeError, match=r"input has shape \[5, 6, 3, 4\]; expected its first dimension to be the 4"):
        ops.forward_members(*given.values(), 4, True)
    with pytest.raises(RuntimeError, match="members is -1; expected at least 0"):
        ops.forward_members(*given.values(), -1, True)
    wrong = [*given["weights"][:1], given["weights"][1][:3], *given["weights"][2:]]
    with pytest.raises(RuntimeError, match=r"weights\[1\] \(weight_hh\) has shape .* the 5 members"):
        ops.forward_members(*{**given, "weights": wrong}.values(), 5, True)
    with pytest.raises(RuntimeError, match=r"weights\[0\] \(weight_ih\) has shape \[21, 7\]; expected \[21, 4\]"):
        swapped = [given["weights"][1], given["weights"][0], *given["weights"][2:]]
        ops.forward_members(*{**given, "weights": swapped}.values(), 5, True)
    with pytest.raises(RuntimeError, match="hx has 2 dimensions"):
        ops.forward_members(*{**given, "hx": given["hx"][0, 0]}.values(), 5, True)
