"""Stacked layers that overlap on the CPU: the same bits as layer by layer, and nobody waits for ever."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import gate
import pytest
import torch
from processes import check_python
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import gru_ext
from gru_ext import _C, ops

needs_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


def layer_by_layer(module: gru_ext.GRU, input: Tensor | PackedSequence, hx: Tensor | None = None) -> dict[str, Tensor]:
    """What the operators give, one after the other."""
    data, batch_sizes = (input.data, input.batch_sizes) if isinstance(input, PackedSequence) else (input, None)
    finals = []
    for index, weights in enumerate(module.all_weights):
        state = None if hx is None else hx[index : index + 1]
        options = ops.Options(batch_first=int(module.batch_first))
        data, final, _ = ops.forward(data, state, list(weights), batch_sizes, None, None, None, options, None, False)
        finals.append(final)
    return {"output": data, "h_n": torch.cat(finals)}


def at_once(module: gru_ext.GRU, input: Tensor | PackedSequence, hx: Tensor | None = None) -> dict[str, Tensor]:
    """What a call gives."""
    output, h_n = module(input, hx)
    return {"output": output.data if isinstance(output, PackedSequence) else output, "h_n": h_n}


def split(seq_len: int, batch: int, hidden_size: int, layers: int, **more: Any) -> Any:
    """How plan divides a stack."""
    sizes = {"hidden_size": hidden_size, "input_size": 24, "directions": 1, "layers": layers, **more}
    return _C.cpu_plan(torch.float32, seq_len, seq_len * batch, **sizes)["split"]


@needs_cores
def test_plan() -> None:
    """Layers overlap where each would run on one thread and a thread saves more than it costs to wake."""
    torch.set_num_threads(2)
    assert split(100, 1, 64, 2) == split(100, 1, 64, 3) == split(100, 2, 40, 4) == "layers"
    assert split(100, 1, 64, 1) == split(1, 1, 64, 2) == split(20, 1, 16, 2) == "none"
    assert split(100, 1, 144, 2) == "hidden units" and split(100, 16, 64, 2) == "batch"
    assert split(100, 1, 64, 2, directions=2) == "directions"
    assert split(100, 1, 16, 2, input_size=1000) == "none"  # the second layer has next to nothing to do
    assert split(2**62, 1, 1, 2**62, input_size=1) == "layers"
    torch.set_num_threads(1)
    assert split(100, 1, 64, 2) == "none"
    for sizes in ({"layers": 0}, {"layers": 2, "members": 2}):
        with pytest.raises(ValueError, match="expected layers of at least 1"):
            _C.cpu_plan(torch.float32, 1, 1, 4, 4, 1, **sizes)


@needs_cores
def test_explain() -> None:
    """It says so of calls that keep nothing, for every layer."""
    torch.set_num_threads(2)
    module = gru_ext.GRU(24, 64, 3)
    for training in (False, True):
        plan = gru_ext.explain(module, (100, 1, 24), training=training)
        splits = {of_pass.division["split"] for layer in plan.layers for of_pass in layer.passes}
        assert splits == ({"none"} if training else {"layers"})
        assert ("layers overlap" in str(plan)) is not training


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("target", _C.cpu_targets())
def test_same_bits(target: str, layers: int, dtype: torch.dtype, threads: int) -> None:
    """At any length, of whole chunks of steps or not, for any layout, with hx and biases and without."""
    torch.set_num_threads(threads)
    _C.set_cpu_target(target)
    for seq_len in (1, 2, 17, 24, 40, 101, 300):
        for batch, batch_first, hx, bias in ((1, False, False, True), (2, True, True, False), (3, True, True, True)):
            module = gru_ext.GRU(24, 36, layers, bias=bias, batch_first=batch_first, dtype=dtype)
            shape = (batch, seq_len, 24) if batch_first else (seq_len, batch, 24)
            input = torch.randn(shape, dtype=dtype)
            state = torch.randn(layers, batch, 36, dtype=dtype) if hx else None
            with torch.no_grad():
                expected = layer_by_layer(module, input, state)
                gate.assert_same_bits(at_once(module, input, state), expected, f"{seq_len} steps, batch {batch}")
            recorded = at_once(module, input, state)
            assert recorded["output"].requires_grad and recorded["h_n"].requires_grad
            gate.assert_same_bits({name: value.detach() for name, value in recorded.items()}, expected, "recorded")


def test_same_bits_packed_and_inference_mode() -> None:
    """Sequences of different lengths; inputs of infinity and NaN; a mode of torch's own."""
    torch.set_num_threads(2)
    if len(os.sched_getaffinity(0)) > 1:
        assert _C.cpu_plan(torch.float32, 100, 180, 24, 36, 1, layers=4)["split"] == "layers"
        # Of 8 steps each layer waits for all of the one below.
        assert _C.cpu_plan(torch.float32, 8, 32, 48, 48, 1, layers=4)["split"] == "none"
    module = gru_ext.GRU(24, 36, 4)
    packed = pack_sequence([torch.randn(length, 24) for length in (100, 77, 3)])
    special = torch.randn(100, 1, 24)
    special[50, 0, :2] = torch.tensor([torch.inf, torch.nan])
    for input in (packed, special):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                gate.assert_same_bits(at_once(module, input), layer_by_layer(module, input), mode.__name__)


@pytest.mark.parametrize("threads", [1, 2])
def test_errors(threads: int) -> None:
    """Those of nn.GRU, also where only a later layer does not fit; and what is no stack at all."""
    torch.set_num_threads(threads)
    theirs, ours = cases.twins(gru_ext.GRU, 24, 36, 3)
    input = torch.randn(100, 1, 24)
    with torch.no_grad():
        for bad in (torch.randn(2, 1, 36), torch.randn(3, 2, 36), torch.randn(3, 1, 35), torch.randn(3, 36)):
            messages = []
            for module in (theirs, ours):
                with pytest.raises(RuntimeError) as raised:
                    module(input, bad)
                messages.append(str(raised.value))
            assert messages[0] == messages[1]
        ours.weight_hh_l2 = torch.nn.Parameter(torch.randn(108, 35))
        with pytest.raises(RuntimeError):
            ours(input)
    weights = list(theirs.parameters())
    options = (1, 0, 0, -1, 0, 0)
    for layers in (2, 5, 12, 13, 2**62):
        assert _C.layer_direct(input, None, weights, None, None, None, None, options, layers) is None
    for layers, error in ((0, ValueError), (-1, ValueError), (-(2**63), ValueError), (2**63, OverflowError)):
        with pytest.raises(error):
            _C.layer_direct(input, None, weights, None, None, None, None, options, layers)
    with pytest.raises(TypeError):
        _C.layer_direct(input, None, weights, None, None, None, None, options, "3")


FORK = """
import os, signal, torch, gru_ext
torch.set_num_threads(2)
module, input = gru_ext.GRU(24, 36, 3).requires_grad_(False), torch.randn(100, 1, 24)
expected = module(input)[0]
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(not torch.equal(module(input)[0], expected))
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forking a process with threads is tested on Linux only")
def test_in_a_forked_child() -> None:
    """It has none of its parent's threads, and takes the layers in order."""
    assert check_python(FORK).strip() == "0"


def built(tmp_path: Path, code: str) -> Path:
    """A shared library of this C."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source, library = tmp_path / "part.c", tmp_path / "part.so"
    source.write_text(code)
    subprocess.run([compiler, "-shared", "-fPIC", "-fopenmp", "-o", library, source], check=True)
    return library


def test_fewer_threads_than_planned(tmp_path: Path) -> None:
    """Inside another parallel region a call has one."""
    region = "void region(void (*body)(void)) {\n#pragma omp parallel num_threads(2)\n  body();\n}\n"
    library = built(tmp_path, region)
    torch.set_num_threads(2)
    module, input = gru_ext.GRU(24, 36, 3).requires_grad_(False), torch.randn(100, 1, 24)
    results: list[dict[str, Tensor]] = []
    call = ctypes.CFUNCTYPE(None)(lambda: results.append(at_once(module, input)))
    ctypes.CDLL(str(library)).region(call)
    assert len(results) == 2
    for result in results:
        gate.assert_same_bits(result, layer_by_layer(module, input), "in a region")


ALLOCATOR = """
#include <stdlib.h>
int left = -1;
void *aligned_alloc(size_t alignment, size_t bytes) {
  void *data = 0;
  if (__atomic_load_n(&left, __ATOMIC_RELAXED) >= 0 && __atomic_fetch_sub(&left, 1, __ATOMIC_RELAXED) == 0) return 0;
  return posix_memalign(&data, alignment, bytes) ? 0 : data;
}
"""

FAILING = """
import ctypes, os, threading, torch, gru_ext
left = ctypes.c_int.in_dll(ctypes.CDLL(os.environ["LD_PRELOAD"]), "left")
module, input = gru_ext.GRU(24, 36, 3).requires_grad_(False), torch.randn(200, 1, 24)
expected = module(input)[0]
failed = 0

def attempt(allocation):  # on threads that have kept no memory of earlier calls
    global failed
    torch.set_num_threads(2)
    left.value = allocation
    try:
        module(input)
    except (MemoryError, RuntimeError) as error:
        assert "alloc" in str(error), error
        failed += 1
    left.value = -1
    assert torch.equal(module(input)[0], expected)

for allocation in range(16):
    thread = threading.Thread(target=attempt, args=(allocation,))
    thread.start()
    thread.join()
print(failed)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="replaces a function of Linux's C library")
def test_a_layer_without_memory_leaves_nobody_waiting(tmp_path: Path) -> None:
    """Whichever allocation of whichever layer fails, the call raises, and the next one works."""
    printed = check_python(FAILING, LD_PRELOAD=str(built(tmp_path, ALLOCATOR)), timeout=60)
    assert int(printed) >= 6
