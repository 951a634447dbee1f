"""What the caller changes between forward and backward: the gradient of the old values, or autograd's error, as nn.GRU.

Nothing is written down here of where nn.GRU raises: it is asked, cell by cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gru_ext
from gru_ext import functional, ops

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "input", "hx")
NEEDS = (NAMES, NAMES[:4], *((name,) for name in ("weight_ih", "weight_hh", "bias_hh", "input", "hx")))
INPLACE = "modified by an inplace operation"


def assign(tensor: Tensor) -> None:
    """An assignment to .data: other memory, of which no version tells."""
    tensor.data = tensor.data * 2


def swap(tensor: Tensor) -> None:
    """What Module.to does with torch.__future__.set_swap_module_params_on_conversion."""
    other = (tensor * 2).detach()
    torch.utils.swap_tensors(tensor, nn.Parameter(other) if isinstance(tensor, nn.Parameter) else other)


def step(tensor: Tensor) -> None:
    """By an optimizer."""
    tensor.grad = torch.ones_like(tensor)
    torch.optim.Adam([tensor], lr=0.1).step()


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda tensor: tensor.mul_(2),
    ".data": assign,
    "set_": lambda tensor: tensor.set_((tensor * 2).detach()),
    "swap_tensors": swap,
    "optimizer": step,
}


Gradients = dict[str, Tensor | None]


class Call:
    """A module and the tensors of one call, by name; the kind is "plain", "packed" or "cell", or "one step"."""

    def __init__(self, module: nn.Module, kind: str, needs: Sequence[str] = NAMES) -> None:
        self.module, self.kind = module, kind
        torch.manual_seed(1)
        steps = 1 if kind == "one step" else 4
        shapes = {"cell": ((3, 4), (3, 5)), "packed": ((7, 4), (1, 3, 5))}
        input, hx = (torch.randn(shape).double() for shape in shapes.get(kind, ((steps, 3, 4), (1, 3, 5))))
        self.tensors = {name.removesuffix("_l0"): weight for name, weight in module.named_parameters()}
        self.tensors |= {"input": input, "hx": hx}
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(name in needs)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Two results to differentiate."""
        input, hx = self.tensors["input"], self.tensors["hx"]
        if self.kind == "cell":
            return (hidden := self.module(input, hx)), hidden.tanh()
        if self.kind != "packed":
            return self.module(input, hx)
        output, h_n = self.module(PackedSequence(input, torch.tensor([3, 2, 1, 1])), hx)
        return output.data, h_n

    def gradients(self, changes: Callable[[Call], Any] | None, between: bool) -> Gradients:
        """Those of a second loss. Before its backward pass, or between those of both losses, the tensors change."""
        output, h_n = self()
        if between:
            h_n.sum().backward(retain_graph=True)
        if changes is not None:
            self.module._flat_weight_refs = []  # as in Module.to: swap_tensors takes nothing that weak references know
            with torch.no_grad():
                changes(self)
        for tensor in self.tensors.values():
            tensor.grad = None
        output.pow(2).sum().backward()
        return {name: tensor.grad for name, tensor in self.tensors.items()}


def same(some: Gradients, others: Gradients) -> bool:
    """Whether both have the same gradients, to rounding."""
    return all(
        (value is None) == (other is None) and (value is None or torch.allclose(value, other, rtol=1e-9, atol=1e-12))
        for value, other in zip(some.values(), others.values(), strict=True)
    )


def outcome(call: Call, change: Callable[[Tensor], Any], name: str, between: bool, expected: Gradients) -> str:
    """ "right": the gradients of the values before the change; else "error" or "wrong"."""
    try:
        changed = call.gradients(lambda call: change(call.tensors[name]), between)
    except RuntimeError as error:
        assert any(words in str(error) for words in (INPLACE, "use_count", "poisoned", "gradient edge", "Unbind")), (
            error
        )
        return "error"
    return "right" if same(changed, expected) else "wrong"


@contextmanager
def by_function() -> Iterator[None]:
    """No call is direct."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "is_eager", lambda: False)
        yield


def modules(kind: str) -> tuple[Callable[[], nn.Module], Callable[[], nn.Module]]:
    """Makers of torch's module and ours, of the same weights."""
    theirs, ours = (nn.GRUCell, gru_ext.GRUCell) if kind == "cell" else (nn.GRU, gru_ext.GRU)

    def seeded(make: Callable[..., nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        return make(4, 5, dtype=torch.float64)

    return lambda: seeded(theirs), lambda: seeded(ours)


def check(kind: str, surrounding: Callable[[], AbstractContextManager[Any]], few: bool = False) -> None:
    """The whole table of one kind."""
    theirs, ours = modules(kind)
    different = []
    for needs, between in itertools.product(NEEDS[:2] if few else NEEDS, (False, True)):
        right = Call(theirs(), kind, needs).gradients(None, between)
        # set_ and an optimizer change in place, too: a few of them suffice.
        changes = CHANGES if needs in NEEDS[:2] else {how: CHANGES[how] for how in ("in place", ".data")}
        for (how, change), name in itertools.product(changes.items(), NAMES):
            expected = outcome(Call(theirs(), kind, needs), change, name, between, right)
            with surrounding():
                got = outcome(Call(ours(), kind, needs), change, name, between, right)
            # A tensor that torch's graph holds cannot be swapped; our graph holds its memory alone.
            # nn.GRUCell holds its input and hx themselves, and gives another gradient in silence.
            allowed = {"error": {"error"}, "right": {"right"}, "wrong": {"right"}}[expected]
            if how == "swap_tensors":
                allowed = allowed | {"right"}
            if got not in allowed:
                different.append(f"{'+'.join(needs)}: {name} {how}, {between=}: {got}, torch {expected}")
    assert not different, "\n".join(different)


@pytest.mark.parametrize("kind", ["plain", "packed", "one step", "cell"])
def test_direct(kind: str) -> None:
    """Every tensor, every change, before backward and between two, whatever requires grad."""
    check(kind, nullcontext)


@pytest.mark.parametrize("kind", ["plain", "packed", "one step", "cell"])
def test_operator(kind: str) -> None:
    """The same by the autograd function in Python."""
    check(kind, by_function, few=kind != "plain")


@pytest.mark.usefixtures("emulated_gpu")
@pytest.mark.parametrize("kind", ["plain", "cell"])
def test_emulated_gpu(kind: str) -> None:
    """The same by the CUDA path."""
    check(kind, nullcontext, few=True)


def test_two_losses_and_a_step_by_hand() -> None:
    """p.data = p.data - lr * p.grad between two backward passes: the second gradient is of the old weights, too."""
    theirs, ours = modules("plain")
    expected, *results = (
        Call(make(), "plain").gradients(change, True)
        for make, change in ((theirs, None), (theirs, step_by_hand), (ours, step_by_hand))
    )
    assert all(same(result, expected) for result in results)


def step_by_hand(call: Call) -> None:
    """Of every tensor."""
    for tensor in call.tensors.values():
        assert tensor.grad is not None
        tensor.data = tensor.data - 0.5 * tensor.grad


@pytest.mark.parametrize("kind", ["plain", "cell"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "operator"])
def test_recompute_and_second_derivatives(kind: str, direct: bool) -> None:
    """Both read every value again: right after an assignment to .data, and an error after a change in place."""
    theirs, ours = modules(kind)

    def second(make: Callable[[], nn.Module], change: Callable[[Tensor], Any] | None, name: str) -> Gradients:
        call = Call(make(), kind)
        loss = sum(result.pow(2).sum() for result in call())
        if change is not None:
            with torch.no_grad():
                change(call.tensors[name])
        leaves = list(call.tensors.values())
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        again = torch.autograd.grad(sum(value.pow(2).sum() for value in first), leaves)
        return dict(zip(call.tensors, (value.detach() for value in (*first, *again)), strict=False))

    def recomputed() -> nn.Module:
        module = ours()
        module.recompute = True
        return module

    with nullcontext() if direct else by_function():
        expected = second(theirs, None, "")
        assert same(second(ours, None, ""), expected)
        for name in NAMES:
            assert same(second(ours, assign, name), expected), name
            with pytest.raises(RuntimeError, match=INPLACE):
                second(ours, CHANGES["in place"], name)
            if kind == "cell":
                continue
            right = Call(theirs(), kind).gradients(None, False)
            assert outcome(Call(recomputed(), kind), assign, name, False, right) == "right"
            assert outcome(Call(recomputed(), kind), CHANGES["in place"], name, False, right) == "error"


def test_part_of_the_gradients() -> None:
    """What no gradient that is asked for reads may change."""
    theirs, ours = modules("one step")
    for requested, changed in itertools.product(NAMES, NAMES):
        outcomes = []
        for make in (theirs, ours):
            call = Call(make(), "one step")
            output, _ = call()
            with torch.no_grad():
                call.tensors[changed].mul_(2)
            try:
                outcomes.append(torch.autograd.grad(output.sum(), call.tensors[requested])[0])
            except RuntimeError:
                outcomes.append(torch.zeros(()))
        torch.testing.assert_close(outcomes[1], outcomes[0], msg=f"{requested} after a change of {changed}")


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled(recompute: bool) -> None:
    """A graph takes no bias that it does not read, so that biases may change; what it keeps may not."""
    _, ours = modules("plain")
    torch._dynamo.reset()
    expected = Call(ours(), "plain").gradients(None, True)
    for name in NAMES:
        call = Call(ours(), "plain")
        call.module.recompute = recompute
        call.module.compile(backend="aot_eager", fullgraph=True)
        got = outcome(call, CHANGES["in place"], name, True, expected)
        assert got == ("right" if name.startswith("bias") and not recompute else "error"), name


def test_transforms() -> None:
    """An assignment to .data between the call of torch.func.vjp and that of the function it gives."""
    _, ours = modules("plain")
    for name in NAMES:
        results = []
        for changing in (False, True):
            call = Call(ours(), "plain", ())
            parameters = dict(call.module.named_parameters())

            def output(parameters: dict[str, Tensor], input: Tensor, hx: Tensor, call: Call = call) -> Tensor:
                return torch.func.functional_call(call.module, parameters, (input, hx))[0]

            _, gradients = torch.func.vjp(output, parameters, call.tensors["input"], call.tensors["hx"])
            if changing:
                assign(call.tensors[name])
            weights, *others = gradients(torch.ones(4, 3, 5, dtype=torch.float64))
            results.append([*weights.values(), *others])
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True)), name


@pytest.mark.parametrize("members", [None, 2], ids=["layer", "members"])
def test_bare_operators(members: int | None) -> None:
    """torch.ops.gru_ext.forward, called as such: first and second derivatives."""
    tensors = Call(gru_ext.GRU(4, 5, dtype=torch.float64), "plain").tensors

    def derivatives(change: Callable[[Tensor], Any] | None, name: str) -> list[Tensor]:
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
        weights = [leaves[name] for name in NAMES[:4]]
        layer = ops.Arguments(leaves["input"], leaves["hx"], weights, members=members)
        output, *_ = torch.ops.gru_ext.forward(*layer, True)
        if change is not None:
            with torch.no_grad():
                change(leaves[name])
        first = torch.autograd.grad(output.pow(2).sum(), list(leaves.values()), create_graph=True)
        return [*first, *torch.autograd.grad(sum(value.pow(2).sum() for value in first), list(leaves.values()))]

    expected = derivatives(None, "")
    for name in NAMES:
        for value, other in zip(derivatives(assign, name), expected, strict=True):
            torch.testing.assert_close(value, other)
        with pytest.raises(RuntimeError, match=INPLACE):
            derivatives(CHANGES["in place"], name)
