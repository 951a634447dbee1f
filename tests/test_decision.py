"""Which strategy and kernel run on CUDA, and who decides: the order of the deciders, and what each holds for.

On the emulated GPU: tensors on the CPU are taken for its own.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any
from unittest.mock import Mock

import measured_table
import pytest
import torch
from torch import Tensor

import gru_ext
from gru_ext import ops
from gru_ext.cuda import decision, wavefront

pytestmark = pytest.mark.usefixtures("gpu")

Layers = tuple[torch.dtype, int, int, int, bool, bool]
KEY: Layers = (torch.bfloat16, 32, 256, 1, False, True)  # dtype, batch, hidden_size, directions, packed, training
ROW = (
    (9, 0), torch.bfloat16, False, False, 1, False, True, (128, 512), (1, 64), 1000,
    "stationary", 1.6, "an H100", "results/h100",
)  # fmt: skip
DEFAULT = "default, for want of a measurement"


def decided(layers: Layers = KEY, seq_len: int = 1) -> decision.Decision:
    """The decision for such layers."""
    return decision.decide(layers[0], seq_len, *layers[1:])


def chosen(layers: Layers = KEY, seq_len: int = 1) -> str:
    """The same as the word that asks for it."""
    strategy, kernel, _ = decided(layers, seq_len)
    return kernel if strategy == "kernels" else strategy


def but(index: int, value: Any) -> Layers:
    """KEY with another value."""
    values: Any = (*KEY[:index], value, *KEY[index + 1 :])
    return values


@pytest.mark.parametrize(
    ("word", "strategy", "kernel"),
    [
        ("library", "library", "step"),
        ("wavefront", "wavefront", "stationary"),
        ("step", "kernels", "step"),
        ("stationary", "kernels", "stationary"),
    ],
)
def test_words(monkeypatch: pytest.MonkeyPatch, word: str, strategy: str, kernel: str) -> None:
    """Each names a strategy and one of our kernels; without a word the library runs."""
    assert decided() == ("library", "step", DEFAULT)
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", word)
    assert decided() == (strategy, kernel, "GRU_EXT_CUDA_KERNEL") and chosen() == word


@pytest.mark.parametrize("word", ["fastest", "solo", "cluster", "grid", "kernels"])
def test_unknown_words(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """The message names those that there are."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", word)
    said = f"GRU_EXT_CUDA_KERNEL is {word}; expected library, wavefront, step or stationary"
    with pytest.raises(ValueError, match=said):
        gru_ext.GRU(3, 4)(torch.randn(2, 1, 3))


def test_order(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment, trial, tuned, table, library."""
    gpu.use_measured([ROW])
    assert decided() == (
        "kernels",
        "stationary",
        "measurements on an H100 (results/h100): 1.60 times as fast as torch's kernels in the geometric mean",
    )
    assert gpu.cuda_passes(torch.bfloat16, 9, 8, 3, 256, 1, False, True)[0]["exchange"] == "cluster"
    gpu.choose_cuda_kernel("library", *KEY)
    assert chosen() == "library" and "gru_ext.tune" in decided().source
    gpu.begin_cuda_trial("stationary", *KEY)
    gpu.begin_cuda_trial("wavefront", *KEY)
    assert decided() == ("wavefront", "stationary", "a trial of gru_ext.tune")
    assert chosen(but(1, 33)) == "library"  # a trial is for its batch alone
    gpu.end_cuda_trial()
    assert chosen() == "stationary"
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "step")
    assert decided() == ("kernels", "step", "GRU_EXT_CUDA_KERNEL")
    gpu.end_cuda_trial()


def test_choices_hold_for_like_layers(gpu: ModuleType) -> None:
    """For batches from half to twice the size, the nearest first; for other layers the library stays."""
    assert chosen() == "library"
    gpu.choose_cuda_kernel("stationary", *KEY)
    assert chosen() == "stationary"
    batches = [chosen(but(1, batch)) for batch in (15, 16, 33, 64, 65)]
    assert batches == ["library", *["stationary"] * 3, "library"]
    others = [(0, torch.float16), (2, 255), (3, 2), (4, True), (5, False)]
    assert [chosen(but(*other)) for other in others] == ["library"] * 5
    gpu.choose_cuda_kernel("step", *but(1, 60))
    assert [chosen(but(1, batch)) for batch in (32, 40, 50, 100)] == ["stationary", "stationary", "step", "step"]
    gpu.choose_cuda_kernel("library", *KEY)
    assert chosen() == "library"
    for add in (gpu.choose_cuda_kernel, gpu.begin_cuda_trial):
        with pytest.raises(ValueError, match="the kernel is fast; expected library, wavefront"):
            add("fast", *KEY)


def test_choices_are_for_one_gpu(gpu: ModuleType) -> None:
    """Of this name and compute capability; TF32 matters to float32 alone."""
    for model in (("another", 9, 0), ("emulated H100", 9, 1), ("emulated H100", 8, 0)):
        gpu.choose_cuda_kernel("step", *KEY, gpu=model)
        assert chosen() == "library"
    gpu.choose_cuda_kernel("step", *KEY, tf32=True, gpu=gpu.cuda_gpu())
    assert chosen() == "step"
    gpu.choose_cuda_kernel("step", *but(0, torch.float32), tf32=True)
    assert chosen(but(0, torch.float32)) == "library"


def test_edges_of_the_table(gpu: ModuleType) -> None:
    """Bounds belong to the range; whatever else differs is another layer."""
    gpu.use_measured([ROW])
    inside = [but(1, batch) for batch in (1, 64)] + [but(2, size) for size in (128, 512)]
    assert {chosen(layers) for layers in inside} == {"stationary"}
    outside = [(1, 0), (1, 65), (2, 127), (2, 513), (0, torch.float16), (3, 2), (4, True), (5, False)]
    assert [chosen(but(*other)) for other in outside] == ["library"] * len(outside)
    lengths = [chosen(seq_len=seq_len) for seq_len in (1, 1000, 1001, 0)]  # the last is a cell's
    assert lengths == ["stationary", "stationary", "library", "library"]
    gpu.use_measured([((8, 0), *ROW[1:])])
    assert chosen() == "library"
    gpu.use_measured([(*ROW[:10], "step", *ROW[11:]), ROW])  # the first decides
    assert chosen() == "step"
    with pytest.raises(ValueError, match="the kernel is fast; expected library"):
        gpu.use_measured([(*ROW[:10], "fast", *ROW[11:])])


@pytest.mark.parametrize("measured", measured_table.ALLOWED_TF32.values())
@pytest.mark.parametrize("allowed", [(ours, torchs) for ours in (False, True) for torchs in (False, True)])
def test_tf32(gpu: ModuleType, measured: tuple[bool, bool], allowed: tuple[bool, bool]) -> None:
    """A row of float32 is for what both sides were allowed when it was measured; one of bfloat16 for any."""
    gpu.use_measured([(ROW[0], torch.float32, *measured, *ROW[4:]), ROW])
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch, on in zip(switches, allowed, strict=True):
            switch.allow_tf32 = on
        words = chosen(but(0, torch.float32)), chosen()
    finally:
        for switch, on in zip(switches, before, strict=True):
            switch.allow_tf32 = on
    assert words == ("stationary" if measured == allowed else "library", "stationary")


def decided_call(input: Tensor, **options: Any) -> decision.Decision | None:
    """Of a stack of two layers of one direction, unless the options say otherwise."""
    usual = {"hidden_size": 5, "directions": 1, "num_layers": 2, "batch_first": False, "batch_sizes": None}
    return decision.decide_call(input, **(usual | {"training": False, "recompute": False} | options))


def test_a_call_runs_layer_by_layer_where_the_strategy_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library with recompute and without cuDNN; layers that overlap of one layer, both ways, packed and few steps.

    The kernel stays as it was decided.
    """
    input = torch.randn(wavefront.STEPS + 1, 2, 3)
    layer_by_layer = ("kernels", "step", DEFAULT)
    assert decided_call(input) == ("library", "step", DEFAULT)
    assert decided_call(input, recompute=True) == layer_by_layer
    with torch.backends.cudnn.flags(enabled=False):
        assert decided_call(input) == layer_by_layer
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "wavefront")
    overlapping = ("wavefront", "stationary", "GRU_EXT_CUDA_KERNEL")
    assert decided_call(input) == decided_call(input, recompute=True) == overlapping
    assert decided_call(input.transpose(0, 1), batch_first=True) == overlapping
    packed = {"batch_sizes": torch.tensor([2] * len(input))}
    for options in ({"num_layers": 1}, {"directions": 2}, {"batch_first": True}, packed):
        assert decided_call(input, **options) == ("kernels", *overlapping[1:])


def test_a_call_is_decided_by_its_sizes(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the layout; a cell has no steps, and under autocast the dtype is the one that it is cast to."""
    native = Mock(wraps=gpu)
    monkeypatch.setattr(decision, "native", native)
    decided_call(torch.randn(7, 4, 3), training=True)
    decided_call(torch.randn(4, 7, 3), batch_first=True, directions=2)
    decided_call(torch.randn(9, 3), batch_sizes=torch.tensor([4, 3, 2]))
    decided_call(torch.randn(4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        decided_call(torch.randn(7, 4, 3))
        decided_call(torch.randn(7, 4, 3).double())
    assert [call.args for call in native.cuda_decide.call_args_list] == [
        (torch.float32, 7, 4, 5, 1, False, True, -1),
        (torch.float32, 7, 4, 5, 2, False, False, -1),
        (torch.float32, 3, 4, 5, 1, True, False, -1),
        (torch.float32, 0, 4, 5, 1, False, False, -1),
        (torch.bfloat16, 7, 4, 5, 1, False, False, -1),
        (torch.float64, 7, 4, 5, 1, False, False, -1),
    ]


def test_calls_that_have_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device or dtype, no units."""
    assert decided_call(torch.randn(7, 4, 3, dtype=torch.complex64)) is None
    assert decided_call(torch.randn(7, 4, 3), hidden_size=0) is None
    monkeypatch.setattr(ops, "on_cuda", lambda _: False)
    assert decided_call(torch.randn(7, 4, 3)) is None


@pytest.mark.parametrize("word", ["library", "wavefront", "stationary"])
def test_a_call_decides_once(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """Of a stack of four layers, whichever strategy runs."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", word)
    monkeypatch.setattr(wavefront, "STEPS", 4)
    decide = Mock(wraps=decision.decide)
    monkeypatch.setattr(decision, "decide", decide)
    gru_ext.GRU(3, 5, 4)(torch.randn(9, 2, 3))
    assert decide.call_count == 1
