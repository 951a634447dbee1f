"""Where there is no kernel: the reference runs and says so once. Autocast, torch.func, and the reference itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from cases import twins
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext
from gru_ext import functional, reference


@pytest.fixture(autouse=True)
def warnings_unused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test sees the warnings of a fresh process."""
    monkeypatch.setattr(functional, "_warned", set())
    yield


def test_meta_device_runs_the_reference_and_warns_once() -> None:
    """Right shapes on a device without kernels; one warning, not one a call."""
    module = gru_ext.GRU(3, 5, 2, bidirectional=True, batch_first=True, device="meta")
    input = torch.randn(2, 7, 3, device="meta", requires_grad=True)
    with pytest.warns(UserWarning, match="meta") as caught:
        output, h_n = module(input)
    assert len([warning for warning in caught if "gru_ext" in str(warning.message)]) == 1
    assert output.device.type == h_n.device.type == "meta"
    assert output.shape == (2, 7, 10) and h_n.shape == (4, 2, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output, _ = module(input)
        output.sum().backward()
    assert input.grad.shape == input.shape


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_dtype_without_kernel(dtype: torch.dtype) -> None:
    """nn.GRU takes complex numbers, so do we: by the reference, with a warning."""
    theirs, ours = twins(gru_ext.GRU, 3, 5, dtype=dtype)
    input = torch.randn(4, 2, 3, dtype=dtype)
    with pytest.warns(UserWarning, match="complex"):
        output, h_n = ours(input)
    expected, expected_h_n = theirs(input)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(h_n, expected_h_n)


@pytest.mark.parametrize("packed", [False, True])
def test_autocast(packed: bool) -> None:
    """Under CPU autocast the layer computes in bfloat16; results and gradients of float32 weights stay float32."""
    theirs, ours = twins(gru_ext.GRU, 3, 9, 2, bidirectional=True)
    input = torch.randn(6, 3, 3, requires_grad=True)
    data = pack_padded_sequence(input, [6, 4, 1]) if packed else input
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n = ours(data, torch.zeros(4, 3, 9))
    output = output.data if packed else output
    assert output.dtype == h_n.dtype == torch.float32
    expected = theirs.bfloat16()(pack_padded_sequence(input.bfloat16(), [6, 4, 1]) if packed else input.bfloat16())[0]
    expected = (expected.data if packed else expected).float()
    torch.testing.assert_close(output, expected, rtol=0.03, atol=0.03)  # two bfloat16 computations: 4 units each
    output.sum().backward()
    assert input.grad.dtype == torch.float32 and input.grad.abs().sum() > 0
    assert all(parameter.grad.dtype == torch.float32 for parameter in ours.parameters())


def test_autocast_leaves_float64_and_the_disabled() -> None:
    """As torch's autocast does."""
    module = gru_ext.GRU(3, 4, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.randn(2, 2, 3, dtype=torch.float64))[0].dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert gru_ext.GRU(3, 4)(torch.randn(2, 2, 3))[0].dtype == torch.float32
        half = gru_ext.GRUCell(3, 4)(torch.randn(2, 3))
        assert half.dtype == torch.float32 and torch.equal(half, half.bfloat16().float())  # computed in bfloat16


@pytest.mark.filterwarnings("ignore:gru_ext has no kernel")
def test_functional_transforms() -> None:
    """vmap over an ensemble's inputs, grad, and a Jacobian-vector product: the numbers of plain autograd."""
    module = gru_ext.GRU(3, 4, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    inputs = torch.randn(5, 6, 2, 3, dtype=torch.float64)

    def call(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (input,))[0]

    expected = torch.stack([call(parameters, input) for input in inputs])
    torch.testing.assert_close(torch.func.vmap(call, in_dims=(None, 0))(parameters, inputs), expected)

    gradients = torch.func.grad(lambda parameters: call(parameters, inputs[0]).pow(2).sum())(parameters)
    call(dict(module.named_parameters()), inputs[0]).pow(2).sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)

    tangent = torch.randn_like(inputs[0])
    _, derivative = torch.func.jvp(lambda input: call(parameters, input), (inputs[0],), (tangent,))
    step = 1e-6
    difference = call(parameters, inputs[0] + step * tangent) - call(parameters, inputs[0] - step * tangent)
    torch.testing.assert_close(derivative, (difference / (2 * step)).detach(), rtol=1e-6, atol=1e-8)


def test_transforms_warn_once() -> None:
    """jvp runs the reference: said once."""
    module = gru_ext.GRU(3, 4)
    input = torch.randn(6, 2, 3)
    for expected in (1, 0):
        with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.func.jvp(lambda input: module(input)[0], (input,), (input,))
        assert sum("forward-mode" in str(warning.message) for warning in caught) == expected


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lengths", [None, [6, 4, 4, 1]])
def test_reference(bias: bool, bidirectional: bool, lengths: list[int] | None) -> None:
    """The reference is nn.GRU in float64, to rounding, first and second derivative included."""
    theirs = nn.GRU(3, 5, 2, bias=bias, bidirectional=bidirectional, dtype=torch.float64)
    weights = list(theirs.parameters())
    input = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(4 if bidirectional else 2, 4, 5, dtype=torch.float64, requires_grad=True)
    expected, expected_h_n = theirs(input if lengths is None else pack_padded_sequence(input, lengths), hx)
    data, sizes = (input, None) if lengths is None else pack_padded_sequence(input, lengths)[:2]
    output, h_n = reference.gru(data, hx, weights, num_layers=2, batch_sizes=sizes)
    expected = expected if lengths is None else expected.data
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(h_n, expected_h_n, rtol=1e-12, atol=1e-14)
    gradients = []
    for result, final in ((output, h_n), (expected, expected_h_n)):
        first = torch.autograd.grad(result.pow(2).sum() + final.sum(), [input, hx, *weights], create_graph=True)
        second = torch.autograd.grad(first[0].pow(2).sum(), [input, hx, *weights])
        gradients.append([*first, *second])
    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-12)


def test_reference_cell() -> None:
    """The reference's step is nn.GRUCell's."""
    theirs = nn.GRUCell(3, 5, dtype=torch.float64)
    input, hx = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    ours = reference.gru_cell(input, hx, theirs.weight_ih, theirs.weight_hh, theirs.bias_ih, theirs.bias_hh)
    torch.testing.assert_close(ours, theirs(input, hx), rtol=1e-12, atol=1e-14)
