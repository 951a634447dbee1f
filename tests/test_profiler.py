"""Ranges in the profiler: one a pass, named for the path taken."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import gru_ext


def ranges(profiler: profile) -> list[str]:
    """Names of our ranges, in the order of time, operators left out."""
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    return [event.name for event in events if event.name.startswith(("gru_ext::forward ", "gru_ext::backward "))]


@pytest.mark.parametrize("layers", [1, 3])
def test_one_range_a_pass_and_layer(layers: int) -> None:
    """A layer's forward and backward each have a range that tells pass, path, dtype and sizes."""
    module = gru_ext.GRU(3, 37, layers, bidirectional=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        module(torch.randn(5, 2, 3))[0].sum().backward()
    names = ranges(profiler)
    assert [name.split()[0] for name in names] == ["gru_ext::forward"] * layers + ["gru_ext::backward"] * layers
    for name in names:
        assert len(name.split()) > 1 and "float32" in name and "H=37" in name, name


def test_range_names_follow_the_dtype() -> None:
    """What ran is told apart by its name."""
    found = set()
    for dtype in (torch.float32, torch.bfloat16):
        with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.no_grad():
            gru_ext.GRU(3, 8, dtype=dtype)(torch.randn(5, 2, 3, dtype=dtype))
        (name,) = ranges(profiler)
        found.add(name)
    assert len(found) == 2


def test_no_backward_range_without_backward() -> None:
    """The control: a forward pass alone shows no backward range, and nn.GRU shows none at all."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        gru_ext.GRU(3, 8)(torch.randn(5, 2, 3))
    assert [name.split()[0] for name in ranges(profiler)] == ["gru_ext::forward"]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.nn.GRU(3, 8)(torch.randn(5, 2, 3))
    assert ranges(profiler) == []


def test_operators_are_in_the_profile() -> None:
    """The operators themselves, as torch records every operator."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        gru_ext.GRU(3, 8)(torch.randn(5, 2, 3))[0].sum().backward()
    names = {event.name for event in profiler.events()}
    assert {"gru_ext::forward", "gru_ext::backward"} <= names
