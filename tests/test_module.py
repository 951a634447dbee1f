"""GRU and GRUCell as drop-in replacements: construction, state, weights in every guise, modes, dropout, B = 0."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import cases
import pytest
import torch
from cases import twins
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext
from gru_ext import reference

CONSTRUCTIONS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 4), {}),
    ((3, 4, 2), {}),
    ((3, 4, 2, False, True, 0.5, True), {}),
    ((), {"input_size": 3, "hidden_size": 4, "num_layers": 3, "dropout": 0.1}),
    ((3, 4), {"bias": False, "bidirectional": True}),
    ((3, 4), {"batch_first": True, "dtype": torch.float64}),
    ((3, 4), {"device": "meta"}),
]


def close(first: torch.Tensor, second: torch.Tensor) -> None:
    """Assert that two float32 results are the same but for rounding; the gate itself is in test_parity."""
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("arguments", "options"), CONSTRUCTIONS)
def test_construction(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The same arguments give the same repr, attributes, weight names, shapes, dtypes and devices."""
    theirs, ours = nn.GRU(*arguments, **options), gru_ext.GRU(*arguments, **options)
    assert repr(ours) == repr(theirs)
    for name in theirs.__constants__:
        assert getattr(ours, name) == getattr(theirs, name), name
    described = [
        [(name, p.shape, p.dtype, p.device, p.requires_grad) for name, p in module.named_parameters()]
        for module in (ours, theirs)
    ]
    assert described[0] == described[1]
    assert [[type(weight) for weight in group] for group in ours.all_weights] == [
        [type(weight) for weight in group] for group in theirs.all_weights
    ]
    assert ours._all_weights == theirs._all_weights
    assert isinstance(ours, nn.RNNBase)


def test_same_seed_gives_the_same_weights() -> None:
    """Initialization draws what nn.GRU draws; so does reset_parameters."""
    for theirs_class, ours_class in ((nn.GRU, gru_ext.GRU), (nn.GRUCell, gru_ext.GRUCell)):
        torch.manual_seed(3)
        theirs = theirs_class(3, 4)
        torch.manual_seed(3)
        ours = ours_class(3, 4)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        before = ours.weight_hh_l0.clone() if hasattr(ours, "weight_hh_l0") else ours.weight_hh.clone()
        ours.reset_parameters()
        after = ours.weight_hh_l0 if hasattr(ours, "weight_hh_l0") else ours.weight_hh
        assert not torch.equal(before, after)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_state_dict_both_ways(bias: bool, bidirectional: bool) -> None:
    """Strict loading from torch's module and into it, with the same keys in the same order."""
    options = {"num_layers": 2, "bias": bias, "bidirectional": bidirectional}
    theirs, ours = twins(gru_ext.GRU, 3, 4, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    input = torch.randn(5, 2, 3)
    close(ours(input)[0], theirs(input)[0])
    fresh = nn.GRU(3, 4, **options)
    fresh.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(fresh(input)[0], theirs(input)[0])
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(nn.GRU(3, 5, **options).state_dict())


def test_copies() -> None:
    """deepcopy, pickle and torch.save give independent modules with the same results."""
    module = gru_ext.GRU(3, 4, 2, bidirectional=True)
    input = torch.randn(5, 2, 3)
    expected = module(input)[0].detach()
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copied = copy.deepcopy(module)
    pickled = pickle.loads(pickle.dumps(module))
    loaded = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    assert not torch.equal(module(input)[0], expected)
    for other in (copied, pickled, loaded):
        assert type(other) is gru_ext.GRU and repr(other) == repr(module)
        assert torch.equal(other(input)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_conversion(dtype: torch.dtype) -> None:
    """.to(dtype), also after a call, and back."""
    module = gru_ext.GRU(3, 4)
    module(torch.randn(2, 2, 3))
    module.to(dtype)
    output, h_n = module(torch.randn(2, 2, 3, dtype=dtype))
    assert output.dtype == h_n.dtype == dtype
    output.sum().backward()
    assert all(parameter.grad.dtype == dtype for parameter in module.parameters())
    assert module.float()(torch.randn(2, 2, 3))[0].dtype == torch.float32
    assert gru_ext.GRU(3, 4).half().weight_hh_l0.dtype == torch.float16


def test_flatten_parameters_changes_nothing() -> None:
    """It exists for the code that calls it."""
    module = gru_ext.GRU(3, 4, 2)
    before = [(id(parameter), parameter.data_ptr()) for parameter in module.parameters()]
    assert module.flatten_parameters() is None
    assert [(id(parameter), parameter.data_ptr()) for parameter in module.parameters()] == before


def weight_norm_old(module: nn.Module) -> None:
    """torch.nn.utils.weight_norm, which recomputes the weight in a hook."""
    nn.utils.weight_norm(module, "weight_hh_l0")


def weight_norm_new(module: nn.Module) -> None:
    """The parametrization."""
    parametrizations.weight_norm(module, "weight_hh_l0")


def orthogonal(module: nn.Module) -> None:
    """An orthogonal input weight."""
    parametrizations.orthogonal(module, "weight_ih_l0")


def pruned(module: nn.Module) -> None:
    """Half of the hidden weight masked."""
    prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)


def replaced(module: nn.Module) -> None:
    """A new Parameter by assignment."""
    module.weight_hh_l0 = nn.Parameter(torch.linspace(-0.5, 0.5, 48).reshape(12, 4))


def tied(module: nn.Module) -> None:
    """One Parameter in two places."""
    module.bias_hh_l0 = module.bias_ih_l0


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", [weight_norm_old, weight_norm_new, orthogonal, pruned, replaced, tied])
def test_weights_in_other_guises(change: Any) -> None:
    """Parametrized, pruned, tied or replaced weights: the same results, gradients and first training step."""
    theirs, ours = twins(gru_ext.GRU, 3, 4)
    change(theirs)
    change(ours)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    input = torch.randn(5, 2, 3)
    for _ in range(2):
        for module in (theirs, ours):
            module.zero_grad()
            output, h_n = module(input)
            (output.sum() + h_n.pow(2).sum()).backward()
        gradients = dict(theirs.named_parameters())
        assert gradients.keys() == dict(ours.named_parameters()).keys()
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5, msg=name)
        with torch.no_grad():
            for module in (theirs, ours):
                for parameter in module.parameters():
                    parameter.sub_(0.1 * parameter.grad)
    close(ours.eval()(input)[0], theirs.eval()(input)[0])


def test_spectral_norm() -> None:
    """In eval mode; in training each look at the weight is one more power iteration, and torch's module looks twice."""
    theirs, ours = twins(gru_ext.GRU, 3, 4)
    for module in (theirs, ours):
        parametrizations.spectral_norm(module, "weight_hh_l0")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    input = torch.randn(5, 2, 3)
    close(ours.eval()(input)[0], theirs.eval()(input)[0])
    ours.train()(input)[0].sum().backward()
    assert ours.parametrizations.weight_hh_l0.original.grad is not None


def test_weights_tied_between_layers() -> None:
    """One weight in two layers gets the sum of both gradients."""
    theirs, ours = twins(gru_ext.GRU, 4, 4, 2)
    for module in (theirs, ours):
        module.weight_hh_l1 = module.weight_hh_l0
        module(torch.ones(3, 2, 4))[0].sum().backward()
    close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


def test_weights_given_by_functional_call() -> None:
    """torch.func.functional_call computes with the weights given and leaves the module's own."""
    module = gru_ext.GRU(3, 4)
    input = torch.randn(5, 2, 3)
    expected = module(input)[0]
    weights = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    zero, _ = torch.func.functional_call(module, weights, (input,))
    assert torch.equal(zero, torch.zeros(5, 2, 4))
    assert torch.equal(module(input)[0], expected)


@pytest.mark.parametrize("packed", [False, True])
def test_backward_in_eval_mode(packed: bool) -> None:
    """eval() does not take the gradients away, and without dropout gives the bits of train()."""
    module = gru_ext.GRU(3, 4, 2)
    input = torch.randn(5, 2, 3, requires_grad=True)
    gradients = []
    for mode in (True, False):
        data = pack_padded_sequence(input, [5, 3]) if packed else input
        module.train(mode)(data)[1].sum().backward()
        gradients.append([input.grad, *(parameter.grad for parameter in module.parameters())])
        input.grad = None
        module.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layout", ["padded", "packed", "unbatched", "strided"])
@pytest.mark.parametrize("dtype", [*cases.DTYPES, "autocast"], ids=str)
def test_dropout_draws_the_mask_of_torch(dtype: torch.dtype | str, layout: str, batch_first: bool) -> None:
    """From one seed the same outputs are dropped between layers, and the generator is left in the same state.

    Outputs and gradients of another mask differ by tenths.
    """
    theirs, ours = twins(gru_ext.GRU, 3, 16, 3, dropout=0.4, bidirectional=True, batch_first=batch_first)
    input = torch.randn(6, 5, 3)
    if layout == "strided":
        input = input.transpose(0, 1)
    if layout == "unbatched":
        input = input[0]
    lengths = [4, 1, 3, 5, 2, 5] if batch_first else [4, 6, 2, 1, 6]
    autocast = isinstance(dtype, str)
    if not isinstance(dtype, str):
        theirs, ours, input = theirs.to(dtype), ours.to(dtype), input.to(dtype)

    def run(module: nn.Module) -> list[torch.Tensor]:
        torch.manual_seed(17)
        leaf = input.detach().requires_grad_()
        packed = layout == "packed"
        data = pack_padded_sequence(leaf, lengths, batch_first, enforce_sorted=False) if packed else leaf
        with torch.autocast("cpu", enabled=autocast):
            output, h_n = module(data)
        output = output.data if packed else output
        loss = output.double().pow(2).sum() + h_n.double().sum()
        gradients = torch.autograd.grad(loss, [leaf, *module.parameters()])
        return [torch.get_rng_state(), *(tensor.double() for tensor in (output, h_n, *gradients))]

    expected = run(theirs)
    for recompute in (False, True):
        ours.recompute = recompute
        state, *results = run(ours)
        assert torch.equal(state, expected[0])
        for result, value in zip(results, expected[1:], strict=True):
            scale = max(1.0, value.abs().max().item())
            bound = 1e-5 if dtype in (torch.float32, torch.float64) else 0.05
            assert (result - value).abs().max() <= bound * scale


def test_dropout_compiled_and_by_the_reference() -> None:
    """The same masks in a graph that keeps torch's generator; the output stays contiguous; eval mode drops nothing."""
    theirs, ours = twins(gru_ext.GRU, 3, 16, 2, dropout=0.4, batch_first=True)
    input = torch.randn(4, 5, 3)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    weights = list(ours.parameters())
    options = {"num_layers": 2, "dropout": 0.4, "training": True, "batch_first": True}
    results = []
    for call in (theirs, ours, compiled, lambda input: reference.gru(input, torch.zeros(2, 4, 16), weights, **options)):
        torch.manual_seed(17)
        results.append(call(input)[0])
    for result in results[1:]:
        close(result, results[0])
    assert results[1].is_contiguous()
    evaluated = [module.eval()(input)[1] for module in (theirs, ours)]
    close(*evaluated)
    assert not torch.allclose(evaluated[1], ours.train()(input)[1])


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_rate_and_extremes(batch_first: bool) -> None:
    """p = 1 leaves the second layer nothing to see; p = 0.3 drops 30% and scales the rest (mean kept)."""
    module = gru_ext.GRU(3, 4, 2, dropout=1.0, batch_first=batch_first)
    input = torch.randn(5, 2, 3)
    close(module(input)[0], module(torch.zeros_like(input))[0])
    assert not torch.allclose(module.eval()(input)[0], module.train()(input)[0])

    module = gru_ext.GRU(1, 400, 2, bias=False, dropout=0.3, batch_first=batch_first)
    with torch.no_grad():
        # The second layer's candidate is tanh of 1e-3 times what survives the dropout, unit by unit.
        module.weight_ih_l1.zero_()
        module.weight_ih_l1[800:] = 1e-3 * torch.eye(400)
        module.weight_hh_l1.zero_()
    input = torch.full((50, 1, 1) if batch_first else (1, 50, 1), 2.0)
    whole, dropped = module.eval()(input)[0], module.train()(input)[0]
    kept = (dropped != 0).double().mean().item()
    assert kept == pytest.approx(0.7, abs=0.02)  # 20,000 draws: three standard deviations are 0.01
    ratio = dropped[dropped != 0] / whole[dropped != 0]
    assert ratio.min().item() == pytest.approx(1 / 0.7, rel=1e-3)
    assert ratio.max().item() == pytest.approx(1 / 0.7, rel=1e-3)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_empty_batch(dtype: torch.dtype, batch_first: bool) -> None:
    """B = 0: empty results of the right shape, zero gradients for the weights."""
    theirs, ours = twins(gru_ext.GRU, 3, 4, 2, bidirectional=True, batch_first=batch_first, dtype=dtype)
    shape = (0, 5, 3) if batch_first else (5, 0, 3)
    input = torch.empty(shape, dtype=dtype, requires_grad=True)
    output, h_n = ours(input, torch.empty(4, 0, 4, dtype=dtype))
    expected, expected_h_n = theirs(input)
    assert output.shape == expected.shape and h_n.shape == expected_h_n.shape
    (output.sum() + h_n.sum()).backward()
    assert input.grad.shape == input.shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in ours.parameters())


def test_training_step_on_a_loss() -> None:
    """Five steps of Adam from the same weights give the losses of nn.GRU."""
    losses = []
    for module in twins(gru_ext.GRU, 3, 8, batch_first=True):
        torch.manual_seed(5)
        head = nn.Linear(8, 1)
        optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=1e-2)
        input, target = torch.randn(16, 7, 3), torch.randn(16, 1)
        losses.append([])
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(head(module(input)[1][-1]), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[1][-1] < losses[1][0]


def test_one_module_on_changing_shapes() -> None:
    """Nothing is remembered from call to call: batch, length and layout may change every time."""
    theirs, ours = twins(gru_ext.GRU, 3, 9, 2, bidirectional=True)
    for seq_len, batch in ((1, 1), (7, 3), (2, 20), (7, 1), (1, 33), (7, 3)):
        input = torch.randn(seq_len, batch, 3)
        close(ours(input)[0], theirs(input)[0])
        close(ours(input[:, 0])[1], theirs(input[:, 0])[1])


def in_place(module: gru_ext.GRU, other: gru_ext.GRU) -> None:
    """As an optimizer changes weights."""
    with torch.no_grad():
        for weight, value in zip(module.parameters(), other.parameters(), strict=True):
            weight.add_(value - weight)


def through_data(module: gru_ext.GRU, other: gru_ext.GRU) -> None:
    """Past autograd, which leaves no trace."""
    for weight, value in zip(module.parameters(), other.parameters(), strict=True):
        weight.data[:] = value.data


def through_numpy(module: gru_ext.GRU, other: gru_ext.GRU) -> None:
    """Past torch itself."""
    for weight, value in zip(module.parameters(), other.parameters(), strict=True):
        weight.detach().numpy()[...] = value.detach().numpy()


def by_state_dict(module: gru_ext.GRU, other: gru_ext.GRU) -> None:
    """As a checkpoint is loaded."""
    module.load_state_dict(other.state_dict())


def by_new_parameters(module: gru_ext.GRU, other: gru_ext.GRU) -> None:
    """Other tensors under the same names."""
    for name, value in list(other.named_parameters()):
        setattr(module, name, nn.Parameter(value.detach().clone()))


def by_swapped_memory(module: gru_ext.GRU, other: gru_ext.GRU) -> None:
    """The same Parameters with other memory, as ``Module.to`` and FSDP do."""
    for weight, value in zip(module.parameters(), other.parameters(), strict=True):
        weight.data = value.detach().clone()


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize(
    "change", [in_place, through_data, through_numpy, by_state_dict, by_new_parameters, by_swapped_memory]
)
def test_changed_weights_are_used_at_once(change: Any, steps: int) -> None:
    """A call after the weights changed gives what a module made with the new ones gives: nothing is kept."""
    module, other = gru_ext.GRU(6, 20, 2), gru_ext.GRU(6, 20, 2)
    data = torch.randn(steps, 3, 6)
    expected = other(data)[0].detach()
    assert not torch.allclose(module(data)[0], expected)
    change(module, other)
    torch.testing.assert_close(module(data)[0].detach(), expected, rtol=1e-6, atol=1e-6)
