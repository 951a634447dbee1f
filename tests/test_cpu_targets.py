"""The CPU kernels under every SIMD target: the gate, thread counts, repeatability, batch invariance."""

from __future__ import annotations

from typing import Any

import cases
import gate
import pytest
import torch
from cases import Case
from processes import check_python, python
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext
from gru_ext import _C

TARGETS = _C.cpu_targets()
KNOWN = ["avx512_amx", "avx512_bf16", "avx512", "avx2", "neon_bf16", "neon", "portable"]
ON_INTEL = ["avx512_amx", "avx512", "avx512_bf16", "avx2", "portable"]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """Each SIMD target of this machine, in use for the test (conftest restores the one before)."""
    _C.set_cpu_target(request.param)
    assert _C.cpu_target() == request.param
    return str(request.param)


def run(
    module: nn.Module, input: Tensor, hx: Tensor, grads: tuple[Tensor, Tensor], lengths: Any = None
) -> dict[str, Tensor]:
    """Forward and backward of [T, B, I]; the results by name, gradients of the weights with them."""
    input, hx = input.detach().clone().requires_grad_(), hx.detach().clone().requires_grad_()
    module.zero_grad()
    data = input if lengths is None else pack_padded_sequence(input, lengths, enforce_sorted=False)
    output, h_n = module(data, hx)
    if lengths is not None:
        output, _ = nn.utils.rnn.pad_packed_sequence(output, total_length=input.size(0))
    torch.autograd.backward([output, h_n], grads)
    results = {"output": output, "h_n": h_n, "grad input": input.grad, "grad hx": hx.grad}
    results |= {f"grad {name}": parameter.grad for name, parameter in module.named_parameters()}
    return {name: value.detach().clone() for name, value in results.items()}


def draw(module: nn.GRU, seq_len: int, batch: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Random input, hx and incoming gradients for a module."""
    dtype = module.weight_ih_l0.dtype
    directions = 2 if module.bidirectional else 1
    shape = (directions * module.num_layers, batch, module.hidden_size)
    grads = torch.randn(seq_len, batch, directions * module.hidden_size), torch.randn(shape)
    input, hx = torch.randn(seq_len, batch, module.input_size), torch.randn(shape)
    return input.to(dtype), hx.to(dtype), (grads[0].to(dtype), grads[1].to(dtype))


def test_targets_are_named() -> None:
    """Known names, best first, the portable one always there; a wrong name is refused and changes nothing."""
    assert TARGETS in [[name for name in order if name in TARGETS] for order in (KNOWN, ON_INTEL)]
    assert TARGETS[-1] == "portable"
    before = _C.cpu_target()
    for name in ("", "sse2", "AVX2", "portable "):
        with pytest.raises(ValueError, match="portable"):
            _C.set_cpu_target(name)
    assert _C.cpu_target() == before


def test_sums_over_many_rows(target: str) -> None:
    """Every target sums long gradients in blocks of blocks, and wide rows in blocks."""
    for case in (Case(2, 20_000, 2, 9, seed=1), Case(2, 2, 20_000, 80, scale=0.02, seed=2)):
        cases.check(gru_ext.GRU, case)


@pytest.mark.parametrize("name", TARGETS)
def test_environment_variable(name: str) -> None:
    """GRU_EXT_SIMD chooses the target at import."""
    printed = check_python(
        "import torch, gru_ext; print(gru_ext._C.cpu_target(), gru_ext.GRU(3, 5)(torch.ones(2, 2, 3))[0].shape)",
        GRU_EXT_SIMD=name,
    )
    assert printed.split()[0] == name


def test_environment_variable_with_a_wrong_name() -> None:
    """A target that does not exist is refused with its name: never silently another one."""
    done = python("-c", "import gru_ext", GRU_EXT_SIMD="nonsense")
    assert done.returncode != 0 and "nonsense" in done.stderr, done.stderr


SIZES = [(5, 1, 3, 9), (3, 8, 5, 64), (7, 33, 4, 40), (6, 2, 30, 260)]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_threads_and_repeats(target: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    """1 and 2 threads give the same forward bits and both pass the gate's bound; each count repeats itself exactly."""
    seq_len, batch, input_size, hidden_size = size
    module = gru_ext.GRU(input_size, hidden_size, bidirectional=True, dtype=dtype)
    arguments = draw(module, seq_len, batch)
    results = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results[threads] = run(module, *arguments)
        for _ in range(3):
            gate.assert_same_bits(run(module, *arguments), results[threads], f"{threads} threads, the same call again")
    for name in ("output", "h_n"):
        assert gate.same_bits(results[1][name], results[2][name]), f"{name} depends on the number of threads"
    for name, value in results[1].items():
        scale = value.abs().max().item()
        limit = 8 * torch.finfo(dtype).eps * max(scale, 1.0)
        assert (value.double() - results[2][name].double()).abs().max().item() <= limit, name


def test_gate_with_one_thread() -> None:
    """The other parity tests run with the threads of conftest.py; these with one."""
    torch.set_num_threads(1)
    for case in cases.shapes()[::5]:
        cases.check(gru_ext.GRU, case)


ALONE = ("output", "h_n", "grad input", "grad hx")


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("input_size", "hidden_size"), [(5, 17), (5, 64), (70, 3)])
def test_a_sequence_does_not_depend_on_its_batch(
    target: str, dtype: torch.dtype, threads: int, input_size: int, hidden_size: int
) -> None:
    """For every B from 1 to 20 each row has the bits that it has alone, forward and backward.

    A hidden size of 3 leaves most of a vector empty: W_ih is then read as it lies, for any number of rows.
    """
    torch.set_num_threads(threads)
    module = gru_ext.GRU(input_size, hidden_size, bidirectional=hidden_size == 17, dtype=dtype)
    assert not few_rows(module, 7, 1)
    check_rows(module, 7, 20)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("seq_len", [1, 2])
def test_few_rows_do_not_depend_on_their_batch(target: str, dtype: torch.dtype, seq_len: int) -> None:
    """The same for calls so small that the weights are read as they lie, which gives bits of their own."""
    module = gru_ext.GRU(5, 323, dtype=dtype)
    batch = max(batch for batch in range(1, 40) if few_rows(module, seq_len, batch))
    assert batch >= 2
    check_rows(module, seq_len, batch)


def few_rows(module: nn.GRU, seq_len: int, batch: int) -> bool:
    """What plan decides for a call of the module."""
    sizes = module.input_size, module.hidden_size, 2 if module.bidirectional else 1
    return bool(_C.cpu_plan(module.weight_ih_l0.dtype, seq_len, seq_len * batch, *sizes)["few_rows"])


def check_rows(module: nn.GRU, seq_len: int, most: int) -> None:
    """Each of up to so many sequences has the bits that it has alone."""
    input, hx, grads = draw(module, seq_len, most)
    rows = [slice(b, b + 1) for b in range(most)]
    alone = [run(module, input[:, row], hx[:, row], (grads[0][:, row], grads[1][:, row])) for row in rows]
    for batch in range(1, most + 1):
        together = run(module, input[:, :batch], hx[:, :batch], (grads[0][:, :batch], grads[1][:, :batch]))
        for name in ALONE:
            expected = torch.cat([alone[b][name] for b in range(batch)], 1)
            if not gate.same_bits(together[name], expected):
                wrong = [b for b in range(batch) if not gate.same_bits(together[name][:, b], expected[:, b])]
                difference = (together[name].double() - expected.double()).abs().max().item()
                raise AssertionError(
                    f"B = {batch}: {name} of rows {wrong} differs by up to {difference:.3e} from alone"
                )


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_packed_sequence_does_not_depend_on_its_batch(target: str, dtype: torch.dtype) -> None:
    """The same for sequences of different lengths in a PackedSequence, against each alone, packed and not.

    Alone, one of so few steps that the weights are read as they lie has other bits.
    """
    module = gru_ext.GRU(3, 23, 2, bidirectional=True, dtype=dtype)
    lengths = [7, 2, 5, 5, 1, 6, 7, 3, 4]
    input, hx, grads = draw(module, 7, len(lengths))
    for b, length in enumerate(lengths):
        input[length:, b] = 0
        grads[0][length:, b] = 0
    together = run(module, input, hx, grads, torch.tensor(lengths))
    for b, length in enumerate(lengths):
        row = slice(b, b + 1)
        arguments = (module, input[:length, row], hx[:, row], (grads[0][:length, row], grads[1][:, row]))
        few = few_rows(module, length, 1)
        assert few == (length == 1) or length == 2
        for packed in () if few else (True, False):
            alone = run(*arguments, torch.tensor([length]) if packed else None)
            for name in ALONE:
                value = together[name][:length, row] if name in ("output", "grad input") else together[name][:, row]
                assert gate.same_bits(value, alone[name]), f"sequence {b} of length {length}, {packed=}: {name}"


def test_batch_first_gives_the_same_bits() -> None:
    """The layout of the input changes where numbers are, not what they are."""
    module = gru_ext.GRU(3, 23, 2, bidirectional=True)
    other = gru_ext.GRU(3, 23, 2, bidirectional=True, batch_first=True)
    other.load_state_dict(module.state_dict())
    input = torch.randn(5, 7, 3)
    output, h_n = module(input)
    transposed, other_h_n = other(input.transpose(0, 1))
    assert gate.same_bits(transposed.transpose(0, 1), output) and gate.same_bits(other_h_n, h_n)
