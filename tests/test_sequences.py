"""Lengths, resets and chunks beyond the gate of test_backends.py: bits, errors, and everything around a call."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gate
import pytest
import torch
import torch._dynamo.testing
from cases import DTYPES
from test_cpu_targets import few_rows
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gru_ext
from gru_ext import _C, functional, ops

T, B, I, H = 6, 4, 3, 5  # noqa: E741 (the sizes' names everywhere)
LENGTHS = torch.tensor([3, 0, 6, 1])
NUMBERS = torch.Generator().manual_seed(1)
RESETS = torch.rand(T, B, generator=NUMBERS) < 0.4


@pytest.fixture(params=_C.cpu_targets())
def target(request: pytest.FixtureRequest) -> Any:
    """Each SIMD target in turn."""
    before = _C.cpu_target()
    _C.set_cpu_target(request.param)
    yield request.param
    _C.set_cpu_target(before)


def evaluate(module: gru_ext.GRU, call: Callable[..., tuple[Tensor, Tensor]], *inputs: Tensor) -> dict[str, Tensor]:
    """Output, h_n and every gradient."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    results = call(*leaves)
    draws = torch.Generator().manual_seed(2)
    grads = [torch.randn(result.shape, generator=draws).to(result) for result in results]
    gradients = torch.autograd.grad(results, [*leaves, *module.parameters()], grads)
    named = {f"gradient {index}": gradient for index, gradient in enumerate(gradients)}
    return {"output": results[0], "h_n": results[1], **named}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(7, 5, 3, 17), (12, 33, 16, 65), (3, 2, 2, 8)], ids=str)
def test_packed_and_lengths_give_the_same_bits(
    sizes: tuple[int, ...], dtype: torch.dtype, threads: int, target: str
) -> None:
    """The kernels are the same, and so is the order in which they take the sequences where packing's sort is stable."""
    seq_len, batch, input_size, hidden_size = sizes
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    module = gru_ext.GRU(input_size, hidden_size, 2, bidirectional=True, dtype=dtype)
    lengths = torch.randint(1, seq_len + 1, (batch,))
    lengths[0] = seq_len
    input, hx = torch.randn(seq_len, batch, input_size, dtype=dtype), torch.randn(4, batch, hidden_size, dtype=dtype)

    order = lengths.sort(descending=True, stable=True).indices
    back = order.argsort()

    def packed(input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = module(pack_padded_sequence(input[:, order], lengths[order]), hx[:, order])
        return pad_packed_sequence(output)[0][:, back], h_n[:, back]

    ours = evaluate(module, lambda input, hx: module(input, hx, lengths=lengths), input, hx)
    gate.assert_same_bits(ours, evaluate(module, packed, input, hx), "lengths and packed")
    never = torch.zeros(seq_len, batch, dtype=torch.bool)
    usual = evaluate(module, module, input, hx)
    gate.assert_same_bits(evaluate(module, lambda *call: module(*call, resets=never), input, hx), usual, "no resets")
    every = torch.full((batch,), seq_len)
    gate.assert_same_bits(evaluate(module, lambda *call: module(*call, lengths=every), input, hx), usual, "all steps")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 5, 7), (3, 16, 33), (17, 40, 129), (24, 8, 322)], ids=str)
def test_chunks(sizes: tuple[int, int, int], dtype: torch.dtype, threads: int, target: str) -> None:
    """With the state carried a stream in chunks has the bits of the whole, but for chunks of few rows, which sum in
    another order. Of 16 bits it has those of the whole whose state is rounded where a chunk begins."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    (batch, input_size, hidden_size), steps = sizes, 20
    module = gru_ext.GRU(input_size, hidden_size, 2, dtype=dtype)
    stream, hx = torch.randn(steps, batch, input_size, dtype=dtype), torch.randn(2, batch, hidden_size, dtype=dtype)
    rounded = dtype.itemsize == 2
    with torch.no_grad():
        for size in (1, 2, 5, 7, 19):
            state, outputs = hx, []
            begins, states = torch.zeros(steps, batch, dtype=torch.bool), torch.zeros(2, steps, batch, hidden_size)
            states = states.to(dtype)
            for first in range(0, steps, size):
                begins[first], states[:, first] = True, state
                output, state = module(stream[first : first + size], state)
                outputs.append(output)
            whole, _ = module(stream, hx, resets=begins, reset_state=states) if rounded else module(stream, hx)
            lengths = {size, steps % size} - {0}
            if not any(few_rows(module, length, batch) for length in lengths):
                assert gate.same_bits(torch.cat(outputs), whole), size
            # Two roundings of a state that is at most 1, and of float32 and float64 several sums.
            atol = (2 if rounded else 16) * torch.finfo(dtype).eps
            torch.testing.assert_close(torch.cat(outputs), whole, rtol=0, atol=atol)


def test_single_steps_of_few_rows() -> None:
    """docs/sequences.md: of up to 16 rows, or 32 of a single step; one for ten hidden units at most."""
    wide = gru_ext.GRU(3, 1024)
    assert few_rows(wide, 4, 4) and not few_rows(wide, 4, 5)
    assert few_rows(wide, 1, 32) and not few_rows(wide, 1, 33)
    assert few_rows(gru_ext.GRU(3, 64), 1, 6) and not few_rows(gru_ext.GRU(3, 64), 1, 7)


def test_gradients_through_chunks() -> None:
    """Of a stream in chunks whose state is not detached: those of the whole."""
    module = gru_ext.GRU(I, H, 2, dtype=torch.float64)

    def loss(input: Tensor, hx: Tensor, size: int) -> tuple[Tensor, Tensor]:
        outputs = []
        for chunk in input.split(size):
            output, hx = module(chunk, hx)
            outputs.append(output)
        return torch.cat(outputs), hx

    inputs = torch.randn(12, B, I, dtype=torch.float64), torch.randn(2, B, H, dtype=torch.float64)
    whole = evaluate(module, module, *inputs)
    for size in (1, 5):
        chunks = evaluate(module, lambda input, hx, size=size: loss(input, hx, size), *inputs)
        torch.testing.assert_close(chunks, whole, rtol=1e-12, atol=1e-13)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "float lengths": ({"lengths": LENGTHS.float()}, "lengths must be integers, got torch.float32"),
    "bool lengths": ({"lengths": LENGTHS > 1}, "lengths must be integers, got torch.bool"),
    "lengths of another batch": ({"lengths": LENGTHS[:3]}, r"Expected lengths of shape \(4,\), got \[3\]"),
    "lengths of two dimensions": ({"lengths": LENGTHS[None]}, r"Expected lengths of shape \(4,\), got \[1, 4\]"),
    "lengths elsewhere": ({"lengths": LENGTHS.to("meta")}, "lengths"),
    "a length below 0": ({"lengths": LENGTHS - 1}, r"lengths\[1\] is -1; expected 0 to 6"),
    "a length beyond T": ({"lengths": LENGTHS + 1}, r"lengths\[2\] is 7; expected 0 to 6"),
    "number resets": ({"resets": RESETS.int()}, "resets must be bool, got torch.int32"),
    "resets turned": ({"resets": RESETS.t()}, r"Expected resets of shape \(6, 4\), got \[4, 6\]"),
    "resets elsewhere": ({"resets": RESETS.to("meta")}, "resets"),
    "reset_state alone": ({"reset_state": torch.zeros(1, H)}, "reset_state needs resets"),
    "reset_state too wide": ({"resets": RESETS, "reset_state": torch.zeros(1, H + 1)}, "Expected reset_state of shape"),
    "reset_state of float64": (
        {"resets": RESETS, "reset_state": torch.zeros(1, H).double()},
        "reset_state must be torch.float32, as the weights are, got torch.float64",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    """Each is refused in words that name it."""
    module, input = gru_ext.GRU(I, H), torch.randn(T, B, I)
    with pytest.raises(RuntimeError, match=message):
        module(input, **arguments)
    with pytest.raises(RuntimeError, match="for padded input, got a PackedSequence"):
        module(pack_padded_sequence(input, [6, 6, 4, 1]), **arguments)


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("name", ["lengths", "resets", "reset_state", "reset"])
def test_no_tensors(name: str, unbatched: bool) -> None:
    """Lists, numbers and arrays are refused by name."""
    module = gru_ext.GRUCell(I, H) if name == "reset" else gru_ext.GRU(I, H)
    input = torch.randn((T, B, I)[1 + unbatched if name == "reset" else unbatched :])
    arguments = {"resets": RESETS} if name == "reset_state" else {}
    for wrong, kind in (([1, 2, 3, 4], "list"), (True, "bool"), (LENGTHS.numpy(), "ndarray")):
        with pytest.raises(TypeError, match=f"^{name} must be a Tensor, got {kind}"):
            module(input, **arguments, **{name: wrong})


def test_bad_shapes_of_a_single_sequence_and_a_cells_reset() -> None:
    module, cell = gru_ext.GRU(I, H), gru_ext.GRUCell(I, H)
    for arguments in ({"lengths": LENGTHS}, {"resets": RESETS}, {"resets": RESETS[1:, 0]}):
        with pytest.raises(RuntimeError, match=rf"Expected {next(iter(arguments))} of shape \("):
            module(torch.randn(T, I), **arguments)
    for reset, message in (
        (torch.zeros(B), "reset must be bool, got torch.float32"),
        (RESETS[0, :2], r"Expected reset of shape \(4,\), got \[2\]"),
        (RESETS[0].to("meta"), "reset tensor at meta"),
    ):
        with pytest.raises(RuntimeError, match=message):
            cell(torch.randn(B, I), torch.randn(B, H), reset=reset)
    with pytest.raises(RuntimeError, match=r"Expected reset of shape \(1,\), got \[4\]"):
        cell(torch.randn(I), reset=RESETS[0])


def test_lengths_out_of_range_under_transforms() -> None:
    """Also where the reference runs, and whichever members have them."""
    module, input = gru_ext.GRU(I, H), torch.randn(T, B, I)
    calls: list[Callable[[], Any]] = [
        lambda: torch.func.jvp(lambda input: module(input, lengths=LENGTHS + 1)[0], (input,), (input,)),
        lambda: torch.func.grad(lambda input: module(input, lengths=LENGTHS + 1)[0].sum())(input),
        lambda: torch.vmap(lambda lengths: module(input, lengths=lengths)[0])(torch.stack([LENGTHS, LENGTHS + 1])),
        lambda: torch.compile(module, backend="eager")(input, lengths=LENGTHS + 1),
    ]
    for call in calls:
        with warnings.catch_warnings(), pytest.raises(RuntimeError, match=r"lengths\[\d\] is 7; expected 0 to 6"):
            warnings.simplefilter("ignore")
            call()


def assign(tensor: Tensor) -> None:
    """Other memory, of which no version tells."""
    tensor.data = torch.zeros_like(tensor)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("name", ["lengths", "resets", "reset_state"])
def test_changed_before_backward(name: str, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error, or the gradient of the values before; never one of other sequences."""
    if not direct:
        monkeypatch.setattr(functional, "is_eager", lambda: False)
    module, input = gru_ext.GRU(I, H), torch.randn(T, B, I)
    state = torch.randn(1, T, B, H)

    def gradients(change: Callable[[Tensor], Any]) -> tuple[Tensor, ...]:
        named = {"lengths": LENGTHS.clone(), "resets": RESETS.clone(), "reset_state": state.clone()}
        output, _ = module(input, **named)
        change(named[name])
        return torch.autograd.grad(output.pow(2).sum(), list(module.parameters()))

    torch.testing.assert_close(gradients(assign), gradients(torch.clone), rtol=0, atol=0)
    for change in (Tensor.zero_, lambda tensor: tensor.set_(torch.zeros_like(tensor))):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(change)


def test_cell() -> None:
    """A reset state is zero, whatever was there, and has no gradient; unbatched, without hx, by vmap and autocast."""
    cell, input = gru_ext.GRUCell(I, H), torch.randn(B, I)
    hx, reset = torch.randn(B, H), torch.tensor([True, False, True, False])
    hx[0] = float("nan")
    hx.requires_grad_()
    expected = cell(input, torch.where(reset[:, None], 0, hx))
    got = cell(input, hx, reset=reset)
    assert gate.same_bits(got, expected)
    (gradient,) = torch.autograd.grad(got.sum(), hx)
    assert not gradient[reset].any() and gradient[~reset].all()
    assert gate.same_bits(cell(input[0], hx[0], reset=reset[0]), cell(input[0]))
    assert gate.same_bits(cell(input, reset=reset), cell(input))
    changed = reset.clone()
    got = cell(input, hx, reset=changed)
    changed.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        got.sum().backward()
    many = torch.vmap(lambda reset: cell(input, hx, reset=reset))(torch.stack([reset, ~reset]))
    torch.testing.assert_close(many[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(cell(input, hx, reset=reset), expected, rtol=0.05, atol=0.05)


def marked(module: gru_ext.GRU) -> Callable[..., Tensor]:
    """A call with all three, whose loss depends on everything."""

    def call(input: Tensor, hx: Tensor, reset_state: Tensor) -> Tensor:
        output, h_n = module(input, hx, lengths=LENGTHS, resets=RESETS, reset_state=reset_state)
        return output.sin().sum() + h_n.cos().sum()

    return call


@pytest.mark.parametrize("recompute", [False, True])
def test_first_and_second_derivatives(recompute: bool) -> None:
    """Against differences, in float64, of a stack of both directions."""
    torch.manual_seed(0)
    module = gru_ext.GRU(I, H, 2, bidirectional=True, dtype=torch.float64, recompute=recompute)
    shapes = ((T, B, I), (4, B, H), (4, T, B, H))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(marked(module), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(marked(module), leaves, fast_mode=True)


@pytest.mark.parametrize("shape", [(2, H), (2, B, H), (2, T, B, H)], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_forms_of_reset_state(shape: tuple[int, ...], batch_first: bool) -> None:
    """Each means what all of it written out means, values and gradients; only it requires grad."""
    module = gru_ext.GRU(I, H, bidirectional=True, batch_first=batch_first).requires_grad_(False)
    state = torch.randn(shape, requires_grad=True)
    whole = state if len(shape) == 4 else state.unsqueeze(1) if len(shape) == 3 else state[:, None, None]
    whole = whole.expand(2, T, B, H)
    input, resets = torch.randn(T, B, I), RESETS
    if batch_first:
        input, resets, whole = input.transpose(0, 1), resets.t(), whole.transpose(1, 2)
    own = whole if len(shape) == 4 else state
    results = [module(input, resets=resets, reset_state=form)[0] for form in (own, whole.clone())]
    assert gate.same_bits(*results)
    gradients = [torch.autograd.grad(result.sum(), state, retain_graph=True)[0] for result in results]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].any()


SIGNED, UNSIGNED = (
    [getattr(torch, f"{prefix}int{bits}") for bits in (8, 16, 32, 64)] for prefix in ("", "u")
)  # fmt: skip


@pytest.mark.parametrize("dtype", [*SIGNED, *UNSIGNED], ids=str)
def test_integer_dtypes(dtype: torch.dtype) -> None:
    module, input = gru_ext.GRU(I, H), torch.randn(T, B, I)
    assert torch.equal(module(input, lengths=LENGTHS.to(dtype))[0], module(input, lengths=LENGTHS)[0])


def test_any_strides() -> None:
    """Of lengths and resets: with gaps, expanded, transposed."""
    module, input = gru_ext.GRU(I, H), torch.randn(T, B, I)
    gaps, turned = torch.stack([LENGTHS, LENGTHS + 9], 1)[:, 0], RESETS.t().contiguous().t()
    same_for_all, one_length = RESETS[:, :1].expand(T, B), LENGTHS[:1].expand(B)
    for lengths, resets in ((gaps, turned), (one_length, same_for_all)):
        assert not lengths.is_contiguous() and not resets.is_contiguous()
        calls = {"lengths": lengths, "resets": resets}, {"lengths": lengths.clone(), "resets": resets.contiguous()}
        results = [torch.autograd.grad(module(input, **call)[0].sum(), list(module.parameters())) for call in calls]
        assert all(map(gate.same_bits, *results))


def test_no_steps_at_all() -> None:
    """Zero output, hx as h_n, and gradients to match."""
    module, hx = gru_ext.GRU(I, H, 2), torch.randn(2, B, H, requires_grad=True)
    input = torch.full((T, B, I), float("nan"), requires_grad=True)
    output, h_n = module(input, hx, lengths=torch.zeros(B, dtype=torch.int64))
    assert not output.any() and torch.equal(h_n, hx)
    (output.sum() + (2 * h_n).sum()).backward()
    assert input.grad is not None and not input.grad.any() and hx.grad is not None and hx.grad.eq(2).all()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("batched_lengths", [False, True])
@pytest.mark.parametrize("ensemble", [False, True])
def test_vmap(batched_lengths: bool, ensemble: bool) -> None:
    """Lengths and resets shared or each member's own, weights too; and gradients per member."""
    torch.manual_seed(0)
    module = gru_ext.GRU(I, H, bidirectional=True, dtype=torch.float64)
    weights = {name: torch.randn(3, *value.shape, dtype=torch.float64) for name, value in module.named_parameters()}
    if not ensemble:
        weights = {name: value[0] for name, value in weights.items()}
    inputs = torch.randn(3, T, B, I, dtype=torch.float64)
    state = torch.randn(3, 2, T, B, H, dtype=torch.float64)
    lengths = torch.stack([LENGTHS, LENGTHS.flip(0), LENGTHS.clamp(min=2)]) if batched_lengths else LENGTHS
    resets = torch.stack([RESETS, ~RESETS, RESETS.flip(0)]) if batched_lengths else RESETS

    def loss(weights: dict[str, Tensor], input: Tensor, state: Tensor, lengths: Tensor, resets: Tensor) -> Tensor:
        marks = {"lengths": lengths, "resets": resets, "reset_state": state}
        output, h_n = torch.func.functional_call(module, weights, (input,), marks)
        return output.sin().sum() + h_n.cos().sum()

    own = 0 if batched_lengths else None
    dims = (0 if ensemble else None, 0, 0, own, own)
    differentiated = torch.func.grad(loss, argnums=(0, 1, 2))
    together = torch.vmap(differentiated, dims)(weights, inputs, state, lengths, resets)
    values = (weights, inputs, state, lengths, resets)
    for member in range(3):
        of_member = partial(torch.utils._pytree.tree_map, lambda tensor, member=member: tensor[member])
        alone = differentiated(*(of_member(of) if dim == 0 else of for of, dim in zip(values, dims, strict=True)))
        torch.testing.assert_close(of_member(together), alone)


def test_forward_mode_runs_the_reference() -> None:
    module = gru_ext.GRU(I, H, dtype=torch.float64)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in ((T, B, I), (1, B, H), (1, T, B, H))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value, tangent = torch.func.jvp(marked(module), tuple(inputs), tuple(map(torch.ones_like, inputs)))
    torch.testing.assert_close(value, marked(module)(*inputs))
    step = 1e-6
    moved = [marked(module)(*(tensor + sign * step for tensor in inputs)) for sign in (1, -1)]
    torch.testing.assert_close(tangent, (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_compiled() -> None:
    """A whole graph for every batch, seq_len and lengths: forward, and training."""
    module = gru_ext.GRU(I, H, 2)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(input: Tensor, lengths: Tensor, resets: Tensor) -> Tensor:
        output, h_n = module(input, lengths=lengths, resets=resets)
        return output.sin().sum() + h_n.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for seq_len, batch in ((6, 4), (9, 3), (5, 7)):
        call = (
            torch.randn(seq_len, batch, I),
            torch.randint(0, seq_len + 1, (batch,)),
            torch.rand(seq_len, batch) < 0.3,
        )
        gradients = [torch.autograd.grad(kind(*call), list(module.parameters())) for kind in (compiled, loss)]
        torch.testing.assert_close(*gradients)
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3  # of the first call's graph, forward and backward


def test_exported_traced_and_copied() -> None:
    """torch.export with any sizes, torch.jit.trace, torch.fx, deepcopy, checkpointing."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru_ext.GRU(I, H)

        def forward(self, input: Tensor, lengths: Tensor, resets: Tensor) -> Tensor:
            output: Tensor = self.gru(input, lengths=lengths, resets=resets)[0]
            return output

    model, call = Model(), (torch.randn(T, B, I), LENGTHS, RESETS)
    time, batch = torch.export.Dim("time", min=2, max=99), torch.export.Dim("batch", min=2, max=99)
    program = torch.export.export(model, call, dynamic_shapes=({0: time, 1: batch}, {0: batch}, {0: time, 1: batch}))
    other = torch.randn(9, 3, I), torch.tensor([9, 0, 4]), torch.rand(9, 3) < 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, call)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for kind in (program.module(), loaded.module(), traced, torch.fx.symbolic_trace(model), copy.deepcopy(model)):
        for inputs in (call, other):
            torch.testing.assert_close(kind(*inputs), model(*inputs))
    again = torch.utils.checkpoint.checkpoint(model, *call, use_reentrant=False)
    gradients = [torch.autograd.grad(result.sum(), list(model.parameters())) for result in (again, model(*call))]
    torch.testing.assert_close(*gradients)


def test_autocast_and_bare_operator() -> None:
    """The dtype of nn.GRU's results; and the operator as such."""
    module, input = gru_ext.GRU(I, H), torch.randn(T, B, I)
    state = torch.randn(1, T, B, H)
    expected, _ = module(input, lengths=LENGTHS, resets=RESETS, reset_state=state)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(input, lengths=LENGTHS, resets=RESETS, reset_state=state)
        usual, _ = torch.nn.GRU(I, H)(input)
    assert output.dtype == usual.dtype
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    layer = ops.Arguments(input, None, list(module.parameters()), None, LENGTHS, RESETS, state)
    torch.testing.assert_close(ops.forward(*layer, False)[0], expected)
