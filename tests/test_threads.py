"""Thread counts: the same bits from any, and neither a hang nor a collapse where there are more threads than cores.

Threads of the pool compute as the calling thread is set to: how it rounds, and what it does with denormals.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ensembles
import gate
import pytest
import torch
from processes import check_python, environment
from torch.profiler import ProfilerActivity, profile

import gru_ext
from gru_ext import _C, ops

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a core"
)

# Prints the milliseconds of a call, the median of many.
TIMED = """
import os, sys, time, torch
import gru_ext
threads, cores = int(sys.argv[1]), int(sys.argv[2])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
torch.set_num_threads(threads)
gru, data = gru_ext.GRU(128, 128), torch.randn(128, 8, 128)
times = []
with torch.no_grad():
    gru(data)
    while len(times) < 10 or sum(times) < 0.5:
        begin = time.perf_counter()
        gru(data)
        times.append(time.perf_counter() - begin)
print(1e3 * sorted(times)[len(times) // 2])
"""


def step(module: gru_ext.GRU, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and every gradient of one training step."""
    output, h_n = module(data)
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(output.pow(2).sum() + h_n.sum(), list(parameters.values()))
    return {"output": output.detach(), **dict(zip(parameters, gradients, strict=True))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("input_needs_gradient", [False, True])
def test_a_thread_for_each_direction_changes_no_bit(
    dtype: torch.dtype, packed: bool, input_needs_gradient: bool
) -> None:
    """Steps too short to share: the directions run at the same time, and both have a part in the input's gradient."""
    before = torch.get_num_threads()
    module = gru_ext.GRU(20, 37, bidirectional=True, dtype=dtype)
    data = torch.randn(60, 3, 20).to(dtype).requires_grad_(input_needs_gradient)
    wanted = [*module.parameters(), *([data] if input_needs_gradient else [])]

    def results() -> tuple[list[torch.Tensor], list[str]]:
        sequences = torch.nn.utils.rnn.pack_padded_sequence(data, torch.tensor([60, 41, 40])) if packed else data
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            output, h_n = module(sequences)
            values = output.data if packed else output
            gradients = torch.autograd.grad(values.float().pow(2).sum() + h_n.float().sum(), wanted)
        names = [e.name for e in profiler.events() if e.name.startswith(("gru_forward_", "gru_backward_"))]
        return [values.detach(), h_n.detach(), *gradients], names

    try:
        torch.set_num_threads(1)
        expected, names = results()
        assert not any("a direction each" in name for name in names), names
        torch.set_num_threads(2)
        actual, names = results()
    finally:
        torch.set_num_threads(before)
    if len(os.sched_getaffinity(0)) > 1:
        # 16-bit gradients of the input are added in turn: a second rounding would be another result
        both = not input_needs_gradient or dtype in (torch.float32, torch.float64)
        assert ["a direction each" in name for name in names] == [True, both], names
    for index, (reference, result) in enumerate(zip(expected, actual, strict=True)):
        assert gate.same_bits(reference, result), (
            f"result {index} differs between one thread and one for each direction"
        )


@pytest.mark.parametrize("batch", [1, 9, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_set_num_threads_changes_no_bit(batch: int, dtype: torch.dtype) -> None:
    """1, 2, 3 and 8 threads, one after the other in one process."""
    before = torch.get_num_threads()
    module = gru_ext.GRU(70, 130, bidirectional=True, dtype=dtype)
    data = torch.randn(20, batch, 70).to(dtype)
    try:
        torch.set_num_threads(1)
        expected = step(module, data)
        for threads in (2, 3, 8, 1):
            torch.set_num_threads(threads)
            gate.assert_same_bits(step(module, data), expected, f"{threads} threads")
    finally:
        torch.set_num_threads(before)


@needs_affinity
@pytest.mark.alone
def test_more_threads_than_cores() -> None:
    """8 threads on one core take no more than a few times what one takes."""
    alone, crowded = (float(check_python(timed_with(threads, 1))) for threads in (1, 8))
    assert crowded < 5 * alone + 5, f"{crowded:.2f} ms with 8 threads on one core, {alone:.2f} ms with one"


@needs_affinity
@pytest.mark.alone
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_processes_on_the_same_cores() -> None:
    """Two processes of two threads on two cores take at most three times what one takes, in the best of three tries."""
    tries = []
    while len(tries) < 3 and (not tries or tries[-1][1] >= 3 * tries[-1][0]):
        alone = float(check_python(timed_with(2, 2)))
        both = [
            subprocess.Popen(
                [sys.executable, "-c", timed_with(2, 2)], env=environment(), stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        tries.append((alone, max(float(process.communicate(timeout=120)[0]) for process in both)))
    assert tries[-1][1] < 3 * tries[-1][0], f"milliseconds alone and together: {tries}"


def timed_with(threads: int, cores: int) -> str:
    """TIMED with its arguments set."""
    return f"import sys; sys.argv = ['', '{threads}', '{cores}']\n{TIMED}"


def test_fewer_threads_beside_others(tmp_path: Path) -> None:
    """Threads that keep waiting become fewer for a while; those that wait for a moment do not."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler on PATH")
    program, root = tmp_path / "crowd", Path(__file__).resolve().parent
    command = [*compiler.split(), "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{root.parent / 'csrc'}"]
    subprocess.run([*command, str(root / "crowd.cpp"), "-o", str(program)], check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == ""


def test_inside_another_parallel_region(tmp_path: Path) -> None:
    """A call from a thread of an OpenMP region runs on that thread alone, and gets the same bits."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a parallel region with")
    source, library = tmp_path / "region.c", tmp_path / "region.so"
    source.write_text("void region(void (*body)(void)) {\n#pragma omp parallel num_threads(3)\n  body();\n}\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-fopenmp", "-o", library, source], check=True)
    before = torch.get_num_threads()
    module, data = gru_ext.GRU(40, 96), torch.randn(30, 24, 40)
    results: list[dict[str, torch.Tensor]] = []
    call = ctypes.CFUNCTYPE(None)(lambda: results.append(step(module, data)))
    try:
        torch.set_num_threads(2)
        expected = step(module, data)
        ctypes.CDLL(str(library)).region(call)
    finally:
        torch.set_num_threads(before)
    assert len(results) == 3
    for index, result in enumerate(results):
        gate.assert_same_bits(result, expected, f"call {index}")


@dataclass(frozen=True)
class Division:
    """A GRU whose work two threads divide in one way, as ``_C.cpu_plan`` calls it."""

    name: str
    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    bidirectional: bool = False
    recompute: bool = False

    def __str__(self) -> str:
        return f"{self.name}-T{self.seq_len}" + ("-recompute" if self.recompute else "")

    def call(self, dtype: torch.dtype, size: float) -> Callable[[], dict[str, torch.Tensor]]:
        """What gives output, h_n and every gradient, of data and incoming gradients of this size, drawn beforehand."""
        directions = 1 + self.bidirectional
        module = gru_ext.GRU(
            self.input_size,
            self.hidden_size,
            bias=False,
            bidirectional=self.bidirectional,
            recompute=self.recompute,
            dtype=dtype,
        )

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=dtype) * size

        leaves = {
            "input": draw(self.seq_len, self.batch, self.input_size).requires_grad_(),
            "hx": draw(directions, self.batch, self.hidden_size).requires_grad_(),
            **dict(module.named_parameters()),
        }
        incoming = [draw(self.seq_len, self.batch, directions * self.hidden_size), draw(*leaves["hx"].shape)]

        def results() -> dict[str, torch.Tensor]:
            output, h_n = module(leaves["input"], leaves["hx"])
            gradients = torch.autograd.grad([output, h_n], list(leaves.values()), incoming)
            named = {f"grad {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
            return {"output": output.detach(), "h_n": h_n.detach(), **named}

        return results


DIVISIONS = [
    Division("batch", 16, 64, 32, 128),
    Division("batch", 16, 64, 32, 128, recompute=True),
    Division("hidden units", 16, 1, 64, 256),
    Division("hidden units", 2, 3, 64, 256),
    Division("directions", 128, 2, 160, 32, bidirectional=True),
]


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """The calling thread, and it alone, takes denormals for zero."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def start_pool() -> None:
    """Two threads, of which the second was there before anything was set."""
    torch.set_num_threads(2)
    torch.ones(1 << 18).add(1)


def denormals(tensor: torch.Tensor) -> int:
    """How many elements are denormal, by their bits: while they are flushed, comparisons take them for 0."""
    integer, mantissa = {torch.float32: (torch.int32, 23), torch.float64: (torch.int64, 52)}[tensor.dtype]
    magnitude = tensor.contiguous().view(integer) & torch.iinfo(integer).max
    return int(((magnitude > 0) & (magnitude < 1 << mantissa)).sum())


def on_one_and_two(results: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The results, of the same bits on both."""
    torch.set_num_threads(1)
    expected = results()
    torch.set_num_threads(2)
    gate.assert_same_bits(results(), expected, "2 threads")
    return expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", DIVISIONS, ids=str)
def test_denormals_are_flushed_on_every_thread(case: Division, dtype: torch.dtype) -> None:
    """torch.set_flush_denormal reaches the calling thread alone; the kernels' threads follow it."""
    start_pool()
    planned = _C.cpu_plan(
        dtype,
        case.seq_len,
        case.seq_len * case.batch,
        case.input_size,
        case.hidden_size,
        1 + case.bidirectional,
    )
    if len(os.sched_getaffinity(0)) > 1:
        assert (planned["threads"], planned["split"]) == (2, case.name), planned
    size = 4 * torch.finfo(dtype).tiny  # what is halved, or multiplied by a weight, becomes denormal
    results = case.call(dtype, size)
    kept = on_one_and_two(results)
    assert all(denormals(kept[name]) for name in ("output", "h_n", "grad input", "grad hx"))
    with flushed_denormals():
        flushed = on_one_and_two(results)
        assert not {name: count for name, value in flushed.items() if (count := denormals(value))}


def test_denormals_of_members() -> None:
    """The same where each thread takes whole members of an ensemble."""
    start_pool()
    case = ensembles.Ensemble(40, 20, 4, 8, 16, bias=False)
    arguments = ensembles.arguments(case)
    small = {name: arguments[name] * 2.0**-122 for name in ("input", "hx")}

    def results() -> dict[str, torch.Tensor]:
        output, h_n, _ = ops.forward(*{**arguments, **small}.values(), False)
        return {"output": output, "h_n": h_n}

    assert all(denormals(value) for value in on_one_and_two(results).values())
    with flushed_denormals():
        assert not any(denormals(value) for value in on_one_and_two(results).values())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="what rounds upward is not known here")
@pytest.mark.parametrize("case", DIVISIONS, ids=str)
def test_every_thread_rounds_alike(case: Division) -> None:
    """The calling thread rounds upward: all do."""
    start_pool()
    results = case.call(torch.float32, 1.0)
    usual = on_one_and_two(results)
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]
    library = ctypes.CDLL(None)
    assert library.fesetround(upward) == 0
    try:
        other = on_one_and_two(results)
    finally:
        library.fesetround(0)
    assert not torch.equal(usual["output"], other["output"])


def test_threads_get_their_own_setting_back() -> None:
    """What torch's own operators do with denormals on the pool's threads is the same after a call as before it."""
    start_pool()
    small, results = torch.full((1 << 18,), 2.0**-130), DIVISIONS[0].call(torch.float32, 1.0)
    with flushed_denormals():
        before = small.add(small)
        results()
        after = small.add(small)
    assert denormals(before) == denormals(after)
    if len(os.sched_getaffinity(0)) > 1:
        assert 0 < denormals(before) < len(small)  # the calling thread flushes, the other one does not
