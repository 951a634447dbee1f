"""Direct calls: the same bits, gradients and errors as by the operators, and no call direct that another should see."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from malformed import arguments
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gru_ext
from gru_ext import _C, autograd, functional

KINDS = ("plain", "both", "first", "packed", "marked")
OPERATOR = torch.ops.gru_ext.forward.default


@contextmanager
def by_operators() -> Iterator[None]:
    """No call is direct."""
    kept = functional.is_eager
    functional.is_eager = lambda: False
    try:
        yield
    finally:
        functional.is_eager = kept


def direct(kind: str, operands: dict[str, Any]) -> Any:
    """layer_direct with the arguments of a forward call."""
    return _C.layer_direct(*(value for name, value in operands.items() if name != "members"))


def leaves(kind: str, hx: bool) -> tuple[dict[str, Tensor], Callable[..., tuple[Tensor, ...]]]:
    """Leaves that require grad, by name, and the call that takes them. The kind "cell" is one step."""
    if kind == "cell":
        cell = gru_ext.GRUCell(4, 6)
        tensors = {
            "input": torch.randn(3, 4),
            **({"hx": torch.randn(3, 6)} if hx else {}),
            **dict(cell.named_parameters()),
        }

        def step(input: Tensor, hx: Tensor | None = None, **weights: Tensor) -> tuple[Tensor, ...]:
            return (functional.gru_cell(input, hx, *weights.values()),)

        return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}, step
    operands = arguments(kind)
    tensors = {"input": operands["input"], **({"hx": operands["hx"]} if hx else {})}
    tensors |= {"reset_state": operands["reset_state"]} if kind == "marked" else {}
    tensors |= {f"weights[{index}]": weight for index, weight in enumerate(operands["weights"])}

    def layer(
        input: Tensor, hx: Tensor | None = None, reset_state: Tensor | None = None, **weights: Tensor
    ) -> tuple[Tensor, ...]:
        return functional.gru(
            input,
            hx,
            list(weights.values()),
            bidirectional=kind == "both",
            batch_first=bool(operands["options"].batch_first),
            batch_sizes=operands["batch_sizes"],
            lengths=operands["lengths"],
            resets=operands["resets"],
            reset_state=reset_state,
        )

    return {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}, layer


def everything(call: Callable[..., tuple[Tensor, ...]], tensors: dict[str, Tensor]) -> list[Tensor]:
    """Outputs, gradients, and gradients of the gradients."""
    torch.manual_seed(1)
    outputs = call(**tensors)
    loss = sum((output * torch.randn_like(output)).sum() for output in outputs)
    first = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
    again = torch.autograd.grad(loss, list(tensors.values()), create_graph=True)
    second = torch.autograd.grad(sum(gradient.pow(2).sum() for gradient in again), list(tensors.values()))
    return [*outputs, *first, *again, *second]


@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "cell"])
def test_same_bits(kind: str, hx: bool) -> None:
    """Results, gradients and second derivatives, with hx and without."""
    tensors, call = leaves(kind, hx)
    ours = everything(call, tensors)
    assert "LayerFunction" in call(**tensors)[0].grad_fn.name()
    with by_operators():
        expected = everything(call, tensors)
        assert "LayerFunction" not in call(**tensors)[0].grad_fn.name()
    assert len(ours) == len(expected)
    for result, reference in zip(ours, expected, strict=True):
        assert torch.equal(result, reference) and result.stride() == reference.stride()
    with torch.no_grad():
        assert all(torch.equal(result, reference) for result, reference in zip(call(**tensors), ours, strict=False))
        assert not any(output.requires_grad for output in call(**tensors))


@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("kind", ["both", "cell"])
def test_some_of_the_gradients(kind: str, hx: bool) -> None:
    """Each leaf alone: asked for alone, and alone in requiring grad."""
    tensors, call = leaves(kind, hx)
    whole = torch.autograd.grad(sum(output.sum() for output in call(**tensors)), list(tensors.values()))
    for (name, tensor), expected in zip(tensors.items(), whole, strict=True):
        (gradient,) = torch.autograd.grad(sum(output.sum() for output in call(**tensors)), [tensor])
        frozen = {other: value if other == name else value.detach() for other, value in tensors.items()}
        (alone,) = torch.autograd.grad(sum(output.sum() for output in call(**frozen)), [tensor])
        assert torch.equal(gradient, expected) and torch.equal(alone, expected), name


@pytest.mark.parametrize("kind", ["plain", "cell"])
def test_rules_of_a_graph(kind: str) -> None:
    """A second backward pass, a changed input, hooks, one output alone, no reference cycle: as autograd has it."""
    tensors, call = leaves(kind, True)
    output = call(**tensors)[-1]
    output.sum().backward(retain_graph=True)
    first = tensors["input"].grad.clone()
    output.sum().backward()
    assert torch.equal(tensors["input"].grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()

    output = call(**{**tensors, "input": (changed := tensors["input"] * 1)})[0]
    changed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()

    output = call(**tensors)[0]
    seen: list[Tensor] = []
    output.grad_fn.register_hook(
        lambda gradients, _: seen.extend(gradient for gradient in gradients if gradient is not None)
    )
    output.mul_(2).sum().backward()  # the user's to change
    assert len(seen) == len([tensor for tensor in tensors.values() if tensor.grad is not None])

    gc.disable()
    try:
        node = weakref.ref((output := call(**tensors)[0]).untyped_storage())
        del output
        assert node() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["plain", "cell"])
def test_saved_tensors_hooks(kind: str) -> None:
    """They see every tensor kept, and checkpointing recomputes."""
    tensors, call = leaves(kind, False)
    expected = torch.autograd.grad(call(**tensors)[0].sum(), list(tensors.values()))
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call(**tensors)[0]
    assert len(packed) == 1 + len(tensors)  # and the gates
    with torch.autograd.graph.save_on_cpu():
        other = call(**tensors)[0]
    again = checkpoint(lambda: call(**tensors)[0], use_reentrant=False)
    for result in (output, other, again):
        gradients = torch.autograd.grad(result.sum(), list(tensors.values()))
        assert all(torch.equal(gradient, reference) for gradient, reference in zip(gradients, expected, strict=True))
    # What a hook gives back is checked like any argument.
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor[:1]):
        output = call(**tensors)[0]
    with pytest.raises(RuntimeError, match="shape"):
        output.sum().backward()

    def fail(_: Tensor) -> Tensor:
        raise KeyError("mine")

    with torch.autograd.graph.saved_tensors_hooks(fail, fail), pytest.raises(KeyError, match="mine"):
        call(**tensors)


def test_error_in_the_differentiable_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes out as it was raised."""
    tensors, call = leaves("plain", True)

    def fail(*_: Any) -> None:
        raise KeyError("mine")

    monkeypatch.setattr(autograd.Backward, "forward", fail)
    with pytest.raises(KeyError, match="mine"):
        torch.autograd.grad(call(**tensors)[0].sum(), tensors["input"], create_graph=True)


def test_autocast_around_backward() -> None:
    """Nothing in backward is cast."""
    tensors, call = leaves("plain", True)
    expected = torch.autograd.grad(call(**tensors)[0].sum(), list(tensors.values()))
    loss = call(**tensors)[0].sum()
    for again in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gradients = torch.autograd.grad(loss, list(tensors.values()), create_graph=again, retain_graph=True)
        for gradient, reference in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, reference)


class Seen(TorchDispatchMode):
    """Names the operators that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(named or {}))


class SeenFunctions(TorchFunctionMode):
    """Names the functions that torch was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(named or {}))


class Wrapped(Tensor):
    """A tensor with a dispatch of its own, which counts."""

    names: list[str] = []

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapped:
        return Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=held.device)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        cls.names.append(str(function))

        def open_one(value: Any) -> Any:
            return value.held if isinstance(value, Wrapped) else value

        opened = torch.utils._pytree.tree_map(open_one, (args, named or {}))
        return function(*opened[0], **opened[1])


@pytest.mark.parametrize("kind", ["plain", "cell"])
def test_modes_and_subclasses_see_the_operators(kind: str) -> None:
    """TorchDispatchMode, forward and in backward alone; TorchFunctionMode; __torch_dispatch__ of a subclass."""
    tensors, call = leaves(kind, True)
    with Seen() as mode:
        call(**tensors)[0].sum().backward()
    assert {"gru_ext.forward.default", "gru_ext.backward.default"} <= set(mode.names)
    loss = call(**tensors)[0].sum()
    with Seen() as mode:
        loss.backward()
    assert "gru_ext.backward.default" in mode.names
    with SeenFunctions() as functions, torch.no_grad():
        call(**tensors)
    assert any("gru_ext.forward" in name for name in functions.names)
    Wrapped.names.clear()
    expected = call(**tensors)[0]
    with torch.no_grad():
        output = call(**{**tensors, "input": Wrapped(tensors["input"].detach())})[0]
    # A cell's input gets its dimension of time first.
    assert {"plain": "gru_ext.forward.default", "cell": "aten.unsqueeze.default"}[kind] in Wrapped.names
    assert torch.equal(output, expected)


def test_subclass_of_torch_function() -> None:
    """A subclass stays one, as through any operator of torch."""

    class Mine(Tensor):
        pass

    with torch.no_grad():
        output, _ = gru_ext.GRU(3, 4)(torch.randn(2, 1, 3).as_subclass(Mine))
    assert type(output) is Mine


def test_tracers_record_the_operator() -> None:
    """FakeTensorMode, make_fx and torch.jit.trace."""
    module, cell = gru_ext.GRU(3, 4).requires_grad_(False), gru_ext.GRUCell(3, 4)
    input = torch.randn(2, 1, 3)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert isinstance(module(input)[0], torch._subclasses.FakeTensor)
        assert isinstance(cell(input[0]), torch._subclasses.FakeTensor)
    with torch.no_grad():
        for called, data in ((module, input), (cell, input[0])):
            for tracing in ("real", "fake"):
                graph = torch.fx.experimental.proxy_tensor.make_fx(
                    called, tracing_mode=tracing, _allow_non_fake_inputs=True
                )(data)
                assert any(node.target is OPERATOR for node in graph.graph.nodes)
        traced = torch.jit.trace(lambda input: module(input)[0], input)
    assert "gru_ext::forward" in str(traced.graph)


def test_forward_mode_and_transforms_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tangents are not dropped."""
    monkeypatch.setattr(functional, "_warned", set())
    module = gru_ext.GRU(3, 4)
    input = torch.randn(2, 1, 3)
    with pytest.warns(UserWarning, match="forward-mode"), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(input, torch.ones_like(input))
        assert torch.autograd.forward_ad.unpack_dual(module(dual)[0]).tangent is not None


# What a call may be surrounded by, and still be direct or not: the name begins with which.
SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "direct": nullcontext,
    "direct no_grad": torch.no_grad,
    "direct inference": torch.inference_mode,
    "direct disabled autocast": lambda: torch.autocast("cpu", enabled=False),
    "direct anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "other autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "other dispatch mode": Seen,
    "other function mode": SeenFunctions,
    "other profiler": lambda: profile(activities=[ProfilerActivity.CPU]),
    "other fake": lambda: torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True),
    "direct default device": lambda: torch.device("cpu"),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings(name: str) -> None:
    """Direct where nothing looks on, and nowhere else."""
    operands = arguments("plain")
    with SURROUNDINGS[name]():
        assert (direct("plain", operands) is not None) == name.startswith("direct")
        step = _C.cell_direct(operands["input"][0], operands["hx"][0], *operands["weights"], None)
        assert (step is not None) == name.startswith("direct")


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_that_are_not_direct(kind: str) -> None:
    """None for whatever does not fit or is not plain: the functions above then say what is wrong."""
    right = arguments(kind)
    assert direct(kind, right) is not None
    assert direct(kind, {**right, "weights": tuple(right["weights"])}) is not None
    assert direct(kind, {**right, "hx": None}) is not None
    strange: list[Any] = [None, 3, "text", object(), [], torch.zeros(()), torch.zeros(0), torch.zeros(2, 2, 2, 2)]
    for name in ("input", "hx", "weights", "batch_sizes"):
        tensor = right[name] if isinstance(right[name], Tensor) else right["weights"][1]
        wrong = [tensor.double(), tensor.to("meta"), tensor.to_sparse(), tensor.to(torch.complex64)]
        wrong += [Wrapped(tensor), tensor[..., :-1], tensor.new_zeros(0, *tensor.shape[1:]), tensor.unsqueeze(0)]
        for value in [*strange, *wrong]:
            if value is None and name in ("hx", "batch_sizes"):
                continue
            if name == "weights":
                for index in range(len(right["weights"])):
                    weights = list(right["weights"])
                    weights[index] = value
                    assert direct(kind, {**right, "weights": weights}) is None
            assert direct(kind, {**right, name: value}) is None, (name, value)


def test_bare_calls() -> None:
    """Wrong counts and hostile objects raise; nothing crashes."""

    class Hostile:
        def __index__(self) -> int:
            raise KeyError("mine")

    operands = arguments("plain")
    for function, count in ((_C.layer_direct, 8), (_C.cell_direct, 7)):
        with pytest.raises(TypeError, match=f"{count}.* arguments"):
            function()
        with pytest.raises(TypeError):
            function(*range(10))
        assert function(*range(count)) is None and function(*[None] * count) is None
    with pytest.raises(KeyError, match="mine"):
        direct("plain", {**operands, "options": (1, Hostile(), 0, -1, 0, 0)})
    input, weights = operands["input"][0], operands["weights"]
    assert _C.cell_direct(input, None, *weights, None) is not None
    assert _C.cell_direct(input, None, *weights[:3], None, None) is None
    assert _C.cell_direct(input, operands["hx"], *weights, None) is None


def test_batch_sizes_are_those_of_the_forward_pass() -> None:
    """A change through numpy, which leaves no trace, neither reaches backward nor its memory."""
    tensors, _ = leaves("packed", True)
    sizes = arguments("packed")["batch_sizes"]

    def call() -> tuple[Tensor, ...]:
        input, hx, *weights = tensors.values()
        return functional.gru(input, hx, weights, batch_sizes=sizes)

    expected = torch.autograd.grad(call()[0].sum(), list(tensors.values()))
    output = call()[0]
    sizes.numpy()[:] = 2**40
    for gradient, reference in zip(torch.autograd.grad(output.sum(), list(tensors.values())), expected, strict=True):
        assert torch.equal(gradient, reference)


def test_empty_batch() -> None:
    """B = 0 has gradients of zero."""
    tensors, call = leaves("plain", False)
    output, h_n = call(**{**tensors, "input": torch.randn(5, 0, 4)})
    assert output.shape == (5, 0, 6) and h_n.shape == (1, 0, 6)
    output.sum().backward()
    assert not tensors["weights[0]"].grad.any()
