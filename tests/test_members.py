"""Ensembles, on every backend: what the operators compute of all members in one call holds the gate, and is what each
member's own call gives. On the emulated GPU a launch of the step path has four members, on a real one as many as a grid
has room for (``GRU_MEMBERS_AT_ONCE``); with stationary weights they run one after the other.
"""

from __future__ import annotations

from dataclasses import replace

import emulated
import ensembles
import gate
import pytest
import torch
from backends import Backend, over
from cases import DTYPES
from ensembles import VARIANTS, Ensemble

from gru_ext import _C, ops


def stationary(backend: Backend) -> bool:
    """Whether its kernels keep the weights on the chip."""
    return backend.kind != "cpu" and backend.kernel != "step"


def variants(backend: Backend) -> list[Ensemble]:
    """A bias a member, shared tensors, packed input, one and two directions; float16 on the CPU alone."""
    if stationary(backend):
        few = (VARIANTS[0], VARIANTS[3], VARIANTS[9]) if backend.kernel in ("solo", "stationary") else ()
        return [replace(case, dtype=torch.bfloat16) for case in few]
    dtypes = DTYPES if backend.kind == "cpu" else (torch.float32, torch.float64, torch.bfloat16)
    return [replace(case, dtype=dtype) for case in VARIANTS for dtype in dtypes]


@over(variants)
def test_gate(backend: Backend, case: Ensemble) -> None:
    """All members together may be as wrong as nn.GRU is on them, twice over."""
    truth = ensembles.in_turn(case, ensembles.by_torch(torch.float64))
    reference = ensembles.in_turn(case, ensembles.by_torch(case.dtype))
    for recompute in (False, True):
        results = ensembles.together(replace(case, recompute=recompute), backend.device)
        saved = results.pop("saved")
        whole = recompute or backend.kind == "cpu"
        assert not (saved if whole else emulated.without_padding(saved, case.hidden_size)).isnan().any()
        if case.dtype == torch.float64:
            for name, value in truth.items():
                torch.testing.assert_close(results[name].cpu(), value, rtol=1e-11, atol=1e-12)
        else:
            gate.check(results, reference, truth)


@over(lambda backend: variants(backend) if stationary(backend) else [])
def test_stationary_weights_give_the_bits_of_each_members_own_call(backend: Backend, case: Ensemble) -> None:
    """As far as the kernels go; the products over all steps are batched."""
    results = ensembles.together(case, backend.device)
    expected = ensembles.in_turn(case, ensembles.by_operator, backend.device)
    for each in (results, expected):
        each["saved"] = emulated.without_padding(each["saved"], case.hidden_size)
    for name in ("output", "h_n", "saved", "gradient 1"):
        assert gate.same_bits(results[name], expected[name]), name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_the_bits_of_each_members_own_call(case: Ensemble, dtype: torch.dtype, threads: int) -> None:
    """On any number of threads, with everything kept and with the states alone."""
    torch.set_num_threads(threads)
    for recompute in (False, True):
        case = replace(case, dtype=dtype, recompute=recompute)
        expected = ensembles.in_turn(case, ensembles.by_operator)
        gate.assert_same_bits(ensembles.together(case), expected, str(case))


@pytest.mark.parametrize(("members", "hidden_size"), [(4, 64), (2, 64), (3, 200), (7, 48)])
def test_larger_members(members: int, hidden_size: int) -> None:
    """Where each would take more than one thread, members run at once or one after the other."""
    case = Ensemble(members, 12, 8, 40, hidden_size, bidirectional=members % 2 == 0)
    expected = ensembles.in_turn(case, ensembles.by_operator)
    gate.assert_same_bits(ensembles.together(case), expected, str(case))


def test_plan() -> None:
    """Threads take whole members where there are enough of them, and share a member where there are not."""
    torch.set_num_threads(2)
    large = torch.float32, 100, 3200, 64, 64, 1
    if _C.cpu_plan(*large)["threads"] < 2:
        pytest.skip("this process may use one core only")
    assert _C.cpu_plan(*large, 1)["split"] == "batch"
    assert _C.cpu_plan(*large, 2)["split"] == "members"
    assert _C.cpu_plan(*large, 3)["split"] == "batch"  # one thread would wait for the other
    assert _C.cpu_plan(*large, 1000) == {**_C.cpu_plan(*large, 1000), "split": "members", "threads": 2}
    assert _C.cpu_plan(torch.float32, 1, 1, 4, 4, 1, 10)["threads"] == 1  # too little to wake a thread for
    with pytest.raises(ValueError, match="members of at least 1, got 0"):
        _C.cpu_plan(torch.float32, 1, 1, 4, 4, 1, 0)


@pytest.mark.parametrize("case", [VARIANTS[index] for index in (1, 3, 4, 6, 7)], ids=str)  # each option both ways
def test_operators(case: Ensemble) -> None:
    """torch.library.opcheck: schema, fake implementation, dispatch."""
    for save, recompute in ((True, False), (True, True), (False, False)):
        layer = ensembles.arguments(replace(case, recompute=recompute)).values()
        checked = torch.library.opcheck(ops.forward, (*layer, save))
        assert set(checked.values()) == {"SUCCESS"}, checked
    layer = ensembles.arguments(case)
    output, h_n, saved = ops.forward(*layer.values(), True)
    every = ensembles.needs(layer)
    for needs in (every, [needed and index % 2 == 0 for index, needed in enumerate(every)]):
        incoming = ensembles.incoming(case, output, h_n)
        checked = torch.library.opcheck(ops.backward, (*incoming, saved, needs, *layer.values()))
        assert set(checked.values()) == {"SUCCESS"}, checked


@pytest.mark.parametrize("case", [VARIANTS[1], VARIANTS[3], VARIANTS[6]], ids=str)
def test_recorded_operator(case: Ensemble) -> None:
    """The operator as such has gradients, second ones too, and adds up those of what all members share."""
    case = replace(case, dtype=torch.float64, hidden_size=3, members=2)
    operands = ensembles.arguments(case)

    def call(input: torch.Tensor, hx: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = ops.forward(*{**operands, "input": input, "hx": hx, "weights": weights}.values(), True)
        return tuple(results[:2])

    leaves = [tensor.requires_grad_() for tensor in (operands["input"], operands["hx"], *operands["weights"])]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
    checked = torch.library.opcheck(ops.forward, (*operands.values(), True))
    assert set(checked.values()) == {"SUCCESS"}, checked
    # Asked for what backward needs or not: a graph that was captured without it trains, too.
    saved, not_saved = (ops.forward(*operands.values(), save)[0] for save in (True, False))
    for results in zip(*(torch.autograd.grad(kept.sum(), leaves) for kept in (saved, not_saved)), strict=True):
        assert torch.equal(*results)


def test_memory_as_it_comes() -> None:
    """Members that lie apart, transposed or overlapping in memory."""
    case = Ensemble(dtype=torch.float64)
    operands = ensembles.arguments(case)
    expected = ops.forward(*operands.values(), True)
    operands["input"] = operands["input"].transpose(0, 3).contiguous().transpose(0, 3)
    operands["hx"] = torch.stack([operands["hx"], operands["hx"]], 1)[:, 1]
    operands["weights"] = [weight.movedim(0, -1).contiguous().movedim(-1, 0) for weight in operands["weights"]]
    results = ops.forward(*operands.values(), True)
    for result, reference in zip(results, expected, strict=True):
        assert gate.same_bits(result, reference)
    operands["hx"] = operands["hx"][:1].expand(case.members, -1, -1, -1)
    shared = {**operands, "hx": operands["hx"][0]}
    for result, reference in zip(
        ops.forward(*operands.values(), True),
        ops.forward(*shared.values(), True),
        strict=True,
    ):
        assert gate.same_bits(result, reference)


@pytest.mark.parametrize("empty", ["members", "batch"])
def test_nothing(empty: str) -> None:
    """No members, or members without sequences: results of the right shapes, gradients of zeros."""
    case = replace(Ensemble(bidirectional=True), **{empty: 0})
    results = ensembles.together(case)
    operands = ensembles.arguments(case)
    steps = (case.members, case.seq_len, case.batch)
    assert results["output"].shape == (*steps, 2 * case.hidden_size)
    assert results["h_n"].shape == operands["hx"].shape
    for index, tensor in enumerate((operands["input"], operands["hx"], *operands["weights"])):
        assert torch.equal(results[f"gradient {index}"], torch.zeros_like(tensor))


def test_what_does_not_fit() -> None:
    """Messages name the argument, what it was and what was expected."""
    case = Ensemble()
    operands = ensembles.arguments(case)
    with pytest.raises(RuntimeError, match=r"input has shape \[5, 6, 3, 4\]; expected its first dimension to be the 4"):
        ops.forward(*{**operands, "members": 4}.values(), True)
    with pytest.raises(RuntimeError, match="members is -1; expected at least 0"):
        ops.forward(*{**operands, "members": -1}.values(), True)
    wrong = [*operands["weights"][:1], operands["weights"][1][:3], *operands["weights"][2:]]
    with pytest.raises(RuntimeError, match=r"weights\[1\] \(weight_hh\) has shape .* the 5 members"):
        ops.forward(*{**operands, "weights": wrong}.values(), True)
    with pytest.raises(RuntimeError, match=r"weights\[0\] \(weight_ih\) has shape \[21, 7\]; expected \[21, 4\]"):
        swapped = [operands["weights"][1], operands["weights"][0], *operands["weights"][2:]]
        ops.forward(*{**operands, "weights": swapped}.values(), True)
    with pytest.raises(RuntimeError, match="hx has 2 dimensions"):
        ops.forward(*{**operands, "hx": operands["hx"][0, 0]}.values(), True)
