"""Thread counts: the same bits from any, and neither a hang nor a collapse where there are more threads than cores."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gate
import pytest
import torch
from processes import check_python, environment
from torch.profiler import ProfilerActivity, profile

import gru_ext

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a core"
)

# Prints the milliseconds of a call: lower quartile of many. At B = 1 the threads meet after every step.
TIMED = """
import os, sys, time, torch
import gru_ext
threads, cores = int(sys.argv[1]), int(sys.argv[2])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
torch.set_num_threads(threads)
gru, data = gru_ext.GRU(64, 256), torch.randn(200, 1, 64)
times = []
with torch.no_grad():
    gru(data)
    while len(times) < 10 or sum(times) < 0.5:
        begin = time.perf_counter()
        gru(data)
        times.append(time.perf_counter() - begin)
print(1e3 * sorted(times)[len(times) // 4])
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
        given = torch.nn.utils.rnn.pack_padded_sequence(data, torch.tensor([60, 41, 40])) if packed else data
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            output, h_n = module(given)
            values = output.data if packed else output
            gradients = torch.autograd.grad(values.float().pow(2).sum() + h_n.float().sum(), wanted)
        names = [e.name for e in profiler.events() if e.name.startswith(("gru_forward_", "gru_backward_"))]
        return [values.detach(), h_n.detach(), *gradients], names

    try:
        torch.set_num_threads(1)
        expected, names = results()
        assert not any("a direction each" in name for name in names), names
        torch.set_num_threads(2)
        found, names = results()
    finally:
        torch.set_num_threads(before)
    if len(os.sched_getaffinity(0)) > 1:
        # 16-bit gradients of the input are added in turn: a second rounding would be another result
        both = not input_needs_gradient or dtype in (torch.float32, torch.float64)
        assert ["a direction each" in name for name in names] == [True, both], names
    for index, (one, two) in enumerate(zip(expected, found, strict=True)):
        assert gate.same_bits(one, two), f"result {index} differs between one thread and one for each direction"


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
    """Two processes of two threads on two cores: slower than one, for threads wait for threads, but both go on."""
    alone = float(check_python(timed_with(2, 2)))
    both = [
        subprocess.Popen([sys.executable, "-c", timed_with(2, 2)], env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    times = [float(process.communicate(timeout=120)[0]) for process in both]
    # A slice of time of the system is some 4 ms, and a call may meet several.
    assert max(times) < 10 * alone + 100, f"{times} ms for two processes at once, {alone:.2f} ms for one"


def timed_with(threads: int, cores: int) -> str:
    """TIMED with its arguments set."""
    return f"import sys; sys.argv = ['', '{threads}', '{cores}']\n{TIMED}"


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
