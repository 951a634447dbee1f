"""The CUDA kernels on a real GPU, beyond test_backends.py: large sizes, streams, graphs, no synchronisation."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import emulated
import gate
import pytest
import torch
from cases import Case
from processes import check_python
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext
from gru_ext import ops

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("full_float32")]


# What GRU_EXT_CUDA_KERNEL asks for: the step path, and whichever kernel keeps the weights on the chip.
KERNELS = ("step", "stationary")


@pytest.fixture(autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that a test is parametrized with, else the step path."""
    emulated.choose(monkeypatch, getattr(request, "param", "step"))


every_kernel = pytest.mark.parametrize("kernel", KERNELS, indirect=True)


def run(module: nn.Module, input: Tensor, lengths: list[int] | None = None) -> dict[str, Tensor]:
    """Forward and backward; gradients returned, not accumulated."""
    data = input if lengths is None else pack_padded_sequence(input, lengths)
    output, h_n = module(data)
    rows = output if lengths is None else output.data
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(rows.sum() + h_n.pow(2).sum(), list(parameters.values()))
    return {"output": rows.detach(), "h_n": h_n.detach(), **dict(zip(parameters, gradients, strict=True))}


@every_kernel
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("size", [(20, 65, 30, 512), (7, 128, 128, 256), (300, 3, 16, 64)], ids=str)
def test_larger_sizes(size: tuple[int, ...], dtype: torch.dtype) -> None:
    """Many thread blocks, and a longer sequence."""
    cases.check(gru_ext.GRU, Case(*size, dtype, bidirectional=True, packed="unsorted", seed=size[0]), "cuda")


@every_kernel
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_sanitizer(dtype: torch.dtype) -> None:
    """Small, and every kernel of the dtype: for compute-sanitizer."""
    for hidden_size in (17, 64, 150, 520):  # narrow and wide accesses; solo, cluster and grid
        cases.check(gru_ext.GRU, Case(3, 5, 4, hidden_size, dtype, bidirectional=True, packed="sorted", seed=5), "cuda")


@every_kernel
def test_more_than_2_to_the_31_elements() -> None:
    """Offsets beyond 32 bits: the sequences at both ends of a batch of 180,000, held to the gate."""
    batch, seq_len, hidden_size = 180_000, 64, 64  # 11.5 million rows; 2.2e9 gates, 3.7e9 values kept for backward
    free, _ = torch.cuda.mem_get_info()
    if free < 40e9:
        pytest.skip(f"needs 40 GB of GPU memory, {free / 1e9:.0f} GB are free")
    picked = [0, 1, batch // 2, batch - 2, batch - 1]
    theirs, ours = cases.twins(gru_ext.GRU, 4, hidden_size)
    results = {}
    for name, module, dtype, whole in (
        ("truth", theirs, torch.float64, False),
        ("reference", theirs, torch.bfloat16, False),
        ("candidate", ours, torch.bfloat16, True),
    ):
        module = module.bfloat16().to("cpu" if name == "truth" else "cuda", dtype)
        generator = torch.Generator().manual_seed(3)
        few = torch.randn(seq_len, len(picked), 4, generator=generator).bfloat16()
        gradient = torch.randn(seq_len, len(picked), hidden_size, generator=generator).bfloat16()
        device = next(module.parameters()).device
        input, grad_output = few.to(device, dtype), gradient.to(device, dtype)
        if whole:
            every = torch.zeros(seq_len, batch, 4, device=device, dtype=dtype)
            every[:, picked] = input
            grad_every = torch.zeros(seq_len, batch, hidden_size, device=device, dtype=dtype)
            grad_every[:, picked] = grad_output
            input, grad_output = every, grad_every
        input.requires_grad_()
        output, _ = module(input)
        (grad_input,) = torch.autograd.grad(output, input, grad_output)
        results[name] = {"output": output.detach(), "grad input": grad_input}
        if whole:
            results[name] = {key: value[:, picked].clone() for key, value in results[name].items()}
    gate.check(results["candidate"], results["reference"], results["truth"])


@every_kernel
def test_tf32_follows_torchs_switch() -> None:
    """With allow_tf32 both libraries may use TF32: the gate holds there too."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    cases.check(gru_ext.GRU, Case(6, 33, 64, 256, torch.float32, seed=2), "cuda")


@pytest.mark.parametrize("kernel", ["library"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_torchs_own_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for and by default: the bits of nn.GRU, from weights in one piece; backward in eval mode, too."""
    theirs, ours = cases.twins(gru_ext.GRU, 16, 48, 2, bidirectional=True, device="cuda", dtype=dtype)
    input = torch.randn(12, 6, 16, device="cuda", dtype=dtype)
    for lengths in (None, [12, 9, 9, 4, 1, 1]):
        expected = run(theirs, input, lengths)
        with warnings.catch_warnings():
            if dtype != torch.bfloat16:  # of which nn.RNNBase.flatten_parameters makes no piece
                warnings.simplefilter("error")  # cuDNN warns of weights that it has to gather at each call
            gate.assert_same_bits(run(ours, input, lengths), expected, "library")
            monkeypatch.delenv("GRU_EXT_CUDA_KERNEL")
            gate.assert_same_bits(run(ours.eval(), input, lengths), expected, "by default")
            emulated.choose(monkeypatch, "library")
    with torch.autocast("cuda", dtype=torch.float16):
        assert ours.float()(input.float())[0].dtype == torch.float16


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_tune(dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel is right, and explain then names the fastest."""
    monkeypatch.delenv("GRU_EXT_CUDA_KERNEL")
    module = gru_ext.GRU(64, 256, device="cuda", dtype=dtype)
    input = torch.randn(64, 16, 64, device="cuda", dtype=dtype)
    tuning = gru_ext.tune(module, input, training=training, rounds=5)
    assert all(candidate.error <= 1 for candidate in tuning.candidates), tuning
    passes = gru_ext.explain(module, input, training=training).layers[0].passes
    assert {plan.kernel for plan in passes} == {tuning.kernel}
    assert all(plan.source.startswith("gru_ext.tune on ") for plan in passes)


def test_saved_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tune has saved is used in a fresh process whose first decision is a compiled graph's."""
    monkeypatch.delenv("GRU_EXT_CUDA_KERNEL")
    file = tmp_path / "choices.json"
    module = gru_ext.GRU(64, 256, device="cuda", dtype=torch.bfloat16)
    input = torch.randn(64, 16, 64, device="cuda", dtype=torch.bfloat16)
    gru_ext.tune(module, input, training=False, rounds=2, save=file)
    script = """
import torch, gru_ext
module = gru_ext.GRU(64, 256, device="cuda", dtype=torch.bfloat16)
input = torch.randn(64, 16, 64, device="cuda", dtype=torch.bfloat16)
with torch.no_grad():
    torch.compile(module, backend="eager", fullgraph=True)(input)
print(gru_ext.explain(module, input, training=False).layers[0].passes[0].source)
"""
    assert check_python(script, GRU_EXT_CUDA_CHOICES=str(file)).startswith("gru_ext.tune on ")


@pytest.mark.alone
@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_current_stream(dtype: torch.dtype) -> None:
    """On a stream of one's own, after work on it that takes a while: no use of the default stream."""
    module = gru_ext.GRU(64, 256, 2, device="cuda", dtype=dtype)
    input = torch.randn(30, 8, 64, device="cuda", dtype=dtype)
    expected = run(module, input)
    stream = torch.cuda.Stream()
    late = torch.zeros_like(input)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # clock cycles: what runs elsewhere would see zeros
        late.copy_(input)
        results = run(module, late)
    stream.synchronize()
    gate.assert_same_bits(results, expected, "another stream")


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_synchronisation(dtype: torch.dtype) -> None:
    """Neither pass waits for the device or reads from it."""
    module = gru_ext.GRU(16, 150, 2, bidirectional=True, device="cuda", dtype=dtype)
    input = torch.randn(5, 4, 16, device="cuda", dtype=dtype, requires_grad=True)
    packed = pack_padded_sequence(input.detach(), [5, 3, 3, 1])
    packed.data.requires_grad_()
    for data in (input, packed):
        module(data)[1].sum().backward()  # libraries initialise themselves
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            module(data)[1].sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(RuntimeError, match="synchroniz"):  # the control: the mode does see a synchronisation
        torch.cuda.set_sync_debug_mode("error")
        try:
            input.sum().item()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.alone
@every_kernel
@pytest.mark.parametrize("lengths", [None, [12, 9, 9, 4, 1, 1]], ids=["padded", "packed"])
@pytest.mark.parametrize("hidden_size", [48, 150, 520])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graph_capture(dtype: torch.dtype, hidden_size: int, lengths: list[int] | None) -> None:
    """A captured forward and backward replays on new numbers with the bits of eager mode."""
    module = gru_ext.GRU(16, hidden_size, 2, bidirectional=True, device="cuda", dtype=dtype)
    input = torch.randn(12, 6, 16, device="cuda", dtype=dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(module, input, lengths)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(module, input, lengths)
    for _ in range(3):
        input.copy_(torch.randn(12, 6, 16, device="cuda", dtype=dtype))
        graph.replay()
        torch.cuda.synchronize()
        replayed = {name: value.clone() for name, value in captured.items()}
        gate.assert_same_bits(replayed, run(module, input, lengths), "replay")


@pytest.mark.alone
@every_kernel
@pytest.mark.parametrize("hidden_size", [48, 150, 520])
def test_make_graphed_callables(hidden_size: int) -> None:
    """Trained through torch.cuda.make_graphed_callables a module gives the bits of eager mode, on new numbers."""
    eager = gru_ext.GRU(16, hidden_size, 2, bidirectional=True, device="cuda")
    graphed = gru_ext.GRU(16, hidden_size, 2, bidirectional=True, device="cuda")
    graphed.load_state_dict(eager.state_dict())
    sample = torch.randn(12, 6, 16, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(graphed, (sample,))
    for _ in range(3):
        input = torch.randn(12, 6, 16, device="cuda")
        results = []
        for module in (graphed, eager):
            module.zero_grad()
            data = input.clone().requires_grad_()
            output, h_n = module(data)
            (output.sum() + h_n.pow(2).sum()).backward()
            gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
            results.append({"output": output.clone(), "h_n": h_n.clone(), "input": data.grad, **gradients})
        gate.assert_same_bits(*results, "graphed")


@pytest.mark.alone
@every_kernel
@pytest.mark.parametrize("training", [True, False])
def test_reduce_overhead(training: bool) -> None:
    """torch.compile(mode="reduce-overhead") captures the operators; replays give the numbers of eager mode."""
    module = gru_ext.GRU(16, 150, 2, bidirectional=True, device="cuda").train(training)
    parameters = list(module.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, mode="reduce-overhead")
    for _ in range(5):  # the first calls warm up and capture
        input = torch.randn(12, 6, 16, device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        with torch.set_grad_enabled(training):
            results = []
            for call in (compiled, module):
                output, h_n = call(input)
                gradients = torch.autograd.grad(output.sum() + h_n.sum(), parameters) if training else ()
                results.append([tensor.clone() for tensor in (output, h_n, *gradients)])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


def test_autocast_casts_once() -> None:
    """In one block the weights are cast once, and their gradients are the sum of both calls'."""
    module = gru_ext.GRU(8, 16, device="cuda")
    input = torch.randn(5, 2, 8, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        first = ops.kept_casts(list(module.parameters()))
        loss = module(input)[0].float().sum() + module(input)[0].float().sum()
        second = ops.kept_casts(list(module.parameters()))
    assert all(cast is again for cast, again in zip(first, second, strict=True))
    loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.alone
@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(40, 72), (200, 300), (520, 600)], ids=str)
def test_two_threads_on_two_streams(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    """Two threads, a stream and a module each, get what one thread gets; two grids at once do not hang."""
    modules = [gru_ext.GRU(24, size, 2, device="cuda", dtype=dtype) for size in sizes]
    inputs = [torch.randn(10, 8, 24, device="cuda", dtype=dtype) for _ in modules]
    expected = [run(module, input) for module, input in zip(modules, inputs, strict=True)]
    torch.cuda.synchronize()

    def repeat(index: int) -> list[dict[str, Tensor]]:
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [run(modules[index], inputs[index]) for _ in range(30)]
            torch.cuda.current_stream().synchronize()
        return results

    with ThreadPoolExecutor(2) as pool:
        for index, results in enumerate(pool.map(repeat, range(2))):
            for result in results:
                gate.assert_same_bits(result, expected[index], f"thread {index}")


def test_mixed_devices_are_refused() -> None:
    """Tensors on two devices raise and say which; batch_sizes stay on the CPU."""
    module = gru_ext.GRU(3, 4, device="cuda")
    with pytest.raises(RuntimeError, match="device"):
        module(torch.randn(5, 2, 3))
    with pytest.raises(RuntimeError, match="device"):
        module(torch.randn(5, 2, 3, device="cuda"), torch.zeros(1, 2, 4))
    module.bias_hh_l0 = nn.Parameter(torch.zeros(12))
    with pytest.raises(RuntimeError, match="parameter tensor at cpu"):
        module(torch.randn(5, 2, 3, device="cuda"))


def test_autocast() -> None:
    """CUDA autocast computes in the dtype asked for, bfloat16 included, and keeps float32 gradients."""
    module = gru_ext.GRU(8, 16, device="cuda")
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=dtype):
            output, _ = module(torch.randn(5, 2, 8, device="cuda"))
        assert output.dtype == dtype
        output.float().sum().backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_guard() -> None:
    """A module on the second GPU runs there while the first one is current."""
    module = gru_ext.GRU(8, 16, device="cuda:1")
    output, _ = module(torch.randn(5, 2, 8, device="cuda:1"))
    output.sum().backward()
    assert output.device.index == 1 and torch.cuda.current_device() == 0


def test_memory_does_not_grow() -> None:
    """The caching allocator holds as much after 200 iterations as after 20."""
    module = gru_ext.GRU(16, 64, 2, device="cuda")
    held = []
    for count in (20, 200):
        for _ in range(count):
            module(torch.randn(10, 8, 16, device="cuda"))[0].sum().backward()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert held[0] == held[1]
