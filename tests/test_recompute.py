"""recompute=True: only the states are kept for backward, and the gradients stay what they are."""

from __future__ import annotations

import copy
import pickle

import gate
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext
from gru_ext import _C

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def step(module: nn.Module, data: Tensor, lengths: list[int] | None) -> dict[str, Tensor]:
    """Output, h_n and the gradients of the input and of every parameter."""
    data = data.detach().requires_grad_()
    output, h_n = module(data if lengths is None else pack_padded_sequence(data, lengths))
    rows = output if lengths is None else output.data
    parameters = dict(module.named_parameters())
    loss = rows.float().pow(2).sum() + h_n.float().sum()
    gradients = torch.autograd.grad(loss, [data, *parameters.values()])
    names = ["input", *parameters]
    return {"output": rows.detach(), "h_n": h_n.detach(), **dict(zip(names, gradients, strict=True))}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [None, [9, 9, 6, 2, 1]], ids=["padded", "packed"])
@pytest.mark.parametrize("sizes", [(3, 5), (17, 33), (64, 96), (1, 130), (83, 3)], ids=str)
def test_the_gradients_stay(dtype: torch.dtype, lengths: list[int] | None, sizes: tuple[int, int]) -> None:
    """The same bits where the states that are kept are those that the gates were computed from.

    In 16 bits the state is carried in float32 and kept rounded. Where the product takes it unrounded (any but the
    bfloat16 dot product) the gates differ by that rounding, which the stored gates have met already.
    """
    module = gru_ext.GRU(*sizes, num_layers=2, bidirectional=True, dtype=dtype)
    module.recompute = False
    data = torch.randn(9, 5, sizes[0]).to(dtype)
    expected = step(module, data, lengths)
    module.recompute = True
    result = step(module, data, lengths)
    if dtype in (torch.float32, torch.float64) or (dtype == torch.bfloat16 and "bf16" in _C.cpu_target()):
        gate.assert_same_bits(result, expected, "recompute")
        return
    for name, value in expected.items():
        scale = value.float().abs().max()
        worst = (result[name].float() - value.float()).abs().max() / scale
        assert worst <= 8 * torch.finfo(dtype).eps, f"{name}: {worst:.2e} of the largest"


@pytest.mark.parametrize("steps", [1, 4])
def test_few_rows(steps: int) -> None:
    """Of few rows the forward pass sums in another order than the gates are computed again in."""
    module = gru_ext.GRU(20, 140, dtype=torch.float64)
    data = torch.randn(steps, 3, 20, dtype=torch.float64)
    expected = step(module, data, None)
    module.recompute = True
    result = step(module, data, None)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-12, atol=1e-13)


def test_it_keeps_a_fifth() -> None:
    """Between forward and backward: H values a row and direction, not 5 H."""

    def kept(module: gru_ext.GRU) -> int:
        sizes: list[int] = []
        weights = {id(weight) for weight in module.parameters()}
        data = torch.randn(50, 4, 8)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (sizes.append(tensor.numel() if id(tensor) not in weights else 0), tensor)[1],
            lambda tensor: tensor,
        ):
            module(data)
        return max(sizes)

    module = gru_ext.GRU(8, 64)
    assert kept(module) == 50 * 4 * 5 * 64
    module.recompute = True
    assert kept(module) == 50 * 4 * 64


def test_thread_counts_and_second_derivatives() -> None:
    """Any thread count gives the same bits, and create_graph=True goes its usual way."""
    before = torch.get_num_threads()
    module = gru_ext.GRU(30, 70, recompute=True)
    data = torch.randn(40, 9, 30)
    try:
        torch.set_num_threads(1)
        expected = step(module, data, None)
        torch.set_num_threads(2)
        gate.assert_same_bits(step(module, data, None), expected, "2 threads")
    finally:
        torch.set_num_threads(before)
    double = gru_ext.GRU(2, 3, recompute=True, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda x: double(x)[0], torch.randn(5, 1, 2, dtype=torch.float64).requires_grad_()
    )


def test_as_an_attribute() -> None:
    """It is shown, copied and pickled, and modules from before there was such a thing have it off."""
    module = gru_ext.GRU(3, 4, recompute=True)
    assert repr(module) == "GRU(3, 4, recompute=True)"
    assert repr(gru_ext.GRU(3, 4)) == repr(nn.GRU(3, 4))
    assert copy.deepcopy(module).recompute and pickle.loads(pickle.dumps(module)).recompute
    del module.__dict__["recompute"]
    assert not module.recompute
    with pytest.raises(TypeError, match="recompute"):
        nn.GRU(3, 4, recompute=True)


def test_compiled() -> None:
    """torch.compile sees the smaller tensor too."""
    module = gru_ext.GRU(6, 12, recompute=True)
    data = torch.randn(7, 2, 6)
    torch._dynamo.reset()
    expected = step(module, data, None)
    compiled = torch.compile(lambda sequence: module(sequence)[0].pow(2).sum(), backend="aot_eager", fullgraph=True)
    compiled(data).backward()
    reference = torch.autograd.grad(module(data)[0].pow(2).sum(), module.weight_hh_l0)[0]
    torch.testing.assert_close(module.weight_hh_l0.grad, reference)
    assert expected["output"].shape == (7, 2, 12)
