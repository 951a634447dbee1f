"""Ranges in the profiler: one a pass, named for the path taken."""

from __future__ import annotations

from types import ModuleType

import emulated
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

import gru_ext
from gru_ext import _C


def ranges(profiler: profile) -> list[str]:
    """Names of our ranges, in the order of time, operators left out."""
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    return [event.name for event in events if event.name.startswith(("gru_forward_", "gru_backward_"))]


@pytest.mark.parametrize("layers", [1, 3])
def test_one_range_a_pass_and_layer(layers: int) -> None:
    """A layer's forward and backward each have a range that tells pass, path, dtype and sizes."""
    module = gru_ext.GRU(3, 37, layers, bidirectional=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        module(torch.randn(5, 2, 3))[0].sum().backward()
    names = ranges(profiler)
    target = _C.cpu_target()
    first = [name.split()[0] for name in names]
    assert first == [f"gru_forward_{target}"] * layers + [f"gru_backward_{target}"] * layers
    for index, name in enumerate(names):
        input_size = 3 if index in (0, 2 * layers - 1) else 74
        assert f" fp32 T=5 B=2 I={input_size} H=37 D=2, 1 thread" in name, name


def test_range_names_follow_the_dtype() -> None:
    """What ran is told apart by its name."""
    for dtype, short in (
        (torch.float32, "fp32"),
        (torch.bfloat16, "bf16"),
        (torch.float16, "fp16"),
        (torch.float64, "fp64"),
    ):
        with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.no_grad():
            gru_ext.GRU(3, 8, dtype=dtype)(torch.randn(5, 2, 3, dtype=dtype))
        (name,) = ranges(profiler)
        assert name.split()[1] == short


def test_packed_ranges_tell_the_rows() -> None:
    """B is the largest batch of a step; how many rows there are in all is told beside it."""
    packed = pack_padded_sequence(torch.randn(5, 2, 3), [5, 2])
    with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.no_grad():
        gru_ext.GRU(3, 8)(packed)
    (name,) = ranges(profiler)
    assert " T=5 B=2 I=3 H=8 D=1 rows=7," in name


def test_no_backward_range_without_backward() -> None:
    """The control: a forward pass alone shows no backward range, and nn.GRU shows none at all."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        gru_ext.GRU(3, 8)(torch.randn(5, 2, 3))
    assert [name.split("_")[:2] for name in ranges(profiler)] == [["gru", "forward"]]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.nn.GRU(3, 8)(torch.randn(5, 2, 3))
    assert ranges(profiler) == []


def test_operators_are_in_the_profile() -> None:
    """The operators themselves, as torch records every operator."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        gru_ext.GRU(3, 8)(torch.randn(5, 2, 3))[0].sum().backward()
    names = {event.name for event in profiler.events()}
    assert {"gru_ext::forward", "gru_ext::backward"} <= names


@pytest.mark.parametrize("kernel", ["step", "solo"])
def test_cuda_ranges(kernel: str, emulated_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, here the emulated one, the path is the kernel's name."""
    emulated.choose(monkeypatch, kernel)
    module = gru_ext.GRU(3, 64, dtype=torch.bfloat16)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        module(torch.randn(2, 1, 3, dtype=torch.bfloat16))[0].sum().backward()
    assert ranges(profiler) == [f"gru_{name}_{kernel} bf16 T=2 B=1 I=3 H=64 D=1" for name in ("forward", "backward")]
