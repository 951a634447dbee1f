"""torch.func by the kernels: what comes out is what the reference gives, and no warning says that it ran.

torch.nn.GRU has no rule for vmap.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn.utils.rnn import PackedSequence

import gru_ext
from gru_ext import functional, ops, transforms

DOUBLE = torch.float64


pytestmark = pytest.mark.usefixtures("no_warning")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators' calls."""
    called: list[str] = []
    members = ops.Arguments._fields.index("members")
    for name, before in (("forward", 0), ("backward", 4)):
        original = getattr(ops, name)

        def record(*values: Any, name: str = name, before: int = before, original: Any = original) -> Any:
            called.append(name if values[before + members] is None else f"{name} of members")
            return original(*values)

        monkeypatch.setattr(ops, name, record)
    return called


def by_reference(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same, in plain PyTorch."""
    with monkeypatch.context() as patch:
        patch.setattr(transforms, "serve", lambda: False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()


def assert_same(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernels what it is by the reference."""
    torch.testing.assert_close(call(), by_reference(call, monkeypatch), rtol=1e-9, atol=1e-11)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
]


def draw(**options: Any) -> tuple[gru_ext.GRU, dict[str, Tensor], Tensor, Tensor]:
    """A module, its parameters without grad, input [4, 3, 2] and hx."""
    module = gru_ext.GRU(2, 5, dtype=DOUBLE, **options)
    batch = 4 if module.batch_first else 3
    states = module.num_layers * (1 + module.bidirectional)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return module, parameters, torch.randn(4, 3, 2, dtype=DOUBLE), torch.randn(states, batch, 5, dtype=DOUBLE)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_reverse_mode(options: dict[str, Any], calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """grad, vjp, jacrev and grad of grad, by weights, input and hx."""
    module, parameters, input, hx = draw(**options)

    def loss(parameters: dict[str, Tensor], input: Tensor, hx: Tensor) -> Tensor:
        output, h_n = functional_call(module, parameters, (input, hx))
        return output.pow(2).sum() + h_n.sin().sum()

    assert_same(lambda: grad(loss, argnums=(0, 1, 2))(parameters, input, hx), monkeypatch)
    layers = options.get("num_layers", 1)
    assert calls == ["forward"] * layers + ["backward"] * layers

    def output(input: Tensor) -> Tensor:
        return functional_call(module, parameters, (input, hx))[0]

    assert_same(lambda: vjp(output, input)[1](torch.ones(output(input).shape, dtype=DOUBLE)), monkeypatch)
    assert_same(lambda: jacrev(output)(input), monkeypatch)

    def slope(parameters: dict[str, Tensor]) -> Tensor:
        return grad(loss, argnums=1)(parameters, input, hx).pow(2).sum()

    assert_same(lambda: grad(slope)(parameters), monkeypatch)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("in_dim", [0, 1, 3])
def test_vmap_over_inputs(
    options: dict[str, Any], in_dim: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of the kernels for all members, wherever their dimension is; hx theirs, shared or absent."""
    module, parameters, _, hx = draw(**options)
    members = torch.randn(6, 4, 3, 2, dtype=DOUBLE).movedim(0, in_dim)
    states = torch.stack([hx + index for index in range(6)], dim=1)

    def call(input: Tensor, *hx: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(module, parameters, (input, *hx))

    for inputs, dims in (((members,), (in_dim,)), ((members, hx), (in_dim, None)), ((members, states), (in_dim, 1))):
        calls.clear()
        assert_same(lambda inputs=inputs, dims=dims: vmap(call, dims)(*inputs), monkeypatch)
        assert calls == ["forward"] * options.get("num_layers", 1)
        alone = [
            call(
                *(
                    tensor if dim is None else tensor.select(dim, index)
                    for tensor, dim in zip(inputs, dims, strict=True)
                )
            )
            for index in range(6)
        ]
        torch.testing.assert_close(vmap(call, dims)(*inputs)[0], torch.stack([output for output, _ in alone]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_per_sample_gradients(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """vmap(grad): each sample's gradient of the weights is what a call of its own gives."""
    module, parameters, _, _ = draw(**options)
    samples = torch.randn(6, 4, 3, 2, dtype=DOUBLE)

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(module, parameters, (input,))[0].pow(2).sum()

    gradients = vmap(grad(loss), (None, 0))(parameters, samples)
    for index, sample in enumerate(samples):
        for name, value in grad(loss)(parameters, sample).items():
            torch.testing.assert_close(gradients[name][index], value, rtol=1e-9, atol=1e-11)
    assert_same(lambda: vmap(grad(loss, argnums=1), (None, 0))(parameters, samples), monkeypatch)


@pytest.mark.parametrize("shared", [True, False])
def test_ensemble(shared: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacked weights, on one input or one each: a call a layer for all members; gradients too."""
    models = [gru_ext.GRU(2, 5, 2, dtype=DOUBLE) for _ in range(3)]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    input = torch.randn(4, 3, 2, dtype=DOUBLE) if shared else torch.randn(3, 4, 3, 2, dtype=DOUBLE)

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (input,))[0]

    dims = (0, 0, None if shared else 0)
    outputs = vmap(call, dims)(parameters, buffers, input)
    assert calls == ["forward of members"] * 2
    for index, model in enumerate(models):
        torch.testing.assert_close(outputs[index], model(input if shared else input[index])[0])
    weight = models[1].weight_hh_l1
    expected = torch.autograd.grad(models[1](input if shared else input[1])[0].sum(), weight)[0]
    outputs.sum().backward()
    torch.testing.assert_close(parameters["weight_hh_l1"].grad[1], expected)
    assert_same(
        lambda: vmap(grad(lambda *operands: call(*operands).sum()), dims)(
            {name: parameter.detach() for name, parameter in parameters.items()}, buffers, input
        ),
        monkeypatch,
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_per_sample_gradients_of_an_ensemble(
    options: dict[str, Any], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vmap in vmap over weights, inputs or both: a call a layer each way, of a larger batch or a larger ensemble."""
    layers = options.get("num_layers", 1)
    models = [gru_ext.GRU(2, 5, dtype=DOUBLE, **options) for _ in range(3)]
    stacked, _ = stack_module_state(models)  # type: ignore[arg-type]
    stacked = {name: weight.detach() for name, weight in stacked.items()}
    samples = torch.randn(4, 4, 3, 2, dtype=DOUBLE)

    def call(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(models[0], parameters, (input,))[0]

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return call(parameters, input).pow(2).sum()

    for function, forward, backward in (
        (call, ["forward of members"], []),
        (grad(loss, argnums=1), ["forward of members"], ["backward of members"]),
        (grad(loss), ["forward of members"], ["backward of members"]),
    ):
        for both in (
            vmap(vmap(function, (None, 0)), (0, None)),  # of each model all samples
            vmap(vmap(function, (0, None)), (None, 0)),
        ):
            calls.clear()
            assert_same(lambda both=both: both(stacked, samples), monkeypatch)
            assert calls == (forward + backward if layers == 1 else forward * layers + backward * layers)
    pairs = torch.randn(3, 4, 4, 3, 2, dtype=DOUBLE)
    assert_same(lambda: vmap(vmap(grad(loss), (None, 0)))(stacked, pairs), monkeypatch)
    twice = {name: torch.stack([weight, weight + 1, weight - 1, weight * 2]) for name, weight in stacked.items()}
    assert_same(lambda: vmap(vmap(grad(loss)))(twice, pairs.transpose(0, 1)), monkeypatch)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_second_derivatives_of_an_ensemble(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A penalty on the gradient, of each member and of what all share; within the vmap and around it."""
    models = [gru_ext.GRU(2, 5, dtype=DOUBLE, **options) for _ in range(3)]
    stacked, _ = stack_module_state(models)  # type: ignore[arg-type]
    stacked = {name: weight.detach() for name, weight in stacked.items()}
    input = torch.randn(4, 3, 2, dtype=DOUBLE)

    def call(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(models[0], parameters, (input,))[0]

    def penalty(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return grad(lambda input: call(parameters, input).pow(2).sum())(input).pow(2).sum()

    assert_same(lambda: vmap(grad(penalty, argnums=(0, 1)), (0, None))(stacked, input), monkeypatch)

    def of_all(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
            return vmap(call, (0, None))(parameters, input).pow(2).sum()

        slopes, slope = grad(loss, argnums=(0, 1))(parameters, input)
        return slope.pow(2).sum() + sum(gradient.pow(2).sum() for gradient in slopes.values())

    assert_same(lambda: grad(of_all, argnums=(0, 1))(stacked, input), monkeypatch)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batched_pulls(options: dict[str, Any], recompute: bool, calls: list[str]) -> None:
    """Many gradients of one recorded call: by torch.func's vmap and by autograd's own, which runs the reference."""
    module, _, input, hx = draw(recompute=recompute, **options)
    layers = options.get("num_layers", 1)
    input.requires_grad_()
    for inputs in ((input,), (input, hx.requires_grad_())):
        output = module(*inputs)[0]
        many = torch.randn(6, *output.shape, dtype=DOUBLE)
        for wanted in ([*inputs], [*inputs, *module.parameters()]):
            alone = [torch.autograd.grad(output, wanted, cotangent, retain_graph=True) for cotangent in many]
            expected = [torch.stack(each) for each in zip(*alone, strict=True)]

            def pull(cotangent: Tensor, output: Tensor = output, wanted: list[Tensor] = wanted) -> tuple[Tensor, ...]:
                return torch.autograd.grad(output, wanted, cotangent, retain_graph=True)

            calls.clear()
            torch.testing.assert_close(list(vmap(pull)(many)), expected, rtol=1e-9, atol=1e-11)
            # What the batched call of a layer becomes: one of a larger batch, or of an ensemble.
            assert calls == ["backward" if len(wanted) == len(inputs) else "backward of members"] * layers
            calls.clear()
            with pytest.warns(UserWarning, match="is_grads_batched"):
                batched = torch.autograd.grad(output, wanted, many, is_grads_batched=True, retain_graph=True)
            torch.testing.assert_close(list(batched), expected, rtol=1e-9, atol=1e-11)
            assert calls == [] and not any(gradient.requires_grad for gradient in batched)


def test_second_derivatives_within_autocast() -> None:
    """A float32 forward pass pulled back within an autocast block stays float32, as it does in plain autograd."""
    module, input = gru_ext.GRU(3, 6), torch.randn(5, 4, 3)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def slopes(within: bool) -> dict[str, Tensor]:
        def penalty(parameters: dict[str, Tensor]) -> Tensor:
            output, pull = vjp(lambda data: functional_call(module, parameters, (data,))[0], input)
            with torch.autocast("cpu", torch.bfloat16, enabled=within):
                return pull(torch.ones_like(output))[0].pow(2).sum()

        value, pull = vjp(penalty, parameters)
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            return pull(torch.ones_like(value))[0]

    torch.testing.assert_close(slopes(True), slopes(False))


@pytest.mark.filterwarnings("ignore")  # compiled, they run the reference, which says so; dynamo tells of its break
def test_compiled() -> None:
    """vmap of functional_call breaks a compiled function's graph at that warning: what then runs eagerly is right."""
    module, parameters, _, _ = draw()
    samples = torch.randn(6, 4, 3, 2, dtype=DOUBLE)

    def call(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(module, parameters, (input,))[0]

    inputs = vmap(call, (None, 0))
    slopes = vmap(grad(lambda *operands: call(*operands).pow(2).sum()), (None, 0))
    stacked = {name: torch.stack([parameter, 2 * parameter]) for name, parameter in parameters.items()}
    for function, weights in ((inputs, parameters), (slopes, parameters), (vmap(call, (0, None)), stacked)):
        functional._warned.clear()
        torch._dynamo.reset()
        data = samples[0] if weights is stacked else samples
        torch.testing.assert_close(torch.compile(function, backend="aot_eager")(weights, data), function(weights, data))
    torch._dynamo.reset()


def test_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    """vmap in vmap, vmap of jacrev, jacrev of a vmap, vmap of a penalty on a gradient."""
    module, parameters, _, _ = draw(bidirectional=True)
    many = torch.randn(2, 3, 4, 3, 2, dtype=DOUBLE)

    def call(input: Tensor) -> Tensor:
        return functional_call(module, parameters, (input,))[0]

    assert_same(lambda: vmap(vmap(call))(many), monkeypatch)
    assert_same(lambda: vmap(vmap(call, 1), 2)(many.permute(1, 2, 3, 0, 4).contiguous().movedim(3, 1)), monkeypatch)
    assert_same(lambda: vmap(jacrev(call))(many[0]), monkeypatch)
    assert_same(lambda: jacrev(vmap(call))(many[0]), monkeypatch)

    def penalty(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        slope = grad(lambda input: functional_call(module, parameters, (input,))[0].pow(2).sum())(input)
        return slope.pow(2).sum()

    assert_same(lambda: vmap(grad(penalty), (None, 0))(parameters, many[0]), monkeypatch)


def test_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that are packed alike are an ensemble."""
    module, parameters, _, _ = draw(bidirectional=True)
    sizes = torch.tensor([3, 2, 1])
    data = torch.randn(5, 6, 2, dtype=DOUBLE)

    def call(data: Tensor) -> Tensor:
        return functional_call(module, parameters, (PackedSequence(data, sizes),))[0].data

    assert_same(lambda: vmap(call)(data), monkeypatch)
    assert_same(lambda: vmap(grad(lambda data: call(data).pow(2).sum()))(data), monkeypatch)


def test_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell as well."""
    cell = gru_ext.GRUCell(2, 5, dtype=DOUBLE)
    input = torch.randn(6, 3, 2, dtype=DOUBLE)
    assert_same(lambda: vmap(lambda sample: cell(sample))(input), monkeypatch)
    assert_same(lambda: vmap(grad(lambda sample: cell(sample).sum()))(input), monkeypatch)


def test_forward_mode_runs_the_reference() -> None:
    """jvp and jacfwd are right, and say that they are slow."""
    module, parameters, input, _ = draw()

    def call(input: Tensor) -> Tensor:
        return functional_call(module, parameters, (input,))[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # torch has something of its own to say, too
        _, tangent = jvp(call, (input,), (torch.ones_like(input),))
        forward = jacfwd(call)(input)
    assert sum("forward-mode" in str(warning.message) for warning in caught) == 1
    backward = jacrev(call)(input)
    torch.testing.assert_close(forward, backward)
    torch.testing.assert_close(tangent, forward.sum((3, 4, 5)))


def test_torchs_own_has_no_vmap() -> None:
    """The gap that this closes: nn.GRU under vmap."""
    module = nn.GRU(2, 5)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::gru"):
        vmap(lambda input: functional_call(module, parameters, (input,))[0])(torch.randn(6, 4, 3, 2))
