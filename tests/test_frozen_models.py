"""Models that are frozen: what freeze takes and refuses, state_dict, copies, processes, explain."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from processes import check_python
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import gru_ext
from gru_ext import _C, ops

FORMATS = ("float32", "bfloat16", "int8")


class Model(nn.Module):
    """Two GRUs, a cell, and a layer that is none; the second GRU stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(12, 24, 2, batch_first=True, bidirectional=True)
        self.heads = nn.ModuleList([gru_ext.GRU(48, 16, bias=False, batch_first=True)])
        self.same = self.heads[0]
        self.cell = gru_ext.GRUCell(16, 20)
        self.last = nn.Linear(20, 3)

    def forward(self, input: Tensor) -> Tensor:
        """[B, T, 12] -> [B, 3]"""
        output, _ = self.encoder(input)
        output, _ = self.same(output)
        result: Tensor = self.last(self.cell(output[:, -1]))
        return result


@pytest.fixture
def model() -> Model:
    """A new one."""
    return Model().eval()


@pytest.fixture
def data() -> Tensor:
    """Its input."""
    return torch.randn(3, 7, 12)


@pytest.fixture(params=FORMATS)
def weights(request: pytest.FixtureRequest) -> str:
    """Each format."""
    return str(request.param)


def test_a_model_is_frozen(model: Model, data: Tensor, weights: str) -> None:
    """A copy, whose GRUs are frozen and shared as before; the original stays as it is."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(data)
    frozen: Any = gru_ext.freeze(model, weights)
    assert [type(module).__name__ for module in frozen.modules() if "Frozen" in type(module).__name__] == [
        "FrozenGRU", "FrozenGRU", "FrozenGRUCell",
    ]  # fmt: skip
    assert frozen.same is frozen.heads[0]
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert sum(1 for _ in frozen.parameters()) == 2, "those of the last layer"
    tolerance = {"float32": 1e-6, "bfloat16": 2e-3, "int8": 2e-2}[weights]
    torch.testing.assert_close(frozen(data), expected.detach(), rtol=0, atol=tolerance)
    assert weights in repr(frozen.encoder)
    assert type(model.encoder) is nn.GRU
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_some_layers(model: Model, data: Tensor) -> None:
    """layers= freezes those alone, and says which there are when one is none."""
    frozen: Any = gru_ext.freeze(model, "int8", layers=["cell"])
    assert type(frozen.encoder) is nn.GRU
    assert isinstance(frozen.cell, gru_ext.FrozenGRUCell)
    assert frozen(data).shape == (3, 3)
    with pytest.raises(ValueError, match=r"layers names 'last'.*'encoder', 'heads\.0', 'same', 'cell'"):
        gru_ext.freeze(model, layers=["last"])
    with pytest.raises(TypeError, match="layers must be a list of names, got 'cell'"):
        gru_ext.freeze(model, layers="cell")
    frozen = gru_ext.freeze(model, layers=["same", "heads.0"])
    assert isinstance(frozen.same, gru_ext.FrozenGRU)
    assert frozen.same is frozen.heads[0]
    bare: Any = gru_ext.freeze(nn.GRU(3, 4), layers=[""])
    assert isinstance(bare, gru_ext.FrozenGRU)


def pruned() -> nn.Module:
    """A GRU whose weight a hook computes."""
    module = nn.GRU(3, 4)
    prune.l1_unstructured(module, "weight_hh_l0", amount=0.3)
    return module


def with_nan() -> nn.Module:
    """A GRU with a weight that is no number."""
    module = nn.GRU(3, 4)
    with torch.no_grad():
        module.weight_ih_l0[2, 1] = float("nan")
    return module


@pytest.mark.parametrize(
    ("make", "weights", "error", "message"),
    [
        (lambda: 3, "int8", TypeError, "model must be a torch.nn.Module, got int"),
        (lambda: nn.GRU(3, 4), "int4", ValueError, "one of float32, bfloat16, int8, got 'int4'"),
        (lambda: nn.Linear(3, 4), "int8", ValueError, "nothing to freeze"),
        (lambda: nn.GRU(3, 4).double(), "float32", ValueError, r"weight_ih_l0 is torch.float64 on cpu.*model.float"),
        (lambda: nn.GRU(3, 4, device="meta"), "float32", ValueError, "on meta"),
        (pruned, "float32", ValueError, "weight_hh_l0 is computed by a hook"),
        (with_nan, "int8", ValueError, "not finite"),
        (lambda: nn.GRU(65537, 1), "int8", ValueError, "65,537 columns"),
    ],
)
def test_what_cannot_be_frozen(make: Callable[[], Any], weights: str, error: type[Exception], message: str) -> None:
    """One sentence each, before anything is copied."""
    with pytest.raises(error, match=message):
        gru_ext.freeze(make(), weights)


def test_subclasses_are_left() -> None:
    """With a warning that says why."""

    class Own(nn.GRU):
        pass

    model = nn.Sequential(Own(3, 4), nn.GRU(3, 4))
    with pytest.warns(UserWarning, match="leaves 0 as it is: .*subclass of GRU"):
        frozen = gru_ext.freeze(model)
    assert type(frozen[0]) is Own and isinstance(frozen[1], gru_ext.FrozenGRU)


def test_parametrized_and_hooked() -> None:
    """A parametrized weight is frozen as it stands; hooks of the module stay."""
    module = nn.GRU(3, 4)
    parametrizations.weight_norm(module, "weight_hh_l0")
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    data = torch.randn(2, 1, 3)
    with torch.no_grad():
        expected = module(data)[0]
        torch.testing.assert_close(gru_ext.freeze(module)(data)[0], expected, rtol=0, atol=1e-6)
    assert len(calls) == 2


def test_training_is_refused(model: Model, data: Tensor) -> None:
    """train(), a gradient of the input or the state, and transforms: an error that says what to do instead."""
    frozen: Any = gru_ext.freeze(model)
    with pytest.raises(RuntimeError, match="cannot be trained.*freeze that again"):
        frozen.train()
    frozen.eval()
    frozen(data)
    for call in (
        lambda: frozen(data.clone().requires_grad_()),
        lambda: frozen.cell(torch.randn(1, 16), torch.randn(1, 20, requires_grad=True)),
    ):
        with pytest.raises(RuntimeError, match="no backward pass"):
            call()
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(lambda part: frozen.encoder(part)[0])(data[None])
    with torch.no_grad():
        frozen(data.clone().requires_grad_())


@pytest.mark.parametrize("move", [nn.Module.half, nn.Module.double, lambda module: module.to("meta")])
def test_it_stays_where_it_is(move: Callable[[nn.Module], Any], weights: str) -> None:
    """Another dtype or device is refused; what changes neither is not."""
    frozen = gru_ext.freeze(nn.GRU(3, 4), weights)
    data = torch.randn(2, 1, 3)
    expected = frozen(data)[0]
    with pytest.raises(RuntimeError, match="freeze that again"):
        move(frozen)
    frozen.float().cpu().to("cpu")
    assert torch.equal(frozen(data)[0], expected)


def test_errors_of_a_call() -> None:
    """Those of nn.GRU and nn.GRUCell."""
    module, cell = nn.GRU(3, 4, batch_first=True), nn.GRUCell(3, 4)
    frozen, frozen_cell = gru_ext.freeze(module, "int8"), gru_ext.freeze(cell, "int8")
    good = torch.randn(2, 5, 3)
    calls: list[tuple[Any, Any, tuple[Tensor, ...]]] = [
        (module, frozen, (torch.randn(2, 5, 4),)),
        (module, frozen, (torch.randn(5),)),
        (module, frozen, (good.double(),)),
        (module, frozen, (good[:, :0],)),
        (module, frozen, (good, torch.zeros(1, 3, 4))),
        (module, frozen, (good, torch.zeros(2, 4))),
        (cell, frozen_cell, (torch.randn(2, 4),)),
        (cell, frozen_cell, (torch.randn(2, 3), torch.randn(3, 4))),
        (cell, frozen_cell, (torch.randn(1, 2, 3),)),
    ]
    for theirs, ours, arguments in calls:
        with pytest.raises(Exception) as expected:  # noqa: PT011
            theirs(*arguments)
        with pytest.raises(type(expected.value)) as raised:
            ours(*arguments)
        assert str(raised.value).split(",")[0] == str(expected.value).split(",")[0]
    with pytest.raises(RuntimeError, match=r"lengths\[0\] is 6"):
        frozen(good, lengths=torch.tensor([6, 1]))


def test_autocast_computes_in_float32(weights: str) -> None:
    """As without it, from whatever autocast has made of the input."""
    frozen, data = gru_ext.freeze(nn.GRU(3, 4), weights), torch.randn(5, 2, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frozen(data)[0], frozen(data.double())[0].float())
        output, h_n = frozen(data.bfloat16())
    assert output.dtype == h_n.dtype == torch.float32
    assert torch.equal(output, frozen(data.bfloat16().float())[0])


def test_state_dict(model: Model, data: Tensor, weights: str) -> None:
    """Saves what was frozen, and loads it; plain weights too, which are frozen then; never half of it."""
    frozen, other = gru_ext.freeze(model, weights), gru_ext.freeze(Model(), weights)
    state = frozen.state_dict()
    assert state["encoder.weight_ih_l0"].shape == (72, 12)
    assert state["encoder.weight_ih_l0"].dtype == getattr(torch, weights)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(data), frozen(data))
    other = gru_ext.freeze(Model(), weights)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(data), frozen(data))
    if weights != "int8":
        plain = Model()
        plain.load_state_dict(state)
        assert torch.equal(gru_ext.freeze(plain, weights)(data), frozen(data))
    expected = other(data)
    for name, change in {
        "encoder.weight_hh_l1": lambda value: value[:-3],
        "encoder.bias_hh_l0": lambda value: None,
        "encoder.nonsense": lambda value: torch.zeros(1),
    }.items():
        changed = {**state, name: change(state.get(name))}
        if changed[name] is None:
            del changed[name]
        with pytest.raises(RuntimeError, match=name):
            other.load_state_dict(changed)
    assert torch.equal(other(data), expected)


def test_int8_state_of_minus_128() -> None:
    """Which the kernels do not take."""
    frozen = gru_ext.freeze(nn.GRU(3, 4), "int8")
    state = frozen.state_dict()
    state["weight_hh_l0"][1, 1] = -128
    with pytest.raises(ValueError, match="-128"):
        frozen.load_state_dict(state)


def test_copies(model: Model, data: Tensor, weights: str) -> None:
    """deepcopy, pickle and a file give the same bits, also where the vectors have another width."""
    frozen = gru_ext.freeze(model, weights)
    expected = frozen(data)
    written = pickle.dumps(frozen)
    assert torch.equal(copy.deepcopy(frozen)(data), expected)
    assert torch.equal(pickle.loads(written)(data), expected)
    _C.set_cpu_target("portable")
    there: Any = pickle.loads(written)
    assert there.encoder._packed[0].size(3) == _C.cpu_lanes()
    assert torch.equal(there(data), gru_ext.freeze(model, weights)(data))


def run_in_child(frozen: Any, data: Tensor, connection: Any) -> None:
    """Sends the output, and whether the weights are in shared memory."""
    torch.set_num_threads(1)  # as DataLoader's workers do: OpenMP does not survive a fork
    connection.send((frozen(data)[0].tolist(), frozen._packed[0].is_shared()))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_processes_share_the_weights(model: Model, data: Tensor, way: str) -> None:
    """A forked process has them; one that is spawned gets them by torch's shared memory, not as a copy."""
    frozen = gru_ext.freeze(model, "int8").encoder
    expected = frozen(data)[0].tolist()
    context = multiprocessing.get_context(way)
    here, there = context.Pipe()
    child = context.Process(target=run_in_child, args=(frozen, data, there), daemon=True)
    child.start()
    assert here.poll(120), "no answer within two minutes"
    output, shared = here.recv()
    child.join()
    assert output == expected
    assert shared or way == "fork"


def test_threads_share_a_model(model: Model) -> None:
    """Calls from several threads at once give what each gives alone."""
    frozen = gru_ext.freeze(model, "int8")
    inputs = [torch.randn(2, 20, 12) for _ in range(8)]
    with torch.inference_mode():
        expected = [frozen(input) for input in inputs]

    def call(input: Tensor) -> Tensor:
        with torch.inference_mode():
            return [frozen(input) for _ in range(20)][-1]

    with ThreadPoolExecutor(4) as pool:
        for result, alone in zip(pool.map(call, inputs), expected, strict=True):
            assert torch.equal(result, alone)


def test_explain_shows_the_memory() -> None:
    """Half and about a quarter of float32, and which kernel multiplies bytes."""
    module, data = nn.GRU(256, 256, 2), torch.randn(100, 1, 256)
    plans = {weights: gru_ext.explain(gru_ext.freeze(module, weights), data) for weights in FORMATS}
    for weights, share in {"float32": 1.0, "bfloat16": 0.5, "int8": 0.26}.items():
        plan: Any = plans[weights]
        for layer in plan.layers:
            assert layer.weight_bytes <= 1.005 * share * layer.plain_weight_bytes
            assert layer.passes[0].read_bytes == layer.weight_bytes + layer.input_bytes
        assert f"frozen weights in {weights}" in str(plan)
        assert "1.51 MiB in float32" in str(plan)
    assert plans["int8"].to_dict()["weights"] == "int8"
    with pytest.raises(ValueError, match="no backward pass"):
        gru_ext.explain(gru_ext.freeze(module), data, training=True)


def operator_call(**changes: Any) -> Callable[[], object]:
    """A call of the operator with packed weights of which some arguments are others."""
    frozen: Any = gru_ext.freeze(nn.GRU(6, 20), "int8")
    given = {"input": torch.randn(3, 2, 6), "weights": frozen._packed, "hidden_size": 20, "save": False} | changes
    weights = given["weights"](frozen._packed) if callable(given["weights"]) else given["weights"]
    options = ops.Options(hidden_size=given["hidden_size"], input_size=6)
    arguments = ops.Arguments(given["input"], None, weights, options=options, members=given.get("members"))
    return lambda: ops.forward(*arguments, given["save"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "weight"),
        ({"hidden_size": 200}, "shape"),
        ({"hidden_size": 1 << 30}, "shape"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"input": torch.randn(3, 2, 5)}, r"input\.size\(-1\) is 5; expected 6"),
        ({"input": torch.randn(3, 2, 60)}, r"input\.size\(-1\) is 60; expected 6"),
        ({"input": torch.randn(3, 2, 6).double()}, "expected float32"),
        ({"weights": lambda packed: packed[:4]}, "weights has 4|weights\\[2\\]"),
        ({"weights": lambda packed: [packed[0].float(), *packed[1:]]}, "weights"),
        ({"weights": lambda packed: [packed[0][..., :2], *packed[1:]]}, "weights\\[0\\]"),
        ({"weights": lambda packed: [*packed[:5], packed[5][:, :1]]}, "weights\\[5\\]"),
        ({"weights": lambda packed: [*packed[:5], packed[5].double()]}, "weights\\[5\\]"),
        ({"weights": lambda packed: [packed[0].permute(0, 1, 2, 4, 3), *packed[1:]]}, "weights\\[0\\]"),
        ({"weights": lambda packed: [*packed[:2], packed[2][:5], *packed[3:]]}, "weights\\[2\\]"),
        ({"save": True}, "no backward pass"),
        ({"members": 1}, "ensemble"),
    ],
)
def test_operator_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    """The kernels read packed weights by sizes alone: each of them is checked before."""
    operator_call()()
    with pytest.raises((RuntimeError, ValueError), match=message):
        operator_call(**changes)()


def test_direct_calls_refuse_it_too() -> None:
    """They give nothing, for the operator to say why; an option that is no option is an error at once."""
    frozen: Any = gru_ext.freeze(nn.GRU(6, 20), "int8")
    data, packed = torch.randn(3, 2, 6), frozen._packed
    good = (1, 0, 0, -1, 20, 6)
    assert ops.layer_direct(data, None, packed, None, None, None, None, good) is not None
    for weights, options in (
        (packed[:4], good),
        (packed, (1, 0, 0, -1, 0, 0)),
        (packed, (1, 0, 0, -1, 33, 6)),
        (packed, (*good[:5], 5)),
    ):
        assert ops.layer_direct(data, None, weights, None, None, None, None, options) is None
    for cells in ((None, None, 20, 6), (*packed[4:], 0, 0), (*packed[4:], 20, 5)):
        assert ops.cell_direct(data[0], None, *packed[:4], None, *cells) is None
    for hidden_size in (-3, 0):
        with pytest.raises(RuntimeError, match=f"hidden_size is {hidden_size}"):
            ops.cell_direct(data[0], None, *packed[:4], None, *packed[4:], hidden_size, 6)
    with pytest.raises(RuntimeError, match="expected 6"):
        ops.layer_direct(data, None, packed, None, None, None, None, (*good, 1))


def test_process_of_its_own_runs_it() -> None:
    """In a fresh interpreter, by the portable target."""
    code = (
        "import torch, gru_ext\n"
        "frozen = gru_ext.freeze(torch.nn.GRU(8, 30), 'int8')\n"
        "print(gru_ext.explain(frozen, (1, 1, 8)).layers[0].passes[0].kernel, frozen(torch.zeros(1, 1, 8))[0].shape)"
    )
    assert "portable torch.Size([1, 1, 30])" in check_python(code, GRU_EXT_SIMD="portable")
