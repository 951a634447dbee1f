"""What frozen GRUs compute, by every SIMD target: float32 by the gate, bfloat16 to the bit, int8 by its simulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cases
import gate
import pytest
import torch
from cases import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gru_ext
from gru_ext import _C
from gru_ext.packed_weights import pack, pack_scale, quantize, unpack, unpack_scale

FORMATS = ("float32", "bfloat16", "int8")
# input_size, hidden_size, seq_len, batch: beside the edges of words, vectors and tiles.
SIZES = [(1, 1, 3, 1), (3, 5, 2, 2), (17, 15, 4, 1), (64, 16, 1, 1), (5, 17, 5, 3), (130, 33, 3, 20), (64, 129, 2, 7)]


@pytest.fixture(params=_C.cpu_targets())
def target(request: pytest.FixtureRequest) -> str:
    """Each SIMD target of this machine, in use for the test (conftest restores the one before)."""
    _C.set_cpu_target(request.param)
    return str(request.param)


class Freezing(nn.Module):
    """What cases.evaluate takes for a GRU: frozen when its weights are loaded."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.gru: nn.Module = gru_ext.GRU(*arguments, **options)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads, and freezes."""
        loaded = self.gru.load_state_dict(state_dict, strict, assign)
        self.gru = gru_ext.freeze(self.gru)
        return loaded

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As the GRU."""
        return self.gru(*arguments, **named)


def drawn_cases() -> list[Case]:
    """Shapes and options of float32, forward alone; lengths and resets among them."""
    drawn = [case for case in (*cases.shapes(), *cases.options(60)) if case.dtype == torch.float32]
    drawn += [
        Case(9, 6, 5, 33, lengths="random", hx=True, bidirectional=True, layers=2, seed=1),
        Case(9, 3, 5, 17, resets="random", reset_state="full", seed=2),
        Case(40, 1, 5, 64, resets="random", seed=3),
    ]
    return [replace(case, needs="nothing", used="both", layout="contiguous") for case in drawn]


@pytest.mark.parametrize("case", drawn_cases(), ids=str)
def test_float32_is_within_the_gate(case: Case, target: str) -> None:
    """nn.GRU's results, to the gate that the unfrozen module is held to."""
    cases.check(Freezing, case)


@pytest.mark.parametrize("sizes", [*SIZES, (33, 64, 40, 1)], ids=str)
def test_bfloat16_is_float32_with_rounded_weights(sizes: tuple[int, int, int, int], target: str) -> None:
    """To the bit, however many rows there are."""
    input_size, hidden_size, seq_len, batch = sizes
    module = nn.GRU(input_size, hidden_size, num_layers=2)
    rounded = nn.GRU(input_size, hidden_size, num_layers=2)
    rounded.load_state_dict(
        {name: value.bfloat16().float() if "weight" in name else value for name, value in module.state_dict().items()}
    )
    data = torch.randn(seq_len, batch, input_size)
    with torch.no_grad():
        results = [gru_ext.freeze(module, "bfloat16")(data), gru_ext.freeze(rounded)(data)]
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def quantized_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers and scale [..., 1] of float32 rows, rounded as the kernels do, in float64."""
    largest = rows.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    return (rows * inverse).round().double(), (largest / 127).double()


def simulated(state: dict[str, Tensor], suffix: str, data: Tensor, before: Tensor, dtype: torch.dtype) -> Tensor:
    """h_t of each row of ``data`` and of the states before it, both float32, by int8 weights; the rest in ``dtype``."""

    def product(name: str, rows: Tensor) -> Tensor:
        numbers, scale = quantized_rows(rows)
        sums = numbers @ state[f"weight_{name}{suffix}"].double().T  # whole numbers, exact in float64
        products: Tensor = sums.to(dtype) * (scale.to(dtype) * state[f"scale_{name}{suffix}"].to(dtype))
        return products + state[f"bias_{name}{suffix}"].to(dtype)

    from_input, from_state = product("ih", data).chunk(3, -1), product("hh", before).chunk(3, -1)
    r, z = (torch.sigmoid(a + b) for a, b in zip(from_input[:2], from_state[:2], strict=True))
    n = torch.tanh(from_input[2] + r * from_state[2])
    return (1 - z) * n + z * before.to(dtype)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [*SIZES, (16, 48, 1000, 1), (80, 512, 20, 1), (300, 520, 3, 40)], ids=str)
def test_int8_is_its_simulation(sizes: tuple[int, int, int, int], threads: int, target: str) -> None:
    """Every step, from the state before it, is what float64 gives with the same whole numbers, to the gate."""
    input_size, hidden_size, seq_len, batch = sizes
    torch.set_num_threads(threads)
    frozen = gru_ext.freeze(nn.GRU(input_size, hidden_size), "int8")
    data, hx = 3 * torch.randn(seq_len, batch, input_size), torch.randn(1, batch, hidden_size)
    with torch.no_grad():
        output, h_n = frozen(data, hx)
    before, state = torch.cat([hx, output[:-1]]), frozen.state_dict()
    truth, reference = (simulated(state, "_l0", data, before, dtype) for dtype in (torch.float64, torch.float32))
    gate.check({"output": output}, {"output": reference}, {"output": truth})
    assert torch.equal(h_n[0], output[-1])


def test_a_wrong_simulation_is_noticed() -> None:
    """The test above is no formality: one whole number that is off by 1 is too much."""
    frozen = gru_ext.freeze(nn.GRU(8, 16), "int8")
    data, hx = torch.randn(1, 2, 8), torch.randn(1, 2, 16)
    with torch.no_grad():
        output, _ = frozen(data, hx)
    state = frozen.state_dict()
    state["weight_hh_l0"] = state["weight_hh_l0"].clone()
    state["weight_hh_l0"][40, 3] += 1
    truth, reference = (simulated(state, "_l0", data, hx, dtype) for dtype in (torch.float64, torch.float32))
    with pytest.raises(gate.GateError):
        gate.check({"output": output}, {"output": reference}, {"output": truth})


@pytest.mark.parametrize("hidden_size", [64, 256])
@pytest.mark.parametrize(("weights", "bound"), [("float32", 2e-6), ("bfloat16", 0.004), ("int8", 0.02)])
def test_error_over_a_long_sequence(weights: str, bound: float, hidden_size: int) -> None:
    """T = 1,000: outputs against the float64 model, relative in the Euclidean norm, as docs/edge.md has them."""
    module = nn.GRU(40, hidden_size, num_layers=2)
    data = torch.randn(1000, 1, 40)
    with torch.no_grad():
        output, _ = gru_ext.freeze(module, weights)(data)
        truth, _ = module.double()(data.double())
    error = float((output - truth).norm() / truth.norm())
    print(f"\n{weights}, hidden_size {hidden_size}: {error:.1e}")
    assert error < bound
    assert error > bound / 50, "the bound says nothing"


@pytest.mark.parametrize("weights", FORMATS)
def test_bits_depend_on_nothing_around_a_sequence(weights: str, target: str) -> None:
    """Threads, the other sequences of the batch, lengths, packing and pieces at resets change no bit of a sequence."""
    module = gru_ext.freeze(nn.GRU(40, 70, num_layers=2, bidirectional=True), weights)
    data, lengths = torch.randn(11, 6, 40), torch.tensor([11, 3, 7, 0, 1, 11])
    with torch.no_grad():
        torch.set_num_threads(2)
        output, _ = module(data)
        padded, last = module(data, lengths=lengths)
        torch.set_num_threads(1)
        present = [b for b in range(6) if lengths[b] > 0]
        packed, _ = module(pack_padded_sequence(data[:, present], lengths[present], enforce_sorted=False))
        unpacked, _ = pad_packed_sequence(packed, total_length=11)
        assert torch.equal(unpacked, padded[:, present])
        for b in range(6):
            assert torch.equal(module(data[:, b : b + 1])[0], output[:, b : b + 1])
            length = int(lengths[b])
            if length:
                alone, own_last = module(data[:length, b : b + 1])
                assert torch.equal(padded[:length, b : b + 1], alone)
                assert torch.equal(last[:, b : b + 1], own_last)
        one_way = gru_ext.freeze(nn.GRU(40, 70), weights)
        resets = torch.zeros(11, 1, dtype=torch.bool)
        resets[4] = True
        whole, _ = one_way(data[:, :1], resets=resets)
        pieces = [one_way(data[:4, :1])[0], one_way(data[4:, :1])[0]]
    assert torch.equal(whole, torch.cat(pieces))


@pytest.mark.parametrize("weights", FORMATS)
def test_chunks_are_the_whole(weights: str, target: str) -> None:
    """A stream in chunks of any size, one frame included, has the bits of the whole."""
    module, data = gru_ext.freeze(nn.GRU(30, 52, num_layers=2), weights), torch.randn(40, 1, 30)
    with torch.no_grad():
        whole, last = module(data)
        for size in (1, 3, 9, 16):
            state, outputs = None, []
            for chunk in data.split(size):
                output, state = module(chunk, state)
                outputs.append(output)
            assert torch.equal(torch.cat(outputs), whole)
            assert state is not None
            assert torch.equal(state, last)


@pytest.mark.parametrize("weights", FORMATS)
def test_cell_is_a_step(weights: str, target: str) -> None:
    """A frozen cell gives a step of the frozen GRU with its weights, batched or not, reset or not."""
    cell = nn.GRUCell(24, 40)
    layer = nn.GRU(24, 40)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    frozen, frozen_layer = gru_ext.freeze(cell, weights), gru_ext.freeze(layer, weights)
    data, hx = torch.randn(5, 24), torch.randn(5, 40)
    with torch.no_grad():
        expected = frozen_layer(data[None], hx[None])[1][0]
        assert torch.equal(frozen(data, hx), expected)
        assert torch.equal(frozen(data[1], hx[1]), expected[1])
        reset = torch.tensor([True, False, False, True, False])
        assert torch.equal(frozen(data, hx, reset=reset), frozen(data, hx * ~reset[:, None]))
        assert torch.equal(frozen(data), frozen(data, torch.zeros(5, 40)))


@pytest.mark.parametrize("weights", FORMATS)
def test_weights_packed_for_other_vectors(weights: str) -> None:
    """A frozen module runs by every target, whichever it was frozen under, with the bits of that target's own."""
    module, data = nn.GRU(20, 37, bidirectional=True), torch.randn(9, 2, 20)
    with torch.no_grad():
        for first in _C.cpu_targets():
            _C.set_cpu_target(first)
            frozen = gru_ext.freeze(module, weights)
            for second in _C.cpu_targets():
                _C.set_cpu_target(second)
                assert torch.equal(frozen(data)[0], gru_ext.freeze(module, weights)(data)[0])


@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("weights", FORMATS)
def test_values_that_are_not_finite(weights: str, special: float, target: str) -> None:
    """A NaN in one sequence makes NaN of its states, and of no other's; of int8 so does an infinity."""
    frozen = gru_ext.freeze(nn.GRU(8, 20), weights)
    data = torch.randn(4, 3, 8)
    with torch.no_grad():
        clean, _ = frozen(data)
        data[1, 1, 2] = special
        output, _ = frozen(data)
    assert torch.equal(output[:, [0, 2]], clean[:, [0, 2]])
    assert torch.equal(output[0], clean[0])
    if weights == "int8" or special != special:
        assert output[1:, 1].isnan().all()


@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-30, 1e30])
def test_int8_of_small_and_large_rows(value: float, target: str) -> None:
    """Rows of zeros, of subnormals and of large numbers: nothing overflows on the way to bytes."""
    module = nn.GRU(8, 20)
    data = torch.full((2, 1, 8), value)
    with torch.no_grad():
        output, _ = gru_ext.freeze(module, "int8")(data)
        expected, _ = module(data)
    assert output.isfinite().all()
    if value < 1:  # beyond, a sum of large terms that cancel is as large as they are
        torch.testing.assert_close(output, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_packing_is_undone(lanes: int, dtype: torch.dtype) -> None:
    """unpack and unpack_scale give back what was packed; int8 rows are within half a step of the weights."""
    for hidden_size, columns in ((1, 1), (5, 3), (16, 4), (33, 17)):
        weight = torch.randn(3 * hidden_size, columns)
        whole, scale = quantize(weight)
        assert ((whole * scale[:, None] - weight).abs() <= 0.501 * scale[:, None]).all()
        held = whole if dtype == torch.int8 else weight.to(dtype)
        assert torch.equal(unpack(pack(held, lanes), hidden_size, columns), held)
        assert torch.equal(unpack_scale(pack_scale(scale, whole, lanes), hidden_size), scale)
