"""explain tells what plan has decided, for every kind of call, without running any."""

from __future__ import annotations

import io
import itertools
import json
from types import ModuleType
from typing import Any

import lifted
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

import gru_ext
from gru_ext import _C, cost, ops
from gru_ext.measure.floor import Machine


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operator is called."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("explain has run something")

    for name in ("forward", "backward", "layer_direct", "cell_direct"):
        monkeypatch.setattr(ops, name, refuse)


def test_counts() -> None:
    """Operations and bytes of two bidirectional layers, by hand."""
    module = gru_ext.GRU(10, 20, 2, bidirectional=True)
    plan = gru_ext.explain(module, (7, 3, 10))
    assert (plan.device, plan.dtype, plan.seq_len, plan.batch, plan.rows) == ("cpu", "float32", 7, 3, 21)
    assert plan.training and plan.directions == 2 and not plan.packed
    first, second = plan.layers
    assert (first.input_size, second.input_size) == (10, 40)
    assert first.products == ((21, 60, 10, 2), (3, 60, 20, 14))
    assert first.operations == 3 * sum(2 * m * n * k * times for m, n, k, times in first.products)
    assert second.weight_bytes == 4 * sum(
        parameter.numel() for name, parameter in module.named_parameters() if "_l1" in name
    )
    assert (second.input_bytes, second.output_bytes) == (4 * 21 * 40, 4 * 21 * 40)
    assert second.saved_bytes == 4 * 21 * 2 * 5 * 20
    module.recompute = True
    assert gru_ext.explain(module, (7, 3, 10)).layers[1].saved_bytes == 4 * 21 * 2 * 20
    assert gru_ext.explain(module.eval(), (7, 3, 10)).training  # such a call is recorded, and can go backward
    with torch.no_grad():
        untrained = gru_ext.explain(module, (7, 3, 10))
    assert [of_pass.name for of_pass in untrained.layers[0].passes] == ["forward"]
    assert untrained.layers[0].saved_bytes == 0 and untrained.layers[0].operations * 3 == first.operations


def test_saved_bytes_are_what_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure is that of the tensor which autograd then keeps."""
    monkeypatch.undo()
    for recompute in (False, True):
        module = gru_ext.GRU(8, 64, recompute=recompute)
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module(torch.randn(50, 4, 8))
        assert gru_ext.explain(module, (50, 4, 8)).layers[0].saved_bytes in kept


def test_inputs() -> None:
    """Padded, batch first, unbatched, packed, a cell's; tensors and shapes alike."""
    first = gru_ext.GRU(3, 5, batch_first=True)
    packed = pack_padded_sequence(torch.randn(6, 4, 3), [6, 4, 4, 1])
    sizes = [
        (gru_ext.GRU(3, 5), torch.randn(6, 4, 3), (6, 4, 24)),
        (gru_ext.GRU(3, 5), torch.Size((6, 3)), (6, 1, 6)),
        (first, (4, 6, 3), (6, 4, 24)),
        (gru_ext.GRU(3, 5), packed, (6, 4, 15)),
        (gru_ext.GRUCell(3, 5), (4, 3), (1, 4, 4)),
        (gru_ext.GRUCell(3, 5), torch.randn(3), (1, 1, 1)),
    ]
    for module, input, expected in sizes:
        plan = gru_ext.explain(module, input)
        assert (plan.seq_len, plan.batch, plan.rows) == expected
        assert len(plan.layers) == 1 and plan.packed == (input is packed)


def test_lengths_and_resets() -> None:
    """As a call takes them: real steps are counted, what is kept has room for all, a cell has one reset a sequence."""
    module, lengths = gru_ext.GRU(3, 5, batch_first=True), [6, 0, 4, 1]
    padded, plan = gru_ext.explain(module, (4, 7, 3)), gru_ext.explain(module, (4, 7, 3), lengths=lengths)
    assert (plan.seq_len, plan.batch, plan.rows, plan.lengths, plan.resets) == (7, 4, 11, True, None)
    layer = plan.layers[0]
    assert (
        layer.products == ((11, 15, 3, 1), (4, 15, 5, 6)) and layer.operations * 28 == padded.layers[0].operations * 11
    )
    assert layer.saved_bytes == padded.layers[0].saved_bytes and "with lengths (11 of 28 steps)" in str(plan)
    resets = torch.zeros(4, 7, dtype=torch.bool)
    resets[1, 2:5] = True
    both = gru_ext.explain(module, torch.randn(4, 7, 3), None, lengths=torch.tensor(lengths), resets=resets)
    assert both.layers == plan.layers and both.resets == 3 and "(11 of 28 steps), 3 resets" in str(both)
    assert gru_ext.explain(module, (7, 3), lengths=torch.tensor(2)).rows == 2
    assert gru_ext.explain(module, (4, 7, 3), lengths=[0] * 4).layers[0].operations == 0
    assert gru_ext.explain(gru_ext.GRUCell(3, 5), (4, 3), reset=resets[:, 2]).resets == 1
    with pytest.raises(TypeError, match="resets must be a Tensor, got list"):
        gru_ext.explain(module, (4, 7, 3), resets=resets.tolist())
    json.dumps(both.to_dict())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "batch, lengths, times", [(1, None, [7, 31]), (1, [40], [7, 31, 45]), (1, None, [50]), (9, None, [7])]
)
def test_cut_at_resets(
    monkeypatch: pytest.MonkeyPatch, batch: int, lengths: list[int] | None, times: list[int], training: bool
) -> None:
    """As many pieces as the ranges of the profiler tell, of as many steps; none where layers overlap.

    Under a profiler layers never do, so that there are ranges to compare with.
    """
    monkeypatch.undo()
    module, seq_len = gru_ext.GRU(24, 36, 4, batch_first=True), 60
    resets = torch.zeros(batch, seq_len, dtype=torch.bool)
    resets[:, times] = True
    named = {"resets": resets, "lengths": None if lengths is None else torch.tensor(lengths)}
    plan = gru_ext.explain(module, (batch, seq_len, 24), training=training, **named)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.set_grad_enabled(training):
        module(torch.randn(batch, seq_len, 24), **named)[0].sum()
    names = [event.name for event in profiler.events() if event.name.startswith("gru_forward_")]
    bounds = [0, *(time for time in times if time < (lengths or [seq_len])[0]), (lengths or [seq_len])[0]]
    longest = max(after - before for before, after in itertools.pairwise(bounds))
    cut = batch == 1 and 4 * longest <= 3 * seq_len
    for layer in plan.layers:
        passes = [of_pass for of_pass in layer.passes if of_pass.division["split"] != "layers"]
        overlapping = [of_pass for of_pass in layer.passes if of_pass.division["split"] == "layers"]
        assert not any("pieces" in of_pass.division or "pieces" in of_pass.reason for of_pass in overlapping)
        for of_pass in passes:
            assert of_pass.division.get("pieces") == (len(bounds) - 1 if cut else None)
            assert (
                f"cut at the resets into {len(bounds) - 1} pieces of at most {longest} steps" in of_pass.reason
            ) == cut
        if passes:
            assert all(name.endswith(f", {len(bounds) - 1} pieces") == cut for name in names) and len(names) == 4
            state = next(product for product in passes[0].products if product[2] == 36 and product[3] > 1)
            assert state == ((len(bounds) - 1, 108, 36, longest) if cut else (batch, 108, 36, seq_len))


@pytest.mark.parametrize("sorts", [False, True])
def test_packed_data_would_be_saved(sorts: bool) -> None:
    """What lengths= saves: the copies, in bytes that torch's own operators show, the sort, the graph's break."""
    input = torch.randn(6, 4, 3, requires_grad=True)
    lengths = [4, 1, 6, 4] if sorts else [6, 4, 4, 1]
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as pack:
        packed = pack_padded_sequence(input, torch.tensor(lengths), enforce_sorted=not sorts)
    plan = gru_ext.explain(gru_ext.GRU(3, 5, bidirectional=True), packed)
    assert plan.packing == cost.PackingCost(4 * (15 + 24 * sorts) * 3, 4 * (15 + 24 * sorts) * 10, sorts)
    names = [event.name for event in pack.events()]
    assert names.count("aten::index_select") == sorts and names.count("aten::cat") == 1
    text = " ".join(str(plan).split())
    assert text.endswith("break a graph of torch.compile.") and "6 steps of 4 sequences, as it is" in text
    assert f"copy at least {468 if sorts else 180} bytes of input" in text and "as much of gradients" in text
    assert ("sort the sequences" in text) == sorts and "host" not in text
    assert "of gradients" not in str(gru_ext.explain(gru_ext.GRU(3, 5), packed, training=False))
    assert json.loads(json.dumps(plan.to_dict()))["packing"]["sorts"] == sorts
    assert gru_ext.explain(gru_ext.GRU(3, 5), input).packing is None


def test_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that packs is run once: each GRU by name, equal calls counted, and left as it was."""
    monkeypatch.undo()
    model, input = lifted.Tagger(), torch.randn(7, 3, 5)
    gru_ext.replace(model)
    plan = gru_ext.explain(model, input)
    assert [(name, count) for name, count, _ in plan.calls] == [("encoder", 1), ("decoder", 4)]
    encoder = plan.calls[0][2]
    assert encoder.rows == 14 and encoder.packing and encoder.training
    text = str(plan)
    assert text.startswith("encoder: 1 call\ncpu float32: seq_len 7") and text.count("lengths= would take") == 1
    assert "\ndecoder: 4 calls\n" in text and repr(plan) == text and max(map(len, plan.text(80).splitlines())) <= 80
    assert json.loads(json.dumps(plan.to_dict()))["calls"][1]["calls"] == 4
    assert not gru_ext.explain(model, input, training=False).calls[0][2].training
    assert not any(module._forward_pre_hooks for module in model.modules())
    console = pytest.importorskip("rich.console").Console(width=100, file=io.StringIO())
    console.print(plan)
    assert "lengths= would take" in console.file.getvalue()
    idle = lifted.Idle()
    gru_ext.replace(idle)
    with pytest.raises(ValueError, match="Idle calls none of its GRUs"):
        gru_ext.explain(idle, input)


def test_division_follows_threads_and_target() -> None:
    """What plan decides for more threads, another target, few rows."""
    module = gru_ext.GRU(64, 512)
    torch.set_num_threads(1)
    alone = gru_ext.explain(module, (100, 32, 64)).layers[0].passes[0]
    assert alone.division["threads"] == 1 and alone.division["split"] == "none" and "1 thread:" in alone.reason
    torch.set_num_threads(2)
    for batch, split in ((32, "batch"), (1, "hidden units")):
        of_pass = gru_ext.explain(module, (100, batch, 64)).layers[0].passes[0]
        if of_pass.division["threads"] == 2:  # fewer where the machine has but one core
            assert of_pass.division["split"] == split
    _C.set_cpu_target("portable")
    few = gru_ext.explain(module, (1, 1, 64)).layers[0].passes[0]
    assert few.kernel == "portable" and few.division["few_rows"] and "few rows" in few.reason


def test_text_and_json() -> None:
    """One line a pass, no wider than a page; the same through JSON."""
    plan = gru_ext.explain(gru_ext.GRU(80, 256, 2, bidirectional=True, dtype=torch.bfloat16), (100, 1, 80))
    text = str(plan)
    assert text.startswith("cpu bfloat16: seq_len 100, batch 1, hidden_size 256, training")
    assert text.count("  forward  ") == text.count("  backward  ") == 2
    assert "layer 1, input_size 512, both directions" in text and "kept for backward" in text
    assert json.loads(json.dumps(plan.to_dict()))["layers"][1]["passes"][0]["name"] == "forward"


def test_costs_of_passes() -> None:
    """Products, operations and bytes of forward and backward, by hand; recompute adds forward's products."""
    module = gru_ext.GRU(10, 20, bidirectional=True, bias=False)
    layer = gru_ext.explain(module, (7, 3, 10)).layers[0]
    forward, backward = layer.passes
    assert forward.products == layer.products
    assert backward.products == ((3, 20, 60, 14), (21, 10, 60, 2), (60, 10, 21, 2), (60, 20, 21, 2))
    for of_pass in (forward, backward):
        assert of_pass.operations == sum(2 * m * n * k * times for m, n, k, times in of_pass.products)
    assert layer.operations == forward.operations + backward.operations
    weights = 2 * 60 * 30 * 4
    assert (forward.read_bytes, forward.written_bytes) == (840 + weights, 3360 + 16800)
    assert (backward.read_bytes, backward.written_bytes) == (840 + weights + 3360 + 16800, 840 + weights)
    module.recompute = True
    again = gru_ext.explain(module, (7, 3, 10)).layers[0].passes[1]
    assert again.products == (*forward.products, *backward.products)
    packed = pack_padded_sequence(torch.randn(6, 4, 10), [6, 4, 4, 1])
    assert gru_ext.explain(module, packed, training=False).layers[0].operations == 2 * 15 * 60 * 30 * 2


def test_operations_are_those_of_the_products() -> None:
    """And a gradient that is not wanted leaves its product out, as does the state's before the first step."""
    layer = cost.layer_cost(7, 3, 21, 10, 20, 1, bias=True, element_size=4, saved_bytes=0)
    state, of_input, weight_ih, weight_hh = (2 * m * n * k * times for m, n, k, times in layer.backward.products)
    assert layer.backward.operations == state + of_input + weight_ih + weight_hh == 2 * layer.forward.operations
    assert cost.backward_operations(21, 10, 20, input=False, weight_ih=False, weight_hh=False) == state
    assert cost.backward_operations(21, 10, 20, input=False, weight_hh=False) == state + weight_ih
    assert cost.backward_operations(21, 10, 20, weight_ih=False) == state + of_input + weight_hh
    assert cost.backward_operations(21, 10, 20, first_rows=3) == layer.backward.operations - state // 7


def test_floor() -> None:
    """With peaks every pass on the CPU has its floor and cause; without there is none, and nothing is measured."""

    def never(*_: object) -> float:
        raise AssertionError("a peak was measured")

    module = gru_ext.GRU(64, 128)
    here = Machine(lambda *_: 1e9, lambda *_: 1e12, lambda *_: 1e-6)
    plan = gru_ext.explain(module, (10, 4, 64), peaks=here)
    forward, backward = plan.layers[0].passes
    assert forward.limits and backward.limits and forward.limits.cause == "arithmetic"
    assert forward.limits.floor_us == pytest.approx(forward.operations / 1e9 * 1e6)
    assert backward.limits.floor_us == pytest.approx(backward.operations / 1e9 * 1e6)
    assert "floor 5.90 ms, limited by arithmetic" in str(plan)
    assert json.loads(json.dumps(plan.to_dict()))["layers"][0]["passes"][0]["limits"]["cause"] == "arithmetic"
    slow = Machine(lambda *_: 1e12, lambda *_: 1e12, lambda *_: 0.5)
    assert "limited by latency; the smallest layer of as many steps takes 500 ms" in str(
        gru_ext.explain(module, (10, 4, 64), training=False, peaks=slow)
    )
    meta = gru_ext.GRU(3, 4, device="meta")
    assert gru_ext.explain(meta, (5, 2, 3), peaks=Machine(never, never, never)).layers[0].passes[0].limits is None


@pytest.mark.parametrize("width", [60, 80, 120])
def test_text_keeps_to_the_width(width: int) -> None:
    """Plain, and as rich's tables."""
    plan = gru_ext.explain(gru_ext.GRU(80, 1000, 2, bidirectional=True), (1000, 32, 80))
    assert max(map(len, plan.text(width).splitlines())) <= width
    assert repr(plan) == str(plan)
    console = pytest.importorskip("rich.console").Console(width=width, file=io.StringIO())
    console.print(plan)
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    for word in ("forward", "backward", "products", "operations", "kept for backward"):
        assert word in " ".join(printed.split())


def test_reference() -> None:
    """A dtype or device without kernels is told as such."""
    plan = gru_ext.explain(gru_ext.GRU(3, 4, device="meta"), (5, 2, 3))
    assert {of_pass.kernel for of_pass in plan.layers[0].passes} == {"reference"}
    assert "no kernel for torch.float32 on meta" in str(plan) and plan.layers[0].saved_bytes is None


def test_cuda_cell(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table of measurements is for layers: torch's own kernels run a cell, and explain says so."""
    monkeypatch.setattr(ops, "has_kernel", lambda device_type, dtype: True)
    monkeypatch.setattr(gru_ext.explanation, "_device_type", lambda _: "cuda")
    row = ((9, 0), torch.bfloat16, False, False, 1, False, True, (64, 512), (1, 64), 1000)
    gpu.use_measured([(*row, "stationary", 3.0, "an H100", "results/h100")])
    modules = gru_ext.GRU(64, 256, dtype=torch.bfloat16), gru_ext.GRUCell(64, 256, dtype=torch.bfloat16)
    layer, cell = (gru_ext.explain(module, shape) for module, shape in zip(modules, [(1, 8, 64), (8, 64)], strict=True))
    assert {of_layer.kernel for of_layer in layer.layers[0].passes} == {"stationary"}
    assert {of_cell.kernel for of_cell in cell.layers[0].passes} == {"library"}


def test_cuda(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU (here the emulated one, an H100): torch's own kernels, or ours with their partition, and who chose."""
    module = gru_ext.GRU(64, 512, dtype=torch.bfloat16)
    monkeypatch.setattr(ops, "has_kernel", lambda device_type, dtype: True)
    monkeypatch.setattr(gru_ext.explanation, "_device_type", lambda _: "cuda")
    plan = gru_ext.explain(module, (100, 32, 64))
    assert {of_pass.kernel for of_pass in plan.layers[0].passes} == {"library"} and plan.layers[0].saved_bytes is None
    assert str(plan).count("chosen by default, for want of a measurement") == 2
    gpu.choose_cuda_kernel("step", torch.bfloat16, 24, 512, 1, False, True, ratio=1.834, date="2026-11-27")
    plan = gru_ext.explain(module, (100, 32, 64))
    forward = plan.to_dict()["layers"][0]["passes"][0]
    said = "gru_ext.tune on 2026-11-27, with batch 24: 1.83 times as fast as torch's kernels"
    assert (forward["kernel"], forward["source"]) == ("step", said)
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary")
    plan = gru_ext.explain(module, (100, 32, 64))
    forward, backward = plan.layers[0].passes
    assert "chosen by GRU_EXT_CUDA_KERNEL" in str(plan)
    assert forward.kernel == backward.kernel == "stationary"
    assert (forward.division["exchange"], forward.division["blocks"]) == ("cluster", 8)
    assert "W_hh stays in the registers of 8 blocks" in forward.reason
    assert forward.division["groups"] * forward.division["group_batch"] >= 32
    assert forward.division["shared_bytes"] < 227 * 1024
    odd = gru_ext.explain(gru_ext.GRU(64, 33, dtype=torch.bfloat16), (100, 32, 64))
    assert odd.layers[0].saved_bytes == 2 * 100 * 32 * 5 * 40  # a row has room for 40 units
    packed = pack_padded_sequence(torch.randn(6, 4, 64), [6, 4, 4, 1])
    assert "read the lengths on the host" in " ".join(str(gru_ext.explain(module, packed)).split())
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "library")
    marked = gru_ext.explain(module, (100, 32, 64), lengths=[50] * 32).layers[0].passes
    assert "library" not in {of_pass.kernel for of_pass in marked}  # which knows no lengths
    assert "torch's own kernels, which were chosen, cannot" in marked[0].reason
    assert marked[0].products[0].rows == 3200  # the host does not know them
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "wavefront")
    for layers, overlap in ((1, False), (2, True)):
        plan = gru_ext.explain(gru_ext.GRU(64, 512, layers, dtype=torch.bfloat16), (100, 32, 64))
        assert ("layers overlap" in plan.layers[0].passes[0].reason) == overlap


@pytest.mark.parametrize(
    ("input", "said"),
    [((5, 2, 4), "last of size 3"), ((3,), "2 or 3 dimensions"), ((0, 2, 3), "at least one step"), ((-1, 2, 3), "-1")],
)
def test_bad_shapes(input: tuple[int, ...], said: str) -> None:
    """A sentence that names what was given."""
    with pytest.raises(ValueError, match=said):
        gru_ext.explain(gru_ext.GRU(3, 4), input)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"lengths": [5, 2, 1]}, "lengths must be 2"),
        ({"lengths": [5, 6]}, r"lengths\[1\] must be from 0 to 5, got 6"),
        ({"lengths": torch.tensor([-1, 2])}, r"lengths\[0\] must be from 0 to 5, got -1"),
        ({"resets": torch.zeros(5, 3, dtype=torch.bool)}, r"resets must have a value for each of 10 steps, got \[5, 3"),
    ],
)
def test_bad_lengths_and_resets(named: dict[str, Any], said: str) -> None:
    """The same; of a packed input both."""
    with pytest.raises(ValueError, match=said):
        gru_ext.explain(gru_ext.GRU(3, 4), (5, 2, 3), **named)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), [5, 2])
    with pytest.raises(ValueError, match=f"{next(iter(named))} are for padded input"):
        gru_ext.explain(gru_ext.GRU(3, 4), packed, **named)


def test_other_modules() -> None:
    """Only gru_ext's modules can be explained, called as they can be."""
    with pytest.raises(ValueError, match=r"GRU has no gru_ext.GRU.*gru_ext.replace"):
        gru_ext.explain(nn.GRU(3, 4), (5, 2, 3))
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, got int"):
        gru_ext.explain(3, (5, 2, 3))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="GRUCell takes no argument 'lengths'"):
        gru_ext.explain(gru_ext.GRUCell(3, 4), (2, 3), lengths=[1, 1])
    packed = pack_padded_sequence(torch.randn(6, 4, 3), [6, 4, 4, 1])
    with pytest.raises(ValueError, match="PackedSequence"):
        gru_ext.explain(gru_ext.GRUCell(3, 4), packed)
