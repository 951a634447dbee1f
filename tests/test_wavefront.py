"""Stacked layers that overlap (gru_ext/cuda/wavefront.py), on the emulated GPU, which has no streams: what is computed.

The streams themselves are looked at through stand-ins here, and on a GPU in test_cuda.py."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import cases
import gate
import pytest
import torch
from cases import Case

import gru_ext
from gru_ext import ops
from gru_ext.cuda import decision, wavefront


@pytest.fixture
def chosen(emulated_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors count as on a GPU, the wavefront is asked for, a chunk has 4 steps."""
    monkeypatch.setattr(ops, "on_cuda", lambda _: True)
    monkeypatch.setattr(decision, "native", emulated_gpu)
    monkeypatch.setattr(wavefront, "STEPS", 4)
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "wavefront")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers overlapped, call by call."""
    counts: list[int] = []
    original = wavefront.gru

    def counted(layer: Any, layers: Any, dropout: float) -> Any:
        counts.append(len(layers))
        return original(layer, layers, dropout)

    monkeypatch.setattr(wavefront, "gru", counted)
    return counts


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(("seq_len", "layers"), [(9, 2), (8, 3), (5, 4)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_parity(taken: list[int], seq_len: int, layers: int, batch_first: bool, dtype: torch.dtype) -> None:
    """Whole chunks and a part of one, in every dtype: outputs and all gradients."""
    case = Case(seq_len, 3, 5, 20, dtype, layers=layers, batch_first=batch_first, seed=seq_len)
    cases.check(gru_ext.GRU, case)
    assert taken and set(taken) == {layers}


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize(
    "case",
    [
        Case(4, 3, 5, 20, torch.float32, layers=2),
        Case(9, 3, 5, 20, torch.float32, layers=1),
        Case(9, 3, 5, 20, torch.float32, layers=2, bidirectional=True),
        Case(9, 3, 5, 20, torch.float32, layers=2, packed="sorted"),
    ],
    ids=["one chunk", "one layer", "two directions", "packed"],
)
def test_what_cannot_overlap_goes_layer_by_layer(taken: list[int], case: Case) -> None:
    """And is right."""
    cases.check(gru_ext.GRU, case)
    assert not taken


@pytest.mark.usefixtures("chosen")
def test_dropout_and_recompute(taken: list[int]) -> None:
    """Dropout lies between the layers alone; recompute changes no bit of the output."""
    module = gru_ext.GRU(5, 20, 2, dropout=1.0)
    output, _ = module(torch.randn(9, 3, 5))
    silent = gru_ext.GRU(20, 20)  # the second layer, of which the input is 0
    silent.load_state_dict({name: getattr(module, name.replace("l0", "l1")) for name in silent.state_dict()})
    assert gate.same_bits(output, silent(torch.zeros(9, 3, 20))[0]) and taken == [2]
    module.eval()
    input = torch.randn(9, 3, 5)
    expected = module(input)[0]
    module.recompute = True
    again = module(input)[0]
    assert gate.same_bits(again, expected)
    again.sum().backward()
    assert module.weight_hh_l0.grad is not None and module.weight_hh_l0.grad.isfinite().all()


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_the_mask_of_torch(taken: list[int], batch_first: bool) -> None:
    """Of all steps at once, not chunk by chunk."""
    theirs, ours = cases.twins(gru_ext.GRU, 5, 20, 3, dropout=0.4, batch_first=batch_first)
    input = torch.randn(9, 6, 5)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(17)
        output, h_n = module(input)
        gradients = torch.autograd.grad(output.pow(2).sum(), list(module.parameters()))
        results.append([output, h_n, *gradients, torch.get_rng_state()])
    for value, other in zip(*results, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)
    assert taken == [3]


class Streams:
    """Stand-ins for torch.cuda's streams, which note what is asked of them."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Streams) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


def test_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer waits for the one below before each chunk; all streams are joined to the caller's at both ends."""
    log: list[str] = []
    made = iter("123")

    class Using:
        def __init__(self, stream: Streams) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            log.append(f"on {self.stream.name}")

        def __exit__(self, *_: object) -> None:
            log.append("off")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Streams("0", log))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Streams(next(made), log))
    monkeypatch.setattr(torch.cuda, "stream", Using)
    monkeypatch.setattr(wavefront, "_side_streams", {})
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: log.append(f"kept for {stream.name}"))
    streams = wavefront._Streams(torch.device("cuda", 0), 3)
    assert log == ["1 waits for 0", "2 waits for 0"]
    log.clear()
    chunk = torch.zeros(1)
    for index in range(3):
        with streams.at(index, chunk):
            pass
    streams.join([chunk])
    assert log == [
        *("on 0", "off"),
        *("1 waits for 0", "kept for 1", "on 1", "off"),
        *("2 waits for 1", "kept for 2", "on 2", "off"),
        *("0 waits for 1", "0 waits for 2", "kept for 0"),
    ]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [100, 300])
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, hidden_size: int, dtype: torch.dtype) -> None:
    """The gate, again and again while the memory of earlier calls is used anew, and on a stream of the caller's."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "wavefront")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.cuda.stream(torch.cuda.Stream()):
        for seed in range(5):
            cases.check(gru_ext.GRU, Case(200, 4, 30, hidden_size, dtype, layers=3, seed=seed), "cuda")
