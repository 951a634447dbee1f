"""What forward keeps for backward on CUDA: how it lies, and what is read of it, on the emulated GPU."""

from __future__ import annotations

from types import ModuleType

import cases
import emulated
import gate
import pytest
import torch

import gru_ext
from gru_ext import ops

pytestmark = pytest.mark.usefixtures("emulated_gpu")


def padded(hidden_size: int, dtype: torch.dtype) -> int:
    """Units that a row of saved has room for."""
    at_once = 16 // dtype.itemsize
    return -(-hidden_size // at_once) * at_once


# 33 goes element by element, 36 by packs in all but float64 and with padding in the 16-bit types, 40 has none.
LAYOUTS = [
    (kernel, hidden_size, dtype)
    for kernel in ("step", "solo")
    for hidden_size in (33, 36, 40)
    for dtype in cases.DTYPES
    if kernel == "step" or dtype != torch.float64
]


@pytest.mark.parametrize(("kernel", "hidden_size", "dtype"), LAYOUTS, ids=str)
def test_saved_has_the_gates_of_each_unit_side_by_side(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, dtype: torch.dtype
) -> None:
    """A row of saved is r, z, n, hn of each unit, then h_(t-1) of all, padded as csrc/gru.h says."""
    emulated.choose(monkeypatch, kernel)
    seq_len, batch, input_size = 2, 3, 4

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, dtype=torch.float64) / 2).to(dtype)

    input, h = draw(seq_len, batch, input_size), draw(1, batch, hidden_size)
    weights = [draw(3 * hidden_size, *size) for size in ((input_size,), (hidden_size,), (), ())]
    weights[1] /= hidden_size**0.5
    saved = extension.forward(*ops.Arguments(input, h, weights), True)[2]
    assert saved.shape[:-1] == (1, seq_len, batch)
    assert saved.shape[-1] == 5 * padded(hidden_size, dtype)
    saved = emulated.without_padding(saved, hidden_size)
    weight_ih, weight_hh, bias_ih, bias_hh = (weight.double() for weight in weights)
    h, tolerance = h[0].double(), 8 * torch.finfo(dtype).eps
    for t in range(seq_len):
        of_input, of_hidden = input[t].double() @ weight_ih.T + bias_ih, h @ weight_hh.T + bias_hh
        (in_r, in_z, in_n), (h_r, h_z, hn) = of_input.chunk(3, -1), of_hidden.chunk(3, -1)
        r, z = torch.sigmoid(in_r + h_r), torch.sigmoid(in_z + h_z)
        n = torch.tanh(in_n + r * hn)
        expected = torch.cat([torch.stack([r, z, n, hn], -1).flatten(-2), h], -1)
        torch.testing.assert_close(saved[0, t].double(), expected, rtol=tolerance, atol=tolerance)
        h = (1 - z) * n + z * h


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(("kernel", "hidden_size"), [("step", 33), ("solo", 33), ("cluster", 150), ("grid", 133)])
def test_padding_takes_no_part(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, dtype: torch.dtype
) -> None:
    """Results are finite though the input's gates are padded by NaN; no gradient shows what saved is padded by."""
    emulated.choose(monkeypatch, kernel)
    assert torch.empty(4).isnan().all()  # so is the padding of W_ih, which nothing writes
    of_weights = [(3 * hidden_size, *size) for size in ((4,), (hidden_size,), (), ())]
    shapes = [(3, 9, 4), (2, 9, hidden_size), *of_weights, *of_weights]
    input, h, *weights = (torch.randn(shape).mul(0.3).to(dtype) for shape in shapes)
    arguments = ops.Arguments(input, h, weights, options=ops.Options(directions=2))
    output, h_n, saved = extension.forward(*arguments, True)
    assert output.isfinite().all() and h_n.isfinite().all()
    units = padded(hidden_size, dtype)
    assert units > hidden_size
    gates, states = saved[..., : 4 * units].unflatten(-1, (units, 4)), saved[..., 4 * units :]
    gradients = []
    for value in (0.0, float("nan"), float("inf"), -float("inf")):
        gates[..., hidden_size:, :] = value
        states[..., hidden_size:] = value
        gradients.append(extension.backward(output, h_n, saved, [True, True, False, *[True] * 8], *arguments))
    for results in gradients:
        assert all(result.isfinite().all() for result in results)
        assert all(gate.same_bits(result, other) for result, other in zip(results, gradients[0], strict=True))


ANYWHERE = [
    (kernel, hidden_size, dtype)
    for kernel, hidden_size in (("step", 40), ("solo", 33), ("solo", 34), ("solo", 40))
    for dtype in cases.DTYPES
    if kernel == "step" or dtype != torch.float64
]


@pytest.mark.parametrize(("kernel", "hidden_size", "dtype"), ANYWHERE, ids=str)
def test_what_backward_reads_may_lie_anywhere(
    monkeypatch: pytest.MonkeyPatch, kernel: str, hidden_size: int, dtype: torch.dtype
) -> None:
    """A hook for saved tensors may put them at an odd address, and so may the caller the gradient of the output."""
    emulated.choose(monkeypatch, kernel)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        other = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
        assert other.data_ptr() % 16 == tensor.element_size()
        return other.copy_(tensor)

    def unpacked(tensor: torch.Tensor) -> torch.Tensor:
        """What the kernels read alone: a product of other tensors may have other bits elsewhere."""
        if tensor.shape[-1] != 5 * padded(hidden_size, dtype):
            return tensor
        unpackings.append(tensor)
        return moved(tensor)

    unpackings: list[torch.Tensor] = []
    module = gru_ext.GRU(3, hidden_size, bidirectional=True, dtype=dtype)
    input = torch.randn(4, 5, 3, dtype=dtype, requires_grad=True)
    leaves = [input, *module.parameters()]
    output = module(input)[0]
    expected = torch.autograd.grad(output, leaves, output.detach())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpacked):
        again = module(input)[0]
    gradients = torch.autograd.grad(again, leaves, moved(output.detach()))
    assert len(unpackings) == 1
    assert all(gate.same_bits(gradient, other) for gradient, other in zip(gradients, expected, strict=True))
